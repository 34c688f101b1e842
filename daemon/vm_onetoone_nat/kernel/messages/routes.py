"""Route messages of rtnetlink, for default routes only (linux/rtnetlink.h). Pure."""

import struct
from collections.abc import Iterator

from vm_onetoone_nat.kernel.messages import rtnetlink
from vm_onetoone_nat.kernel.messages.rtnetlink import Answer, attributes
from vm_onetoone_nat.model.family import Family, unpacked
from vm_onetoone_nat.model.links import DefaultRoute, Hop

# rtmsg: family, lengths of destination and source, tos, table, protocol, scope, type; flags
_MESSAGE = struct.Struct("=BBBBBBBBI")
_HOP = struct.Struct("=HBBI")  # rtnexthop: length, flags, hops, index
_NUMBER = struct.Struct("=I")

_GET, _MAIN_TABLE = 26, 254
_OUTPUT, _GATEWAY, _PRIORITY, _MULTIPATH = 4, 5, 6, 9  # RTA_*


def listing(family: Family) -> bytes:
    """The request for the routes of the main table.

    On a socket without NETLINK_GET_STRICT_CHK the kernel dumps the local table too, which has one
    route for each address.
    """
    body = _MESSAGE.pack(family.number, 0, 0, 0, _MAIN_TABLE, 0, 0, 0, 0)
    return rtnetlink.listing(_GET, body)


def default_routes(answer: Answer) -> Iterator[DefaultRoute]:
    """The default routes in one datagram of a dump. Raises struct.error."""
    data = answer.data
    for start, end in answer.messages:
        _, destination, _, _, table, _, _, _, _ = _MESSAGE.unpack_from(data, start)
        if destination or table != _MAIN_TABLE:
            continue
        priority = 0
        several: tuple[Hop, ...] = ()
        for kind, at, until in attributes(data, start + _MESSAGE.size, end):
            if kind == _PRIORITY:
                (priority,) = _NUMBER.unpack_from(data, at)
            elif kind == _MULTIPATH:
                several = tuple(_hops(data, at, until))
        hops = several or _hop(data, start + _MESSAGE.size, end, 0)
        yield DefaultRoute(priority, hops)


def _hops(data: bytes, offset: int, end: int) -> Iterator[Hop]:
    while offset < end:
        length, _, _, index = _HOP.unpack_from(data, offset)
        if length < _HOP.size:
            raise struct.error(f"a hop of {length} bytes")
        yield from _hop(data, offset + _HOP.size, offset + length, index)
        offset += length + 3 & ~3


def _hop(data: bytes, offset: int, end: int, index: int) -> tuple[Hop, ...]:
    """The hop in these attributes; none for a route without an interface."""
    gateway = None
    for kind, at, until in attributes(data, offset, end):
        if kind == _OUTPUT:
            (index,) = _NUMBER.unpack_from(data, at)
        elif kind == _GATEWAY:
            gateway = unpacked(data[at:until])
    return (Hop(index, gateway),) if index else ()
