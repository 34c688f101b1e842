"""Our accept in foreign chains, in libnftables' JSON, and chains that would refuse guests.

Pure. Schema: libnftables-json(5).
"""

from collections.abc import Sequence
from typing import Any

from vm_onetoone_nat.model.family import FAMILIES
from vm_onetoone_nat.model.host import AcceptRule, ChainName, ForeignChain, Obstacle

Json = dict[str, Any]

FORWARD_CHAINS = tuple(
    ChainName(family.nft, table, name)
    for family in FAMILIES
    for table, name in (("filter", "FORWARD"), ("libvirt_network", "forward"))
)
"""Base chains that may reject guests' traffic: that of iptables (libvirt, Docker, ufw), and that of
libvirt's nftables backend (10.4 and later). The daemon writes only to those that exist."""


def accept_expression(fwmark: int) -> list[Json]:
    """Accept of one mark bit, in expressions that iptables-nft can read back and save."""
    masked = {"&": [{"meta": {"key": "mark"}}, fwmark]}
    return [{"match": {"op": "==", "left": masked, "right": fwmark}}, {"accept": None}]


def parse_chains(listing: Sequence[Json]) -> dict[ChainName, str | None]:
    """Every chain, from the objects of `list chains`, with its hook if it is a base chain."""
    return {
        ChainName(chain["family"], chain["table"], chain["name"]): chain.get("hook")
        for entry in listing
        if (chain := entry.get("chain")) is not None
    }


def parse_foreign_chain(name: ChainName, listing: Sequence[Json]) -> ForeignChain:
    """The accepts of a mark bit in a foreign chain, from the objects of `list chain …`."""
    rules = [entry["rule"] for entry in listing if "rule" in entry]
    accepts = []
    for position, rule in enumerate(rules):
        fwmark = _accepted_mark(rule.get("expr", []))
        if fwmark is not None:
            accepts.append(AcceptRule(rule["handle"], fwmark, at_head=position == 0))
    return ForeignChain(name, tuple(accepts))


def parse_obstacle(name: ChainName, listing: Sequence[Json], fwmark: int) -> Obstacle | None:
    """The obstacle, if a foreign base chain that we do not write to would refuse guests.

    `fwmark` is the mark bit of admitted packets, for the remedy. The chain refuses guests if it
    drops by policy or by a rule that matches everything, unless a rule accepts a mark bit, or all
    packets that have been DNATed, as in firewalld.
    """
    rules = [entry["rule"].get("expr", []) for entry in listing if "rule" in entry]
    policies = [entry["chain"].get("policy") for entry in listing if "chain" in entry]
    if any(_accepted_mark(rule) is not None or _accepts_dnat(rule) for rule in rules):
        return None
    if "drop" not in policies and not any(_refuses_all(rule) for rule in rules):
        return None
    if name.table == "firewalld":
        remedy = "set StrictForwardPorts=no in firewalld.conf and reload firewalld"
    else:
        remedy = (
            f"run 'nft insert rule {name} meta mark and {fwmark:#x} == {fwmark:#x} accept' "
            "and save it there"
        )
    return Obstacle(f"chain {name}", remedy)


def _accepts_dnat(rule: Sequence[Json]) -> bool:
    match [e for e in rule if "counter" not in e]:
        case [{"match": {"left": {"ct": {"key": "status"}}, "right": "dnat"}}, {"accept": None}]:
            return True
    return False


def _refuses_all(rule: Sequence[Json]) -> bool:
    verdicts = [e for e in rule if not e.keys() & {"counter", "log", "comment"}]
    return len(verdicts) == 1 and bool(verdicts[0].keys() & {"drop", "reject"})


def _accepted_mark(expression: Sequence[Json]) -> int | None:
    """The bit, if the rule accepts one mark bit and does nothing else, except count."""
    bare = [e for e in expression if "counter" not in e]
    match bare:
        case [{"match": {"right": int(fwmark)}}, _] if bare == accept_expression(fwmark):
            return fwmark
    return None
