"""The objects of our table, and rules in foreign chains, as requests to the kernel. Pure."""

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

from vm_onetoone_nat.kernel.messages import nftables
from vm_onetoone_nat.kernel.messages.nft_elements import forms, has_ranges, packed_key, padded
from vm_onetoone_nat.kernel.messages.nft_expressions import expressions
from vm_onetoone_nat.kernel.messages.nftables import nest, nest_value, number, text
from vm_onetoone_nat.kernel.messages.rtnetlink import attribute
from vm_onetoone_nat.model.host import ChainName
from vm_onetoone_nat.model.nat_table import TABLE, Container, Element, Part

Json = dict[str, Any]

_FAMILY = "inet"
_CREATE, _APPEND = 0x400, 0x800  # NLM_F_*
_INTERVAL, _MAP, _CONCATENATED = 0x4, 0x8, 0x80  # NFT_SET_*
_TYPE_BITS = 6
"""A concatenation's type consists of its parts' types."""
_HOOKS = {"prerouting": 0, "input": 1, "forward": 2, "output": 3, "postrouting": 4}
_POLICIES = {"drop": 0, "accept": 1}
_HOST_ORDER = struct.pack("=BBI", 0, 4, 1)
"""libnftables' own: NFTNL_UDATA_SET_KEYBYTEORDER, BYTEORDER_HOST_ENDIAN."""
_AT_ONCE = 256
"""Elements in one request: an attribute has at most 64 KiB."""

_HANDLE = struct.Struct(">Q")


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a transaction. `words` say what it does, for the error."""

    kind: int
    body: bytes
    words: str
    flags: int = 0


def add_table() -> Request:
    """Create our table, or leave it as it is."""
    return Request(nftables.NEW_TABLE, _in_table(), f"add table {_FAMILY} {TABLE}")


def own_table(name: str = TABLE) -> Request:
    """Create a table that outlives its owner, or become the owner of one that has none.

    The owner is the socket that sends this. Nobody else can write to the table then.
    """
    flags = number(2, nftables.OWNER | nftables.PERSIST)  # NFTA_TABLE_FLAGS
    body = nftables.header(_FAMILY) + text(1, name) + flags  # NFTA_TABLE_NAME
    return Request(nftables.NEW_TABLE, body, f"own table {_FAMILY} {name}")


def delete_table() -> Request:
    """Delete our table with all that is in it."""
    return Request(nftables.DELETE_TABLE, _in_table(), f"delete table {_FAMILY} {TABLE}")


def add_containers(containers: Iterable[Container]) -> Iterator[Request]:
    """Create sets and maps of our table."""
    for number_of_set, container in enumerate(containers, 1):
        body = _in_table() + _declaration(container) + number(10, number_of_set)  # NFTA_SET_ID
        yield Request(nftables.NEW_SET, body, f"add {container.name}", _CREATE)


def add_object(entry: Json) -> Request:
    """Create a chain of our table, or a rule at the end of its chain."""
    ((kind, value),) = entry.items()
    if kind == "chain":
        body = _in_table() + _chain(value)
        return Request(nftables.NEW_CHAIN, body, f"add chain {value['name']}", _CREATE)
    place = ChainName(_FAMILY, TABLE, value["chain"])
    return _rule(place, value["expr"], _CREATE | _APPEND)


def insert_rule(chain: ChainName, statements: Sequence[Json]) -> Request:
    """Insert a rule at the head of a chain."""
    return _rule(chain, statements, _CREATE)


def delete_rule(chain: ChainName, handle: int) -> Request:
    """Delete a rule."""
    body = _in_chain(chain) + attribute(3, _HANDLE.pack(handle))  # NFTA_RULE_HANDLE
    return Request(nftables.DELETE_RULE, body, f"delete rule {handle} of chain {chain}")


def add_elements(elements: Iterable[Element]) -> Iterator[Request]:
    """Add elements to our containers; one that is there already stays."""
    return _elements(elements, nftables.NEW_ELEMENT, "add {} to {}", _CREATE)


def delete_elements(elements: Iterable[Element]) -> Iterator[Request]:
    """Delete elements from our containers."""
    return _elements(elements, nftables.DELETE_ELEMENT, "delete {} from {}", 0)


def _in_table() -> bytes:
    return nftables.header(_FAMILY) + text(1, TABLE)  # NFTA_TABLE_NAME, NFTA_*_TABLE


def _in_chain(chain: ChainName) -> bytes:
    # NFTA_RULE_TABLE, NFTA_RULE_CHAIN
    return nftables.header(chain.family) + text(1, chain.table) + text(2, chain.name)


def _rule(chain: ChainName, statements: Sequence[Json], flags: int) -> Request:
    body = _in_chain(chain) + nest(4, *expressions(statements))  # NFTA_RULE_EXPRESSIONS
    return Request(nftables.NEW_RULE, body, f"add a rule to chain {chain}", flags)


def _chain(value: Json) -> bytes:
    named = text(3, value["name"])  # NFTA_CHAIN_NAME
    if "hook" not in value:
        return named
    # NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY
    hook = number(1, _HOOKS[value["hook"]]) + number(2, value["prio"])
    # NFTA_CHAIN_HOOK, NFTA_CHAIN_POLICY, NFTA_CHAIN_TYPE
    policy = number(5, _POLICIES[value["policy"]])
    return named + nest(4, hook) + policy + text(7, value["type"])


def _declaration(container: Container) -> bytes:
    """A set or map. Nothing but the byte order is added for libnftables: 1.0.6 crashes on more."""
    known = forms(container.family)
    parts = [known[part] for part in container.key]
    kind = 0
    for part in parts:
        kind = kind << _TYPE_BITS | part.number
    concatenated = len(parts) > 1
    ranges = has_ranges(container)
    flags = _INTERVAL * ranges | _MAP * (container.value is not None)
    flags |= _CONCATENATED * (ranges and concatenated)
    size = sum(len(padded(bytes(part.size))) for part in parts) if concatenated else parts[0].size
    # NFTA_SET_NAME, _FLAGS, _KEY_TYPE, _KEY_LEN
    declared = text(2, container.name) + number(3, flags) + number(4, kind) + number(5, size)
    if container.value is not None:
        value = known[container.value]
        declared += number(6, value.number) + number(7, value.size)  # NFTA_SET_DATA_TYPE, _LEN
    if concatenated:
        # NFTA_SET_DESC: NFTA_SET_DESC_CONCAT: NFTA_SET_FIELD_LEN
        fields = (nest(nftables.LIST_ELEMENT, number(1, part.size)) for part in parts)
        declared += nest(9, nest(2, *fields))
    if any(part.host_order for part in parts):
        declared += attribute(13, _HOST_ORDER)  # NFTA_SET_USERDATA
    if container.counted:
        named = text(nftables.EXPRESSION_NAME, "counter")
        declared += nest(17, named, nest(nftables.EXPRESSION_DATA))  # NFTA_SET_EXPR
    return declared


def _elements(elements: Iterable[Element], kind: int, words: str, flags: int) -> Iterator[Request]:
    """Few requests for each container, so that 1,000 mappings take a few of them."""
    by_container: dict[Container, list[bytes]] = {}
    for each in elements:
        by_container.setdefault(each.container, []).append(_element(each))
    for container, items in by_container.items():
        place = _in_table() + text(2, container.name)  # NFTA_SET_ELEM_LIST_SET
        left = iter(items)
        while batch := tuple(islice(left, _AT_ONCE)):
            what = f"{len(batch)} element{'s' * (len(batch) > 1)}"
            # NFTA_SET_ELEM_LIST_ELEMENTS
            yield Request(kind, place + nest(3, *batch), words.format(what, container.name), flags)


def _element(each: Element) -> bytes:
    first, last = packed_key(each)
    container = each.container
    found = nest_value(1, first)  # NFTA_SET_ELEM_KEY
    if has_ranges(container):
        found += nest_value(10, last)  # NFTA_SET_ELEM_KEY_END
    if container.value is Part.VERDICT:
        found += _goto(each.value)
    elif container.value is not None:
        value, _ = forms(container.family)[container.value].pack(each.value)
        found += nest_value(2, value)  # NFTA_SET_ELEM_DATA
    return nest(nftables.LIST_ELEMENT, found)


@cache
def _goto(chain: str) -> bytes:
    return nest(2, nftables.verdict("goto", chain))  # NFTA_SET_ELEM_DATA
