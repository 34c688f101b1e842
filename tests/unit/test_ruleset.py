"""libnftables' JSON: our table, its elements, the accepts in foreign chains; then the kernel's own.

The last part runs in a network namespace of its own, each test in a child process that calls the
function named `child_…` of this module.
"""

import copy
import subprocess
import sys
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from random import Random
from typing import Any

import pytest
from fakes import FORWARD
from hypothesis import given, settings
from hypothesis import strategies as st
from lab.addresses import UPLINK, external, internal
from vm_onetoone_nat.desired import mapping_elements
from vm_onetoone_nat.errors import TransactionRefused
from vm_onetoone_nat.plan import Transaction
from vm_onetoone_nat.ruleset import (
    parse_chains,
    parse_foreign_chain,
    parse_table,
    table_commands,
    transaction_commands,
)
from vm_onetoone_nat.state import (
    DEFAULT_FWMARK,
    AcceptRule,
    ChainName,
    Element,
    ForeignChain,
    Mapping,
    Service,
    Table,
)

Json = dict[str, Any]
MARK = DEFAULT_FWMARK
OTHER_MARK = 0x2
METAINFO: Json = {"metainfo": {"version": "1.0.6", "json_schema_version": 1}}
BOUNDED = settings(max_examples=100, derandomize=True, deadline=None, database=None)


def listing(fwmark: int = MARK) -> list[Json]:
    """The static table as the kernel lists it: with metainfo, and a handle on every object."""
    entries: list[Json] = [METAINFO]
    for number, command in enumerate(table_commands(fwmark)):
        ((kind, value),) = copy.deepcopy(command["add"]).items()
        entries.append({kind: {**value, "handle": number}})
    return entries


def positions(kind: str) -> list[int]:
    """Where objects of a kind are in the listing."""
    return [i for i, entry in enumerate(listing()) if kind in entry]


@pytest.mark.parametrize("fwmark", [MARK, 0x1, 0x80000000])
def test_own_table_is_intact(fwmark: int) -> None:
    """The table as we write it reads back as intact, without elements, and with its mark."""
    assert parse_table(listing(fwmark)) == Table(True, frozenset(), fwmark)


@pytest.mark.parametrize("position", range(1, len(listing())))
def test_missing_object(position: int) -> None:
    """A table that lacks any one of its objects is not intact."""
    entries = listing()
    del entries[position]
    assert not parse_table(entries).intact


@pytest.mark.parametrize("position", range(1, len(listing())))
def test_changed_object(position: int) -> None:
    """A table in which any one object says something else is not intact."""
    entries = listing()
    ((_, value),) = entries[position].items()
    value["comment"] = "changed"
    assert not parse_table(entries).intact


@pytest.mark.parametrize("position", positions("rule"))
def test_changed_rule(position: int) -> None:
    """A rule with an expression more, or one less, is not intact."""
    entries = listing()
    entries[position]["rule"]["expr"].append({"accept": None})
    assert not parse_table(entries).intact
    entries = listing()
    entries[position]["rule"]["expr"].pop()
    assert not parse_table(entries).intact


@pytest.mark.parametrize("position", [*positions("rule"), *positions("chain"), *positions("set")])
def test_extra_object(position: int) -> None:
    """A rule that is there twice, or one more chain or set, is not intact."""
    entries = listing()
    ((kind, value),) = copy.deepcopy(entries[position]).items()
    if kind != "rule":
        value["name"] = "more"
    assert not parse_table([*entries, {kind: value}]).intact


@pytest.mark.parametrize(
    ("key", "value"), [("hook", "input"), ("prio", 0), ("policy", "drop"), ("type", "route")]
)
@pytest.mark.parametrize(
    "position", [i for i in positions("chain") if "hook" in listing()[i]["chain"]]
)
def test_changed_base_chain(position: int, key: str, value: object) -> None:
    """A base chain on another hook, priority, policy or type is not intact."""
    entries = listing()
    entries[position]["chain"][key] = value
    assert not parse_table(entries).intact


def test_rules_of_a_chain_in_another_order() -> None:
    """The order of the rules of one chain counts, since the first that decides wins."""
    entries = listing()
    first, second = [i for i in positions("rule") if entries[i]["rule"]["chain"] == "forward"][:2]
    entries[first], entries[second] = entries[second], entries[first]
    assert not parse_table(entries).intact


@BOUNDED
@given(shuffled=st.permutations(range(1, len(listing()))))
def test_objects_in_any_order(shuffled: list[int]) -> None:
    """The order of everything but the rules of one chain does not count."""
    entries = listing()
    chains = [entries[i]["rule"]["chain"] if "rule" in entries[i] else None for i in shuffled]
    remaining = {
        chain: [entries[i] for i in positions("rule") if entries[i]["rule"]["chain"] == chain]
        for chain in set(chains) - {None}
    }
    reordered = [
        entries[i] if chain is None else remaining[chain].pop(0)
        for i, chain in zip(shuffled, chains, strict=True)
    ]
    assert parse_table([METAINFO, *reordered]).intact


def test_mark_that_cannot_be_read() -> None:
    """Where the rule that marks is gone the mark is unknown, and where two bits are it is odd."""
    entries = [e for e in listing() if "rule" not in e or e["rule"]["chain"] != "admit"]
    assert parse_table(entries) == Table(False, frozenset(), None)


def with_elements(elements: list[Element]) -> list[Json]:
    """The table's listing with elements in the form in which we write them."""
    entries = listing()
    named = {e[k]["name"]: e[k] for e in entries for k in ("set", "map") if k in e}
    for command in transaction_commands(Transaction(add_elements=tuple(elements))):
        written = command["add"]["element"]
        named[written["name"]]["elem"] = [
            counted(item) if "stmt" in named[written["name"]] else item for item in written["elem"]
        ]
    return entries


def counted(item: Any) -> Any:
    """An element as a listing without state has it where its set counts."""
    if isinstance(item, list):
        return [{"elem": {"val": item[0], "counter": None}}, item[1]]
    return {"elem": {"val": item, "counter": None}}


def some_elements(*mappings: Mapping) -> list[Element]:
    return sorted({e for m in mappings for e in mapping_elements(m)})


SERVICES = st.one_of(
    st.just(Service("icmp")),
    st.builds(
        lambda protocol, ports: Service(protocol, min(ports), max(ports)),
        st.sampled_from(["tcp", "udp"]),
        st.tuples(st.integers(1, 65535), st.integers(1, 65535)),
    ),
)
NETWORKS = st.builds(
    lambda ip, length: IPv4Network((ip, length), strict=False),
    st.ip_addresses(v=4),
    st.integers(0, 32),
)
MAPPINGS = st.builds(
    Mapping,
    external=st.ip_addresses(v=4),
    network=st.just("default"),
    internal=st.ip_addresses(v=4),
    allow=st.none() | st.lists(SERVICES, min_size=1, max_size=4).map(tuple),
    allowed_sources=st.none() | st.lists(NETWORKS, min_size=1, max_size=4).map(tuple),
)


@BOUNDED
@given(mapping=MAPPINGS)
def test_elements_read_back(mapping: Mapping) -> None:
    """Every mapping's elements read back as they were written, and leave the table intact."""
    elements = [*some_elements(mapping), Element("uplink", UPLINK), Element("hairpin", "vnet0")]
    assert parse_table(with_elements(elements)) == Table(True, frozenset(elements), MARK)


@pytest.mark.parametrize(
    ("listed", "key"),
    [
        # As libnftables 1.0.6 lists them: /32 without a prefix, a single port without a range.
        (["192.168.1.101", "10.0.0.1", "tcp", 22], "10.0.0.1/32 . tcp . 22-22"),
        (
            ["192.168.1.101", {"prefix": {"addr": "10.0.0.0", "len": 8}}, "udp", 53],
            "10.0.0.0/8 . udp . 53-53",
        ),
        (
            [
                "192.168.1.101",
                {"prefix": {"addr": "0.0.0.0", "len": 0}},
                {"range": [0, 255]},
                {"range": [0, 65535]},
            ],
            "0.0.0.0/0 . any . 0-65535",
        ),
        (
            ["192.168.1.101", "10.0.0.1", "icmp", {"range": [0, 65535]}],
            "10.0.0.1/32 . icmp . 0-65535",
        ),
    ],
)
def test_allowed_as_the_kernel_lists_it(listed: list[object], key: str) -> None:
    """Each form in which the kernel lists an interval reads as the element that was written."""
    entries = listing()
    (allowed,) = (e["set"] for e in entries if e.get("set", {}).get("name") == "allowed")
    expected = Element("allowed", f"192.168.1.101 . {key}")
    allowed["elem"] = [{"concat": listed}]
    assert parse_table(entries).elements == {expected}
    allowed["elem"] = [{"elem": {"val": {"concat": listed}, "comment": "not ours"}}]
    assert not parse_table(entries).intact


def test_one_command_for_each_container() -> None:
    """However many mappings there are, the elements are one command for each set and map."""
    many = some_elements(
        *(
            Mapping(IPv4Address("10.0.0.0") + n, "default", internal=IPv4Address("10.9.0.0") + n)
            for n in range(1, 1001)
        )
    )
    commands = transaction_commands(Transaction(delete_elements=tuple(many)))
    assert [c["delete"]["element"]["name"] for c in commands] == [
        "external",
        "inbound",
        "internal",
        "outbound",
    ]


def test_empty_transaction() -> None:
    """A transaction without content is no command at all."""
    assert transaction_commands(Transaction()) == []
    assert not Transaction()


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


# The real kernel, in a network namespace of its own.


def in_own_network(child: Callable[..., None], *arguments: str) -> None:
    """Call a function of this module in a new process with a new network namespace."""
    name = child.__name__
    command = ["unshare", "--net", sys.executable, "-W", "error", "-c"]
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    code += f"import test_ruleset; test_ruleset.{name}(*sys.argv[1:])"
    done = subprocess.run([*command, code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


MAPPED = (
    Mapping(external(1), "default", internal=internal(1)),
    Mapping(
        external(2),
        "default",
        internal=internal(2),
        allow=(Service("icmp"), Service("tcp", 22, 22), Service("tcp", 8000, 8100), Service("udp")),
        allowed_sources=(IPv4Network("10.0.0.0/8"), IPv4Network("192.168.1.7/32")),
    ),
    Mapping(external(3), "default", internal=internal(3), allow=(Service("tcp", 8000, 8015),)),
    Mapping(
        external(4),
        "default",
        internal=internal(4),
        allowed_sources=(IPv4Network("0.0.0.0/0"),),
    ),
)


def _install(*mappings: Mapping) -> Transaction:
    more = (Element("uplink", UPLINK), Element("hairpin", "vnet0"))
    return Transaction(install=MARK, add_elements=(*some_elements(*mappings), *more))


def _run(*command: str, text: str | None = None) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _replacing(before: Mapping, after: Mapping) -> Transaction:
    old, new = set(mapping_elements(before)), set(mapping_elements(after))
    return Transaction(
        delete_elements=tuple(sorted(old - new)), add_elements=tuple(sorted(new - old))
    )


def child_life() -> None:
    from vm_onetoone_nat.nft import Nft

    nft = Nft()
    assert nft.observe() == (None, (), ())
    for _ in range(2):
        # Twice: the second writes over the table of the first.
        nft.apply(_install(*MAPPED))
        table, foreign, _ = Nft().observe()
        assert table == Table(True, frozenset(_install(*MAPPED).add_elements), MARK), table
        assert foreign == ()
    nft.apply(Transaction(delete_elements=tuple(some_elements(MAPPED[1]))))
    nft.apply(_replacing(MAPPED[0], Mapping(external(1), "default", internal=internal(9))))
    changed = (Mapping(external(1), "default", internal=internal(9)), *MAPPED[2:])
    table, _, _ = nft.observe()
    assert table == Table(True, frozenset(_install(*changed).add_elements), MARK), table
    nft.apply(Transaction(install=OTHER_MARK))
    assert nft.observe()[0] == Table(True, frozenset(), OTHER_MARK)
    nft.apply(Transaction(remove_table=True))
    assert nft.observe() == (None, (), ())
    assert _run("nft", "list", "ruleset") == ""


def test_kernel_life() -> None:
    """The kernel lists the table as intact, with the elements that were written, until removed."""
    in_own_network(child_life)


def child_many_elements() -> None:
    from vm_onetoone_nat.nft import Nft

    random = Random(7)
    nft = Nft()
    mappings = []
    for n in range(1, 201):
        length = random.randint(0, 32)
        first = random.choice([1, 22, 80, 1024, 8000, 8192, 65535])
        last = min(65535, first + random.choice([0, 1, 7, 15, 255, 1023, 65535]))
        services = (Service("icmp"), Service(random.choice(["tcp", "udp"]), first, last))
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
    expected = frozenset(_install(*mappings).add_elements)
    table, _, _ = nft.observe()
    assert table is not None
    assert table.intact
    assert table.elements == expected, table.elements ^ expected
    nft.apply(Transaction(delete_elements=tuple(sorted(expected))))
    assert nft.observe()[0] == Table(True, frozenset(), MARK)


def test_kernel_many_elements() -> None:
    """Any prefix and port range that can be configured reads back as written, and is deletable."""
    in_own_network(child_many_elements)


def child_changed_ranges() -> None:
    from vm_onetoone_nat.nft import Nft

    nft = Nft()
    before = MAPPED[1]
    nft.apply(_install(before))
    for first, last in ((22, 23), (22, 30), (1, 65535), (25, 26)):
        after = Mapping(
            before.external,
            "default",
            internal=before.internal,
            allow=(Service("tcp", first, last),),
            allowed_sources=before.allowed_sources,
        )
        nft.apply(_replacing(before, after))
        table, _, _ = nft.observe()
        assert table == Table(True, frozenset(_install(after).add_elements), MARK), table
        before = after


def test_kernel_takes_changed_ranges() -> None:
    """A range may be replaced in one transaction by another that overlaps it."""
    in_own_network(child_changed_ranges)


def child_refused() -> None:
    from vm_onetoone_nat.nft import Nft

    nft = Nft()
    _run("iptables", "-A", "FORWARD", "-j", "REJECT")
    nft.apply(_install(*MAPPED))
    before = _run("nft", "-a", "list", "ruleset")
    stray = Element("outbound", "203.0.113.9")
    elsewhere = ChainName("ip", "filter", "NOWHERE")
    for transaction in (
        Transaction(delete_elements=(stray,), add_elements=(Element("outbound", "203.0.113.1"),)),
        Transaction(
            install=OTHER_MARK,
            insert_accepts=((FORWARD, OTHER_MARK), (elsewhere, OTHER_MARK)),
        ),
        Transaction(remove_table=True, delete_accepts=((FORWARD, 4242),)),
        Transaction(add_elements=(Element("external", "192.168.1.101", "192.168.122.200"),)),
    ):
        refusal = None
        try:
            nft.apply(transaction)
        except TransactionRefused as error:
            refusal = error
        assert refusal is not None, transaction
        assert "\n" not in str(refusal)
        assert _run("nft", "-a", "list", "ruleset") == before
    nft.apply(Transaction(remove_table=True))
    assert nft.observe() == (None, (ForeignChain(FORWARD),), ())


def test_kernel_refuses_whole() -> None:
    """A transaction with one bad part changes nothing, says why, and the next one works."""
    in_own_network(child_refused)


def child_accept() -> None:
    from vm_onetoone_nat.nft import Nft

    nft = Nft()
    line = "-A FORWARD -m mark --mark 0x100000/0x100000 -j ACCEPT"
    reject = "-A FORWARD -j REJECT --reject-with icmp-port-unreachable"
    _run("iptables", "-A", "FORWARD", "-j", "REJECT")
    _, foreign, _ = nft.observe()
    assert foreign == (ForeignChain(FORWARD),)
    nft.apply(Transaction(install=MARK, insert_accepts=((FORWARD, MARK),)))
    assert _run("iptables", "-S", "FORWARD").splitlines()[1:] == [line, reject]

    _, (chain,), _ = nft.observe()
    (rule,) = chain.accepts
    assert (rule.fwmark, rule.at_head) == (MARK, True)

    saved = _run("iptables-save")
    assert line in saved.splitlines()
    _run("iptables-restore", text=saved)
    assert _run("iptables", "-S", "FORWARD").splitlines()[1:] == [line, reject]
    table, (chain,), _ = nft.observe()
    assert table == Table(True, frozenset(), MARK)
    (rule,) = chain.accepts
    assert (rule.fwmark, rule.at_head) == (MARK, True)

    # libvirt and Docker insert at the head.
    _run("iptables", "-I", "FORWARD", "-j", "DROP")
    _, (chain,), _ = nft.observe()
    (rule,) = chain.accepts
    assert not rule.at_head
    nft.apply(
        Transaction(delete_accepts=((FORWARD, rule.handle),), insert_accepts=((FORWARD, MARK),))
    )
    assert _run("iptables", "-S", "FORWARD").splitlines()[1:] == [
        line,
        "-A FORWARD -j DROP",
        reject,
    ]
    _, (chain,), _ = nft.observe()
    nft.apply(Transaction(delete_accepts=((FORWARD, chain.accepts[0].handle),)))
    assert line not in _run("iptables", "-S", "FORWARD")


def test_kernel_accept_is_readable_to_iptables() -> None:
    """The accept reads back in iptables as one plain rule, and is found after save and restore."""
    in_own_network(child_accept)


def child_changed_table() -> None:
    from vm_onetoone_nat.nft import Nft

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
        table, _, _ = nft.observe()
        assert table is not None
        assert not table.intact, change
    nft.apply(_install(*MAPPED))
    assert nft.observe()[0] == Table(True, frozenset(_install(*MAPPED).add_elements), MARK)


def test_kernel_changed_table() -> None:
    """Whatever somebody does to the table's chains, rules or sets, it is noticed, and repaired."""
    in_own_network(child_changed_table)


def child_foreign_element(change: str) -> None:
    from vm_onetoone_nat.desired import desire
    from vm_onetoone_nat.nft import Nft
    from vm_onetoone_nat.plan import plan
    from vm_onetoone_nat.state import Configuration, Guests, Observed

    nft = Nft()
    nft.apply(Transaction(install=MARK))
    _run("nft", f"add element inet vm_onetoone_nat {change}")
    table, _, _ = nft.observe()
    assert table is not None
    observed = Observed(UPLINK, table=table)
    planned = plan(observed, desire(Configuration(), Guests(), observed))
    assert planned.transaction
    nft.apply(planned.transaction)
    assert nft.observe()[0] == Table(True, frozenset(), MARK)


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
