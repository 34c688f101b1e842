"""Elements of our table in libnftables' JSON: how each part of a key, and a value, is written.

Pure. Schema: libnftables-json(5).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from vm_onetoone_nat.model.family import Family, address
from vm_onetoone_nat.model.nat_table import ANY_PROTOCOL, Container, Element, Part, element


@dataclass(frozen=True, slots=True)
class Form:
    """How nftables has one part: its type, and its JSON to and from text.

    `read` returns None for JSON that we do not write. `interval`: the part is a range of values.
    """

    nft_type: str
    write: Callable[[str], Any]
    read: Callable[[Any], str | None]
    interval: bool = False


def element_json(each: Element) -> Any:
    """An element as a command has it, and a listing of a container without counters."""
    known = forms(each.container.family)
    of_key = [known[part] for part in each.container.key]
    if len(of_key) == 1:
        key = of_key[0].write(each.key[0])
    else:
        key = {"concat": [form.write(part) for form, part in zip(of_key, each.key, strict=True)]}
    if each.container.value is None:
        return key
    return [key, known[each.container.value].write(each.value)]


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
    def write(text: str) -> Any:
        parsed = family.network(text)
        return {"prefix": {"addr": str(parsed.network_address), "len": parsed.prefixlen}}

    def read(listed: Any) -> str | None:
        match listed:
            case {"prefix": {"addr": str(first), "len": int(length)}}:
                return f"{first}/{length}"
            # libnftables lists a network of one address without its prefix.
            case str(single) if _plain(single):
                return f"{single}/{family.bits}"
        return None

    return Form(family.nft_type, write, read, interval=True)


def _protocol(listed: Any) -> str | None:
    match listed:
        case {"range": [0, 255]}:
            return ANY_PROTOCOL
        case str(name):
            return name
    return None


def _ports_json(ports: str) -> Any:
    first, last = ports.split("-")
    return {"range": [int(first), int(last)]}


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
    return {
        Part.ADDRESS: Form(family.nft_type, str, _plain),
        Part.NETWORK: _network(family),
        Part.PROTOCOL: Form(
            "inet_proto",
            lambda name: {"range": [0, 255]} if name == ANY_PROTOCOL else name,
            _protocol,
            interval=True,
        ),
        Part.PORTS: Form("inet_service", _ports_json, _ports, interval=True),
        Part.INTERFACE: Form("ifname", str, _text),
        Part.VERDICT: Form("verdict", lambda chain: {"goto": {"target": chain}}, _target),
    }
