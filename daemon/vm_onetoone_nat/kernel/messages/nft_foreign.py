"""The rules of other programs, in libnftables' JSON. Pure."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vm_onetoone_nat.kernel.messages.nft_rules import ListedChain
from vm_onetoone_nat.model.host import ChainName

Json = dict[str, Any]
SetName = tuple[str, str, str]
"""Family, table, name."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule, as JSON and as `nft` prints it."""

    expression: tuple[Json, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain with its rules in order; without a `hook` it is not a base chain."""

    name: ChainName
    rules: tuple[Rule, ...]
    hook: str | None = None
    priority: int = 0
    drops: bool = False
    devices: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Ruleset:
    """All chains, and the elements of the named sets that their rules look up.

    `unreadable`: chains that libnftables cannot list.
    """

    chains: Mapping[ChainName, Chain]
    sets: Mapping[SetName, Sequence[Any]]
    unreadable: tuple[ChainName, ...] = ()


_TABLE = re.compile(r"table (\S+) (.*) \{ # handle \d+")
_PRINTED = re.compile(r"\s+(.*) # handle (\d+)")

Texts = Mapping[tuple[str, str, int], str]
"""Each rule as `nft` prints it, by family, table and handle."""


def parse_rules(listing: Iterable[Json]) -> dict[ChainName, list[Json]]:
    """The rules of each chain in order, from the objects of `list ruleset` or `list chain`."""
    found: dict[ChainName, list[Json]] = {}
    for entry in listing:
        if (chain := entry.get("chain")) is not None:
            found.setdefault(ChainName(chain["family"], chain["table"], chain["name"]), [])
        elif (rule := entry.get("rule")) is not None:
            name = ChainName(rule["family"], rule["table"], rule["chain"])
            found.setdefault(name, []).append(rule)
    return found


def parse_texts(output: str) -> Texts:
    """The rules in the output of `nft -a list ruleset`."""
    found = {}
    family = table = ""
    for line in output.splitlines():
        if (heading := _TABLE.fullmatch(line)) is not None:
            family, table = heading.groups()
        elif (printed := _PRINTED.fullmatch(line)) is not None:
            found[family, table, int(printed[2])] = printed[1]
    return found


def chain_with_rules(declared: ListedChain, rules: Iterable[Json], texts: Texts) -> Chain:
    """A chain, from its declaration, and its rules as libnftables lists them."""
    name = declared.name
    return Chain(
        name,
        tuple(
            Rule(
                tuple(rule.get("expr", ())),
                texts.get((name.family, name.table, handle), f"the rule with handle {handle}"),
            )
            for rule in rules
            for handle in (int(rule["handle"]),)
        ),
        hook=declared.hook,
        priority=declared.priority,
        drops=declared.drops,
        devices=declared.devices,
    )


def parse_collection(listing: Sequence[Json]) -> Sequence[Any]:
    """The elements of a set or map, from the objects of `list set …`."""
    for entry in listing:
        for kind in ("set", "map"):
            if kind in entry:
                elements: Sequence[Any] = entry[kind].get("elem", ())
                return elements
    return ()


def lookups(expression: Iterable[Json]) -> set[str]:
    """The names of the sets and maps that an expression looks up."""
    found = set()
    for part in _strings(list(expression)):
        if part.startswith("@"):
            found.add(part.removeprefix("@"))
    return found


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _strings(each)
