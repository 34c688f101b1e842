"""What other programs have in nftables: rules that we read, names, and sets that we do not read.

Each test runs in a child process that calls the function named `child_…` of this module.
"""

import json
import socket
import subprocess
from contextlib import closing
from typing import Any

import pytest
from foreign_sets import TABLES
from lab.addresses import UPLINK, external, internal
from lab.root import root
from own_network import in_own_network
from vm_onetoone_nat.decide.desired import mapping_elements
from vm_onetoone_nat.decide.nft_writes import AddElement, DeleteElement, InsertAccept, InstallTable
from vm_onetoone_nat.kernel.foreign import read_others
from vm_onetoone_nat.kernel.messages import nftables, rtnetlink
from vm_onetoone_nat.kernel.messages.nft_accept import FORWARD_CHAINS
from vm_onetoone_nat.kernel.messages.nftables import number, text
from vm_onetoone_nat.kernel.nft import Nft
from vm_onetoone_nat.model.configuration import DEFAULT_FWMARK
from vm_onetoone_nat.model.host import ChainName
from vm_onetoone_nat.model.mapping import AllowedService, Mapping
from vm_onetoone_nat.model.nat_table import Table

MARK = DEFAULT_FWMARK
FORWARD = FORWARD_CHAINS[0]
OURS = "-m mark --mark 0x100000/0x100000 -j ACCEPT"


def run(*command: str, input: str | None = None) -> str:
    done = subprocess.run(command, input=input, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


def write(*commands: dict[str, Any]) -> None:
    """By libnftables in JSON, which takes any name."""
    run("nft", "-j", "-f", "-", input=json.dumps({"nftables": commands}))


RULES: dict[str, str] = {
    # A rule in a chain that drops: "ours" if it is our accept, "admits", or "refuses" guests.
    "meta mark & 0x100000 == 0x100000 accept": "ours",
    "meta mark & 0x100000 == 0x100000 counter accept": "ours",
    "counter meta mark & 0x100000 == 0x100000 accept": "ours",
    "meta mark & 0x100000 != 0x100000 accept": "refuses",
    "meta mark & 0x100000 == 0x100000 drop": "refuses",
    "meta mark 0x100000 accept": "refuses",
    "ct mark & 0x100000 == 0x100000 accept": "refuses",
    "meta mark & 0x100000 == 0x100000 log accept": "refuses",
    "meta mark & 0x100000 == 0x100000 ip saddr 10.0.0.1 accept": "refuses",
    "ct status dnat accept": "admits",
    "ct status dnat counter accept": "admits",
    "ct status != dnat accept": "refuses",
    "ct status snat accept": "refuses",
    "ct status dnat drop": "refuses",
    "ct state established accept": "refuses",
}


def child_rules() -> None:
    with closing(Nft()) as nft:
        for rule, meaning in RULES.items():
            hook = "type filter hook forward priority 0; policy drop;"
            chain = f"chain inet mine mine {{ {hook} }}"
            run("nft", f"add table inet mine; add {chain}; add rule inet mine mine {rule}")
            run("iptables", "-A", "FORWARD", "-s", "203.0.113.9", "-j", "REJECT")
            run("nft", f"add rule ip filter FORWARD {rule}")
            _, (forward,), obstacles = nft.observe(MARK)
            assert bool(obstacles) == (meaning == "refuses"), rule
            marks = [accept.fwmark for accept in forward.accepts]
            assert marks == [MARK] * (meaning == "ours"), rule
            run("nft", "flush ruleset")


def test_rules() -> None:
    """What a foreign rule does is known for each rule that matters, and for no other."""
    in_own_network(child_rules)


def child_refusing_rules() -> None:
    with closing(Nft()) as nft:
        for rule, refuses in {
            "drop": True,
            "counter drop": True,
            'log prefix "x" counter drop': True,
            "reject": True,
            "reject with tcp reset": False,
            "ip saddr 10.0.0.1 drop": False,
            "accept": False,
            "continue": False,
            "jump other": False,
        }.items():
            hook = "type filter hook forward priority 0;"
            chains = f"add chain inet mine other; add chain inet mine mine {{ {hook} }}"
            done = subprocess.run(
                ["nft", f"add table inet mine; {chains}; add rule inet mine mine {rule}"],
                check=False,
            )
            # nft adds a condition to one kind of reject.
            assert done.returncode == 0, rule
            assert bool(nft.observe(MARK)[2]) is refuses, rule
            run("nft", "flush ruleset")


def test_refusing_rules() -> None:
    """A chain that accepts by its policy is reported only if a rule refuses everything."""
    in_own_network(child_refusing_rules)


def child_iptables(suite: str) -> None:
    iptables = [*other_release(suite), "/usr/sbin/iptables-nft"]
    run(*iptables, "-N", "LIBVIRT_FWI")
    for rule in ("-j LIBVIRT_FWI", OURS, "-m comment --comment x " + OURS, "-j REJECT"):
        run(*iptables, "-A", "FORWARD", *rule.split())
    with closing(Nft()) as nft:
        _, (before,), _ = nft.observe(MARK)
        assert [(a.fwmark, a.at_head) for a in before.accepts] == [(MARK, False)]
        run(*iptables, "-D", "FORWARD", "-j", "LIBVIRT_FWI")
        saved = run(*iptables[:-1], "/usr/sbin/iptables-nft-save")
        run(*iptables[:-1], "/usr/sbin/iptables-nft-restore", input=saved)
        _, (after,), _ = nft.observe(MARK)
        assert [(a.fwmark, a.at_head) for a in after.accepts] == [(MARK, True)]
        # And what we insert is readable there.
        nft.apply([InsertAccept(FORWARD, MARK)])
        listed = run(*iptables, "-S", "FORWARD").splitlines()
        assert listed[1:3] == [f"-A FORWARD {OURS}"] * 2


def other_release(suite: str) -> list[str]:
    """The command that runs a program of another release in this network."""
    return ["chroot", str(root("trixie" if suite == "trixie" else "bookworm"))]


@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_iptables(suite: str) -> None:
    """The accept of iptables is ours, also after its save and restore, of either release."""
    in_own_network(child_iptables, suite)


NAMES = ["reject", "~log0", "22", "accept", "a b", 'a"b', "a;b", "a{b}", "é", "x" * 120]
RAW = b"\xff\xfe\n\x1b[2J"
"""No text at all; only a program with messages of its own can have it."""


def child_names() -> None:
    for name in NAMES:
        table = {"family": "inet", "name": name}
        chain = {"family": "inet", "table": name, "name": name}
        hook = {"type": "filter", "hook": "forward", "prio": 7, "policy": "accept"}
        write(
            {"add": {"table": table}},
            {"add": {"chain": {**chain, **hook}}},
            {"add": {"rule": {"family": "inet", "table": name, "chain": name, "expr": DROP}}},
        )
    found = read_others()
    assert found.unreadable == ()
    assert {rule.text for each in found.chains.values() for rule in each.rules} == {"drop"}
    raw()
    with closing(Nft()) as nft:
        nft.apply([InstallTable(MARK)])
        ours, _, obstacles = nft.observe(MARK)
    assert ours is not None and ours.intact
    where = {each.where for each in obstacles}
    assert {f"chain {ChainName('inet', name, name)}" for name in NAMES} < where
    assert all(each.isprintable() for each in where)
    assert len(where) == len(NAMES) + 1
    others = read_others()
    assert {name.name for name in others.chains} == set(NAMES)
    for place, each in others.chains.items():
        assert (each.hook, each.priority) == ("forward", 7), place
        assert [rule.expression for rule in each.rules] == [tuple(DROP)], place
    (unreadable,) = others.unreadable
    assert unreadable.name == RAW.decode(errors="surrogateescape")


DROP: list[dict[str, Any]] = [{"drop": None}]


def raw() -> None:
    """A chain that drops, in a table of the same name, without libnftables."""
    name = RAW.decode(errors="surrogateescape")
    body = nftables.header("inet") + text(1, name)
    hook = nftables.nest(4, number(1, 2), number(2, 7))
    chain = body + text(3, name) + hook + number(5, 0) + text(7, "filter")
    messages = ((nftables.NEW_TABLE, body), (nftables.NEW_CHAIN, chain))
    begin, end = (rtnetlink.request(kind, b"\0\0\0\x0a") for kind in (0x10, 0x11))
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as netlink:
        requests = (rtnetlink.request(kind, each, flags=0x400) for kind, each in messages)
        netlink.send(begin + b"".join(requests) + end)


def test_names() -> None:
    """Tables and chains may have any name; one that libnftables cannot list is named as that."""
    in_own_network(child_names)


def foreign(suite: str) -> None:
    """All kinds of sets and maps of another release, each in a table with a chain."""
    nft = [*other_release(suite), "/usr/sbin/nft"]
    for table in TABLES:
        run(*nft, "-f", "-", input=table)


GUEST = Mapping(
    external(1),
    "default",
    internal=internal(1),
    allow=(AllowedService("tcp", 22, 25), AllowedService("icmp")),
)


def child_other_release(suite: str) -> None:
    foreign(suite)
    run("iptables", "-A", "FORWARD", "-j", "REJECT")
    elements = sorted(mapping_elements(GUEST))
    with closing(Nft()) as nft:
        nft.apply([InstallTable(MARK), InsertAccept(FORWARD, MARK)])
        nft.apply([*map(AddElement, elements)])
        table, (forward,), _ = nft.observe(MARK)
        assert table == Table(True, frozenset(elements), MARK)
        assert [accept.at_head for accept in forward.accepts] == [True]
        foreign_again(suite)
        nft.apply([*map(DeleteElement, elements)])
        assert nft.observe(MARK)[0] == Table(True, frozenset(), MARK)


def foreign_again(suite: str) -> None:
    """The other release changes what it has."""
    nft = [*other_release(suite), "/usr/sbin/nft"]
    run(*nft, "add element ip set0 x { 10.0.0.7 }; delete table ip set1")


@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_sets_of_another_release(suite: str) -> None:
    """Beside whatever sets of either release, our table and our accept are written and read.

    libnftables 1.0.6 crashed on each set that 1.1.3 had declared by a type.
    """
    in_own_network(child_other_release, suite)


def child_diagnose(suite: str) -> None:
    run("nft", "add table inet t; add chain inet t c { type filter hook forward priority 1; }")
    run("nft", f"add rule inet t c iifname {UPLINK} drop")
    foreign(suite)
    others = read_others()
    assert len(others.chains) + len(others.unreadable) == len(TABLES) + 1
    (ours,) = others.chains[ChainName("inet", "t", "c")].rules
    assert ours.expression[-1] == {"drop": None}
    assert ours.text == f'iifname "{UPLINK}" drop'
    assert suite == "trixie" or not others.unreadable


@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_diagnose_beside_another_release(suite: str) -> None:
    """Chains in tables on which libnftables crashes are unreadable, all others are read."""
    in_own_network(child_diagnose, suite)
