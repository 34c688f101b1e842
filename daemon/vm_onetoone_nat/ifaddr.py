"""rtnetlink's address messages as bytes (rtnetlink(7), linux/if_addr.h), by the thousand.

Pure. pyroute2 builds one of them in 180 µs and reads one in 50, which is its generality; a pass
over thousands of addresses has less than that for each.
"""

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface
from typing import NamedTuple

from vm_onetoone_nat.state import interface

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence number, port
_ADDRESS = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix length, flags, scope, index
_ATTRIBUTE = struct.Struct("=HH")
_ERROR = struct.Struct("=i")

_AF_INET = 2
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NEW_ADDRESS, _DELETE_ADDRESS, _GET_ADDRESS = 20, 21, 22
_REQUEST, _ACK, _DUMP_INTERRUPTED, _EXCLUSIVE, _DUMP, _CREATE = 0x1, 0x4, 0x10, 0x200, 0x300, 0x400
_LOCAL, _BROADCAST, _FLAGS, _PROTOCOL = 2, 4, 8, 11  # IFA_*
_NOPREFIXROUTE = 0x200  # IFA_F_NOPREFIXROUTE: the uplink's own route to the subnet is enough


class Entry(NamedTuple):
    """An address as the kernel lists it."""

    ifindex: int
    interface: IPv4Interface
    broadcast: IPv4Address | None
    protocol: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a request. `results` has the error number of each message, 0 for success.

    `done` tells that a listing has ended, `interrupted` that it changed while it was read.
    """

    entries: tuple[Entry, ...]
    results: Mapping[int, int]
    done: bool
    interrupted: bool


def listing() -> bytes:
    """The request for all IPv4 addresses."""
    return _message(_GET_ADDRESS, _REQUEST | _DUMP, 0, _ADDRESS.pack(_AF_INET, 0, 0, 0, 0))


def additions(
    index: int, wanted: Iterable[tuple[IPv4Interface, IPv4Address | None]], proto: int
) -> bytes:
    """Messages that add addresses with their broadcast, numbered from 0.

    Each that fails is answered, and the last in any case.
    """
    flags = _REQUEST | _CREATE | _EXCLUSIVE
    more = _attribute(_FLAGS, struct.pack("=I", _NOPREFIXROUTE))
    more += _attribute(_PROTOCOL, bytes([proto]))
    bodies = [
        _body(index, each) + (_attribute(_BROADCAST, broadcast.packed) if broadcast else b"") + more
        for each, broadcast in wanted
    ]
    return _messages(_NEW_ADDRESS, flags, bodies)


def deletions(index: int, unwanted: Iterable[IPv4Interface]) -> bytes:
    """Messages that delete addresses, as `additions`."""
    return _messages(_DELETE_ADDRESS, _REQUEST, [_body(index, each) for each in unwanted])


def parse(data: bytes) -> Answer:
    """One datagram of the kernel's."""
    entries: list[Entry] = []
    results: dict[int, int] = {}
    done = interrupted = False
    offset = 0
    while offset < len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        interrupted |= bool(flags & _DUMP_INTERRUPTED)
        content = offset + _HEADER.size
        if kind == _NEW_ADDRESS:
            entry = _entry(data, content, offset + length)
            if entry is not None:
                entries.append(entry)
        elif kind == _NLMSG_ERROR:
            (error,) = _ERROR.unpack_from(data, content)
            results[sequence] = -error
        done |= kind == _NLMSG_DONE
        offset += _aligned(length)
    return Answer(tuple(entries), results, done, interrupted)


def _entry(data: bytes, offset: int, end: int) -> Entry | None:
    """The address in a message; None for one that is no interface's own."""
    _, prefixlen, _, _, ifindex = _ADDRESS.unpack_from(data, offset)
    local = broadcast = None
    protocol = 0
    offset += _ADDRESS.size
    while offset < end:
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if kind == _LOCAL:
            local = data[offset + 4 : offset + 8]
        elif kind == _BROADCAST:
            broadcast = IPv4Address(data[offset + 4 : offset + 8])
        elif kind == _PROTOCOL:
            protocol = data[offset + 4]
        offset += _aligned(length)
    if local is None:
        return None
    return Entry(ifindex, interface(local, prefixlen), broadcast, protocol)


def _body(index: int, each: IPv4Interface) -> bytes:
    header = _ADDRESS.pack(_AF_INET, each.network.prefixlen, 0, 0, index)
    return header + _attribute(_LOCAL, each.packed)


def _messages(kind: int, flags: int, bodies: Sequence[bytes]) -> bytes:
    last = len(bodies) - 1
    return b"".join(
        _message(kind, flags | (_ACK if number == last else 0), number, body)
        for number, body in enumerate(bodies)
    )


def _message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, 0) + body


def _attribute(kind: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(_aligned(length) - length)


def _aligned(length: int) -> int:
    return length + 3 & ~3
