"""Our table and its elements: as libnftables lists them, and the requests that write them."""

import copy
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lab.addresses import UPLINK
from listing import METAINFO, listing
from vm_onetoone_nat.decide.desired import mapping_elements
from vm_onetoone_nat.decide.nft_writes import DeleteElement
from vm_onetoone_nat.kernel.messages.nft_table import parse_table
from vm_onetoone_nat.kernel.messages.ruleset import transaction
from vm_onetoone_nat.model import nat_table
from vm_onetoone_nat.model.configuration import DEFAULT_FWMARK
from vm_onetoone_nat.model.mapping import AllowedService, Mapping
from vm_onetoone_nat.model.nat_table import Element, Table, element

Json = dict[str, Any]
MARK = DEFAULT_FWMARK
BOUNDED = settings(max_examples=100, derandomize=True, deadline=None, database=None)


def positions(kind: str) -> list[int]:
    """Where objects of a kind are in the listing."""
    return [i for i, entry in enumerate(listing(MARK)) if kind in entry]


@pytest.mark.parametrize("fwmark", [MARK, 0x1, 0x80000000])
def test_own_table_is_intact(fwmark: int) -> None:
    """The table as we write it reads back as intact, without elements, and with its mark."""
    assert parse_table(listing(fwmark)) == Table(True, frozenset(), fwmark)


@pytest.mark.parametrize(
    ("flags", "intact"),
    [
        (["owner", "persist"], True),
        ("persist", True),
        ("owner", False),
        ("dormant", False),
        (["dormant", "persist"], False),
    ],
)
def test_flags_of_the_table(flags: object, intact: bool) -> None:
    """A table that outlives its owner is intact, with its owner and without, and no other flags."""
    entries = listing(MARK)
    entries[1]["table"]["flags"] = flags
    assert parse_table(entries).intact is intact


@pytest.mark.parametrize("position", range(1, len(listing(MARK))))
def test_missing_object(position: int) -> None:
    """A table that lacks any one of its objects is not intact."""
    entries = listing(MARK)
    del entries[position]
    assert not parse_table(entries).intact


@pytest.mark.parametrize("position", range(1, len(listing(MARK))))
def test_changed_object(position: int) -> None:
    """A table in which any one object says something else is not intact."""
    entries = listing(MARK)
    ((_, value),) = entries[position].items()
    value["comment"] = "changed"
    assert not parse_table(entries).intact


@pytest.mark.parametrize("position", positions("rule"))
def test_changed_rule(position: int) -> None:
    """A rule with an expression more, or one less, is not intact."""
    entries = listing(MARK)
    entries[position]["rule"]["expr"].append({"accept": None})
    assert not parse_table(entries).intact
    entries = listing(MARK)
    entries[position]["rule"]["expr"].pop()
    assert not parse_table(entries).intact


@pytest.mark.parametrize("position", [*positions("rule"), *positions("chain"), *positions("set")])
def test_extra_object(position: int) -> None:
    """A rule that is there twice, or one more chain or set, is not intact."""
    entries = listing(MARK)
    ((kind, value),) = copy.deepcopy(entries[position]).items()
    if kind != "rule":
        value["name"] = "more"
    assert not parse_table([*entries, {kind: value}]).intact


@pytest.mark.parametrize(
    ("key", "value"), [("hook", "ingress"), ("prio", 0), ("policy", "drop"), ("type", "route")]
)
@pytest.mark.parametrize(
    "position", [i for i in positions("chain") if "hook" in listing(MARK)[i]["chain"]]
)
def test_changed_base_chain(position: int, key: str, value: object) -> None:
    """A base chain on another hook, priority, policy or type is not intact."""
    entries = listing(MARK)
    entries[position]["chain"][key] = value
    assert not parse_table(entries).intact


def test_rules_of_a_chain_in_another_order() -> None:
    """The order of the rules of one chain counts, since the first that decides wins."""
    entries = listing(MARK)
    first, second = [i for i in positions("rule") if entries[i]["rule"]["chain"] == "forward"][:2]
    entries[first], entries[second] = entries[second], entries[first]
    assert not parse_table(entries).intact


@BOUNDED
@given(shuffled=st.permutations(range(1, len(listing(MARK)))))
def test_objects_in_any_order(shuffled: list[int]) -> None:
    """The order of everything but the rules of one chain does not count."""
    entries = listing(MARK)
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
    entries = [e for e in listing(MARK) if "rule" not in e or e["rule"]["chain"] != "admit"]
    assert parse_table(entries) == Table(False, frozenset(), None)


def some_elements(*mappings: Mapping) -> list[Element]:
    return sorted({e for m in mappings for e in mapping_elements(m)})


SERVICES = st.one_of(
    st.just(AllowedService("icmp")),
    st.builds(
        lambda protocol, ports: AllowedService(protocol, min(ports), max(ports)),
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
    elements = [
        *some_elements(mapping),
        element(nat_table.UPLINK, (UPLINK,)),
        element(nat_table.HAIRPIN, ("vnet0",)),
    ]
    assert parse_table(listing(MARK, elements)) == Table(True, frozenset(elements), MARK)


def test_elements_are_interned() -> None:
    """A listed element is the same object as the desired one: a pass compares thousands of them."""
    restricted = Mapping(
        IPv4Address("192.168.1.101"),
        "default",
        internal=IPv4Address("192.168.122.101"),
        allow=(AllowedService("tcp", 22, 22),),
    )
    desired = {id(each) for each in mapping_elements(restricted)}
    listed = parse_table(listing(MARK, some_elements(restricted))).elements
    assert {id(each) for each in listed} == desired


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
    entries = listing(MARK)
    (allowed,) = (e["set"] for e in entries if e.get("set", {}).get("name") == "allowed")
    expected = element(nat_table.ALLOWED, ("192.168.1.101", *key.split(" . ")))
    allowed["elem"] = [{"concat": listed}]
    assert parse_table(entries).elements == {expected}
    allowed["elem"] = [{"elem": {"val": {"concat": listed}, "comment": "not ours"}}]
    assert not parse_table(entries).intact


def test_few_requests_for_each_container() -> None:
    """However many mappings there are, the elements are a few requests for each set and map."""
    many = some_elements(
        *(
            Mapping(IPv4Address("10.0.0.0") + n, "default", internal=IPv4Address("10.9.0.0") + n)
            for n in range(1, 1001)
        )
    )
    requests = transaction([DeleteElement(each) for each in many])
    numbers = ("256 elements", "256 elements", "256 elements", "232 elements")
    assert [request.words for request in requests] == [
        f"delete {number} from {name}"
        for name in (
            *("external", "inbound", "internal", "outbound"),
            *("untranslated_in", "untranslated_out"),
        )
        for number in numbers
    ]


def test_empty_transaction() -> None:
    """A transaction without content has no request."""
    assert transaction([]) == ()
