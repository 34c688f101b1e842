"""Address messages of rtnetlink (linux/if_addr.h). Pure."""

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from vm_onetoone_nat.kernel.messages import rtnetlink
from vm_onetoone_nat.kernel.messages.rtnetlink import Answer, attribute, attributes
from vm_onetoone_nat.model.family import (
    Family,
    IPAddress,
    IPInterface,
    family_of,
    interface,
    unpacked,
)

_MESSAGE = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix length, flags, scope, index

_NEW, _DELETE, _GET = 20, 21, 22
_EXCLUSIVE, _CREATE = 0x200, 0x400
_LOCAL, _BROADCAST, _FLAGS, _PROTOCOL = 2, 4, 8, 11  # IFA_*
_NOPREFIXROUTE = 0x200  # IFA_F_NOPREFIXROUTE: the uplink has a route to the subnet already


class ListedAddress(NamedTuple):
    """An address as the kernel lists it."""

    ifindex: int
    interface: IPInterface
    broadcast: IPAddress | None
    protocol: int


def listing(family: Family) -> bytes:
    """The request for all addresses of a family."""
    return rtnetlink.listing(_GET, _MESSAGE.pack(family.number, 0, 0, 0, 0))


def additions(
    index: int, wanted: Iterable[tuple[IPInterface, IPAddress | None]], proto: int
) -> bytes:
    """Requests to add addresses with their broadcast."""
    more = attribute(_FLAGS, struct.pack("=I", _NOPREFIXROUTE))
    more += attribute(_PROTOCOL, bytes([proto]))
    bodies = [
        _body(index, each) + (attribute(_BROADCAST, broadcast.packed) if broadcast else b"") + more
        for each, broadcast in wanted
    ]
    return rtnetlink.changes(_NEW, _CREATE | _EXCLUSIVE, bodies)


def deletions(index: int, unwanted: Iterable[IPInterface]) -> bytes:
    """Requests to delete addresses."""
    return rtnetlink.changes(_DELETE, 0, [_body(index, each) for each in unwanted])


def listed_addresses(answer: Answer) -> Iterator[ListedAddress]:
    """The addresses in one datagram of a dump. Raises struct.error."""
    data = answer.data
    for start, end in answer.messages:
        _, prefixlen, _, _, ifindex = _MESSAGE.unpack_from(data, start)
        local = broadcast = None
        protocol = 0
        for kind, at, until in attributes(data, start + _MESSAGE.size, end):
            if kind == _LOCAL:
                local = data[at:until]
            elif kind == _BROADCAST:
                broadcast = unpacked(data[at:until])
            elif kind == _PROTOCOL:
                protocol = data[at]
        if local is not None:
            yield ListedAddress(ifindex, interface(local, prefixlen), broadcast, protocol)


def _body(index: int, each: IPInterface) -> bytes:
    header = _MESSAGE.pack(family_of(each).number, each.network.prefixlen, 0, 0, index)
    return header + attribute(_LOCAL, each.packed)
