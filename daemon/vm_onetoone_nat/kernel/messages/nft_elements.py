"""Elements of our table in the kernel's messages: how each part of a key, and a value, is written.

Pure. A part is a range of values: its first and its last, which are the same but for intervals.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache, partial

from vm_onetoone_nat.kernel.messages import nftables
from vm_onetoone_nat.kernel.messages.nftables import read, read_number, read_text
from vm_onetoone_nat.model.family import PARSED, Family, unpacked
from vm_onetoone_nat.model.nat_table import (
    ANY_PROTOCOL,
    Container,
    Element,
    Key,
    Part,
    element,
)

Range = tuple[bytes, bytes]

_ADDRESSES = {"ipv4_addr": 7, "ipv6_addr": 8}
"""The numbers of libnftables' types; the kernel only keeps them."""

_PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58}
_PROTOCOL_NAMES = {number: name for name, number in _PROTOCOLS.items()}
_NAME_SIZE = 16  # IFNAMSIZ


@dataclass(frozen=True, slots=True)
class Form:
    """How nftables has one part: the number of its type, and the size of its value in bytes.

    `pack` and `unpack` are for its values as in a packet; `unpack` returns None for what we do not
    write. `interval`: the part is a range of values. `host_order`: it is not big-endian.
    """

    number: int
    size: int
    pack: Callable[[str], Range]
    unpack: Callable[[bytes, bytes], str | None]
    interval: bool = False
    host_order: bool = False


def packed_key(each: Element) -> Range:
    """The first and the last key of an element."""
    known = forms(each.container.family)
    if len(each.key) == 1:
        return known[each.container.key[0]].pack(each.key[0])
    parts = zip(each.container.key, each.key, strict=True)
    ranges = [known[part].pack(text) for part, text in parts]
    first, last = (b"".join(map(padded, ends)) for ends in zip(*ranges, strict=True))
    return first, last


@cache
def has_ranges(container: Container) -> bool:
    """Whether a part of its keys is a range of values."""
    known = forms(container.family)
    return any(known[part].interval for part in container.key)


def padded(value: bytes) -> bytes:
    """A part of a key: each begins at a multiple of four bytes."""
    return value + bytes(-len(value) % 4)


# Most elements are the same in each pass.
@lru_cache(4 * PARSED)
def unpacked_element(
    container: Container, first: bytes, last: bytes, value: bytes | None
) -> Element | None:
    """The element with these keys and this value; None if we do not write it like that."""
    key = _unpacked_key(container, first, last)
    if key is None or (value is None) is not (container.value is None):
        return None
    if value is None or container.value is None:
        return element(container, key)
    text = _unpacked_value(container, container.value, value)
    return element(container, key, text) if text is not None else None


def _unpacked_key(container: Container, first: bytes, last: bytes) -> Key | None:
    known = forms(container.family)
    key: list[str] = []
    offset = 0
    for part in container.key:
        form = known[part]
        end = offset + form.size
        text = form.unpack(first[offset:end], last[offset:end]) if end <= len(first) else None
        if text is None:
            return None
        key.append(text)
        offset = end + -end % 4
    return tuple(key)


def _unpacked_value(container: Container, part: Part, value: bytes) -> str | None:
    if part is Part.VERDICT:
        found = read(read(value).get(nftables.DATA_VERDICT, b""))
        target = found.get(nftables.VERDICT_CHAIN)
        leads = read_number(found.get(nftables.VERDICT_CODE)) == nftables.VERDICTS["goto"]
        return read_text(target) if leads and target is not None else None
    data = read(value).get(nftables.DATA_VALUE, b"")
    return forms(container.family)[part].unpack(data, data)


@lru_cache(PARSED)
def _pack_address(family: Family, text: str) -> Range:
    packed = family.address(text).packed
    return packed, packed


@lru_cache(PARSED)
def _unpack_address(family: Family, first: bytes, last: bytes) -> str | None:
    return str(unpacked(first)) if first == last and len(first) == family.bits // 8 else None


def _pack_network(family: Family, text: str) -> Range:
    parsed = family.network(text)
    return parsed.network_address.packed, parsed.broadcast_address.packed


def _unpack_network(family: Family, first: bytes, last: bytes) -> str | None:
    begin, size = int.from_bytes(first, "big"), int.from_bytes(last, "big") + 1
    size -= begin
    if size <= 0 or size & size - 1 or begin % size:
        return None
    return f"{unpacked(first)}/{family.bits - size.bit_length() + 1}"


def _pack_protocol(name: str) -> Range:
    if name == ANY_PROTOCOL:
        return b"\x00", b"\xff"
    number = bytes([_PROTOCOLS[name]])
    return number, number


def _unpack_protocol(first: bytes, last: bytes) -> str | None:
    if (first, last) == (b"\x00", b"\xff"):
        return ANY_PROTOCOL
    return _PROTOCOL_NAMES.get(first[0]) if first == last else None


def _pack_ports(ports: str) -> Range:
    first, last = (int(port).to_bytes(2, "big") for port in ports.split("-"))
    return first, last


def _unpack_ports(first: bytes, last: bytes) -> str | None:
    return f"{int.from_bytes(first, 'big')}-{int.from_bytes(last, 'big')}"


def _pack_interface(name: str) -> Range:
    packed = name.encode(errors="surrogateescape").ljust(_NAME_SIZE, b"\0")
    return packed, packed


def _unpack_interface(first: bytes, last: bytes) -> str | None:
    return read_text(first) if first == last else None


def _never(_first: bytes, _last: bytes) -> None:
    """A verdict is no part of a key."""


@cache
def forms(family: Family) -> Mapping[Part, Form]:
    """How nftables has each part, in a container of that family."""
    number, size = _ADDRESSES[family.nft_type], family.bits // 8
    pack_address = partial(_pack_address, family)
    unpack_address = partial(_unpack_address, family)
    pack_network = partial(_pack_network, family)
    unpack_network = partial(_unpack_network, family)
    return {
        Part.ADDRESS: Form(number, size, pack_address, unpack_address),
        Part.NETWORK: Form(number, size, pack_network, unpack_network, interval=True),
        Part.PROTOCOL: Form(12, 1, _pack_protocol, _unpack_protocol, interval=True),
        Part.PORTS: Form(13, 2, _pack_ports, _unpack_ports, interval=True),
        Part.INTERFACE: Form(41, _NAME_SIZE, _pack_interface, _unpack_interface, host_order=True),
        # NFT_DATA_VERDICT
        Part.VERDICT: Form(0xFFFFFF00, 0, pack_address, _never),
    }
