"""The rules and sets of other programs, for `diagnose`.

libnftables is not used in this process for them. It may crash on what another version has written,
and it may not end while others write.
"""

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import closing
from itertools import groupby
from typing import Any

from vm_onetoone_nat.kernel.messages import nft_rules
from vm_onetoone_nat.kernel.messages.nft_foreign import (
    Ruleset,
    SetName,
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

_CHILD = "vm_onetoone_nat.kernel.libnftables_child"
_SECONDS = 60.0
"""For all that is listed at once: libnftables begins again whenever another program has written."""

_Command = tuple[str, dict[str, bool]]
"""For `Libnftables.run`."""


def read_others() -> Ruleset:
    """The chains of foreign tables that guests' packets may pass. Raises KernelError."""
    declared = {chain.name: chain for chain in _declared()}
    printing: _Command = ("list ruleset", {"text": True, "terse": True})
    ((listed,), (printed,)) = _ask([[_listing({"ruleset": None})], [printing]])
    rules = parse_rules(_objects(listed))
    rules |= _singly([name for name in declared if name not in rules])
    texts = parse_texts(printed or "")
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
    return Ruleset(chains, _sets(sorted(looked_up)), unreadable)


def _declared() -> list[ListedChain]:
    with closing(Netlink(NETFILTER, "nftables")) as netlink:
        answers = netlink.dump(nft_rules.list_chains())
    chains = (chain for answer in answers for chain in nft_rules.chains(answer))
    return [c for c in chains if c.name.family in _PASSED and c.name.table != TABLE]


def _singly(names: Sequence[ChainName]) -> dict[ChainName, list[Json]]:
    """The rules of the chains that libnftables lists if it is asked for each by itself."""
    by_table = [list(of) for _, of in groupby(names, lambda name: (name.family, name.table))]
    asked = [[_listing({"chain": _reference(name)}) for name in of] for of in by_table]
    answered = zip(by_table, _ask(asked), strict=True)
    outputs = ((name, each) for of, found in answered for name, each in zip(of, found, strict=True))
    listed = ((name, parse_rules(_objects(output))) for name, output in outputs)
    return {name: found[name] for name, found in listed if name in found}


def _sets(names: Sequence[SetName]) -> dict[SetName, Sequence[Any]]:
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
        for name, outputs in zip(names, _ask(asked), strict=True)
        if any(outputs)
    }


def _reference(name: ChainName) -> Json:
    return {"family": name.family, "table": name.table, "name": name.name}


def _listing(what: Json, *, terse: bool = True) -> _Command:
    return json.dumps({"nftables": [{"list": what}]}), {"terse": terse}


def _objects(output: str | None) -> list[Json]:
    """The objects of a listing; none if it failed, or is not JSON."""
    try:
        objects: list[Json] = json.loads(output or "{}").get("nftables", [])
    except ValueError:
        # libnftables 1.0.6, for a table with flags such as `owner`.
        return []
    return objects


def _ask(requests: Sequence[list[_Command]]) -> list[list[str | None]]:
    """The outputs of the commands of each request, None for those that failed.

    The commands of a request are about one table: if libnftables crashes with one of them, it
    would with the others, since it reads all sets of the table for each.
    """
    answers: list[list[str | None]] = []
    while len(answers) < len(requests):
        left = requests[len(answers) :]
        answers += _run(left)
        if len(answers) < len(requests):
            answers.append([None] * len(requests[len(answers)]))
    return answers


def _run(requests: Iterable[list[_Command]]) -> list[list[str | None]]:
    """The answers of a child until its end, which comes early if it crashes or takes too long."""
    asked = "".join(f"{json.dumps(request)}\n" for request in requests)
    child = [sys.executable, "-P", "-m", _CHILD]
    try:
        done = subprocess.run(
            child, input=asked.encode(), capture_output=True, check=False, timeout=_SECONDS
        )
        output = done.stdout
    except subprocess.TimeoutExpired as expired:
        output = expired.stdout or b""
    complete = output[: output.rfind(b"\n") + 1]
    return [json.loads(line) for line in complete.splitlines()]
