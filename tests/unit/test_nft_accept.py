"""libnftables' JSON: the accepts in foreign chains, and what would refuse guests."""

from typing import Any

import pytest
from fakes import FORWARD
from vm_onetoone_nat.kernel.messages.nft_accept import (
    parse_chains,
    parse_foreign_chain,
    parse_obstacle,
)
from vm_onetoone_nat.model.configuration import DEFAULT_FWMARK
from vm_onetoone_nat.model.host import AcceptRule, ChainName, ForeignChain, Obstacle

Json = dict[str, Any]
MARK = DEFAULT_FWMARK
OTHER_MARK = 0x2
METAINFO: Json = {"metainfo": {"version": "1.0.6", "json_schema_version": 1}}


def accept(fwmark: int = MARK) -> list[Json]:
    masked = {"&": [{"meta": {"key": "mark"}}, fwmark]}
    return [{"match": {"op": "==", "left": masked, "right": fwmark}}, {"accept": None}]


COUNTER: Json = {"counter": {"packets": 0, "bytes": 0}}
NOT_ACCEPTS: list[list[Json]] = [
    [],
    [{"accept": None}],
    [accept()[0]],
    [accept()[0], {"drop": None}],
    [accept()[0], {"jump": {"target": "x"}}],
    [{"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "eth0"}}, *accept()],
    [accept()[0], {"mangle": {"key": {"meta": {"key": "mark"}}, "value": 0}}, accept()[1]],
    [{"match": {**accept()[0]["match"], "op": "!="}}, accept()[1]],
    [{"match": {**accept()[0]["match"], "right": 0}}, accept()[1]],
    [{"match": {"op": "==", "left": {"meta": {"key": "mark"}}, "right": MARK}}, accept()[1]],
]


@pytest.mark.parametrize("expression", NOT_ACCEPTS)
def test_rules_that_are_not_accepts(expression: list[Json]) -> None:
    """A rule that does anything else than accept one mark bit is never taken for an accept."""
    entries = [METAINFO, {"chain": {}}, {"rule": {"handle": 3, "expr": expression}}]
    assert parse_foreign_chain(FORWARD, entries) == ForeignChain(FORWARD)


def test_accepts_of_a_chain() -> None:
    """Accepts are found with or without a counter, with handle, mark and whether at the head."""
    first, second = accept(MARK), accept(OTHER_MARK)
    entries: list[Json] = [
        METAINFO,
        {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "handle": 1}},
        {"rule": {"handle": 7, "expr": [first[0], COUNTER, first[1]]}},
        {"rule": {"handle": 4, "expr": [COUNTER, {"drop": None}]}},
        {"rule": {"handle": 5, "expr": second}},
    ]
    assert parse_foreign_chain(FORWARD, entries) == ForeignChain(
        FORWARD, (AcceptRule(7, MARK, at_head=True), AcceptRule(5, OTHER_MARK, at_head=False))
    )


def test_chains() -> None:
    """Base chains are those with a hook; a chain that is only jumped to is none."""
    entries: list[Json] = [
        METAINFO,
        {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "hook": "forward"}},
        {"chain": {"family": "ip", "table": "filter", "name": "LIBVIRT_FWI"}},
    ]
    jumped_to = ChainName("ip", "filter", "LIBVIRT_FWI")
    assert parse_chains(entries) == {FORWARD: "forward", jumped_to: None}


@pytest.mark.parametrize("fwmark", [MARK, OTHER_MARK])
def test_remedy_has_the_configured_mark(fwmark: int) -> None:
    """The remedy for a chain that drops accepts the mark bit that is configured, not the default.

    It named the default one.
    """
    name = ChainName("inet", "mine", "mine")
    entries: list[Json] = [METAINFO, {"chain": {"policy": "drop"}}]
    assert parse_obstacle(name, entries, fwmark) == Obstacle(
        "chain inet mine mine",
        f"run 'nft insert rule inet mine mine meta mark and {fwmark:#x} == {fwmark:#x} accept' "
        "and save it there",
    )


def test_chain_that_admits_is_no_obstacle() -> None:
    """A chain that drops but has an accept of a mark bit refuses no guest."""
    entries: list[Json] = [{"chain": {"policy": "drop"}}, {"rule": {"handle": 3, "expr": accept()}}]
    assert parse_obstacle(ChainName("inet", "mine", "mine"), entries, MARK) is None
