"""The rules and sets of other programs, for `diagnose`.

libnftables is not used in this process for them. It may crash on what another version has written,
and it may not end while others write. All requests together have a limit of time.
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from itertools import groupby
from typing import Any

from vm_onetoone_nat.kernel.messages import nft_rules
from vm_onetoone_nat.kernel.messages.nft_foreign import (
    Ruleset,
    SetName,
    Texts,
    chain_with_rules,
    lookups,
    parse_collection,
    parse_rules,
    parse_texts,
)
from vm_onetoone_nat.kernel.messages.nft_rules import ListedChain
from vm_onetoone_nat.kernel.netlink import NETFILTER, Netlink
from vm_onetoone_nat.model.family import FAMILIES
from vm_onetoone_nat.model.host import ChainName
from vm_onetoone_nat.model.nat_table import TABLE

Json = dict[str, Any]

_PASSED = (*(family.nft for family in FAMILIES), "inet", "bridge", "netdev")
"""The families of tables that guests' packets may pass."""

_PLAIN = re.compile(r"[a-zA-Z]\w*", re.ASCII)

# Not from the working directory: the command runs as root.
_CHILD = ("-P", "-m", "vm_onetoone_nat.kernel.libnftables_child")
_SECONDS = 60.0
"""For all requests: libnftables begins again whenever another program has written."""

_CHILD_SECONDS = 20.0
"""For those of one child, so that one request does not use all of the time."""

_Command = tuple[str, dict[str, bool]]
"""For `Libnftables.run`."""


def read_others() -> Ruleset:
    """The chains of foreign tables that guests' packets may pass. Raises KernelError.

    What libnftables has not listed after _SECONDS counts as what it cannot list.
    """
    ends = time.monotonic() + _SECONDS
    declared = {chain.name: chain for chain in _declared()}
    ((listed,), (printed,)) = _ask([[_listing({"ruleset": None})], [_printing("ruleset")]], ends)
    rules = parse_rules(_objects(listed))
    rules |= _singly([name for name in declared if name not in rules], ends)
    texts = parse_texts(printed) if printed is not None else _texts(rules, ends)
    chains = {
        name: chain_with_rules(declared[name], rules[name], texts)
        for name in declared
        if name in rules
    }
    looked_up = {
        (name.family, name.table, looked_up)
        for name, chain in chains.items()
        for rule in chain.rules
        for looked_up in lookups(rule.expression)
    }
    unreadable = tuple(name for name in declared if name not in rules)
    return Ruleset(chains, _sets(sorted(looked_up), ends), unreadable)


def _declared() -> list[ListedChain]:
    with closing(Netlink(NETFILTER, "nftables")) as netlink:
        answers = netlink.dump(nft_rules.list_chains())
    chains = (chain for answer in answers for chain in nft_rules.chains(answer))
    return [c for c in chains if c.name.family in _PASSED and c.name.table != TABLE]


def _singly(names: Sequence[ChainName], ends: float) -> dict[ChainName, list[Json]]:
    """The rules of the chains that libnftables lists if it is asked for each by itself."""
    by_table = [list(of) for _, of in groupby(names, lambda name: (name.family, name.table))]
    asked = [[_listing({"chain": _reference(name)}) for name in of] for of in by_table]
    answered = zip(by_table, _ask(asked, ends), strict=True)
    outputs = ((name, each) for of, found in answered for name, each in zip(of, found, strict=True))
    listed = ((name, parse_rules(_objects(output))) for name, output in outputs)
    return {name: found[name] for name, found in listed if name in found}


def _texts(names: Iterable[ChainName], ends: float) -> Texts:
    """The printed rules of the tables that libnftables prints if it is asked for each by itself.

    A name is part of the command, so there are none for tables with odd names.
    """
    tables = sorted({(name.family, name.table) for name in names if _PLAIN.fullmatch(name.table)})
    asked = [[_printing(f"table {family} {table}")] for family, table in tables]
    outputs = (output for (output,) in _ask(asked, ends) if output is not None)
    return {place: text for output in outputs for place, text in parse_texts(output).items()}


def _sets(names: Sequence[SetName], ends: float) -> dict[SetName, Sequence[Any]]:
    """The elements of these sets and maps, of each that can be listed."""
    asked = [
        [
            _listing({kind: {"family": family, "table": table, "name": name}}, terse=False)
            for kind in ("set", "map")
        ]
        for family, table, name in names
    ]
    return {
        name: parse_collection(_objects(next(filter(None, outputs))))
        for name, outputs in zip(names, _ask(asked, ends), strict=True)
        if any(outputs)
    }


def _reference(name: ChainName) -> Json:
    return {"family": name.family, "table": name.table, "name": name.name}


def _listing(what: Json, *, terse: bool = True) -> _Command:
    return json.dumps({"nftables": [{"list": what}]}), {"terse": terse}


def _printing(what: str) -> _Command:
    return f"list {what}", {"text": True, "terse": True}


def _objects(output: str | None) -> list[Json]:
    """The objects of a listing; none if it failed, or is not JSON."""
    try:
        objects: list[Json] = json.loads(output or "{}").get("nftables", [])
    except ValueError:
        # libnftables 1.0.6, for a table with flags such as `owner`.
        return []
    return objects


def _ask(requests: Sequence[list[_Command]], ends: float) -> list[list[str | None]]:
    """The outputs of the commands of each request, None for those that failed, or are not answered
    at the time `ends` of the monotonic clock.

    The commands of a request are about one table: if libnftables crashes with one of them, it
    would with the others, since it reads all sets of the table for each.
    """
    answers: list[list[str | None]] = []
    while len(answers) < len(requests):
        left = requests[len(answers) :]
        seconds = min(_CHILD_SECONDS, ends - time.monotonic())
        # A request fails if it is the first of a child: after others, it had a part of the time.
        answers += (seconds > 0 and _run(left, seconds)) or [[None] * len(left[0])]
    return answers


def _run(requests: Iterable[list[_Command]], seconds: float) -> list[list[str | None]]:
    """The answers of a child until its end, which comes early if it crashes or takes longer."""
    asked = "".join(f"{json.dumps(request)}\n" for request in requests)
    try:
        done = subprocess.run(
            [sys.executable, *_CHILD],
            input=asked.encode(),
            capture_output=True,
            check=False,
            timeout=seconds,
        )
        output = done.stdout
    except subprocess.TimeoutExpired as expired:
        output = expired.stdout or b""
    complete = output[: output.rfind(b"\n") + 1]
    return [json.loads(line) for line in complete.splitlines()]
