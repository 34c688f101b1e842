"""The rules of other programs, in libnftables' JSON. Pure."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
    """All chains, and the elements of the named sets that their rules look up."""

    chains: Mapping[ChainName, Chain]
    sets: Mapping[SetName, Sequence[Any]]


_PRINTED = re.compile(r"^\s*(.*?) # handle (\d+)$", re.MULTILINE)
_DEVICES = re.compile(r"hook \w+ devices? (.*?) priority")


def parse_chain(name: ChainName, listing: Sequence[Json], text: str) -> Chain:
    """A chain, from the objects of `list chain …` and the output of `nft -a` for it."""
    by_handle = {int(handle): rule for rule, handle in _PRINTED.findall(text)}
    found = _DEVICES.search(text)
    declared: Json = next((e["chain"] for e in listing if "chain" in e), {})
    return Chain(
        name,
        tuple(
            Rule(tuple(rule.get("expr", ())), by_handle.get(rule["handle"], "a rule"))
            for entry in listing
            if (rule := entry.get("rule")) is not None
        ),
        hook=declared.get("hook"),
        priority=declared.get("prio", 0),
        drops=declared.get("policy") == "drop",
        # libnftables 1.0.6 leaves the devices out of its JSON.
        devices=frozenset(re.findall(r'"([^"]+)"', found[1])) if found else frozenset(),
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
