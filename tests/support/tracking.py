"""Entries of connection tracking: as ctnetlink's messages, in the kernel, and in a fake of it.

Written from linux/netfilter/nfnetlink_conntrack.h, and not with the daemon's own functions.
"""

import errno
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Self

TCP, UDP, ICMP, SCTP, UDPLITE, ICMPV6 = 6, 17, 1, 132, 136, 58
UNKNOWN = 253
"""For experiments (RFC 3692): the kernel tracks it without ports."""

_NEW, _GET, _DELETE, _GET_STATS = 0x100, 0x101, 0x102, 0x105
_REQUEST, _CREATE, _EXCLUSIVE, _DUMP = 0x1, 0x400, 0x200, 0x300
_ERROR, _DONE = 2, 3
_NESTED = 0x8000
_HEADER = struct.Struct("=IHHII")
_BATCH = 200

IPAddress = IPv4Address | IPv6Address


@dataclass(frozen=True)
class Direction:
    """The first packet of a direction. `ports`: source and destination, or ICMP's id."""

    source: IPAddress
    destination: IPAddress
    protocol: int = UDP
    ports: tuple[int, int] = (1024, 53)

    @property
    def reversed(self) -> "Direction":
        """The answer to it."""
        return Direction(self.destination, self.source, self.protocol, self.ports[::-1])

    def attribute(self, kind: int) -> bytes:
        """It as CTA_TUPLE_ORIG (1) or CTA_TUPLE_REPLY (2)."""
        source, destination = (1, 2) if self.source.version == 4 else (3, 4)
        addresses = attribute(source, self.source.packed)
        addresses += attribute(destination, self.destination.packed)
        protocol = attribute(1, bytes([self.protocol]))
        if self.protocol in (ICMP, ICMPV6):
            id_, type_, code = (4, 5, 6) if self.protocol == ICMP else (7, 8, 9)
            request, reply = (8, 0) if self.protocol == ICMP else (128, 129)
            protocol += attribute(id_, struct.pack(">H", max(self.ports)))
            protocol += attribute(type_, bytes([request if kind == 1 else reply]))
            protocol += attribute(code, b"\0")
        elif self.protocol != UNKNOWN:
            protocol += attribute(2, struct.pack(">H", self.ports[0]))
            protocol += attribute(3, struct.pack(">H", self.ports[1]))
        nested = attribute(1 | _NESTED, addresses) + attribute(2 | _NESTED, protocol)
        return attribute(kind | _NESTED, nested)


@dataclass(frozen=True)
class Entry:
    """An entry: the first packet, and the answer that belongs to it, which NAT has changed."""

    original: Direction
    reply: Direction
    zone: int = 0

    @property
    def family(self) -> int:
        """AF_*."""
        return socket.AF_INET if self.original.source.version == 4 else socket.AF_INET6

    @property
    def key(self) -> tuple[int, int, bytes]:
        """What no two entries have in common: family, zone, the first packet."""
        return self.family, self.zone, attributes(self.original.attribute(1))[1]

    def creation(self) -> bytes:
        """The message that has the kernel make it, for ten minutes."""
        timeout = attribute(7, struct.pack(">I", 600))
        return _message(_NEW, _REQUEST | _CREATE | _EXCLUSIVE, self._body(timeout))

    def listed(self, number: int) -> bytes:
        """The message in which the kernel lists it, with this CTA_ID."""
        more = attribute(3, struct.pack(">I", 0x18A)) + attribute(12, struct.pack(">I", number))
        return _message(_NEW, 0x22, self._body(more))

    def _body(self, more: bytes) -> bytes:
        zone = attribute(18, struct.pack(">H", self.zone)) if self.zone else b""
        tuples = self.original.attribute(1) + self.reply.attribute(2)
        return struct.pack("=BBH", self.family, 0, 0) + tuples + zone + more


def udp_flow(source: IPAddress, destination: IPAddress, port: int = 1024) -> Entry:
    """A flow that nobody translates."""
    there = Direction(source, destination, UDP, (port, 53))
    return Entry(there, there.reversed)


def present() -> set[tuple[int, int, bytes]]:
    """The `key` of each entry in the network namespace of this process, of all families."""
    found: set[tuple[int, int, bytes]] = set()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as netlink:
        netlink.bind((0, 0))
        netlink.send(_message(_GET, _REQUEST | _DUMP, bytes(4)))
        while True:
            data, offset = netlink.recv(1 << 16), 0
            while offset < len(data):
                length, kind, *_ = _HEADER.unpack_from(data, offset)
                if kind != _NEW:
                    return found
                body = data[offset + _HEADER.size : offset + length]
                entry = attributes(body[4:])
                (zone,) = struct.unpack(">H", entry.get(18, bytes(2)))
                found.add((body[0], zone, entry[1]))
                offset += length + 3 & ~3


def create(entries: Iterable[Entry]) -> None:
    """Make entries in the network namespace of this process."""
    send(entry.creation() for entry in entries)


def send(messages: Iterable[bytes]) -> None:
    """Send messages that have the kernel make entries; AssertionError if it refuses one."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as netlink:
        netlink.bind((0, 0))
        batch: list[bytes] = []
        for message in messages:
            batch.append(message)
            if len(batch) == _BATCH:
                _send(netlink, batch)
                batch.clear()
        if batch:
            _send(netlink, batch)


def many(example: Entry, count: int) -> Iterator[bytes]:
    """The messages for so many entries like this one: the address that is not translated differs.

    That is the source of the first packet: ten times faster than one `creation` after another.
    """
    message, size = example.creation(), len(example.original.source.packed)
    first = int(example.original.source)
    assert message.count(example.original.source.packed) == 2
    before, between, after = message.split(example.original.source.packed)
    for number in range(first, first + count):
        packed = number.to_bytes(size, "big")
        yield b"".join((before, packed, between, packed, after))


def _send(netlink: socket.socket, batch: list[bytes]) -> None:
    netlink.send(b"".join(batch))
    try:
        data = netlink.recv(1 << 16, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return
    (error,) = struct.unpack_from("=i", data, _HEADER.size)
    raise AssertionError(f"the kernel refuses an entry: {errno.errorcode[-error]}")


class FakeTracking:
    """The kernel's table, for sockets that `connect` makes.

    It lists entries in the order of their numbers, a few in each datagram, when the datagram is
    received: an entry that is new behind that place is not listed, and one that is gone is not
    either. `fail` is raised by the next `recv`.
    """

    def __init__(self, entries: Iterable[Entry] = (), *, in_datagram: int = 3) -> None:
        self.entries: dict[int, Entry] = {}
        self.deleted: list[Entry] = []
        self.refused: set[Entry] = set()
        self.requests: list[int] = []
        self.fail: OSError | None = None
        self.in_datagram = in_datagram
        self._numbers: dict[tuple[int, int, bytes], int] = {}
        self._added = 0
        for entry in entries:
            self.add(entry)

    def add(self, entry: Entry) -> None:
        """Add an entry, at a place that has nothing to do with its age; the kernel has one of each.

        Entries with the same first packet differ in their zone.
        """
        assert entry.key not in self._numbers
        self._added += 1
        # A permutation of 32 bits.
        number = self._added * 2654435761 & 0xFFFFFFFF
        self.entries[number] = entry
        self._numbers[entry.key] = number

    def connect(self) -> "FakeSocket":
        """A socket of ctnetlink."""
        return FakeSocket(self)

    def delete(self, key: tuple[int, int, bytes], number: int | None) -> int:
        """Delete an entry, if it has this number; the error number of that."""
        found = self._numbers.get(key)
        if found is None or number not in (found, None):
            return errno.ENOENT
        if self.entries[found] in self.refused:
            return errno.EBUSY
        del self._numbers[key]
        self.deleted.append(self.entries.pop(found))
        return 0


class FakeSocket:
    """One socket: what is sent is done at once, and a listing continues with each `recv`."""

    def __init__(self, table: FakeTracking) -> None:
        self._table = table
        self._answers: list[bytes] = []
        self._listing: tuple[int, dict[int, bytes]] | None = None
        self._place = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def send(self, data: bytes) -> int:
        """Handle requests."""
        offset = 0
        while offset < len(data):
            length, kind, flags, _, _ = _HEADER.unpack_from(data, offset)
            self._table.requests.append(kind)
            body = data[offset + _HEADER.size : offset + length]
            found = attributes(body[4:])
            if kind == _GET_STATS:
                count = attribute(1, struct.pack(">I", len(self._table.entries)))
                self._answers.append(_message(_GET_STATS, 0, bytes(4) + count))
            elif kind == _GET:
                assert flags & _DUMP == _DUMP
                self._listing, self._place = (body[0], found), -1
            else:
                assert kind == _DELETE
                self._delete(body[0], found)
            offset += length + 3 & ~3
        return len(data)

    def recv(self, _size: int, flags: int = 0) -> bytes:
        """The next answer, or datagram of a listing."""
        if self._table.fail is not None:
            failure, self._table.fail = self._table.fail, None
            raise failure
        if self._answers:
            return self._answers.pop(0)
        if self._listing is None:
            assert flags & socket.MSG_DONTWAIT, "it would never return"
            raise BlockingIOError
        family, wanted = self._listing
        after = sorted(n for n in self._table.entries if n > self._place)
        numbers = [n for n in after if _matches(self._table.entries[n], family, wanted)]
        if not numbers:
            self._listing = None
            return _message(_DONE, 0x2, bytes(4))
        here = numbers[: self._table.in_datagram]
        self._place = here[-1]
        return b"".join(self._table.entries[n].listed(n) for n in here)

    def _delete(self, family: int, found: dict[int, bytes]) -> None:
        assert 1 in found, "without addresses it would empty the table"
        number = struct.unpack(">I", found[12])[0] if 12 in found else None
        (zone,) = struct.unpack(">H", found[18]) if 18 in found else (0,)
        error = self._table.delete((family, zone, found[1]), number)
        if error:
            self._answers.append(_message(_ERROR, 0, struct.pack("=i", -error) + bytes(16)))


def _matches(entry: Entry, family: int, wanted: dict[int, bytes]) -> bool:
    """Whether a listing has an entry; like the kernel's, its filter of IPv6 is the wrong one."""
    if entry.family != family:
        return False
    if 25 not in wanted:
        return True
    (flags,) = struct.unpack("=I", attributes(wanted[25])[1])
    addresses = attributes(attributes(wanted[1])[1])
    first = 1 if family == socket.AF_INET else 3
    compared = []
    for flag, kind, address in (
        (1, first, entry.original.source),
        (2, first + 1, entry.original.destination),
    ):
        if flags & flag:
            compared.append(addresses[kind] == address.packed)
    return all(compared) if family == socket.AF_INET else not any(compared)


def attribute(kind: int, value: bytes) -> bytes:
    """An attribute, padded."""
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def attributes(data: bytes) -> dict[int, bytes]:
    """The values by kind, without the flag of nested ones."""
    found, offset = {}, 0
    while offset < len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        found[kind & 0x3FFF] = data[offset + 4 : offset + length]
        offset += length + 3 & ~3
    return found


def _message(kind: int, flags: int, body: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, 0, 0) + body
