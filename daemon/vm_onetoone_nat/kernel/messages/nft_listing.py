"""Our table as the kernel lists it: whether it is as we write it, its elements and counters. Pure.

Not by libnftables, which begins again whenever another program has written. What the kernel lists
is compared with what we send, attribute by attribute: it has them in another order, and adds some
that are 0. What only libnftables uses is left out, such as comments of chains.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import NamedTuple

from vm_onetoone_nat.kernel.messages import nftables, rtnetlink
from vm_onetoone_nat.kernel.messages.nft_elements import has_ranges, unpacked_element
from vm_onetoone_nat.kernel.messages.nft_objects import add_containers, add_object
from vm_onetoone_nat.kernel.messages.nft_rules import Expression, Rule
from vm_onetoone_nat.kernel.messages.nft_table import table_objects
from vm_onetoone_nat.kernel.messages.nftables import read, read_list, read_value, text
from vm_onetoone_nat.kernel.messages.rtnetlink import Answer
from vm_onetoone_nat.model.nat_table import ADMIT, CONTAINERS, TABLE, Container, Element, Table

_FAMILY = "inet"
_IN_TABLE = 1  # NFTA_*_TABLE
_NAME, _HOOK, _POLICY, _TYPE = 3, 4, 5, 7  # NFTA_CHAIN_*
_HOOK_NUMBER, _HOOK_PRIORITY = 1, 2
_SET_NAME, _DESCRIPTION, _EXPRESSION, _EXPRESSIONS = 2, 9, 17, 18  # NFTA_SET_*
_COMPARED = frozenset((3, 4, 5, 6, 8, 11, 12, 15))
"""NFTA_SET_*: flags, type and size of the key, type of the value, policy, timeouts, objects. The
kernel has a size of its own for a verdict."""
_CONCATENATION = 2  # NFTA_SET_DESC_CONCAT
_RULE_CHAIN, _RULE_EXPRESSIONS = 2, 4
_ELEMENTS = 3  # NFTA_SET_ELEM_LIST_ELEMENTS
_KEY, _DATA, _COUNTER, _KEY_END = 1, 2, 7, 10  # NFTA_SET_ELEM_*
_NESTED = {"bitwise": (4, 5), "cmp": (3,)}
"""The attributes of expressions that contain a value."""
_COUNTS = struct.Struct(">Q")
_BYTES, _PACKETS = 1, 2  # NFTA_COUNTER_*

_Attributes = Mapping[int, bytes]


@dataclass(frozen=True, slots=True)
class Listing:
    """The listed table. `others`: objects of kinds that it does not have when we write it."""

    chains: Sequence[_Attributes]
    sets: Sequence[_Attributes]
    rules: Sequence[_Attributes]
    elements: Mapping[Container, Sequence[_Attributes]]
    others: bool = False


class Counted(NamedTuple):
    """What an element has counted."""

    element: Element
    packets: int
    bytes: int


def list_sets() -> bytes:
    """The request for the declarations of our sets and maps."""
    return _request(nftables.GET_SET)


def list_rules() -> bytes:
    """The request for the rules of all our chains."""
    return _request(nftables.GET_RULE)


def list_others() -> tuple[bytes, ...]:
    """The requests for what our table does not have when we write it."""
    return _request(nftables.GET_OBJECT), _request(nftables.GET_FLOWTABLE)


def list_elements(container: Container) -> bytes:
    """The request for the elements of one of our containers."""
    return _request(nftables.GET_ELEMENT, text(_SET_NAME, container.name))


def of_our_table(answer: Answer) -> Iterator[_Attributes]:
    """The objects of our table in one datagram of a listing."""
    for start, end in answer.messages:
        found = read(answer.data, start + nftables.MESSAGE_SIZE, end)
        ours = nftables.read_text(found.get(_IN_TABLE, b"")) == TABLE
        if ours and answer.data[start] == nftables.FAMILIES[_FAMILY]:
            yield found


def elements(answer: Answer) -> Iterator[_Attributes]:
    """The elements in one datagram of a listing."""
    for each in of_our_table(answer):
        yield from map(read, read_list(each.get(_ELEMENTS, b"")))


def parse_table(listing: Listing) -> Table:
    """Our table. It is not intact where it has what we do not write, in whatever form."""
    try:
        return _parsed(listing)
    except (LookupError, ValueError, struct.error):
        return Table(intact=False)


def _parsed(listing: Listing) -> Table:
    found = [
        _element(container, each)
        for container, listed in listing.elements.items()
        for each in listed
    ]
    ours = frozenset(each for each in found if each is not None)
    fwmark = _marked(listing.rules)
    intact = (
        fwmark is not None
        and None not in found
        and not listing.others
        and _static(listing.chains, listing.sets, listing.rules) == _written(fwmark)
    )
    return Table(intact, ours, fwmark)


def counted(container: Container, listed: Iterable[_Attributes]) -> Iterator[Counted]:
    """The counters of a container's elements."""
    for each in listed:
        element = _element(container, each)
        if element is not None and _COUNTER in each:
            counts = read(read(each[_COUNTER]).get(nftables.EXPRESSION_DATA, b""))
            (packets,), (size,) = (_COUNTS.unpack(counts[kind]) for kind in (_PACKETS, _BYTES))
            yield Counted(element, packets, size)


def _request(kind: int, more: bytes = b"") -> bytes:
    return rtnetlink.listing(kind, nftables.header(_FAMILY) + text(_IN_TABLE, TABLE) + more)


_Static = tuple[frozenset[object], frozenset[object], Mapping[bytes, list[object]]]


def _static(
    chains: Iterable[_Attributes], sets: Iterable[_Attributes], rules: Iterable[_Attributes]
) -> _Static:
    """The table without its elements, in values that can be compared."""
    by_chain: dict[bytes, list[object]] = {}
    for rule in rules:
        by_chain.setdefault(rule[_RULE_CHAIN], []).append(
            tuple(map(_comparable, _expressions(rule)))
        )
    return frozenset(map(_chain, chains)), frozenset(map(_set, sets)), by_chain


@lru_cache(2)
def _written(fwmark: int) -> _Static:
    """The same of the table as we write it."""
    requests = [*add_containers(CONTAINERS), *map(add_object, table_objects(fwmark))]
    bodies = [(each.kind, read(each.body, nftables.MESSAGE_SIZE)) for each in requests]
    chains, sets, rules = (
        [body for kind, body in bodies if kind == wanted]
        for wanted in (nftables.NEW_CHAIN, nftables.NEW_SET, nftables.NEW_RULE)
    )
    return _static(chains, sets, rules)


def _chain(found: _Attributes) -> object:
    hook = read(found.get(_HOOK, b""))
    place = hook.get(_HOOK_NUMBER), hook.get(_HOOK_PRIORITY)
    return found[_NAME], place, found.get(_POLICY) if hook else None, found.get(_TYPE)


def _set(found: _Attributes) -> object:
    plain = frozenset((k, value) for k, value in found.items() if k in _COMPARED and any(value))
    parts = read(found.get(_DESCRIPTION, b"")).get(_CONCATENATION, b"")
    fields = tuple(tuple(read(each).items()) for each in read_list(parts))
    expression = read(found.get(_EXPRESSION, b"")).get(nftables.EXPRESSION_NAME)
    return found[_SET_NAME], plain, fields, expression, _EXPRESSIONS in found


def _comparable(expression: Expression) -> object:
    if (verdict := expression.verdict) is not None:
        return verdict
    nested = _NESTED.get(expression.name, ())
    values = (
        (kind, read(value).get(nftables.DATA_VALUE, b"") if kind in nested else value)
        for kind, value in expression.attributes.items()
    )
    return expression.name, frozenset((kind, value) for kind, value in values if any(value))


def _marked(rules: Iterable[_Attributes]) -> int | None:
    """The mark bit that the only rule of `admit` sets."""
    admit = ADMIT.encode() + b"\0"
    match [_expressions(rule) for rule in rules if rule[_RULE_CHAIN] == admit]:
        case [(Expression("meta"), Expression("bitwise") as bitwise, Expression("meta"))]:
            mask, xor = (read(bitwise.attributes.get(kind, b"")) for kind in _NESTED["bitwise"])
            (kept,), (bits,) = (
                struct.unpack("=I", each.get(nftables.DATA_VALUE, bytes(4))) for each in (mask, xor)
            )
            return bits if kept == ~bits & 0xFFFFFFFF else None
    return None


def _expressions(rule: _Attributes) -> tuple[Expression, ...]:
    return Rule(0, rule.get(_RULE_EXPRESSIONS, b"")).expressions


def _element(container: Container, found: _Attributes) -> Element | None:
    """The element; None if it has more than we write, such as a timeout or a comment."""
    if found.keys() != _kinds(container):
        return None
    first = read_value(found[_KEY])
    last = read_value(found[_KEY_END]) if has_ranges(container) else first
    return unpacked_element(container, first, last, found.get(_DATA))


@cache
def _kinds(container: Container) -> frozenset[int]:
    """The attributes of its elements."""
    more = {
        _KEY_END: has_ranges(container),
        _DATA: container.value is not None,
        _COUNTER: container.counted,
    }
    return frozenset((_KEY, *(kind for kind, there in more.items() if there)))
