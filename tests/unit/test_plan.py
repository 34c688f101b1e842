"""The plan: what is written, what is left alone, and that one pass is enough."""

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface

import pytest
from fakes import (
    FORWARD,
    LIBVIRT_FORWARD,
    FakeKernel,
    Rule,
    default_network,
    domain,
    laptop,
    observed_on,
    of,
    own_address,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from lab.addresses import HOST, LIBVIRT_BRIDGE, UPLINK, external, guest_name, internal
from vm_onetoone_nat.decide.desired import desire, mapping_elements
from vm_onetoone_nat.decide.host_writes import (
    AddAddress,
    ClearHairpin,
    DeleteAddress,
    EnableIpForward,
    FlushBypassing,
    FlushTranslated,
    SetHairpin,
)
from vm_onetoone_nat.decide.nft_writes import (
    TABLE_KEY,
    AddElement,
    AdoptTable,
    DeleteAccept,
    DeleteElement,
    InsertAccept,
    InstallTable,
    RemoveTable,
)
from vm_onetoone_nat.decide.plan import Plan, describe, plan, removal
from vm_onetoone_nat.decide.writes import Write
from vm_onetoone_nat.model import nat_table
from vm_onetoone_nat.model.configuration import DEFAULT_FWMARK, Configuration
from vm_onetoone_nat.model.desired import Desired
from vm_onetoone_nat.model.guests import Guests
from vm_onetoone_nat.model.host import AcceptRule, Address, ChainName, ForeignChain, Observed
from vm_onetoone_nat.model.mapping import AllowedService, Mapping
from vm_onetoone_nat.model.nat_table import Element, Table, Translation, element
from vm_onetoone_nat.model.status import MappingState, MappingStatus
from vm_onetoone_nat.model.store import Stored

BOUNDED = settings(max_examples=200, derandomize=True, deadline=None, database=None)
MARK = DEFAULT_FWMARK
OLD_MARK, OTHER_MARK = 0x2, 0x4
CONFIGURATION = Configuration()


def guest(n: int) -> Mapping:
    return Mapping(external(n), "default", internal=internal(n), domain=guest_name(n))


def guests(*numbers: int) -> Guests:
    return Guests(tuple(domain(guest_name(n)) for n in numbers), (default_network(),))


def desired_of(kernel: FakeKernel, *numbers: int, fwmark: int = MARK) -> Desired:
    """What should be, with these guests mapped and running."""
    configuration = Configuration(tuple(guest(n) for n in numbers), fwmark=fwmark)
    return desire(configuration, guests(*numbers), kernel.observe(configuration), Stored())


def plan_of(kernel: FakeKernel, *numbers: int, fwmark: int = MARK) -> Plan:
    desired = desired_of(kernel, *numbers, fwmark=fwmark)
    return plan(kernel.observe(CONFIGURATION), desired)


def bypassing(n: int, part_of: str | None = None) -> FlushBypassing:
    """The flows of a guest that began before its translation."""
    pair = Translation(external(n), internal(n))
    return FlushBypassing(pair, part_of, frozenset({HOST.ip}))


def translated(n: int) -> str:
    """The key of a guest's translation."""
    return f"dnat {external(n)} to {internal(n)}"


def converged(*numbers: int) -> FakeKernel:
    """The laptop with these guests mapped."""
    kernel = laptop()
    kernel.apply(plan_of(kernel, *numbers))
    return kernel


def test_flushed_after_a_crash() -> None:
    """What a process before this one wrote is freed of older flows once, by each process."""
    kernel = converged(1)
    kernel.forget()
    assert plan_of(kernel, 1) == Plan((bypassing(1),))
    kernel.apply(plan_of(kernel, 1))
    assert plan_of(kernel, 1) == Plan()
    kernel.apply(plan_of(kernel))
    assert kernel.flushed == set()
    observed = replace(converged(1).observe(CONFIGURATION), flushed=None)
    assert plan(observed, desired_of(kernel, 1)) == Plan()


def test_first_plan() -> None:
    """On a host that has nothing of ours, everything is added and nothing deleted."""
    kernel = laptop()
    kernel.ip_forward = False
    elements = sorted([*mapping_elements(guest(1)), element(nat_table.UPLINK, (UPLINK,))])
    assert plan_of(kernel, 1) == Plan(
        (
            EnableIpForward(),
            InstallTable(MARK),
            *(AddElement(each, TABLE_KEY) for each in elements),
            InsertAccept(FORWARD, MARK),
            AddAddress(own_address(external(1)), TABLE_KEY),
            bypassing(1, part_of=TABLE_KEY),
        )
    )


def test_converged_plan_is_empty() -> None:
    """A kernel that holds the desired state gets no write."""
    planned = plan_of(converged(1, 2, 3), 1, 2, 3)
    assert planned == Plan()
    assert not planned
    assert describe(planned) == ()


def test_guest_comes() -> None:
    """One more guest is a difference: its address and its elements, nothing else."""
    assert plan_of(converged(1), 1, 2) == Plan(
        (
            *(
                AddElement(each, translated(2) if each.container is nat_table.INTERNAL else None)
                for each in sorted(mapping_elements(guest(2)))
            ),
            AddAddress(own_address(external(2)), translated(2)),
            bypassing(2, part_of=translated(2)),
        )
    )


def test_guest_goes() -> None:
    """One guest less is its address, its elements and its connections, nothing else."""
    address = DeleteAddress(own_address(external(2))).key
    assert plan_of(converged(1, 2), 1) == Plan(
        (
            DeleteAddress(own_address(external(2))),
            *(
                DeleteElement(each, address if each.container is nat_table.EXTERNAL else None)
                for each in sorted(mapping_elements(guest(2)))
            ),
            FlushTranslated(Translation(external(2), internal(2)), address),
        )
    )


def test_last_guest_goes() -> None:
    """Without an active mapping no address and no element is left; the static table stays."""
    kernel = converged(1)
    kernel.apply(plan_of(kernel))
    assert kernel.table == Table(True, frozenset(), MARK)
    assert kernel.owned() == set()


def test_idle_daemon_leaves_forwarding_off() -> None:
    """ip_forward is a setting of the whole host: without an active mapping it is not touched."""
    kernel = laptop()
    kernel.ip_forward = False
    assert EnableIpForward() not in plan_of(kernel).writes


def test_external_leads_to_another_guest() -> None:
    """A changed translation ends the connections of the one before."""
    kernel = converged(1)
    configuration = Configuration((replace(guest(1), internal=internal(5)),))
    observed = kernel.observe(configuration)
    planned = plan(observed, desire(configuration, guests(1), observed, Stored()))
    assert of(planned, FlushTranslated) == (Translation(external(1), internal(1)),)
    assert (of(planned, AddAddress), of(planned, DeleteAddress)) == ((), ())


@pytest.mark.parametrize("change", [{"intact": False}, {"intact": False, "fwmark": None}])
def test_table_that_somebody_changed(change: dict[str, bool | None]) -> None:
    """A table that is not as it should be is written anew, whole, and no connection ends for it."""
    kernel = converged(1)
    assert kernel.table is not None
    elements = kernel.table.elements
    kernel.table = replace(kernel.table, **change)  # type: ignore[arg-type]
    assert plan_of(kernel, 1) == Plan(
        (
            InstallTable(MARK),
            *(AddElement(each, TABLE_KEY) for each in sorted(elements)),
            # Flows that began while it was not whole would bypass it.
            bypassing(1, part_of=TABLE_KEY),
        )
    )


def test_element_that_somebody_added() -> None:
    """An element in our table that is nobody's mapping is deleted, and its connections end."""
    kernel = converged(1)
    assert kernel.table is not None
    stray = element(nat_table.EXTERNAL, ("192.168.1.200",), "192.168.122.200")
    kernel.table = replace(kernel.table, elements=kernel.table.elements | {stray})
    assert plan_of(kernel, 1) == Plan(
        (
            DeleteElement(stray),
            FlushTranslated(
                Translation(IPv4Address("192.168.1.200"), IPv4Address("192.168.122.200")),
                "dnat 192.168.1.200 to 192.168.122.200",
            ),
        )
    )


def test_uplink_changes() -> None:
    """The addresses move to the new uplink: added there, deleted where they were."""
    kernel = converged(1)
    kernel.links.add("eth1")
    kernel.addresses.append(Address("eth1", IPv4Interface("192.168.1.50/24")))
    kernel.default_route = "eth1"
    assert plan_of(kernel, 1) == Plan(
        (
            DeleteAddress(own_address(external(1))),
            DeleteElement(element(nat_table.UPLINK, (UPLINK,))),
            AddElement(element(nat_table.UPLINK, ("eth1",))),
            AddAddress(own_address(external(1), ifname="eth1")),
        )
    )


def test_foreign_address_serves() -> None:
    """An external address that was there before is neither added nor ever deleted."""
    kernel = laptop()
    before = Address(UPLINK, IPv4Interface((external(1), 24)))
    kernel.addresses.append(before)
    planned = plan_of(kernel, 1)
    assert of(planned, AddAddress) == ()
    kernel.apply(planned)
    kernel.apply(plan_of(kernel))
    kernel.apply(removal(kernel.observe(CONFIGURATION), MARK))
    assert before in kernel.addresses


def chain_of(kernel: FakeKernel, *marks: int | None) -> tuple[Rule, ...]:
    """Put rules into `ip filter FORWARD`; a mark is one that accepts it, None any other."""
    rules = tuple(kernel.new_rule(mark) for mark in marks)
    kernel.chains[FORWARD] = list(rules)
    return rules


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([], [MARK]),
        ([None], [MARK, None]),
        ([MARK, None], [MARK, None]),
        ([None, MARK], [MARK, None]),
        ([MARK, None, MARK, MARK], [MARK, None]),
        ([MARK, MARK], [MARK]),
        ([OTHER_MARK, MARK, None], [MARK, OTHER_MARK, None]),
        ([MARK, OTHER_MARK, OTHER_MARK], [MARK, OTHER_MARK, OTHER_MARK]),
    ],
)
def test_accept_at_the_head(before: list[int | None], after: list[int | None]) -> None:
    """Each foreign chain has our accept once, at its head, and its own rules as they were."""
    kernel = laptop()
    chain_of(kernel, *before)
    kernel.apply(plan_of(kernel, 1))
    assert [rule.fwmark for rule in kernel.chains[FORWARD]] == after
    assert plan_of(kernel, 1) == Plan()


def test_accept_that_stands_is_not_written_again() -> None:
    """An accept at the head stays the same rule, with its handle, while duplicates go."""
    kernel = converged(1)
    head, *_ = kernel.chains[FORWARD]
    double = kernel.new_rule(MARK)
    kernel.chains[FORWARD].append(double)
    assert plan_of(kernel, 1) == Plan((DeleteAccept(FORWARD, double.handle),))
    assert head.fwmark == MARK


def test_every_chain_that_rejects() -> None:
    """Each chain that is there gets the accept, one that is not is not made."""
    kernel = laptop()
    kernel.chains[LIBVIRT_FORWARD] = [kernel.new_rule()]
    kernel.apply(plan_of(kernel, 1))
    assert kernel.accepts(MARK) == {FORWARD: [0], LIBVIRT_FORWARD: [0]}
    kernel.chains.clear()
    assert plan_of(kernel, 1) == Plan()


def test_changed_mark() -> None:
    """With a new mark the table is written anew, and accepts of the mark it had are cleaned up."""
    kernel = laptop()
    kernel.apply(plan_of(kernel, 1, fwmark=OLD_MARK))
    kernel.chains[FORWARD].append(kernel.new_rule(OTHER_MARK))
    kernel.apply(plan_of(kernel, 1))
    assert [rule.fwmark for rule in kernel.chains[FORWARD]] == [MARK, None, None, OTHER_MARK]
    assert kernel.table is not None
    assert kernel.table.fwmark == MARK
    assert plan_of(kernel, 1) == Plan()


def with_guest_behind_port() -> FakeKernel:
    """The laptop with br_netfilter on and guest 1 seen behind `vnet0`."""
    kernel = laptop()
    kernel.bridge_netfilter = True
    kernel.ports[internal(1)] = "vnet0"
    return kernel


def test_hairpin_is_set_and_recorded() -> None:
    """The flag is set, with a record in our table, and cleared again when the guest goes."""
    kernel = with_guest_behind_port()
    planned = plan_of(kernel, 1)
    assert SetHairpin("vnet0", TABLE_KEY) in planned.writes
    assert AddElement(element(nat_table.HAIRPIN, ("vnet0",)), TABLE_KEY) in planned.writes
    kernel.apply(planned)
    assert plan_of(kernel, 1) == Plan()
    planned = plan_of(kernel)
    assert ClearHairpin("vnet0") in planned.writes
    record = element(nat_table.HAIRPIN, ("vnet0",))
    assert DeleteElement(record, ClearHairpin("vnet0").key) in planned.writes


def test_hairpin_of_somebody_else() -> None:
    """A flag that was set before is used, not recorded, and never cleared."""
    kernel = with_guest_behind_port()
    kernel.hairpins.add("vnet0")
    planned = plan_of(kernel, 1)
    assert of(planned, SetHairpin) == ()
    added = [w.element for w in planned.writes if isinstance(w, AddElement)]
    assert all(e.container is not nat_table.HAIRPIN for e in added)
    kernel.apply(planned)
    assert plan_of(kernel, 1) == Plan()
    assert of(plan_of(kernel), ClearHairpin) == ()
    assert of(removal(kernel.observe(CONFIGURATION), MARK), ClearHairpin) == ()


def test_hairpin_that_was_cleared_by_hand() -> None:
    """A recorded flag that is off is set again while it is needed, and no write when it is not."""
    kernel = with_guest_behind_port()
    kernel.apply(plan_of(kernel, 1))
    kernel.hairpins.clear()
    assert plan_of(kernel, 1) == Plan((SetHairpin("vnet0"),))
    assert of(plan_of(kernel), ClearHairpin) == ()


def test_hairpin_goes_with_br_netfilter() -> None:
    """Where br_netfilter is switched off the flag is not needed, and is put back."""
    kernel = with_guest_behind_port()
    kernel.apply(plan_of(kernel, 1))
    kernel.bridge_netfilter = False
    assert plan_of(kernel, 1) == Plan(
        (
            ClearHairpin("vnet0"),
            DeleteElement(element(nat_table.HAIRPIN, ("vnet0",)), ClearHairpin("vnet0").key),
        )
    )


def test_removal_leaves_nothing() -> None:
    """After removal nothing of ours is left, and what is not ours is as before the daemon."""
    kernel = with_guest_behind_port()
    kernel.hairpins.add("vnet9")
    before = kernel.not_ours({MARK})
    kernel.apply(plan_of(kernel, 1, 2))
    kernel.apply(removal(kernel.observe(CONFIGURATION), MARK))
    assert_nothing_of_ours(kernel, {MARK})
    assert kernel.not_ours({MARK}) == before
    assert not removal(kernel.observe(CONFIGURATION), MARK)


def test_removal_ends_connections() -> None:
    """Removal ends the connections of every translation that the table had."""
    planned = removal(converged(1, 2).observe(CONFIGURATION), MARK)
    assert of(planned, FlushTranslated) == (
        Translation(external(1), internal(1)),
        Translation(external(2), internal(2)),
    )


def test_removal_with_another_mark() -> None:
    """Removal finds accepts of the mark that the table sets, whatever is configured now."""
    kernel = laptop()
    kernel.apply(plan_of(kernel, 1, fwmark=OLD_MARK))
    kernel.apply(removal(kernel.observe(CONFIGURATION), MARK))
    assert_nothing_of_ours(kernel, {MARK, OLD_MARK})


def test_removal_of_remains() -> None:
    """What is left without a table, an address and an accept, is removed too."""
    kernel = converged(1)
    kernel.delete_table()
    kernel.apply(removal(kernel.observe(CONFIGURATION), MARK))
    assert_nothing_of_ours(kernel, {MARK})


def assert_nothing_of_ours(kernel: FakeKernel, marks: Iterable[int]) -> None:
    assert kernel.table is None
    assert kernel.owned() == set()
    assert not any(positions for mark in marks for positions in kernel.accepts(mark).values())
    assert kernel.hairpins_by_us == set()


# Arbitrary kernels and arbitrary desired states, from few enough values that they often meet.

NUMBERS = st.lists(st.integers(1, 4), unique=True, max_size=4)
IFNAMES = st.sampled_from([UPLINK, "eth1"])
MARKS = st.sampled_from([MARK, OLD_MARK, OTHER_MARK])
PORTS = st.sampled_from(["vnet0", "vnet1", "vnet2"])
MAPPINGS = NUMBERS.flatmap(
    lambda numbers: st.tuples(
        *(
            st.builds(
                replace,
                st.just(guest(n)),
                internal=st.just(internal(n)),
                allow=st.sampled_from(
                    [None, (AllowedService("tcp", 22, 22),), (AllowedService("icmp"),)]
                ),
                prefixlen=st.sampled_from([24, 32, 16]),
            )
            for n in numbers
        )
    )
)


def elements_of(mappings: tuple[Mapping, ...], uplink: str | None) -> frozenset[Element]:
    found = {e for m in mappings for e in mapping_elements(m)}
    return frozenset(found if uplink is None else found | {element(nat_table.UPLINK, (uplink,))})


@st.composite
def kernels(draw: st.DrawFn) -> FakeKernel:
    """A kernel in which the daemon, others, and accidents have been at work."""
    kernel = FakeKernel()
    kernel.links |= {"eth1"}
    kernel.default_route = draw(st.none() | IFNAMES)
    addresses = st.builds(
        lambda n, length, ifname, owned: replace(
            own_address(external(n), length, ifname), owned=owned
        ),
        st.integers(1, 4),
        st.sampled_from([24, 32, 16]),
        IFNAMES,
        st.booleans(),
    )
    kernel.addresses = draw(
        st.lists(addresses, unique_by=lambda a: (a.ifname, a.interface), max_size=6)
    )
    for name in draw(st.sets(st.sampled_from([FORWARD, LIBVIRT_FORWARD]))):
        marks = draw(st.lists(st.none() | MARKS, max_size=5))
        kernel.chains[name] = [kernel.new_rule(mark) for mark in marks]
    kernel.ip_forward = draw(st.booleans())
    kernel.persistent = draw(st.booleans())
    if draw(st.booleans()):
        records = draw(st.sets(PORTS))
        elements = elements_of(draw(MAPPINGS), draw(st.none() | IFNAMES))
        elements |= {element(nat_table.HAIRPIN, (name,)) for name in records}
        intact = draw(st.booleans())
        mark = draw(MARKS if intact else st.none() | MARKS)
        persistent = draw(st.booleans())
        owned = draw(st.booleans()) if persistent else True
        kernel.table = Table(intact, elements, mark, persistent, owned)
        kernel.hairpins = draw(st.sets(st.sampled_from(sorted(records)))) if records else set()
        kernel.hairpins_by_us = set(kernel.hairpins)
    recorded = {e.key[0] for e in kernel.elements() if e.container is nat_table.HAIRPIN}
    kernel.hairpins |= draw(st.sets(PORTS)) - recorded
    return kernel


@st.composite
def desires(draw: st.DrawFn, uplink: str | None) -> Desired:
    """Any desired state for that uplink."""
    mappings = draw(MAPPINGS) if uplink is not None else ()
    addresses = tuple(
        own_address(m.external, m.prefixlen or 24, uplink) for m in mappings if uplink is not None
    )
    return Desired(
        statuses=tuple(MappingStatus(m, MappingState.ACTIVE) for m in mappings),
        addresses=addresses,
        elements=elements_of(mappings, uplink if mappings else None),
        fwmark=draw(MARKS),
        hairpins=frozenset(draw(st.sets(PORTS))),
    )


def uplink_name(observed: Observed) -> str | None:
    return observed.uplink.name if observed.uplink is not None else None


@BOUNDED
@given(data=st.data(), kernel=kernels())
def test_one_pass_is_enough(data: st.DataObject, kernel: FakeKernel) -> None:
    """From any state, one plan leads to any desired state, and touches nothing that is not ours."""
    observed = kernel.observe(CONFIGURATION)
    desired = data.draw(desires(uplink_name(observed)))
    marks = {desired.fwmark}
    if observed.table is not None and observed.table.fwmark is not None:
        marks.add(observed.table.fwmark)
    before = kernel.not_ours(marks)
    planned = plan(observed, desired)
    kernel.apply(planned)

    after = kernel.observe(CONFIGURATION)
    assert plan(after, desired) == Plan()
    assert kernel.not_ours(marks) == before
    served = {(a.ifname, a.interface.ip) for a in before.addresses}
    assert kernel.owned() <= set(desired.addresses)
    assert {(a.ifname, a.interface.ip) for a in desired.addresses} <= served | {
        (a.ifname, a.interface.ip) for a in kernel.owned()
    }
    assert after.table is not None
    assert {
        e for e in after.table.elements if e.container is not nat_table.HAIRPIN
    } == desired.elements
    assert after.table.fwmark == desired.fwmark
    assert after.table.intact
    assert desired.hairpins <= after.hairpins
    assert kernel.hairpins_by_us <= desired.hairpins
    assert all(found == [0] for found in kernel.accepts(desired.fwmark).values())
    for old in marks - {desired.fwmark}:
        assert not any(kernel.accepts(old).values())


@BOUNDED
@given(data=st.data(), kernel=kernels())
def test_removal_from_any_state(data: st.DataObject, kernel: FakeKernel) -> None:
    """From any state, removal leaves nothing of ours and everything else as it was."""
    fwmark = data.draw(MARKS)
    observed = kernel.observe(CONFIGURATION)
    marks = {fwmark}
    if observed.table is not None and observed.table.fwmark is not None:
        marks.add(observed.table.fwmark)
    before = kernel.not_ours(marks)
    kernel.apply(removal(observed, fwmark))
    assert_nothing_of_ours(kernel, marks)
    assert kernel.not_ours(marks) == before
    assert removal(kernel.observe(CONFIGURATION), fwmark) == Plan()


@BOUNDED
@given(data=st.data(), kernel=kernels())
def test_description_is_complete(data: st.DataObject, kernel: FakeKernel) -> None:
    """Each write of a plan has one line, which names what is written; an empty plan has none."""
    observed = kernel.observe(CONFIGURATION)
    planned = plan(observed, data.draw(desires(uplink_name(observed))))
    for described in (planned, removal(observed, MARK)):
        assert sorted(describe(described)) == sorted(expected_lines(described))
        assert bool(describe(described)) == bool(described)


def expected_lines(planned: Plan) -> list[str]:
    """What a person should read, in any order."""
    return [line for write in planned.writes for line in _lines(write)]


def _lines(write: Write) -> list[str]:  # noqa: PLR0912
    match write:
        case EnableIpForward():
            return ["+ sysctl net.ipv4.ip_forward = 1"]
        case AdoptTable():
            return ["+ ownership of table inet vm_onetoone_nat"]
        case RemoveTable():
            return ["- table inet vm_onetoone_nat"]
        case InstallTable():
            return [f"+ table inet vm_onetoone_nat, mark 0x{write.fwmark:08x}"]
        case AddAddress(address=a):
            return [f"+ address {a.interface} on {a.ifname}"]
        case DeleteAddress(address=a):
            return [f"- address {a.interface} on {a.ifname}"]
        case AddElement():
            return [f"+ {_element_text(write.element)}"]
        case DeleteElement():
            return [f"- {_element_text(write.element)}"]
        case DeleteAccept():
            return [f"- accept in {_chain_text(write.chain)}, handle {write.handle}"]
        case InsertAccept(fwmark=mark):
            return [f"+ accept of mark 0x{mark:08x} at the head of {_chain_text(write.chain)}"]
        case SetHairpin():
            return [f"+ hairpin on bridge port {write.port}"]
        case ClearHairpin():
            return [f"- hairpin on bridge port {write.port}"]
        case FlushTranslated(translation=t):
            return [f"- connections of {t.external} and {t.internal}"]
        case FlushBypassing():
            return []
    raise TypeError(write)


def _element_text(element: Element) -> str:
    words = {
        "external": "dnat {0} to {value}",
        "internal": "snat {0} to {value}",
        "inbound": "forward connections to {0}",
        "outbound": "forward connections from {0}",
        "untranslated_in": "drop packets to {0} that are not translated",
        "untranslated_out": "drop packets from {0} that are not translated",
        "allowed": "allow {2} {3} from {1} to {0}",
        "uplink": "uplink {0}",
        "hairpin": "record of the hairpin on {0}",
    }[element.container.name]
    limit = ", as allowed" if element.value == nat_table.RESTRICT else ""
    return words.format(*element.key, value=element.value) + limit


def _chain_text(chain: ChainName) -> str:
    return f"{chain.family} {chain.table} {chain.name}"


def test_description_in_order() -> None:
    """A plan reads in the order of its writes, deleted addresses first, new ones last."""
    observed = observed_on(
        UPLINK,
        *(own_address(external(9)), Address(UPLINK, HOST), Address(LIBVIRT_BRIDGE, HOST)),
        foreign=(ForeignChain(FORWARD, (AcceptRule(7, MARK, at_head=False),)),),
    )
    desired = Desired((), (own_address(external(1)),), frozenset(), MARK, frozenset())
    assert describe(plan(observed, desired)) == (
        f"- address 192.168.1.109/24 on {UPLINK}",
        "+ table inet vm_onetoone_nat, mark 0x00100000",
        "- accept in ip filter FORWARD, handle 7",
        "+ accept of mark 0x00100000 at the head of ip filter FORWARD",
        f"+ address 192.168.1.101/24 on {UPLINK}",
    )
