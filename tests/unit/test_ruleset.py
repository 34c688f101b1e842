"""Our table and its elements: as the kernel lists them, and the requests that write them."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lab.addresses import UPLINK
from listing import Attributes, counted, listing, with_elements
from vm_onetoone_nat.decide.desired import mapping_elements
from vm_onetoone_nat.decide.nft_writes import DeleteElement
from vm_onetoone_nat.kernel.messages import nftables
from vm_onetoone_nat.kernel.messages.nft_elements import padded
from vm_onetoone_nat.kernel.messages.nft_listing import Listing, parse_table
from vm_onetoone_nat.kernel.messages.nft_listing import counted as read_counters
from vm_onetoone_nat.kernel.messages.nftables import nest, number, text
from vm_onetoone_nat.kernel.messages.rtnetlink import attribute
from vm_onetoone_nat.kernel.messages.ruleset import transaction
from vm_onetoone_nat.model import nat_table
from vm_onetoone_nat.model.configuration import DEFAULT_FWMARK
from vm_onetoone_nat.model.mapping import AllowedService, Mapping
from vm_onetoone_nat.model.nat_table import ADMIT, Container, Element, Table, element

MARK = DEFAULT_FWMARK
BOUNDED = settings(max_examples=100, derandomize=True, deadline=None, database=None)
KINDS = ("chains", "sets", "rules")
OBJECTS = [(kind, at) for kind in KINDS for at in range(len(getattr(listing(MARK), kind)))]
NAME, RULE_CHAIN, EXPRESSIONS, COMMENT = 3, 2, 4, 7  # of chains, and of rules
COUNTER = nest(1, text(1, "counter"), nest(2))


def objects(kind: str) -> list[Attributes]:
    """The objects of a kind in the listing of our table."""
    return [dict(each) for each in getattr(listing(MARK), kind)]


def listed(kind: str, found: list[Attributes]) -> Listing:
    """The listing with these objects of a kind."""
    return replace(listing(MARK), **{kind: found})  # type: ignore[arg-type]


@pytest.mark.parametrize("fwmark", [MARK, 0x1, 0x80000000])
def test_own_table_is_intact(fwmark: int) -> None:
    """The table as we write it reads back as intact, without elements, and with its mark."""
    assert parse_table(listing(fwmark)) == Table(True, frozenset(), fwmark)


def test_other_objects() -> None:
    """A table with an object of another kind, such as a counter, is not intact."""
    assert not parse_table(replace(listing(MARK), others=True)).intact


@pytest.mark.parametrize(("kind", "position"), OBJECTS)
def test_missing_object(kind: str, position: int) -> None:
    """A table that lacks any one of its objects is not intact."""
    found = objects(kind)
    del found[position]
    assert not parse_table(listed(kind, found)).intact


@pytest.mark.parametrize("position", range(len(objects("rules"))))
def test_changed_rule(position: int) -> None:
    """A rule with an expression more, or one less, is not intact."""
    found = objects("rules")
    before = found[position][EXPRESSIONS]
    found[position][EXPRESSIONS] = before + COUNTER
    assert not parse_table(listed("rules", found)).intact
    found[position][EXPRESSIONS] = b"".join(
        nest(1, each) for each in nftables.read_list(before)[1:]
    )
    assert not parse_table(listed("rules", found)).intact


@pytest.mark.parametrize(("kind", "position"), OBJECTS)
def test_extra_object(kind: str, position: int) -> None:
    """A rule that is there twice, or one more chain or set, is not intact."""
    found = objects(kind)
    more = dict(found[position])
    if kind != "rules":
        more[NAME if kind == "chains" else NAME - 1] = b"more\0"
    assert not parse_table(listed(kind, [*found, more])).intact


@pytest.mark.parametrize(
    ("attributes", "value"),
    [
        (4, number(1, 1) + number(2, -5)),
        (4, number(1, 2) + number(2, 0)),
        (5, bytes(4)),
        (7, b"route\0"),
    ],
    ids=["hook", "priority", "policy", "type"],
)
@pytest.mark.parametrize("position", [i for i, each in enumerate(objects("chains")) if 4 in each])
def test_changed_base_chain(position: int, attributes: int, value: bytes) -> None:
    """A base chain on another hook, priority, policy or type is not intact."""
    found = objects("chains")
    if found[position][attributes] == value:
        return
    found[position][attributes] = value
    assert not parse_table(listed("chains", found)).intact


@pytest.mark.parametrize("kind", [3, 4, 5, 8, 11, 15, 17])
@pytest.mark.parametrize("position", range(len(objects("sets"))))
def test_changed_set(position: int, kind: int) -> None:
    """A set with other flags, another key, a timeout or another counter is not intact."""
    found = objects("sets")
    found[position][kind] = text(1, "quota") if kind == 17 else (0x7F000000).to_bytes(4, "big")
    assert not parse_table(listed("sets", found)).intact


def test_additions_of_the_kernel() -> None:
    """What is 0, or only for libnftables, changes nothing."""
    table = listing(MARK)
    more = replace(
        table,
        chains=[{**each, 12: b"comment", 6: b"\0\0\0\7"} for each in table.chains],
        sets=[{**each, 13: b"\0\4\1\0\0\0", 8: bytes(4), 16: bytes(8)} for each in table.sets],
        rules=[{**each, COMMENT: b"comment", 3: bytes(8)} for each in table.rules],
    )
    assert parse_table(more).intact


def test_rules_of_a_chain_in_another_order() -> None:
    """The order of the rules of one chain counts, since the first that decides wins."""
    found = objects("rules")
    first, second = [i for i, r in enumerate(found) if r[RULE_CHAIN] == b"forward\0"][:2]
    found[first], found[second] = found[second], found[first]
    assert not parse_table(listed("rules", found)).intact


@BOUNDED
@given(data=st.data())
def test_objects_in_any_order(data: st.DataObject) -> None:
    """The order of everything but the rules of one chain does not count."""
    table = listing(MARK)
    chains = data.draw(st.permutations(table.chains))
    sets = data.draw(st.permutations(table.sets))
    names = data.draw(st.permutations([rule[RULE_CHAIN] for rule in table.rules]))
    left = {name: [r for r in table.rules if r[RULE_CHAIN] == name] for name in names}
    rules = [left[name].pop(0) for name in names]
    assert parse_table(replace(table, chains=chains, sets=sets, rules=rules)).intact


def test_mark_that_cannot_be_read() -> None:
    """Where the rule that marks is gone the mark is unknown."""
    found = [r for r in objects("rules") if r[RULE_CHAIN] != ADMIT.encode() + b"\0"]
    assert parse_table(listed("rules", found)) == Table(False, frozenset(), None)


def wide_mark() -> Listing:
    """The table with a mark of 16 bytes."""
    found = objects("rules")
    (admit,) = (rule for rule in found if rule[RULE_CHAIN] == ADMIT.encode() + b"\0")
    wide = nest(4, attribute(1, bytes(16)))
    bitwise = nest(1, text(1, "bitwise"), nest(2, wide))
    before = nftables.read_list(admit[EXPRESSIONS])
    admit[EXPRESSIONS] = nest(1, before[0]) + bitwise + nest(1, before[2])
    return listed("rules", found)


@pytest.mark.parametrize(
    "table",
    [
        wide_mark(),
        with_elements(listing(MARK), nat_table.UPLINK, {}),
        with_elements(listing(MARK), nat_table.UPLINK, {1: b"eth0"}),
        listed("rules", [{EXPRESSIONS: COUNTER}]),
    ],
    ids=["wide mark", "no key", "short key", "rule of no chain"],
)
def test_unreadable(table: Listing) -> None:
    """A table that cannot be read is not intact, so it is replaced."""
    assert not parse_table(table).intact


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
    found = parse_table(listing(MARK, some_elements(restricted))).elements
    assert {id(each) for each in found} == desired


def key(*parts: bytes) -> bytes:
    """A key of these parts."""
    return attribute(1, b"".join(map(padded, parts)))


EXTERNAL, HOST = IPv4Address("192.168.1.101").packed, IPv4Address("10.0.0.1").packed
NETWORK = (IPv4Address("10.0.0.0").packed, IPv4Address("10.255.255.255").packed)
LAST = b"\xff" * 4
TCP, SSH, HTTP = b"\6", b"\0\x16", b"\0\x50"


@pytest.mark.parametrize(
    ("first", "last", "found"),
    [
        ((HOST, TCP, SSH), (HOST, TCP, SSH), "10.0.0.1/32 . tcp . 22-22"),
        ((NETWORK[0], TCP, SSH), (NETWORK[1], TCP, HTTP), "10.0.0.0/8 . tcp . 22-80"),
        (
            (bytes(4), b"\0", bytes(2)),
            (b"\xff" * 4, b"\xff", b"\xff\xff"),
            "0.0.0.0/0 . any . 0-65535",
        ),
        ((HOST, b"\1", bytes(2)), (HOST, b"\1", b"\xff\xff"), "10.0.0.1/32 . icmp . 0-65535"),
        # Not a network, more than one protocol, a protocol that we do not write.
        ((NETWORK[0], TCP, SSH), (HOST[:3] + b"\2", TCP, SSH), None),
        ((HOST, TCP, SSH), (NETWORK[1], TCP, SSH), None),
        ((HOST, b"\6", SSH), (HOST, b"\x11", SSH), None),
        ((HOST, b"\x84", SSH), (HOST, b"\x84", SSH), None),
        ((HOST, TCP), (HOST, TCP), None),
    ],
)
def test_allowed(first: tuple[bytes, ...], last: tuple[bytes, ...], found: str | None) -> None:
    """An interval is read if it is one that we write; the table is not intact with another one."""
    listed = {1: key(EXTERNAL, *first), 10: key(EXTERNAL, *last)}
    table = parse_table(with_elements(listing(MARK), nat_table.ALLOWED, listed))
    expected = set()
    if found is not None:
        expected = {element(nat_table.ALLOWED, ("192.168.1.101", *found.split(" . ")))}
    assert table == Table(found is not None, frozenset(expected), MARK)


ADDRESS = {2: attribute(1, HOST)}
GOTO = {2: nftables.verdict("goto", "admit")}
STRANGE: list[tuple[Container, Attributes]] = [
    (nat_table.EXTERNAL, {1: key(EXTERNAL), **ADDRESS}),
    (nat_table.EXTERNAL, {1: key(EXTERNAL), **counted(0, 0)}),
    (nat_table.EXTERNAL, {1: key(EXTERNAL), **ADDRESS, **counted(0, 0), 6: b"comment"}),
    (nat_table.EXTERNAL, {1: key(EXTERNAL), **ADDRESS, **counted(0, 0), 4: bytes(8)}),
    (nat_table.EXTERNAL, {3: number(3, 2), **ADDRESS, **counted(0, 0)}),
    (nat_table.OUTBOUND, {1: key(EXTERNAL), **ADDRESS, **counted(0, 0)}),
    (nat_table.INBOUND, {1: key(EXTERNAL), 2: nftables.verdict("accept"), **counted(0, 0)}),
    (nat_table.INBOUND, {1: key(EXTERNAL), 2: nftables.verdict("jump", "admit"), **counted(0, 0)}),
    (nat_table.UPLINK, {1: attribute(1, b"eth0".ljust(16, b"\0")), **counted(0, 0)}),
]


@pytest.mark.parametrize(("container", "listed"), STRANGE)
def test_strange_element(container: Container, listed: Attributes) -> None:
    """An element with anything that we do not write leaves the table not intact."""
    assert parse_table(with_elements(listing(MARK), container, listed)) == Table(
        False, frozenset(), MARK
    )
    good = {nat_table.EXTERNAL: ADDRESS, nat_table.INBOUND: GOTO}.get(container, {})
    name = (
        attribute(1, b"eth0".ljust(16, b"\0")) if container is nat_table.UPLINK else key(EXTERNAL)
    )
    more = counted(0, 0) if container.counted else {}
    assert parse_table(with_elements(listing(MARK), container, {1: name, **good, **more})).intact


def test_counters() -> None:
    """The counters of an element are its packets and bytes; an element without has none."""
    listed = [{1: key(EXTERNAL), **ADDRESS, **counted(3, 180)}, {1: key(HOST), **ADDRESS}]
    (found,) = read_counters(nat_table.EXTERNAL, listed)
    expected = element(nat_table.EXTERNAL, ("192.168.1.101",), "10.0.0.1")
    assert found == (expected, 3, 180)


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
