"""The kernel's rules: our accepts in foreign chains, and what would refuse guests."""

from typing import Any

import pytest
from fakes import FORWARD
from nft_dump import COUNTER, answer, chain, rule
from vm_onetoone_nat.kernel.messages import nft_rules, nftables
from vm_onetoone_nat.kernel.messages.nft_accept import accept_expression, foreign_chain, obstacle
from vm_onetoone_nat.kernel.messages.nft_rules import ListedChain, Rule, Verdict
from vm_onetoone_nat.kernel.messages.nftables import nest, text
from vm_onetoone_nat.model.configuration import DEFAULT_FWMARK
from vm_onetoone_nat.model.host import AcceptRule, ChainName, ForeignChain, Obstacle

Json = dict[str, Any]
MARK = DEFAULT_FWMARK
OTHER_MARK = 0x2
MINE = ChainName("inet", "mine", "mine")

# As Linux 6.18 lists them, in a chain `ip filter FORWARD`.
LISTED = {
    "meta mark & 0x00100000 == 0x00100000 accept": (
        "020000100b00010066696c74657200000c000200464f5257415244000c0003000000000000000009d000040024"
        "000100090001006d6574610000000014000200080002000000000308000100000000014c0001000c0001006269"
        "7477697365003c0002000800010000000001080002000000000108000300000000040800060000000000"
        "0c00040008000100000010000c00050008000100000000002c00010008000100636d70002000020008000100"
        "0000000108000200000000000c0003000800010000001000300001000e000100696d6d656469617465000000"
        "1c0002000800010000000000100002000c0002000800010000000001"
    ),
    "iptables -j REJECT": (
        "020000100b00010066696c74657200000c000200464f5257415244000c000300000000000000000764000400"
        "2c0001000c000100636f756e746572001c0002000c00010000000000000000000c0002000000000000000000"
        "340001000b0001007461726765740000240002000b00010052454a454354000008000200000000000c000300"
        "0300000000000000"
    ),
    "iptables -j LIB": (
        "020000100b00010066696c74657200000c000200464f5257415244000c000300000000000000000f68000400"
        "2c0001000c000100636f756e746572001c0002000c00010000000000000000000c0002000000000000000000"
        "380001000e000100696d6d656469617465000000240002000800010000000000180002001400020008000100"
        "fffffffd080002004c494200"
    ),
}


def accept(fwmark: int = MARK) -> list[Json]:
    return accept_expression(fwmark)


LOG = nest(1, text(1, "log"), nest(2))
OTHER_CHAIN: Json = {"jump": {"target": "x"}}
MARKED: Json = {"meta": {"key": "mark"}}
STATUS: Json = {"&": [{"ct": {"key": "status"}}, 32]}
NOT_ACCEPTS: list[list[Json | bytes]] = [
    [],
    [{"accept": None}],
    [accept()[0]],
    [accept()[0], {"drop": None}],
    [accept()[0], OTHER_CHAIN],
    [{"match": {"op": "==", "left": {"meta": {"key": "l4proto"}}, "right": "tcp"}}, *accept()],
    [
        accept()[0],
        {
            "mangle": {
                "key": {"meta": {"key": "mark"}},
                "value": {"|": [{"meta": {"key": "mark"}}, 1]},
            }
        },
        accept()[1],
    ],
    [{"match": {**accept()[0]["match"], "op": "!="}}, accept()[1]],
    [{"match": {**accept()[0]["match"], "right": 0}}, accept()[1]],
    [*accept(0)],
    [{"match": {"op": "==", "left": {"meta": {"key": "mark"}}, "right": MARK}}, accept()[1]],
    [
        {"match": {"op": "==", "left": {"&": [{"ct": {"key": "status"}}, 32]}, "right": 32}},
        *accept(),
    ],
]


def rules(*statements: list[Any], name: ChainName = FORWARD) -> list[Rule]:
    """Rules as the kernel lists them, with handles from 3."""
    bodies = (rule(name, handle, each) for handle, each in enumerate(statements, 3))
    return list(nft_rules.rules(answer(nftables.NEW_RULE, *bodies)))


def listed(name: str) -> Rule:
    (found,) = nft_rules.rules(answer(nftables.NEW_RULE, bytes.fromhex(LISTED[name])))
    return found


@pytest.mark.parametrize("statements", NOT_ACCEPTS)
def test_rules_that_are_not_accepts(statements: list[Json | bytes]) -> None:
    """A rule that does anything else than accept one mark bit is never taken for an accept."""
    assert foreign_chain(FORWARD, rules(statements)) == ForeignChain(FORWARD)


def test_accepts_of_a_chain() -> None:
    """Accepts are found with or without a counter, with handle, mark and whether at the head."""
    first, second = accept(MARK), accept(OTHER_MARK)
    found = rules([first[0], COUNTER, first[1]], [COUNTER, {"drop": None}], second)
    assert foreign_chain(FORWARD, found) == ForeignChain(
        FORWARD, (AcceptRule(3, MARK, at_head=True), AcceptRule(5, OTHER_MARK, at_head=False))
    )


def test_rules_of_a_real_kernel() -> None:
    """The accept is found in the kernel's own bytes, and where other rules lead is known."""
    found = [listed(name) for name in LISTED]
    assert foreign_chain(FORWARD, found).accepts == (AcceptRule(9, MARK, at_head=True),)
    assert [each.verdict for each in found] == [Verdict("accept"), None, Verdict("jump", "LIB")]


def test_chains() -> None:
    """Base chains are those with a hook; a chain that is only jumped to has none."""
    jumped_to = ChainName("ip", "filter", "LIBVIRT_FWI")
    bodies = (chain(FORWARD, hook=2, policy=1), chain(jumped_to), chain(MINE, hook=4, policy=0))
    assert list(nft_rules.chains(answer(nftables.NEW_CHAIN, *bodies))) == [
        ListedChain(FORWARD, "forward"),
        ListedChain(jumped_to),
        ListedChain(MINE, "postrouting", drops=True),
    ]


@pytest.mark.parametrize(
    "name", ["reject", "~log0", "22", 'a "b" c', "a\tb\n", "\udcff\udcfe", "é"]
)
def test_names(name: str) -> None:
    """A name may be anything that the kernel takes, and what is not UTF-8 is kept as it is."""
    odd = ChainName("ip", name, name)
    (found,) = nft_rules.chains(answer(nftables.NEW_CHAIN, chain(odd, hook=2)))
    assert found.name == odd
    assert str(found.name).isprintable()


@pytest.mark.parametrize("fwmark", [MARK, OTHER_MARK])
def test_remedy_has_the_configured_mark(fwmark: int) -> None:
    """The remedy for a chain that drops accepts the mark bit that is configured, not the default.

    It named the default one.
    """
    assert obstacle(ListedChain(MINE, "forward", drops=True), [], fwmark) == Obstacle(
        "chain inet mine mine",
        f"run 'nft insert rule inet mine mine meta mark and {fwmark:#x} == {fwmark:#x} accept' "
        "and save it there",
    )


DNATED: Json = {"match": {"op": "in", "left": {"ct": {"key": "status"}}, "right": "dnat"}}


@pytest.mark.parametrize("admitting", [accept(), [DNATED, {"accept": None}]])
def test_chain_that_admits_is_no_obstacle(admitting: list[Json]) -> None:
    """A chain that drops, but accepts a mark bit or all that was DNATed, refuses no guest."""
    chain = ListedChain(MINE, "forward", drops=True)
    assert obstacle(chain, rules(admitting, name=MINE), MARK) is None
    assert obstacle(chain, rules([*admitting[:-1], {"drop": None}], name=MINE), MARK) is not None


@pytest.mark.parametrize(
    ("statements", "refuses"),
    [
        ([{"drop": None}], True),
        ([COUNTER, LOG, {"drop": None}], True),
        ([COUNTER, {"reject": {"type": "icmpx", "expr": "port-unreachable"}}], True),
        ([DNATED, {"drop": None}], False),
        ([COUNTER], False),
        ([OTHER_CHAIN], False),
        ([{"accept": None}], False),
    ],
)
def test_rule_that_refuses_all(statements: list[Any], refuses: bool) -> None:
    """A chain that accepts by its policy is an obstacle if one of its rules refuses everything."""
    found = obstacle(ListedChain(MINE, "forward"), rules(statements, name=MINE), MARK)
    assert (found is not None) is refuses
