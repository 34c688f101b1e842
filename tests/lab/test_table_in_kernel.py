"""Our table in the real kernel, in a network namespace of its own.

Each test runs in a child process that calls the function named `child_…` of this module.
"""

import subprocess
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network
from random import Random
from resource import RUSAGE_SELF, getrusage
from typing import Any

import pytest
from fakes import FORWARD
from lab.addresses import UPLINK, external, internal
from own_network import in_own_network
from vm_onetoone_nat.decide.desired import mapping_elements
from vm_onetoone_nat.decide.nft_writes import (
    AddElement,
    DeleteAccept,
    DeleteElement,
    InsertAccept,
    InstallTable,
    RemoveTable,
)
from vm_onetoone_nat.decide.writes import NftWrite
from vm_onetoone_nat.errors import TransactionRefused
from vm_onetoone_nat.model import nat_table
from vm_onetoone_nat.model.configuration import DEFAULT_FWMARK
from vm_onetoone_nat.model.host import ChainName, ForeignChain
from vm_onetoone_nat.model.mapping import AllowedService, Mapping
from vm_onetoone_nat.model.nat_table import Element, Table, element

Json = dict[str, Any]
MARK = DEFAULT_FWMARK
OTHER_MARK = 0x2


def some_elements(*mappings: Mapping) -> list[Element]:
    return sorted({e for m in mappings for e in mapping_elements(m)})


MAPPED = (
    Mapping(external(1), "default", internal=internal(1)),
    Mapping(
        external(2),
        "default",
        internal=internal(2),
        allow=(
            AllowedService("icmp"),
            AllowedService("tcp", 22, 22),
            AllowedService("tcp", 8000, 8100),
            AllowedService("udp"),
        ),
        allowed_sources=(IPv4Network("10.0.0.0/8"), IPv4Network("192.168.1.7/32")),
    ),
    Mapping(
        external(3), "default", internal=internal(3), allow=(AllowedService("tcp", 8000, 8015),)
    ),
    Mapping(
        external(4),
        "default",
        internal=internal(4),
        allowed_sources=(IPv4Network("0.0.0.0/0"),),
    ),
)


def elements_of(writes: Sequence[NftWrite]) -> frozenset[Element]:
    return frozenset(write.element for write in writes if isinstance(write, AddElement))


def _install(*mappings: Mapping) -> tuple[NftWrite, ...]:
    more = (element(nat_table.UPLINK, (UPLINK,)), element(nat_table.HAIRPIN, ("vnet0",)))
    return (InstallTable(MARK), *map(AddElement, (*some_elements(*mappings), *more)))


def _run(*command: str, text: str | None = None) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _replacing(before: Mapping, after: Mapping) -> tuple[NftWrite, ...]:
    old, new = set(mapping_elements(before)), set(mapping_elements(after))
    return (*map(DeleteElement, sorted(old - new)), *map(AddElement, sorted(new - old)))


def child_life() -> None:
    from vm_onetoone_nat.kernel.nft import Nft

    nft = Nft()
    assert nft.observe(MARK) == (None, (), ())
    for _ in range(2):
        # Twice: the second writes over the table of the first.
        nft.apply(_install(*MAPPED))
        table, foreign, _ = Nft().observe(MARK)
        assert table == Table(True, elements_of(_install(*MAPPED)), MARK), table
        assert foreign == ()
    nft.apply([*map(DeleteElement, some_elements(MAPPED[1]))])
    nft.apply(_replacing(MAPPED[0], Mapping(external(1), "default", internal=internal(9))))
    changed = (Mapping(external(1), "default", internal=internal(9)), *MAPPED[2:])
    table, _, _ = nft.observe(MARK)
    assert table == Table(True, elements_of(_install(*changed)), MARK), table
    nft.apply([InstallTable(OTHER_MARK)])
    assert nft.observe(MARK)[0] == Table(True, frozenset(), OTHER_MARK)
    nft.apply([RemoveTable()])
    assert nft.observe(MARK) == (None, (), ())
    assert _run("nft", "list", "ruleset") == ""


def test_kernel_life() -> None:
    """The kernel lists the table as intact, with the elements that were written, until removed."""
    in_own_network(child_life)


def child_many_elements() -> None:
    from vm_onetoone_nat.kernel.nft import Nft

    random = Random(7)
    nft = Nft()
    mappings = []
    for n in range(1, 201):
        length = random.randint(0, 32)
        first = random.choice([1, 22, 80, 1024, 8000, 8192, 65535])
        last = min(65535, first + random.choice([0, 1, 7, 15, 255, 1023, 65535]))
        services = (
            AllowedService("icmp"),
            AllowedService(random.choice(["tcp", "udp"]), first, last),
        )
        source = IPv4Network((random.getrandbits(32), length), strict=False)
        mappings.append(
            Mapping(
                IPv4Address("172.16.0.0") + n,
                "default",
                internal=IPv4Address("10.0.0.0") + n,
                allow=random.choice([None, services]),
                allowed_sources=random.choice([None, (source,)]),
            )
        )
    nft.apply(_install(*mappings))
    expected = elements_of(_install(*mappings))
    table, _, _ = nft.observe(MARK)
    assert table is not None
    assert table.intact
    assert table.elements == expected, table.elements ^ expected
    nft.apply([*map(DeleteElement, sorted(expected))])
    assert nft.observe(MARK)[0] == Table(True, frozenset(), MARK)


def test_kernel_many_elements() -> None:
    """Any prefix and port range that can be configured reads back as written, and is deletable."""
    in_own_network(child_many_elements)


def child_changed_ranges() -> None:
    from vm_onetoone_nat.kernel.nft import Nft

    nft = Nft()
    before = MAPPED[1]
    nft.apply(_install(before))
    for first, last in ((22, 23), (22, 30), (1, 65535), (25, 26)):
        after = Mapping(
            before.external,
            "default",
            internal=before.internal,
            allow=(AllowedService("tcp", first, last),),
            allowed_sources=before.allowed_sources,
        )
        nft.apply(_replacing(before, after))
        table, _, _ = nft.observe(MARK)
        assert table == Table(True, elements_of(_install(after)), MARK), table
        before = after


def test_kernel_takes_changed_ranges() -> None:
    """A range may be replaced in one transaction by another that overlaps it."""
    in_own_network(child_changed_ranges)


def child_flooded(what: str) -> None:
    from vm_onetoone_nat.kernel.nft import Nft

    nft = Nft()
    nft.apply(_install(*MAPPED))
    numbers = (f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}" for n in range(200_000))
    table = "inet vm_onetoone_nat"
    if what == "elements":
        more = f"add element {table} untranslated_in {{ {', '.join(numbers)} }}"
    else:
        more = "\n".join(f"add rule {table} admit ip saddr {each} counter" for each in numbers)
    _run("nft", "-f", "-", text=more)
    before = getrusage(RUSAGE_SELF).ru_maxrss
    assert nft.observe(MARK)[0] == Table(intact=False)
    assert getrusage(RUSAGE_SELF).ru_maxrss - before < 30 << 10
    nft.apply(_install(*MAPPED))
    assert nft.observe(MARK)[0] == Table(True, elements_of(_install(*MAPPED)), MARK)


@pytest.mark.parametrize("what", ["elements", "rules"])
def test_kernel_table_that_others_fill(what: str) -> None:
    """Many objects of another program in our table are not read: the table is replaced."""
    in_own_network(child_flooded, what)


def child_refused() -> None:
    from vm_onetoone_nat.kernel.nft import Nft

    nft = Nft()
    _run("iptables", "-A", "FORWARD", "-j", "REJECT")
    nft.apply(_install(*MAPPED))
    before = _run("nft", "-a", "list", "ruleset")
    stray = element(nat_table.OUTBOUND, ("203.0.113.9",))
    elsewhere = ChainName("ip", "filter", "NOWHERE")
    transactions: tuple[tuple[NftWrite, ...], ...] = (
        (DeleteElement(stray), AddElement(element(nat_table.OUTBOUND, ("203.0.113.1",)))),
        (
            InstallTable(OTHER_MARK),
            InsertAccept(FORWARD, OTHER_MARK),
            InsertAccept(elsewhere, OTHER_MARK),
        ),
        (RemoveTable(), DeleteAccept(FORWARD, 4242)),
        (AddElement(element(nat_table.EXTERNAL, ("192.168.1.101",), "192.168.122.200")),),
    )
    for transaction in transactions:
        refusal = None
        try:
            nft.apply(transaction)
        except TransactionRefused as error:
            refusal = error
        assert refusal is not None, transaction
        assert "\n" not in str(refusal)
        assert _run("nft", "-a", "list", "ruleset") == before
    nft.apply([RemoveTable()])
    assert nft.observe(MARK) == (None, (ForeignChain(FORWARD),), ())


def test_kernel_refuses_whole() -> None:
    """A transaction with one bad part changes nothing, says why, and the next one works."""
    in_own_network(child_refused)


def child_accept() -> None:
    from vm_onetoone_nat.kernel.nft import Nft

    nft = Nft()
    line = "-A FORWARD -m mark --mark 0x100000/0x100000 -j ACCEPT"
    reject = "-A FORWARD -j REJECT --reject-with icmp-port-unreachable"
    _run("iptables", "-A", "FORWARD", "-j", "REJECT")
    _, foreign, _ = nft.observe(MARK)
    assert foreign == (ForeignChain(FORWARD),)
    nft.apply([InstallTable(MARK), InsertAccept(FORWARD, MARK)])
    assert _run("iptables", "-S", "FORWARD").splitlines()[1:] == [line, reject]

    _, (chain,), _ = nft.observe(MARK)
    (rule,) = chain.accepts
    assert (rule.fwmark, rule.at_head) == (MARK, True)

    saved = _run("iptables-save")
    assert line in saved.splitlines()
    _run("iptables-restore", text=saved)
    assert _run("iptables", "-S", "FORWARD").splitlines()[1:] == [line, reject]
    table, (chain,), _ = nft.observe(MARK)
    assert table == Table(True, frozenset(), MARK)
    (rule,) = chain.accepts
    assert (rule.fwmark, rule.at_head) == (MARK, True)

    # libvirt and Docker insert at the head.
    _run("iptables", "-I", "FORWARD", "-j", "DROP")
    _, (chain,), _ = nft.observe(MARK)
    (rule,) = chain.accepts
    assert not rule.at_head
    nft.apply([DeleteAccept(FORWARD, rule.handle), InsertAccept(FORWARD, MARK)])
    assert _run("iptables", "-S", "FORWARD").splitlines()[1:] == [
        line,
        "-A FORWARD -j DROP",
        reject,
    ]
    _, (chain,), _ = nft.observe(MARK)
    nft.apply([DeleteAccept(FORWARD, chain.accepts[0].handle)])
    assert line not in _run("iptables", "-S", "FORWARD")


def test_kernel_accept_is_readable_to_iptables() -> None:
    """The accept reads back in iptables as one plain rule, and is found after save and restore."""
    in_own_network(child_accept)


def child_changed_table() -> None:
    from vm_onetoone_nat.kernel.nft import Nft

    nft = Nft()
    for change in (
        "insert rule inet vm_onetoone_nat forward drop",
        "add rule inet vm_onetoone_nat admit accept",
        "flush chain inet vm_onetoone_nat admit",
        "flush table inet vm_onetoone_nat",
        "add chain inet vm_onetoone_nat more",
        "add set inet vm_onetoone_nat more { type ipv4_addr; }",
        "add map inet vm_onetoone_nat more { type ipv4_addr : ipv4_addr; }",
        "add counter inet vm_onetoone_nat more",
        "add chain inet vm_onetoone_nat forward { policy drop; }",
        "add table inet vm_onetoone_nat { flags dormant; }",
    ):
        nft.apply(_install(*MAPPED))
        _run("nft", change)
        table, _, _ = nft.observe(MARK)
        assert table is not None
        assert not table.intact, change
    nft.apply(_install(*MAPPED))
    assert nft.observe(MARK)[0] == Table(True, elements_of(_install(*MAPPED)), MARK)


def test_kernel_changed_table() -> None:
    """Whatever somebody does to the table's chains, rules or sets, it is noticed, and repaired."""
    in_own_network(child_changed_table)


def child_orphan() -> None:
    from vm_onetoone_nat.kernel.messages.nft_objects import own_table
    from vm_onetoone_nat.kernel.messages.ruleset import batch
    from vm_onetoone_nat.kernel.netlink import NETFILTER, Netlink
    from vm_onetoone_nat.kernel.nft import Nft

    other = Netlink(NETFILTER, "nftables")
    other.send(batch([own_table()]))
    other.close()
    nft = Nft(owner=True)
    assert not nft.persistent
    assert nft.observe(MARK)[0] == Table(False, persistent=True, owned=False)
    nft.apply(_install(*MAPPED))
    assert nft.observe(MARK)[0] == Table(True, elements_of(_install(*MAPPED)), MARK)


def test_kernel_orphan() -> None:
    """A table with flags that libnftables does not know, left by another release, is replaced."""
    in_own_network(child_orphan)


def child_foreign_element(change: str) -> None:
    from vm_onetoone_nat.decide.desired import desire
    from vm_onetoone_nat.decide.plan import plan
    from vm_onetoone_nat.kernel.nft import Nft
    from vm_onetoone_nat.model.configuration import Configuration
    from vm_onetoone_nat.model.guests import Guests
    from vm_onetoone_nat.model.host import Observed
    from vm_onetoone_nat.model.store import Stored

    nft = Nft()
    nft.apply([InstallTable(MARK)])
    _run("nft", f"add element inet vm_onetoone_nat {change}")
    table, _, _ = nft.observe(MARK)
    assert table is not None
    observed = Observed(None, table=table)
    planned = plan(observed, desire(Configuration(), Guests(), observed, Stored()))
    writes = [write for write in planned.writes if isinstance(write, NftWrite)]
    assert writes
    nft.apply(writes)
    assert nft.observe(MARK)[0] == Table(True, frozenset(), MARK)


@pytest.mark.parametrize(
    "change",
    [
        "external { 203.0.113.1 : 203.0.113.2 }",
        'external { 203.0.113.1 comment "mine" : 203.0.113.2 }',
        "inbound { 203.0.113.1 : accept }",
        "inbound { 203.0.113.1 : jump restrict }",
        "outbound { 203.0.113.1 }",
        'outbound { 203.0.113.1 comment "mine" }',
        'uplink { "eth9" }',
        "allowed { 203.0.113.1 . 10.0.0.0/9 . tcp . 22 }",
        "allowed { 203.0.113.1 . 10.0.0.5 . 6-17 . 22-23 }",
        "allowed { 203.0.113.1 . 10.0.0.5-10.0.0.9 . tcp . 22 }",
        "allowed { 203.0.113.0/24 . 10.0.0.5 . tcp . 22 }",
    ],
)
def test_kernel_foreign_element(change: str) -> None:
    """An element that somebody put into our table is noticed, planned to go, and deleted."""
    in_own_network(child_foreign_element, change)
