"""One pass on a kernel and a libvirt in memory, and any number of passes in any order of events."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface

import pytest
from fakes import (
    FORWARD,
    LIBVIRT_FORWARD,
    Crash,
    FakeKernel,
    FakeLibvirt,
    FakeStore,
    default_network,
    domain,
    laptop,
    of,
    own_address,
    running_guests,
)
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from lab.addresses import HOST, LIBVIRT_BRIDGE, UPLINK, external, guest_name, internal
from vm_onetoone_nat.decide.bisect import NOT_TRIED, SECONDS, Limits, Search
from vm_onetoone_nat.decide.desired import mapping_elements
from vm_onetoone_nat.decide.fights import REPAIRS, Fight, Fights
from vm_onetoone_nat.decide.host_writes import (
    DeleteAddress,
    FlushBypassing,
    FlushTranslated,
    RecordAllocations,
)
from vm_onetoone_nat.decide.nft_writes import (
    AdoptTable,
    DeleteElement,
    InstallTable,
    RemoveTable,
    accept_key,
)
from vm_onetoone_nat.decide.plan import Plan
from vm_onetoone_nat.decide.reconcile import Outcome, look, reconcile, remove, settled
from vm_onetoone_nat.decide.sides import GuestSide, KernelSide, StoreSide
from vm_onetoone_nat.decide.writes import NftWrite
from vm_onetoone_nat.errors import KernelError, TransactionRefused
from vm_onetoone_nat.model import nat_table
from vm_onetoone_nat.model.configuration import DEFAULT_FWMARK, Configuration, Pool, Range
from vm_onetoone_nat.model.family import IPAddress
from vm_onetoone_nat.model.guests import DomainState, Guests, Interface
from vm_onetoone_nat.model.host import Address, ChainName
from vm_onetoone_nat.model.mapping import AllowedService, Mapping
from vm_onetoone_nat.model.nat_table import Container, Element, Translation, element
from vm_onetoone_nat.model.status import MappingState
from vm_onetoone_nat.model.store import Stored
from vm_onetoone_nat.model.trigger import Kind, Trigger

MARK = DEFAULT_FWMARK
CONTAINERS_OF_MAPPINGS = [c for c in nat_table.CONTAINERS if not c.why]
OTHER_MARK = 0x2
ACTIVE, INACTIVE, ERROR = MappingState.ACTIVE, MappingState.INACTIVE, MappingState.ERROR


def guest(n: int) -> Mapping:
    return Mapping(external(n), "default", internal=internal(n), domain=guest_name(n))


def configuration(*numbers: int) -> Configuration:
    return Configuration(tuple(guest(n) for n in numbers))


def elements_of(*mappings: Mapping, uplink: str = UPLINK) -> set[Element]:
    found = {e for m in mappings for e in mapping_elements(m)}
    return found | {element(nat_table.UPLINK, (uplink,))} if found else found


def assert_holds(kernel: FakeKernel, *numbers: int) -> None:
    """The kernel has exactly these guests' addresses and elements, and the accept, of ours."""
    assert kernel.table is not None
    assert kernel.table.intact
    assert kernel.elements() == elements_of(*(guest(n) for n in numbers))
    assert kernel.owned() == {own_address(external(n)) for n in numbers}
    assert kernel.accepts(MARK) == {FORWARD: [0]}


def test_fakes_are_what_a_pass_needs() -> None:
    """The models have the same methods, with the same types, as the real ones; mypy holds it."""
    kernel: KernelSide = laptop()
    source: GuestSide = running_guests()
    store: StoreSide = FakeStore()
    assert look(Configuration(), source, kernel, store).libvirt


def test_one_pass_is_enough() -> None:
    """The first pass installs every running guest; the second writes nothing at all."""
    kernel, libvirt = laptop(), running_guests(1, 2, 3)
    first = reconcile(configuration(1, 2, 3), libvirt, kernel, FakeStore())
    assert [s.state for s in first.statuses] == [ACTIVE] * 3
    assert first.failures == ()
    assert len(first.written) == 1
    assert_holds(kernel, 1, 2, 3)

    writes = kernel.writes
    second = reconcile(configuration(1, 2, 3), libvirt, kernel, FakeStore())
    assert (second.written, second.failures) == ((), ())
    assert second.statuses == first.statuses
    assert kernel.writes == writes
    assert len(kernel.applied) == 1


def test_look_writes_nothing() -> None:
    """A look plans what a pass then does, and does not write."""
    kernel, libvirt = laptop(), running_guests(1)
    planned = look(configuration(1), libvirt, kernel, FakeStore()).plan
    assert kernel.writes == 0
    assert reconcile(configuration(1), libvirt, kernel, FakeStore()).written == (planned,)


def test_guest_stops() -> None:
    """A guest that stopped loses address and translation, and the others keep theirs."""
    kernel, libvirt = laptop(), running_guests(1, 2)
    reconcile(configuration(1, 2), libvirt, kernel, FakeStore())
    libvirt.set_domain(guest_name(1), DomainState.OFF)
    outcome = reconcile(configuration(1, 2), libvirt, kernel, FakeStore())
    assert [s.state for s in outcome.statuses] == [INACTIVE, ACTIVE]
    assert_holds(kernel, 2)


def test_libvirt_away() -> None:
    """While libvirt cannot be reached what is active stays, and nothing else becomes active."""
    kernel, libvirt = laptop(), running_guests(1)
    reconcile(configuration(1), libvirt, kernel, FakeStore())
    libvirt.reachable = False
    writes = kernel.writes
    outcome = reconcile(configuration(1, 2), libvirt, kernel, FakeStore())
    assert not outcome.look.libvirt
    assert [s.state for s in outcome.statuses] == [ACTIVE, INACTIVE]
    assert (outcome.failures, kernel.writes) == ((), writes)
    assert_holds(kernel, 1)


def test_libvirt_away_and_repair() -> None:
    """What is lost while libvirt is away is repaired as long as the table still tells of it."""
    kernel, libvirt = laptop(), running_guests(1)
    reconcile(configuration(1), libvirt, kernel, FakeStore())
    libvirt.reachable = False
    kernel.addresses = [a for a in kernel.addresses if not a.owned]
    kernel.chains[FORWARD].reverse()
    assert reconcile(configuration(1), libvirt, kernel, FakeStore()).failures == ()
    assert_holds(kernel, 1)


def lose_table(kernel: FakeKernel) -> None:
    kernel.delete_table()


def change_table(kernel: FakeKernel) -> None:
    assert kernel.table is not None
    kernel.table = replace(kernel.table, intact=False, fwmark=None)


def lose_addresses(kernel: FakeKernel) -> None:
    kernel.addresses = [a for a in kernel.addresses if not a.owned]


def lose_accept(kernel: FakeKernel) -> None:
    kernel.chains[FORWARD] = [r for r in kernel.chains[FORWARD] if r.fwmark is None]


def bury_accept(kernel: FakeKernel) -> None:
    kernel.chains[FORWARD].insert(0, kernel.new_rule())


def double_accept(kernel: FakeKernel) -> None:
    kernel.chains[FORWARD].append(kernel.new_rule(MARK))


def stray_address(kernel: FakeKernel) -> None:
    kernel.addresses.append(own_address(external(77)))


def stray_element(kernel: FakeKernel) -> None:
    assert kernel.table is not None
    stray = elements_of(guest(77)) - {element(nat_table.UPLINK, (UPLINK,))}
    kernel.table = replace(kernel.table, elements=kernel.table.elements | stray)


@pytest.mark.parametrize(
    "damage",
    [
        lose_table,
        change_table,
        lose_addresses,
        lose_accept,
        bury_accept,
        double_accept,
        stray_address,
        stray_element,
    ],
)
def test_repair(damage: Callable[[FakeKernel], None]) -> None:
    """Whatever is lost or added behind the daemon's back, one pass puts right."""
    kernel, libvirt = laptop(), running_guests(1, 2)
    reconcile(configuration(1, 2), libvirt, kernel, FakeStore())
    before = kernel.not_ours({MARK})
    damage(kernel)
    others = kernel.not_ours({MARK})
    outcome = reconcile(configuration(1, 2), libvirt, kernel, FakeStore())
    assert (outcome.failures, len(outcome.written)) == ((), 1)
    assert_holds(kernel, 1, 2)
    assert kernel.not_ours({MARK}) == others
    if damage is not bury_accept:
        assert others == before


def persistent_laptop() -> FakeKernel:
    """The laptop, where nftables knows tables with an owner."""
    kernel = laptop()
    kernel.persistent = True
    return kernel


def test_ruleset_flushed() -> None:
    """A table that has an owner survives when another program flushes the ruleset."""
    kernel, libvirt = persistent_laptop(), running_guests(1, 2)
    reconcile(configuration(1, 2), libvirt, kernel, FakeStore())
    kernel.flush_ruleset()
    outcome = reconcile(configuration(1, 2), libvirt, kernel, FakeStore())
    assert (outcome.written, outcome.failures) == ((), ())
    assert kernel.elements() == elements_of(guest(1), guest(2))


def test_adoption() -> None:
    """After the daemon has ended, the next one becomes the owner of the table, and writes no more.

    Its elements, and so its counters, are kept.
    """
    kernel, libvirt = persistent_laptop(), running_guests(1, 2)
    reconcile(configuration(1, 2), libvirt, kernel, FakeStore())
    kernel.forget()
    kernel.probed = frozenset({external(1), external(2)})
    outcome = reconcile(configuration(1, 2), libvirt, kernel, FakeStore())
    (planned,) = outcome.written
    assert [w for w in planned.writes if isinstance(w, NftWrite)] == [AdoptTable()]
    assert outcome.failures == ()
    assert_holds(kernel, 1, 2)
    kernel.flush_ruleset()
    assert kernel.elements() == elements_of(guest(1), guest(2))


def test_table_of_an_earlier_version() -> None:
    """A table without an owner is replaced by one that has one, in one transaction."""
    kernel, libvirt = laptop(), running_guests(1, 2)
    reconcile(configuration(1, 2), libvirt, kernel, FakeStore())
    kernel.persistent = True
    outcome = reconcile(configuration(1, 2), libvirt, kernel, FakeStore())
    assert (len(outcome.written), outcome.failures) == (1, ())
    assert InstallTable(MARK, persistent=True) in outcome.written[0].writes
    assert_holds(kernel, 1, 2)


def test_table_of_another_process() -> None:
    """While another process owns our table each pass fails; mappings that are whole stay active."""
    kernel, libvirt = persistent_laptop(), running_guests(1, 2)
    reconcile(configuration(1), libvirt, kernel, FakeStore())
    kernel.forget()
    kernel.rival = True
    for _ in range(2):
        outcome = reconcile(configuration(1, 2), libvirt, kernel, FakeStore())
        assert any("belongs to another process" in failure for failure in outcome.failures)
        assert [s.state for s in outcome.statuses] == [ACTIVE, ERROR]
    kernel.rival = False
    assert reconcile(configuration(1, 2), libvirt, kernel, FakeStore()).failures == ()
    assert_holds(kernel, 1, 2)


@pytest.mark.parametrize("refused", [1, 2, 3, 4, 5])
def test_refused_mapping(refused: int) -> None:
    """One mapping that the kernel does not take is named and in error, and the others are there."""
    numbers = (1, 2, 3, 4, 5)
    kernel, libvirt = laptop(), running_guests(*numbers)
    kernel.refuse.add(external(refused))
    outcome = reconcile(configuration(*numbers), libvirt, kernel, FakeStore())
    states = {s.mapping.external: s.state for s in outcome.statuses}
    assert states == {external(n): ERROR if n == refused else ACTIVE for n in numbers}
    (reason,) = [s.reason for s in outcome.statuses if s.state is ERROR]
    assert "nftables refused a transaction" in reason
    assert any(f.startswith(f"mapping {external(refused)}: ") for f in outcome.failures)
    assert not any(
        f.startswith(f"mapping {external(n)}: ")
        for f in outcome.failures
        for n in numbers
        if n != refused
    )
    assert_holds(kernel, *(n for n in numbers if n != refused))


def test_several_refused_mappings() -> None:
    """However many the kernel refuses, each is named, and all the others are there."""
    numbers = tuple(range(1, 21))
    bad = (1, 2, 9, 20)
    kernel, libvirt = laptop(), running_guests(*numbers)
    kernel.refuse |= {external(n) for n in bad}
    outcome = reconcile(configuration(*numbers), libvirt, kernel, FakeStore())
    assert {s.mapping.external for s in outcome.statuses if s.state is ERROR} == {
        external(n) for n in bad
    }
    for n in bad:
        assert any(f.startswith(f"mapping {external(n)}: ") for f in outcome.failures)
    assert_holds(kernel, *(n for n in numbers if n not in bad))


class Timed(FakeKernel):
    """A kernel that takes `seconds` for each plan."""

    now, seconds = 0.0, 0.1

    def apply(self, plan: Plan) -> None:
        self.now += self.seconds
        super().apply(plan)


def test_time_of_the_search() -> None:
    """If the kernel refuses nearly all of many mappings, each pass ends soon, as a failed one, and
    the next passes try what was not tried. What was there stays, and each mapping has a reason.

    There were two attempts for each mapping in one pass: 18 s, with a tenth of a second for each.
    """
    numbers = tuple(range(1, 91))
    kernel, libvirt, store = Timed(*laptop().addresses), running_guests(*numbers), FakeStore()
    kernel.chains = laptop().chains
    search = Search(lambda: kernel.now)
    reconcile(configuration(1, 2), libvirt, kernel, store, Limits(search=search))
    kernel.refuse |= {external(n) for n in numbers[2:-1]}
    tried: set[IPAddress] = set()
    for _ in range(20):
        began = kernel.now
        outcome = reconcile(configuration(*numbers), libvirt, kernel, store, Limits(search=search))
        # Five plans besides: the whole, what no mapping needs, what is left, the withdrawal, and
        # the one during which the time ended.
        assert kernel.now - began < SECONDS + 0.6
        assert any("has not ended within" in failure for failure in outcome.failures)
        reasons = {s.mapping.external: s.reason for s in outcome.statuses if s.state is ERROR}
        assert reasons.keys() >= kernel.refuse
        now = {each for each, reason in reasons.items() if reason != NOT_TRIED}
        assert all("nftables refused a transaction" in reasons[each] for each in now)
        assert tried < now or now == kernel.refuse
        tried = now
        assert kernel.owned() >= {own_address(external(n)) for n in (1, 2)}
    assert tried == kernel.refuse
    assert_holds(kernel, 1, 2, 90)


def test_slow_search() -> None:
    """A search whose time ends during its first attempt goes on until a mapping is refused or
    installed, so that some pass tries the last one.
    """
    numbers = (1, 2, 3, 4)
    kernel, libvirt, store = Timed(*laptop().addresses), running_guests(*numbers), FakeStore()
    kernel.chains, kernel.seconds = laptop().chains, 2 * SECONDS
    kernel.refuse |= {external(n) for n in numbers[:-1]}
    limits = Limits(search=Search(lambda: kernel.now))
    for passes in range(len(numbers)):
        assert kernel.owned() == set(), passes
        reconcile(configuration(*numbers), libvirt, kernel, store, limits)
    assert_holds(kernel, 4)


def test_reasons_end_with_the_refusals() -> None:
    """A mapping that the kernel had refused and then accepted is not tried yet in a new search."""
    numbers = tuple(range(1, 5))
    kernel, libvirt, store = Timed(*laptop().addresses), running_guests(*numbers), FakeStore()
    kernel.chains, kernel.seconds = laptop().chains, 2 * SECONDS
    limits = Limits(search=Search(lambda: kernel.now))
    for refused in (numbers, (), numbers):
        kernel.refuse = {external(n) for n in refused}
        kernel.delete_table()
        outcome = reconcile(configuration(*numbers), libvirt, kernel, store, limits)
    reasons = [s.reason for s in outcome.statuses]
    assert reasons.count(NOT_TRIED) == 3


def test_refused_mapping_does_not_disturb() -> None:
    """While one is refused again and again, the others' addresses and elements are not touched."""
    kernel, libvirt = laptop(), running_guests(1, 2, 3)
    reconcile(configuration(1, 2), libvirt, kernel, FakeStore())
    kernel.refuse.add(external(3))
    for _ in range(3):
        kernel.applied.clear()
        outcome = reconcile(configuration(1, 2, 3), libvirt, kernel, FakeStore())
        assert [s.state for s in outcome.statuses] == [ACTIVE, ACTIVE, ERROR]
        assert_holds(kernel, 1, 2)
        for applied in kernel.applied:
            for kind in (DeleteAddress, DeleteElement, InstallTable, FlushTranslated):
                assert of(applied, kind) == ()


def test_refusal_after_the_bisection() -> None:
    """A refusal of what is left after the bisection is a failure, and the pass ends as any other.

    It was raised: the daemon ended with it.
    """

    class RefusingAtLast(FakeKernel):
        def apply(self, plan: Plan) -> None:
            if len(self.applied) == 3:
                self.applied.append(plan)
                raise TransactionRefused("nftables refused a transaction: busy")
            super().apply(plan)

    kernel, libvirt = RefusingAtLast(*laptop().addresses), running_guests(1, 2)
    restricted = replace(guest(1), allow=(AllowedService("tcp", 22, 22),))
    kernel.chains = laptop().chains
    store = FakeStore()
    reconcile(configuration(1, 2), libvirt, kernel, store)
    kernel.applied.clear()
    kernel.refuse.add(external(1))
    outcome = reconcile(Configuration((restricted, guest(2))), libvirt, kernel, store)
    assert len(kernel.applied) == 4
    assert outcome.failures[-1] == "nftables refused a transaction: busy"
    assert [s.state for s in outcome.statuses] == [ERROR, ACTIVE]


def test_refused_while_a_guest_has_moved() -> None:
    """A guest's new address is in place also where another mapping is refused, and the connections
    to its old one are ended.

    They were not: the search for the refused mapping left that out.
    """
    kernel, libvirt, store = laptop(), running_guests(1, 2, 3), FakeStore()
    reconcile(configuration(1, 2), libvirt, kernel, store)
    moved = replace(guest(1), internal=internal(9))
    kernel.refuse.add(external(3))
    kernel.applied.clear()
    outcome = reconcile(Configuration((moved, guest(2), guest(3))), libvirt, kernel, store)
    assert [s.state for s in outcome.statuses] == [ACTIVE, ACTIVE, ERROR]
    flushed = [pair for plan in outcome.written for pair in of(plan, FlushTranslated)]
    assert flushed == [Translation(external(1), internal(1))]
    assert kernel.elements() == elements_of(moved, guest(2))
    assert kernel.owned() == {own_address(external(n)) for n in (1, 2)}


def test_refused_while_two_guests_change_places() -> None:
    """Mappings whose elements are in each other's way are both there, though a third is refused."""
    kernel, libvirt, store = laptop(), running_guests(1, 2, 3), FakeStore()
    reconcile(configuration(1, 2), libvirt, kernel, store)
    one, other = replace(guest(1), internal=internal(2)), replace(guest(2), internal=internal(1))
    kernel.refuse.add(external(3))
    outcome = reconcile(Configuration((one, other, guest(3))), libvirt, kernel, store)
    assert [s.state for s in outcome.statuses] == [ACTIVE, ACTIVE, ERROR]
    assert kernel.elements() == elements_of(one, other)


@pytest.mark.parametrize("damage", [lose_table, change_table])
def test_search_keeps_no_address_without_translation(
    damage: Callable[[FakeKernel], None],
) -> None:
    """During the search for a refused mapping no plan leaves an address without its translation."""

    class Watched(FakeKernel):
        def apply(self, plan: Plan) -> None:
            super().apply(plan)
            table = self.table
            works = table is not None and table.intact
            translated = set(table.translations) if table is not None and works else set()
            assert {a.interface.ip for a in self.owned()} <= translated

    numbers = (1, 2, 3, 4)
    kernel, libvirt, store = Watched(*laptop().addresses), running_guests(*numbers), FakeStore()
    kernel.chains = laptop().chains
    reconcile(configuration(*numbers), libvirt, kernel, store)
    damage(kernel)
    kernel.refuse.add(external(2))
    outcome = reconcile(configuration(*numbers), libvirt, kernel, store)
    assert [s.state for s in outcome.statuses] == [ACTIVE, ERROR, ACTIVE, ACTIVE]


def test_search_holds_back() -> None:
    """What is held back is not written during the search either; it was."""
    kernel, libvirt, store = laptop(), running_guests(1, 2, 3), FakeStore()
    reconcile(configuration(1, 2), libvirt, kernel, store)
    lose_accept(kernel)
    kernel.refuse.add(external(3))
    held = frozenset({accept_key(FORWARD)})
    reconcile(configuration(1, 2, 3), libvirt, kernel, store, Limits(held))
    assert kernel.accepts(MARK) == {FORWARD: []}
    assert kernel.owned() == {own_address(external(n)) for n in (1, 2)}


def test_table_that_cannot_be_written() -> None:
    """Where no part of the ruleset can be written, addresses whose translation is missing go: the
    host would answer in the guests' place. They stayed.
    """

    class Full(FakeKernel):
        full = False

        def transact(self, writes: object) -> None:
            if self.full:
                raise TransactionRefused("nftables refused a transaction: out of memory")
            super().transact(writes)  # type: ignore[arg-type]

    kernel, libvirt, store = Full(*laptop().addresses), running_guests(1, 2), FakeStore()
    kernel.chains = laptop().chains
    reconcile(configuration(1, 2), libvirt, kernel, store)
    kernel.full = True
    lose_table(kernel)
    outcome = reconcile(configuration(1, 2), libvirt, kernel, store)
    assert [s.state for s in outcome.statuses] == [ERROR, ERROR]
    assert kernel.owned() == set()
    kernel.full = False
    assert reconcile(configuration(1, 2), libvirt, kernel, store).failures == ()
    assert_holds(kernel, 1, 2)


def test_refusal_ends() -> None:
    """A mapping that the kernel takes at last is active like any other."""
    kernel, libvirt = laptop(), running_guests(1, 2)
    kernel.refuse.add(external(1))
    reconcile(configuration(1, 2), libvirt, kernel, FakeStore())
    kernel.refuse.clear()
    outcome = reconcile(configuration(1, 2), libvirt, kernel, FakeStore())
    assert outcome.failures == ()
    assert_holds(kernel, 1, 2)


@pytest.mark.parametrize("refused", [(3,), (3, 4)])
def test_refused_mapping_keeps_no_stopped_guest(refused: tuple[int, ...]) -> None:
    """While mappings are refused, a guest that stopped still loses address and translation."""
    kernel, libvirt = laptop(), running_guests(1, 2, 3, 4)
    reconcile(configuration(1, 2), libvirt, kernel, FakeStore())
    kernel.refuse |= {external(n) for n in refused}
    libvirt.set_domain(guest_name(1), DomainState.OFF)
    for _ in range(2):
        outcome = reconcile(configuration(1, 2, *refused), libvirt, kernel, FakeStore())
    assert [s.state for s in outcome.statuses][:2] == [INACTIVE, ACTIVE]
    assert_holds(kernel, 2)


def test_refused_mapping_keeps_no_repair() -> None:
    """While a mapping is refused, the accept that the others need is still put back."""
    kernel, libvirt = laptop(), running_guests(1, 2)
    reconcile(configuration(1), libvirt, kernel, FakeStore())
    kernel.refuse.add(external(2))
    lose_accept(kernel)
    reconcile(configuration(1, 2), libvirt, kernel, FakeStore())
    assert_holds(kernel, 1)


@pytest.mark.parametrize("away", [True, False], ids=["libvirt away", "guests paused"])
def test_refused_mapping_while_guests_are_out_of_sight(away: bool) -> None:
    """A repair in which one mapping is refused leaves the others active, seen or unseen."""
    numbers = (1, 2, 3, 4)
    kernel, libvirt = laptop(), running_guests(*numbers)
    reconcile(configuration(*numbers), libvirt, kernel, FakeStore())
    libvirt.reachable = not away
    for n in numbers:
        libvirt.set_domain(guest_name(n), DomainState.PAUSED)
    change_table(kernel)
    kernel.refuse.add(external(1))
    outcome = reconcile(configuration(*numbers), libvirt, kernel, FakeStore())
    assert [s.state for s in outcome.statuses] == [ERROR, ACTIVE, ACTIVE, ACTIVE]
    assert_holds(kernel, 2, 3, 4)


def test_refused_change_of_what_is_allowed() -> None:
    """A mapping whose new restriction the kernel refuses is named, and not called active."""
    kernel, libvirt = laptop(), running_guests(1, 2)
    before = replace(guest(1), allow=(AllowedService("tcp", 22, 22),))
    after = replace(guest(1), allow=(AllowedService("tcp", 22, 23),))
    reconcile(Configuration((before, guest(2))), libvirt, kernel, FakeStore())
    kernel.refuse.add(external(1))
    outcome = reconcile(Configuration((after, guest(2))), libvirt, kernel, FakeStore())
    assert [s.state for s in outcome.statuses] == [ERROR, ACTIVE]
    assert any(f.startswith(f"mapping {external(1)}: ") for f in outcome.failures)


def test_address_that_cannot_be_added() -> None:
    """A mapping without its address is in error, the failure is told, the others are there."""
    kernel, libvirt = laptop(), running_guests(1, 2)
    kernel.fail.add(external(1))
    outcome = reconcile(configuration(1, 2), libvirt, kernel, FakeStore())
    assert [s.state for s in outcome.statuses] == [ERROR, ACTIVE]
    assert outcome.failures == (f"address {external(1)}/24 on {UPLINK} could not be added",)
    assert elements_of(guest(2)) <= kernel.elements()
    kernel.fail.clear()
    assert reconcile(configuration(1, 2), libvirt, kernel, FakeStore()).failures == ()
    assert_holds(kernel, 1, 2)


@pytest.mark.parametrize("container", CONTAINERS_OF_MAPPINGS, ids=lambda c: c.name)
def test_status_of_a_mapping_that_lacks_a_part(container: Container) -> None:
    """A mapping that the kernel does not hold whole is in error, whichever element is missing."""
    kernel, libvirt = laptop(), running_guests(1, 2)
    restricted = replace(
        guest(1), allow=(AllowedService("tcp", 22, 22), AllowedService("tcp", 80, 80))
    )
    both = Configuration((restricted, guest(2)))
    reconcile(both, libvirt, kernel, FakeStore())
    assert kernel.table is not None
    lost = next(e for e in mapping_elements(restricted) if e.container is container)
    kernel.table = replace(kernel.table, elements=kernel.table.elements - {lost})
    statuses = settled(look(both, libvirt, kernel, FakeStore()))
    assert [s.state for s in statuses] == [ERROR, ACTIVE]


def test_kernel_that_changes_during_the_pass() -> None:
    """What somebody undoes while it is being written is a failure, so that it is tried again."""

    class Undone(FakeKernel):
        def apply(self, plan: Plan) -> None:
            super().apply(plan)
            lose_addresses(self)

    kernel = Undone(*laptop().addresses)
    outcome = reconcile(configuration(1), running_guests(1), kernel, FakeStore())
    (failure,) = outcome.failures
    assert failure.startswith("the kernel changed during the pass: + address")
    assert [s.state for s in outcome.statuses] == [ERROR]


def lose_translation(kernel: FakeKernel) -> None:
    assert kernel.table is not None
    kept = {e for e in kernel.elements() if e.container is not nat_table.EXTERNAL}
    kernel.table = replace(kernel.table, elements=frozenset(kept))


def stray_translation(kernel: FakeKernel) -> None:
    assert kernel.table is not None
    stray = element(nat_table.EXTERNAL, (str(external(77)),), str(internal(77)))
    kernel.table = replace(kernel.table, elements=kernel.table.elements | {stray})


def fought(
    damage: Callable[[FakeKernel], None],
) -> tuple[FakeKernel, FakeLibvirt, list[Fight], tuple[Outcome, ...]]:
    """Guests 1 and 2, and passes among which that is done again and again until repairs are held
    back; the outcomes of the passes from then on.
    """
    kernel, libvirt, fights, store = laptop(), running_guests(1, 2), Fights(), FakeStore()
    reconcile(configuration(1, 2), libvirt, kernel, store)
    trigger = frozenset({Trigger(Kind.NFTABLES, "nftables: written by nft (process 1)")})
    begun: list[Fight] = []
    outcomes = []
    for second in range(REPAIRS + 3):
        damage(kernel)
        held = fights.held(second)
        outcome = reconcile(configuration(1, 2), libvirt, kernel, store, Limits(held))
        assert outcome.failures == ()
        begun += fights.written(second, outcome.written, outcome.look.desired, trigger)
        if held:
            outcomes.append(outcome)
    return kernel, libvirt, begun, tuple(outcomes)


@pytest.mark.parametrize("damage", [lose_table, change_table, lose_translation, stray_translation])
def test_held_write_needs_no_flush(damage: Callable[[FakeKernel], None]) -> None:
    """While a repair is held back, its connections are not flushed, and the pass is no failure.

    They were, in each pass; with the table, the verification ended in an IndexError.
    """
    _, _, begun, outcomes = fought(damage)
    assert begun
    assert outcomes[-1].written == ()
    written = Plan(tuple(w for o in outcomes for plan in o.written for w in plan.writes))
    assert of(written, FlushBypassing) == of(written, FlushTranslated) == ()


@pytest.mark.parametrize("damage", [lose_table, change_table, lose_translation])
def test_held_translation_has_no_address(damage: Callable[[FakeKernel], None]) -> None:
    """While a translation is held back, its address is not on the uplink: the host would answer in
    the guest's place. Both come back together.

    The addresses stayed.
    """
    kernel, libvirt, begun, outcomes = fought(damage)
    assert kernel.owned() == set()
    if kernel.table is not None and kernel.table.intact:
        assert not any(e.container is nat_table.INTERNAL for e in kernel.elements())
    assert {s.state for s in outcomes[-1].statuses} == {ERROR}
    assert not any(fight.what.startswith("address") for fight in begun)
    outcome = reconcile(configuration(1, 2), libvirt, kernel, FakeStore())
    assert (outcome.failures, len(outcome.written)) == ((), 1)
    assert_holds(kernel, 1, 2)


def test_kernel_that_cannot_be_observed() -> None:
    """Where the kernel cannot be observed, the pass ends with KernelError and nothing written."""

    class Blind(FakeKernel):
        def observe(self, *_: object) -> None:  # type: ignore[override]
            raise KernelError("nftables cannot be listed")

    kernel = Blind()
    with pytest.raises(KernelError, match="cannot be listed"):
        reconcile(configuration(1), running_guests(1), kernel, FakeStore())  # type: ignore[arg-type]
    assert kernel.applied == []


def test_remove() -> None:
    """`remove` says what it removed, leaves what is not ours, and the second has nothing to do."""
    kernel, libvirt = laptop(), running_guests(1, 2)
    before = kernel.not_ours({MARK})
    reconcile(configuration(1, 2), libvirt, kernel, FakeStore())
    assert RemoveTable() in remove(MARK, kernel).writes
    assert kernel.table is None
    assert kernel.owned() == set()
    assert kernel.not_ours({MARK}) == before
    assert kernel.accepts(MARK) == {FORWARD: []}
    writes = kernel.writes
    assert remove(MARK, kernel) == Plan()
    assert kernel.writes == writes


def test_remove_that_leaves_something() -> None:
    """Where something of ours stays, `remove` is a failure that names it."""

    class Stubborn(FakeKernel):
        def apply(self, plan: Plan) -> None:
            super().apply(Plan(tuple(w for w in plan.writes if not isinstance(w, DeleteAddress))))

    kernel = Stubborn(*laptop().addresses)
    reconcile(configuration(1), running_guests(1), kernel, FakeStore())
    with pytest.raises(KernelError, match="not everything could be removed: - address"):
        remove(MARK, kernel)


POOL = Configuration(pools=(Pool("default", (Range(external(50), external(60)),)),))
NIC = Interface("52:54:00:00:00:01", "default")


def pooled_guest() -> FakeLibvirt:
    """A running guest on the pool's network, with a DHCP lease."""
    network = replace(default_network(), leases=((NIC.mac, internal(1)),))
    return FakeLibvirt(Guests((replace(domain(guest_name(1)), interfaces=(NIC,)),), (network,)))


def test_recorded_before_it_is_used() -> None:
    """A daemon that ends before its first write to the kernel has recorded the allocation."""
    kernel, store = laptop(), FakeStore()
    kernel.crash_after = 0
    with pytest.raises(Crash):
        reconcile(POOL, pooled_guest(), kernel, store)
    assert kernel.owned() == set()
    assert {a.external for a in store.written} == {external(50)}


def test_store_that_is_full() -> None:
    """A guest of a pool gets its address also while that cannot be recorded.

    Each pass is a failure and records again, until it can; the kernel is written once only.
    """
    kernel, libvirt, store = laptop(), pooled_guest(), FakeStore()
    store.full = True
    for _ in range(2):
        outcome = reconcile(POOL, libvirt, kernel, store)
        assert outcome.failures == ("the store cannot be written",)
        assert [s.state for s in outcome.statuses] == [ACTIVE]
        assert kernel.owned() == {own_address(external(50))}
    assert outcome.written == (Plan((RecordAllocations(outcome.look.desired.allocations),)),)
    store.full = False
    assert reconcile(POOL, libvirt, kernel, store).failures == ()
    assert store.observe() == Stored(outcome.look.desired.allocations)
    assert reconcile(POOL, libvirt, kernel, store).written == ()


def test_store_that_is_full_and_refused_mapping() -> None:
    """A mapping that the kernel refuses does not hide that the store is full, nor the reverse."""
    kernel, libvirt, store = laptop(), pooled_guest(), FakeStore()
    libvirt.set_domain(guest_name(2), DomainState.RUNNING)
    store.full = True
    kernel.refuse.add(external(2))
    outcome = reconcile(replace(POOL, mappings=(guest(2),)), libvirt, kernel, store)
    assert outcome.failures[0] == "the store cannot be written"
    assert outcome.failures[-1].startswith(f"mapping {external(2)}: ")
    states = {s.mapping.external: s.state for s in outcome.statuses}
    assert states == {external(2): ERROR, external(50): ACTIVE}
    assert kernel.owned() == {own_address(external(50))}


# Any events in any order.

NUMBERS = st.integers(1, 3)
STATES = st.sampled_from(list(DomainState))
BY_NETWORK = replace(guest(4), domain=None)
"""Mapping 4 lives with its network; mapping 2 is restricted, mapping 3 has a prefix of its own."""

CONFIGURATIONS = (
    Configuration(
        (
            guest(1),
            replace(guest(2), allow=(AllowedService("icmp"), AllowedService("tcp", 22, 80))),
            replace(guest(3), prefixlen=32),
            BY_NETWORK,
        )
    ),
    Configuration((guest(1), replace(guest(2), internal=internal(9)), guest(3)), fwmark=OTHER_MARK),
    Configuration((guest(1),), uplink=UPLINK),
    Configuration(),
)


DOCK = "enp0s31f6"
DOCK_HERE = Address(DOCK, IPv4Interface("192.168.1.60/24"), HOST.network.broadcast_address)
DOCK_ELSEWHERE = Address(DOCK, IPv4Interface("10.9.9.9/24"), IPv4Address("10.9.9.255"))


class Cycling(RuleBasedStateMachine):
    """Guests, networks, the uplink, other programs and crashes, and passes among them."""

    refusals = False
    cycles = 0

    def __init__(self) -> None:
        super().__init__()
        self.kernel = laptop()
        self.libvirt = running_guests(1, 2, 3)
        self.store = FakeStore()
        self.configuration = CONFIGURATIONS[0]
        self.marks = {MARK, OTHER_MARK}
        self.lived_on: str | None = None

    @rule(number=NUMBERS, state=STATES)
    def domain_changes(self, number: int, state: DomainState) -> None:
        self.libvirt.set_domain(guest_name(number), state)

    @rule(number=NUMBERS)
    def domain_is_undefined(self, number: int) -> None:
        self.libvirt.undefine(guest_name(number))

    @rule(active=st.booleans())
    def network_changes(self, active: bool) -> None:
        self.libvirt.set_network(active)

    @rule()
    def libvirt_goes_or_comes(self) -> None:
        self.libvirt.reachable = not self.libvirt.reachable

    @rule(chosen=st.sampled_from(CONFIGURATIONS))
    def configuration_is_reloaded(self, chosen: Configuration) -> None:
        self.configuration = chosen

    @precondition(lambda self: UPLINK in self.kernel.links)
    @rule()
    def uplink_vanishes(self) -> None:
        self.kernel.remove_link(UPLINK)

    @precondition(lambda self: UPLINK not in self.kernel.links)
    @rule()
    def uplink_returns(self) -> None:
        self.kernel.links.add(UPLINK)
        self.kernel.default_route = UPLINK
        self.kernel.addresses.append(Address(UPLINK, HOST, HOST.network.broadcast_address))

    @precondition(lambda self: DOCK not in self.kernel.links)
    @rule(address=st.sampled_from([DOCK_HERE, DOCK_ELSEWHERE]))
    def dock_comes(self, address: Address) -> None:
        self.kernel.links.add(DOCK)
        self.kernel.default_route = DOCK
        self.kernel.addresses.append(address)

    @precondition(lambda self: DOCK in self.kernel.links)
    @rule()
    def dock_goes(self) -> None:
        self.kernel.remove_link(DOCK)
        if UPLINK in self.kernel.links:
            self.kernel.default_route = UPLINK

    @rule(number=NUMBERS)
    def squatter_comes_or_goes(self, number: int) -> None:
        if self.kernel.squatters.pop(external(number), None) is None:
            self.kernel.squatters[external(number)] = "02:00:00:00:00:09"

    @rule()
    def default_route_goes_or_comes(self) -> None:
        there = self.kernel.default_route is None and UPLINK in self.kernel.links
        self.kernel.default_route = UPLINK if there else None

    @rule()
    def table_is_deleted(self) -> None:
        self.kernel.delete_table()

    @precondition(lambda self: self.kernel.table is not None)
    @rule()
    def table_is_changed(self) -> None:
        change_table(self.kernel)

    @precondition(lambda self: self.kernel.elements())
    @rule(data=st.data())
    def element_is_deleted(self, data: st.DataObject) -> None:
        table = self.kernel.table
        assert table is not None
        kept = sorted(e for e in table.elements if e.container is not nat_table.HAIRPIN)
        if kept:
            lost = data.draw(st.sampled_from(kept))
            self.kernel.table = replace(table, elements=table.elements - {lost})

    @precondition(lambda self: self.kernel.table is not None)
    @rule()
    def element_is_added(self) -> None:
        table = self.kernel.table
        assert table is not None
        if all(e.key != (str(external(77)),) for e in table.elements):
            stray = element(nat_table.EXTERNAL, (str(external(77)),), str(internal(77)))
            self.kernel.table = replace(table, elements=table.elements | {stray})

    @rule()
    def our_addresses_are_flushed(self) -> None:
        lose_addresses(self.kernel)

    @rule(number=st.integers(1, 6), prefixlen=st.sampled_from([24, 32]))
    def somebody_adds_an_address(self, number: int, prefixlen: int) -> None:
        address = replace(own_address(external(number), prefixlen), owned=False)
        if UPLINK in self.kernel.links and not any(
            (a.ifname, a.interface) == (UPLINK, address.interface) for a in self.kernel.addresses
        ):
            self.kernel.addresses.append(address)

    @rule(number=st.integers(1, 6))
    def somebody_deletes_an_address(self, number: int) -> None:
        gone = {IPv4Interface((external(number), length)) for length in (24, 32)}
        self.kernel.addresses = [a for a in self.kernel.addresses if a.interface not in gone]

    @rule(mark=st.sampled_from([None, MARK, 0x4]), head=st.booleans())
    def rule_is_added(self, mark: int | None, head: bool) -> None:
        rules = self.kernel.chains.get(FORWARD)
        if rules is not None and len(rules) < 6:
            rules.insert(0 if head else len(rules), self.kernel.new_rule(mark))

    @rule()
    def chain_is_flushed(self) -> None:
        if FORWARD in self.kernel.chains:
            self.kernel.chains[FORWARD].clear()

    @rule(name=st.sampled_from([FORWARD, LIBVIRT_FORWARD]))
    def chain_goes_or_comes(self, name: ChainName) -> None:
        if self.kernel.chains.pop(name, None) is None:
            self.kernel.chains[name] = [self.kernel.new_rule()]

    @rule()
    def bridge_netfilter_is_switched(self) -> None:
        self.kernel.bridge_netfilter = not self.kernel.bridge_netfilter

    @rule(number=st.integers(1, 4), port=st.integers(0, 2))
    def guest_is_seen_behind_a_port(self, number: int, port: int) -> None:
        self.kernel.ports[internal(number)] = f"vnet{port}"

    @rule(port=st.integers(0, 2))
    def somebody_sets_a_hairpin(self, port: int) -> None:
        name = f"vnet{port}"
        if element(nat_table.HAIRPIN, (name,)) not in self.kernel.elements():
            self.kernel.hairpins.add(name)

    @rule(port=st.integers(0, 2))
    def hairpin_is_cleared(self, port: int) -> None:
        self.kernel.hairpins.discard(f"vnet{port}")
        self.kernel.hairpins_by_us.discard(f"vnet{port}")
        self.kernel.hairpins_set.discard(f"vnet{port}")

    @rule()
    def forwarding_is_switched_off(self) -> None:
        self.kernel.ip_forward = False

    @precondition(lambda self: self.refusals)
    @rule(number=st.integers(1, 4))
    def kernel_changes_its_mind(self, number: int) -> None:
        self.kernel.refuse ^= {external(number)}

    @rule(writes=st.integers(0, 4), persistent=st.booleans())
    def daemon_crashes(self, writes: int, persistent: bool) -> None:
        """The next one may be of another release, which knows tables with an owner or not."""
        others = self.kernel.not_ours(self.marks)
        self.kernel.crash_after = writes
        with suppress(Crash):
            reconcile(self.configuration, self.libvirt, self.kernel, self.store)
        self.kernel.crash_after = None
        assert self.kernel.not_ours(self.marks) == others
        self.kernel.forget()
        self.kernel.persistent = persistent
        self.store.forget()
        self.libvirt.known = None

    @rule()
    def cleanup(self) -> None:
        others = self.kernel.not_ours(self.marks)
        remove(self.configuration.fwmark, self.kernel)
        assert self.kernel.table is None
        assert self.kernel.owned() == set()
        assert self.kernel.hairpins_by_us <= self.kernel.hairpins_set
        assert not any(self.kernel.accepts(self.configuration.fwmark).values())
        assert self.kernel.not_ours(self.marks) == others

    def _pass(self) -> None:
        """One pass: the kernel is then as a second opinion says, and the others' as it was."""
        others = self.kernel.not_ours(self.marks)
        before = self.kernel.elements()
        self.lived_on = next((a.ifname for a in self.kernel.addresses if a.owned), None)
        expected = [m for m in self.configuration.mappings if self.should_be_active(m, before)]
        outcome = reconcile(self.configuration, self.libvirt, self.kernel, self.store)
        if outcome.look.desired.wanted & set(self.kernel.squatters):
            # Only now the squatter was asked.
            outcome = reconcile(self.configuration, self.libvirt, self.kernel, self.store)
        assert self.kernel.not_ours(self.marks) == others
        refused = [m for m in expected if m.external in self.kernel.refuse]
        if not refused:
            assert outcome.failures == ()
        states = {s.mapping.external: s.state for s in outcome.statuses}
        held = {external for external, state in states.items() if state is ACTIVE}
        if not self.kernel.refuse:
            assert held == {m.external for m in expected}
        assert held >= {m.external for m in expected} - self.kernel.refuse
        self.assert_kernel_holds([m for m in expected if m.external in held])
        Cycling.cycles += 1

        writes = self.kernel.writes
        again = reconcile(self.configuration, self.libvirt, self.kernel, self.store)
        # Out of sight, a guest whose translation was refused is inactive from the next pass on.
        states_again = {s.mapping.external: s.state for s in again.statuses}
        for each in states_again.keys() - self.kernel.refuse:
            assert states_again[each] is states[each]
        if not refused:
            assert again.statuses == outcome.statuses
            assert (again.written, self.kernel.writes) == ((), writes)

    # A pass follows most events: without it one event only undoes another.
    reconcile_soon = rule()(_pass)
    reconcile_sooner = rule()(_pass)
    reconcile_later = rule()(_pass)
    reconcile_at_last = rule()(_pass)

    def should_be_active(self, mapping: Mapping, before: frozenset[Element]) -> bool:
        """A second opinion, in fewer words than the daemon's."""
        kernel, libvirt = self.kernel, self.libvirt
        uplink = self.configuration.uplink or kernel.default_route
        if uplink is None and self.configuration.uplink is None and self.lived_on in kernel.links:
            uplink = self.lived_on
        foreign = [a for a in kernel.addresses if not a.owned]
        own = [a for a in foreign if a.ifname == uplink]
        if any(a.interface.ip == mapping.external for a in foreign if a.ifname != uplink):
            return False
        if mapping.external in kernel.squatters:
            return False
        # The first address of an interface is the host's own, whoever put it there.
        if uplink not in kernel.links or not own or own[0].interface.ip == mapping.external:
            return False
        in_subnet = any(
            a.interface.network.prefixlen < 32 and mapping.external in a.interface.network
            for a in own
        )
        if not in_subnet and mapping.prefixlen != 32:
            return False
        translated = any(
            e.container is nat_table.EXTERNAL and e.key == (str(mapping.external),) for e in before
        )
        guests = libvirt.guests if libvirt.reachable else libvirt.known
        if not libvirt.reachable and (translated or guests is None):
            return translated
        assert guests is not None
        if not any(n.active for n in guests.networks):
            return False
        if mapping.domain is None:
            return True
        state = next((d.state for d in guests.domains if d.name == mapping.domain), None)
        return state is DomainState.RUNNING or (state is DomainState.PAUSED and translated)

    def assert_kernel_holds(self, active: list[Mapping]) -> None:
        kernel, fwmark = self.kernel, self.configuration.fwmark
        assert kernel.table is not None
        assert (kernel.table.intact, kernel.table.fwmark) == (True, fwmark)
        assert (kernel.table.persistent, kernel.table.owned) == (kernel.persistent, True)
        translation = {e for e in kernel.elements() if e.container is not nat_table.HAIRPIN}
        uplinks = {e.key[0] for e in translation if e.container is nat_table.UPLINK}
        assert uplinks == {a.ifname for a in kernel.owned()} or not kernel.owned()
        assert len(uplinks) == bool(active)
        assert translation == elements_of(*active, uplink=next(iter(uplinks), UPLINK))
        foreign = {a.interface.ip for a in kernel.addresses if not a.owned}
        owned = {a.interface.ip for a in kernel.owned()}
        wanted = {m.external for m in active}
        assert wanted - foreign <= owned <= wanted
        assert all(found == [0] for found in kernel.accepts(fwmark).values())
        ports = {kernel.ports.get(m.internal) for m in active if m.internal is not None} - {None}
        needed = ports if kernel.bridge_netfilter else set()
        assert needed <= kernel.hairpins
        assert kernel.hairpins_by_us <= needed
        assert kernel.ip_forward or not active

    @invariant()
    def hosts_own_address_stays(self) -> None:
        """Whatever happens, the daemon never takes the bridge's or the uplink's own address."""
        mine = {a.interface for a in self.kernel.addresses if not a.owned}
        assert (HOST in mine) == (UPLINK in self.kernel.links)
        assert any(a.ifname == LIBVIRT_BRIDGE for a in self.kernel.addresses)


class CyclingWithRefusals(Cycling):
    """The same, in a kernel that also refuses some mappings for a time."""

    refusals = True


AT_LENGTH = settings(stateful_step_count=50, report_multiple_bugs=False)

TestCycling = Cycling.TestCase
TestCycling.settings = AT_LENGTH
TestCyclingWithRefusals = CyclingWithRefusals.TestCase
TestCyclingWithRefusals.settings = AT_LENGTH


def test_number_of_cycles(at_length: bool) -> None:
    """After all of that: how many times something happened and the kernel was right after it."""
    print(f"{Cycling.cycles:,} random cycles over the fake kernel")
    assert Cycling.cycles >= (10_000 if at_length else 500)
