"""Neighbour messages of rtnetlink: entries of the neighbour table and of bridges' tables. Pure.

linux/neighbour.h. pyroute2 takes 50 µs to read one, and a guest may forge tens of thousands.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from vm_onetoone_nat.kernel.messages import rtnetlink
from vm_onetoone_nat.kernel.messages.rtnetlink import Answer, attribute, attributes
from vm_onetoone_nat.model.family import FAMILIES, Family, IPAddress, family_of, unpacked

NEW, DELETE, GET = 28, 29, 30  # RTM_*NEIGH
BRIDGE = 7  # AF_BRIDGE

# ndmsg: family, interface index, state, flags, type.
_MESSAGE = struct.Struct("=B3xiHBB")
_TIMES = struct.Struct("=III")  # nda_cacheinfo: confirmed, used, updated
_NUMBER = struct.Struct("=I")
_ADDRESS, _MAC, _CACHE, _VLAN, _MASTER = 1, 2, 3, 5, 9  # NDA_*
_REPLACE = 0x100  # NLM_F_REPLACE
_TICKS = 100  # in a second: USER_HZ

_WITH_ADDRESS = frozenset(family.number for family in FAMILIES)


class Entry(NamedTuple):
    """One entry. `age`: the time since it was confirmed or changed, in s. `state`: NUD_*.

    An entry of a bridge has no address; its interface is a port of the bridge. The address of a
    family that mappings do not have is not read.
    """

    family: int
    ifindex: int
    state: int
    address: IPAddress | None = None
    mac: str | None = None
    age: float = 0.0


def listing(family: Family) -> bytes:
    """The request for the neighbour table of a family."""
    return rtnetlink.listing(GET, _MESSAGE.pack(family.number, 0, 0, 0, 0))


def lookups(asked: Sequence[tuple[int, str, int | None]]) -> bytes:
    """Requests for the port behind a MAC, by bridge, MAC and VLAN, numbered from 0 (kernel 5.0)."""
    return b"".join(
        rtnetlink.request(GET, _lookup(*each), sequence=number) for number, each in enumerate(asked)
    )


def change(ifindex: int, address: IPAddress, mac: str, state: int) -> bytes:
    """The request to give an entry that exists another state, which is answered."""
    fixed = _MESSAGE.pack(family_of(address).number, ifindex, state, 0, 0)
    body = fixed + attribute(_ADDRESS, address.packed) + attribute(_MAC, _packed(mac))
    return rtnetlink.changes(NEW, _REPLACE, [body])


def entries(answer: Answer) -> Iterator[Entry]:
    """The entries in one datagram."""
    for start, end in answer.messages:
        yield parse(answer.data, start, end)


def parse(data: bytes, start: int, end: int) -> Entry:
    """The entry in a message without its header."""
    family, ifindex, state, _, _ = _MESSAGE.unpack_from(data, start)
    address = mac = None
    age = 0.0
    for kind, at, until in attributes(data, start + _MESSAGE.size, end):
        if kind == _MAC and until - at == 6:
            mac = data[at:until].hex(":")
        elif kind == _ADDRESS and family in _WITH_ADDRESS:
            address = unpacked(data[at:until])
        elif kind == _CACHE:
            confirmed, _, updated = _TIMES.unpack_from(data, at)
            age = min(confirmed, updated) / _TICKS
    return Entry(family, ifindex, state, address, mac, age)


def _packed(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def _lookup(bridge: int, mac: str, vlan: int | None) -> bytes:
    body = _MESSAGE.pack(BRIDGE, 0, 0, 0, 0)
    body += attribute(_MAC, _packed(mac))
    body += attribute(_MASTER, _NUMBER.pack(bridge))
    return body if vlan is None else body + attribute(_VLAN, struct.pack("=H", vlan))
