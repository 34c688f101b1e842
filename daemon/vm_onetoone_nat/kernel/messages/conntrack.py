"""ctnetlink's messages: entries of connection tracking (linux/netfilter/nfnetlink_conntrack.h).

Pure. pyroute2 takes 400 µs to read an entry. There may be hundreds of thousands, so an entry of no
wanted address is skipped by one comparison, and of the others only what is compared is read.
"""

import struct
from collections.abc import Container, Iterator
from dataclasses import dataclass
from functools import cache

from vm_onetoone_nat.kernel.messages import rtnetlink
from vm_onetoone_nat.kernel.messages.rtnetlink import attribute
from vm_onetoone_nat.model.family import Family
from vm_onetoone_nat.model.flow import Flow

_SUBSYSTEM = 1 << 8  # NFNL_SUBSYS_CTNETLINK
_NEW, _GET, _DELETE, _GET_STATS = (_SUBSYSTEM | kind for kind in (0, 1, 2, 5))
_NESTED, _KIND = 0x8000, 0x3FFF  # NLA_F_NESTED, NLA_TYPE_MASK
_ORIGINAL, _REPLY, _ID, _ZONE, _FILTER = 1, 2, 12, 18, 25  # CTA_*
_IP, _PROTOCOL = 1, 2  # CTA_TUPLE_*
_NUMBER = 1  # CTA_PROTO_NUM
_ORIGINAL_FLAGS, _REPLY_FLAGS = 1, 2  # CTA_FILTER_*
_BY_SOURCE, _BY_DESTINATION = 1 << 0, 1 << 1  # CTA_FILTER_FLAG(CTA_IP_SRC), …(CTA_IP_DST)
_ENTRIES = 1  # CTA_STATS_GLOBAL_ENTRIES

_HEADER = struct.Struct("=IH10x")  # nlmsghdr: length, type
_MESSAGE = struct.Struct("=BBH")  # nfgenmsg: family, version, resource
_ATTRIBUTE = struct.Struct("=HH")
_FLAGS = struct.Struct("=I")
_ERROR = struct.Struct("=i")
_LAST = struct.Struct("=6xH8xi")  # nlmsghdr: flags; error number

_EINTR = 4
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_DUMP_INTERRUPTED = 0x10  # NLM_F_DUMP_INTR

Entry = bytes
"""An entry as the kernel lists it, without the netlink header."""


@dataclass(frozen=True, slots=True)
class Part:
    """One datagram of a listing: the wanted entries.

    `result` is None if more datagrams follow, 0 at the end of the listing, or an error number.
    """

    found: tuple[tuple[Flow, Entry], ...]
    result: int | None


def listing(
    family: Family, *, source: bytes | None = None, destination: bytes | None = None
) -> bytes:
    """The request for all entries of a family, or those with this address in their first packet.

    Kernels before 5.8 ignore the address.
    """
    body = _MESSAGE.pack(family.number, 0, 0)
    addresses = tuple(zip(family.tuple_addresses, (source, destination), strict=True))
    if source or destination:
        wanted = b"".join(attribute(kind, packed) for kind, packed in addresses if packed)
        flags = (_BY_SOURCE if source else 0) | (_BY_DESTINATION if destination else 0)
        body += _nest(_ORIGINAL, _nest(_IP, wanted))
        body += _nest(
            _FILTER,
            attribute(_ORIGINAL_FLAGS, _FLAGS.pack(flags)) + attribute(_REPLY_FLAGS, bytes(4)),
        )
    return rtnetlink.listing(_GET, body)


def parse_listing(
    data: bytes, family: Family, sources: Container[bytes], destinations: Container[bytes]
) -> Part:
    """Parse a datagram of a listing: the entries whose first packet had one of these addresses.

    Raises ValueError if the datagram is malformed.
    """
    found: list[tuple[Flow, Entry]] = []
    layout = _layout(family)
    # No check of the end in the loop: the last message may be shorter than the layout.
    padded = data + bytes(layout.message.size)
    unpack, usual = layout.message.unpack_from, (layout.original, layout.between)
    offset, end = 0, len(data)
    while offset < end:
        length, kind, before, source, between, destination = unpack(padded, offset)
        if length < rtnetlink.HEADER_SIZE or offset + length > end:
            raise ValueError("a message is longer than its datagram, or shorter than its header")
        if kind != _NEW:
            return Part(tuple(found), _result(data, kind, offset))
        wanted = destination in destinations or source in sources
        if wanted or (before, between) != usual:
            entry = data[offset + _HEADER.size : offset + length]
            flow = _usual_flow(entry, layout) or _flow(entry, family)
            if flow.destination in destinations or flow.source in sources:
                found.append((flow, entry))
        offset += length + 3 & ~3
    return Part(tuple(found), None)


def deletion(entry: Entry) -> bytes:
    """The request to delete exactly this entry; the kernel answers only if that fails.

    Raises ValueError for an entry without addresses: a deletion without them would empty the table.
    """
    kept = {
        kind & _KIND: attribute(kind, entry[start:end])
        for kind, start, end in _attributes(entry, (_MESSAGE.size, len(entry)))
        if kind & _KIND in (_ORIGINAL, _ZONE, _ID)
    }
    if _ORIGINAL not in kept:
        raise ValueError("an entry of connection tracking has no addresses")
    return rtnetlink.request(_DELETE, entry[: _MESSAGE.size] + b"".join(kept.values()))


def parse_errors(data: bytes) -> Iterator[int]:
    """The error numbers in a datagram of answers to deletions."""
    offset = 0
    while offset + _HEADER.size + _ERROR.size <= len(data):
        length, kind = _HEADER.unpack_from(data, offset)
        if kind == _NLMSG_ERROR:
            yield -_ERROR.unpack_from(data, offset + _HEADER.size)[0]
        offset += max(length, _HEADER.size) + 3 & ~3


def counting() -> bytes:
    """The request for the number of entries in this network namespace, of all families."""
    return rtnetlink.request(_GET_STATS, _MESSAGE.pack(0, 0, 0))


def parse_count(data: bytes) -> int:
    """The number in the answer. Raises ValueError if it has none."""
    start, _ = _find(data, (_HEADER.size + _MESSAGE.size, len(data)), _ENTRIES)
    return int.from_bytes(data[start : start + 4], "big")


def _result(data: bytes, kind: int, offset: int) -> int:
    """The number in the last message of a listing; EINTR if entries may have been left out."""
    if kind not in (_NLMSG_ERROR, _NLMSG_DONE) or offset + _LAST.size > len(data):
        raise ValueError(f"a listing of connection tracking has a message of type {kind}")
    flags, error = _LAST.unpack_from(data, offset)
    return _EINTR if flags & _DUMP_INTERRUPTED else -int(error)


@dataclass(frozen=True, slots=True)
class _Layout:
    """How kernels write an entry, so that it is read at once: it may have another order.

    `message`: down to the addresses of the first packet. `tuple`: a direction, down to the number
    of its protocol. Both have in them, as bytes, the headers of all attributes in between, which
    are `original` or `reply`, `between` and `protocol` in this layout.
    """

    message: struct.Struct
    tuple: struct.Struct
    original: bytes
    reply: bytes
    between: bytes
    protocol: bytes


@cache
def _layout(family: Family) -> _Layout:
    size = family.bits // 8
    source, destination = family.tuple_addresses
    addresses = _ATTRIBUTE.pack(_ATTRIBUTE.size + 2 * (_ATTRIBUTE.size + size), _IP | _NESTED)
    addresses += _ATTRIBUTE.pack(_ATTRIBUTE.size + size, source)
    kind = struct.Struct("=H")
    return _Layout(
        struct.Struct(f"=IH10x{_MESSAGE.size}x2x10s{size}s4s{size}s"),
        struct.Struct(f"=H10s{size}s4s{size}s2x6sB"),
        original=kind.pack(_ORIGINAL | _NESTED) + addresses,
        reply=kind.pack(_REPLY | _NESTED) + addresses,
        between=_ATTRIBUTE.pack(_ATTRIBUTE.size + size, destination),
        protocol=kind.pack(_PROTOCOL | _NESTED) + _ATTRIBUTE.pack(_ATTRIBUTE.size + 1, _NUMBER),
    )


def _usual_flow(entry: Entry, layout: _Layout) -> Flow | None:
    """The flow of an entry in this layout; None if it has another one."""
    unpack = layout.tuple.unpack_from
    try:
        size, one, source, two, destination, three, protocol = unpack(entry, _MESSAGE.size)
        at = _MESSAGE.size + (size + 3 & ~3)
        _, four, reply_source, five, reply_destination, _, _ = unpack(entry, at)
    except struct.error:
        return None
    headers = (one, two, three, four, five)
    usual = (layout.original, layout.between, layout.protocol, layout.reply, layout.between)
    if headers != usual:
        return None
    return Flow(source, destination, reply_source, reply_destination, protocol)


def _flow(entry: Entry, family: Family) -> Flow:
    """The flow of an entry in any layout. Raises ValueError."""
    source, destination = family.tuple_addresses
    everything = _MESSAGE.size, len(entry)
    original, reply = _find(entry, everything, _ORIGINAL), _find(entry, everything, _REPLY)
    there, back = _find(entry, original, _IP), _find(entry, reply, _IP)
    number, _ = _find(entry, _find(entry, original, _PROTOCOL), _NUMBER)
    return Flow(
        entry[slice(*_find(entry, there, source))],
        entry[slice(*_find(entry, there, destination))],
        entry[slice(*_find(entry, back, source))],
        entry[slice(*_find(entry, back, destination))],
        entry[number],
    )


def _find(data: bytes, within: tuple[int, int], kind: int) -> tuple[int, int]:
    """The start and end of the value of the first attribute of a kind in a range of `data`."""
    for found, start, end in _attributes(data, within):
        if found & _KIND == kind:
            return start, end
    raise ValueError(f"an entry of connection tracking has no attribute {kind}")


def _attributes(data: bytes, within: tuple[int, int]) -> Iterator[tuple[int, int, int]]:
    """The attributes in a range of `data`: kind with its flags, start and end of the value."""
    offset, end = within
    while offset < end:
        length, kind = _ATTRIBUTE.unpack_from(data, offset) if end - offset >= 4 else (0, 0)
        if length < _ATTRIBUTE.size or offset + length > end:
            raise ValueError("an attribute is longer than its message, or shorter than its header")
        yield kind, offset + _ATTRIBUTE.size, offset + length
        offset += length + 3 & ~3


def _nest(kind: int, value: bytes) -> bytes:
    return attribute(kind | _NESTED, value)
