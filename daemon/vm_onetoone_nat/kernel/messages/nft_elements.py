"""Elements of our table in libnftables' JSON: how each part of a key, and a value, is written.

Pure. Schema: libnftables-json(5).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from typing import Any

from vm_onetoone_nat.model.family import PARSED, Family, address
from vm_onetoone_nat.model.nat_table import ANY_PROTOCOL, Container, Element, Part, element

_ADDRESSES = {"ipv4_addr": 7, "ipv6_addr": 8}
"""The numbers of libnftables' types; the kernel only keeps them."""

_PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58}
_NAME_SIZE = 16  # IFNAMSIZ


@dataclass(frozen=True, slots=True)
class Form:
    """How nftables has one part: its type, by name and number, and the size of its value in bytes.

    `pack` returns the first and the last value of the part, as in a packet. `read` returns the
    text for what libnftables lists, None for what we do not write. `interval`: the part is a range
    of values. `host_order`: it is not big-endian.
    """

    nft_type: str
    number: int
    size: int
    pack: Callable[[str], tuple[bytes, bytes]]
    read: Callable[[Any], str | None]
    interval: bool = False
    host_order: bool = False


def packed_key(each: Element) -> tuple[bytes, bytes]:
    """The first and the last key of an element, as in a packet."""
    known = forms(each.container.family)
    parts = zip(each.container.key, each.key, strict=True)
    ranges = [known[part].pack(text) for part, text in parts]
    first, last = (b"".join(map(padded, ends)) for ends in zip(*ranges, strict=True))
    return first, last


def padded(value: bytes) -> bytes:
    """A part of a key: each begins at a multiple of four bytes."""
    return value + bytes(-len(value) % 4)


def parse_elements(container: Container, items: Iterable[Any]) -> tuple[list[Element], bool]:
    """The elements in a form that we write; true if there are others, which are not ours."""
    read_key = _key_reader(container)
    read = _entry_reader(container, read_key) if container.value is not None else None
    found: list[Element] = []
    others = False
    for item in items:
        listed = _uncounted(item)
        if read is not None:
            each = read(listed)
        else:
            key = read_key(listed)
            each = None if key is None else element(container, key)
        if each is None:
            others = True
        else:
            found.append(each)
    return found, others


_KeyReader = Callable[[Any], tuple[str, ...] | None]


def _entry_reader(container: Container, read_key: _KeyReader) -> Callable[[Any], Element | None]:
    """Reads an entry of a map, which is a pair of key and value."""
    assert container.value is not None, "only a map has entries"
    read_value = forms(container.family)[container.value].read

    def read(listed: Any) -> Element | None:
        if not isinstance(listed, list) or len(listed) != 2:
            return None
        key, value = read_key(listed[0]), read_value(listed[1])
        return None if key is None or value is None else element(container, key, value)

    return read


def _key_reader(container: Container) -> _KeyReader:
    known = forms(container.family)
    readers = [known[part].read for part in container.key]
    if len(readers) == 1:
        (only,) = readers

        def one(listed: Any) -> tuple[str, ...] | None:
            part = only(listed)
            return None if part is None else (part,)

        return one

    def several(listed: Any) -> tuple[str, ...] | None:
        match listed:
            case {"concat": [*parts]} if len(listed) == 1 and len(parts) == len(readers):
                key = [read(part) for read, part in zip(readers, parts, strict=True)]
                return tuple(part for part in key if part is not None) if None not in key else None
        return None

    return several


def _uncounted(item: Any) -> Any:
    """An element without its counter, which the kernel adds and a stateless listing empties."""
    match item:
        case [{"elem": {"val": key, "counter": None, **more}}, value] if not more:
            return [key, value]
        case {"elem": {"val": key, "counter": None, **more}} if not more:
            return key
    return item


def _plain(listed: Any) -> str | None:
    """The text, if it is one address."""
    if not isinstance(listed, str):
        return None
    try:
        address(listed)
    except ValueError:
        return None
    return listed


def _text(listed: Any) -> str | None:
    return listed if isinstance(listed, str) else None


def _network(family: Family) -> Form:
    def pack(text: str) -> tuple[bytes, bytes]:
        parsed = family.network(text)
        return parsed.network_address.packed, parsed.broadcast_address.packed

    def read(listed: Any) -> str | None:
        match listed:
            case {"prefix": {"addr": str(first), "len": int(length)}}:
                return f"{first}/{length}"
            # libnftables lists a network of one address without its prefix.
            case str(single) if _plain(single):
                return f"{single}/{family.bits}"
        return None

    size = family.bits // 8
    return Form(family.nft_type, _ADDRESSES[family.nft_type], size, pack, read, interval=True)


def _protocol(listed: Any) -> str | None:
    match listed:
        case {"range": [0, 255]}:
            return ANY_PROTOCOL
        case str(name):
            return name
    return None


@lru_cache(PARSED)
def _pack_address(family: Family, text: str) -> tuple[bytes, bytes]:
    packed = family.address(text).packed
    return packed, packed


def _pack_protocol(name: str) -> tuple[bytes, bytes]:
    if name == ANY_PROTOCOL:
        return b"\x00", b"\xff"
    number = bytes([_PROTOCOLS[name]])
    return number, number


def _pack_ports(ports: str) -> tuple[bytes, bytes]:
    first, last = (int(port).to_bytes(2, "big") for port in ports.split("-"))
    return first, last


def _pack_interface(name: str) -> tuple[bytes, bytes]:
    packed = name.encode(errors="surrogateescape").ljust(_NAME_SIZE, b"\0")
    return packed, packed


def _ports(listed: Any) -> str | None:
    # libnftables lists a single port without a range.
    match listed:
        case {"range": [int(first), int(last)]}:
            return f"{first}-{last}"
        case int(port):
            return f"{port}-{port}"
    return None


def _target(listed: Any) -> str | None:
    match listed:
        case {"goto": {"target": str(chain)}}:
            return chain
    return None


@cache
def forms(family: Family) -> Mapping[Part, Form]:
    """How nftables has each part, in a container of that family."""
    size, of_address = family.bits // 8, _ADDRESSES[family.nft_type]
    pack_address = partial(_pack_address, family)
    return {
        Part.ADDRESS: Form(family.nft_type, of_address, size, pack_address, _plain),
        Part.NETWORK: _network(family),
        Part.PROTOCOL: Form("inet_proto", 12, 1, _pack_protocol, _protocol, interval=True),
        Part.PORTS: Form("inet_service", 13, 2, _pack_ports, _ports, interval=True),
        Part.INTERFACE: Form("ifname", 41, _NAME_SIZE, _pack_interface, _text, host_order=True),
        # NFT_DATA_VERDICT: only a value is one, and it is not packed as a key.
        Part.VERDICT: Form("verdict", 0xFFFFFF00, 0, pack_address, _target),
    }
