"""Passes of the daemon whose parts fail at random: what the service makes of that.

The service is the real one, on a kernel, a libvirt and a store in memory.
"""

import json
import logging
from collections.abc import Callable, Iterator, Set
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import pytest
from fakes import (
    FORWARD,
    LIBVIRT_FORWARD,
    FakeKernel,
    FakeLibvirt,
    FakeStore,
    laptop,
    own_address,
    running_guests,
)
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule
from lab.addresses import external, guest_name, internal
from vm_onetoone_nat.decide.fights import Fights
from vm_onetoone_nat.decide.host_writes import (
    AddAddress,
    ClearHairpin,
    DeleteAddress,
    EnableIpForward,
    FlushBypassing,
    FlushTranslated,
    SetHairpin,
)
from vm_onetoone_nat.decide.nft_writes import InstallTable
from vm_onetoone_nat.decide.reconcile import look
from vm_onetoone_nat.decide.writes import Write
from vm_onetoone_nat.errors import KernelError, TransactionRefused
from vm_onetoone_nat.internal_errors import OCCURRED, RETRY_SECONDS, Work, contain
from vm_onetoone_nat.model import nat_table
from vm_onetoone_nat.model.configuration import DEFAULT_FWMARK, Configuration
from vm_onetoone_nat.model.desired import Desired
from vm_onetoone_nat.model.guests import DomainState
from vm_onetoone_nat.model.host import Address, Observed
from vm_onetoone_nat.model.mapping import AllowedService, Mapping
from vm_onetoone_nat.model.nat_table import Element, translations
from vm_onetoone_nat.model.trigger import RELOAD, RESYNC, RETRY, START, Kind, Trigger
from vm_onetoone_nat.service import service as wiring
from vm_onetoone_nat.service.service import Service

pytestmark = pytest.mark.internal_errors

RULESET = Trigger(Kind.NFTABLES, "nftables: written by nft (process 1)", "nft (process 1)")


MakeError = Callable[[], Exception]


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Thousands of passes that fail log more than anybody reads."""
    caplog.set_level(logging.CRITICAL, "vm_onetoone_nat")


class FaultyKernel(FakeKernel):
    """A kernel, with the adapter to it, whose parts fail as `broken` says.

    A kind of write raises what it has there; all of nftables, what InstallTable has. `blind` has
    the error of the observation that is so many observations away, and of all after it. `delay` is
    called before each transaction.
    """

    def __init__(self, *addresses: Address) -> None:
        super().__init__(*addresses)
        self.portid = self.nft_portid = self.generation = 0
        self.broken: dict[type[Write], MakeError] = {}
        self.blind: tuple[int, MakeError] | None = None
        self.deaf: MakeError | None = None
        self.delay: Callable[[], None] = lambda: None

    def observe(self, configuration: Configuration, macs: Set[str] = frozenset()) -> Observed:
        if self.blind is not None:
            left, error = self.blind
            if left == 0:
                raise error()
            self.blind = (left - 1, error)
        return super().observe(configuration, macs)

    def probe(self, configuration: Configuration, seen: Observed, desired: Desired) -> None:
        if self.deaf is not None:
            raise self.deaf()
        super().probe(configuration, seen, desired)

    def _apply(self, write: Write) -> None:
        self._fail(type(write))
        super()._apply(write)

    def transact(self, writes: object) -> None:
        self.delay()
        self._fail(InstallTable)
        super().transact(writes)  # type: ignore[arg-type]

    def _fail(self, kind: type[Write]) -> None:
        if kind in self.broken:
            error = self.broken[kind]()
            # As `Kernel` does.
            raise error if isinstance(error, KernelError) else KernelError(f"internal: {error!r}")


class Source(FakeLibvirt):
    """libvirt, with what the service needs of a connection besides."""

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def ask_agents_again(self, macs: frozenset[str]) -> None: ...


class Idle:
    """A part of the service that does nothing."""

    generation = 0

    def __init__(self, *_: object) -> None: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def follow(self, macs: frozenset[str]) -> None: ...


class Time:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def second_passes(self) -> None:
        self.now += 1.0


def installed(
    kernel: FaultyKernel, libvirt: Source, clock: Time, **more: object
) -> AbstractContextManager[object]:
    """The service is put together of these, and of parts that do nothing."""
    parts: dict[str, object] = {
        "Kernel": lambda *_: kernel,
        "LibvirtSource": lambda *_, **__: libvirt,
        "Arp": Idle,
        "Watch": Idle,
        "StatusSocket": Idle,
        "time": clock,
    }
    return patch.dict(vars(wiring), parts | more)


class HeldAtRandom(Fights):
    """Holds back what fights are about, and what else is asked for."""

    others: Set[str] = frozenset()

    def held(self, now: float) -> frozenset[str]:
        return super().held(now) | self.others


def guest(n: int) -> Mapping:
    return Mapping(external(n), "default", internal=internal(n), domain=guest_name(n))


CONFIGURATIONS = (
    Configuration((guest(1), replace(guest(2), allow=(AllowedService("tcp", 22, 22),)), guest(3))),
    Configuration((guest(1), replace(guest(2), internal=internal(9)), guest(3))),
    # Guests 1 and 2 have changed their addresses.
    Configuration(
        (replace(guest(1), internal=internal(2)), replace(guest(2), internal=internal(1)))
    ),
    Configuration((guest(1),)),
)
NUMBERS = st.integers(1, 3)
Draw = Callable[[st.SearchStrategy[Any]], Any]
KINDS = (
    AddAddress,
    ClearHairpin,
    DeleteAddress,
    EnableIpForward,
    FlushBypassing,
    FlushTranslated,
    InstallTable,
    SetHairpin,
)
ERRORS = st.sampled_from([lambda: KernelError("no"), lambda: TypeError("our fault")])
RULESET = Trigger(Kind.NFTABLES, "nftables: written by nft (process 1)", "nft (process 1)")


class Failing(RuleBasedStateMachine):
    """Guests, other programs, holds and failures of every part, and passes among them."""

    passes = 0

    def __init__(self) -> None:
        super().__init__()
        self.kernel = FaultyKernel(*laptop().addresses)
        self.kernel.chains = laptop().chains
        self.libvirt = Source(running_guests(1, 2, 3).guests)
        self.store = FakeStore()
        self.clock = Time()
        self.stack = ExitStack()
        directory = Path(self.stack.enter_context(TemporaryDirectory()))
        parts = installed(self.kernel, self.libvirt, self.clock)
        self.stack.enter_context(parts)
        self.service = Service(directory, CONFIGURATIONS[0], directory, self.store)
        self.holds = HeldAtRandom()
        self.service._fights = self.holds
        self.trigger = START
        self.again: float | None = None

    def teardown(self) -> None:
        self.faults_end()
        self.stack.close()

    # What the daemon does.

    def _pass(self) -> None:
        """A pass: it ends by no exception, changes nothing that is not ours, and adds nothing that
        is held back.

        It leaves no address of ours for which the host would answer: none at all, unless it cannot
        see or cannot delete it, and then none that was not there before. The same holds for source
        NAT to such an address, and for a hairpin flag without a record of whose it is.
        """
        kernel, held = self.kernel, self.holds.held(self.clock.now)
        others, exposed = kernel.not_ours({DEFAULT_FWMARK}), self.exposed()
        snats, unrecorded = self.snats(), self.unrecorded()
        kernel.applied.clear()
        self.again = self.service._pass(frozenset({self.trigger}))
        assert kernel.not_ours({DEFAULT_FWMARK}) == others
        written = [write for plan in kernel.applied for write in plan.writes]
        assert not any(write.adds and write.key in held for write in written)
        if kernel.blind is None and DeleteAddress not in kernel.broken:
            assert self.exposed() == set()
        assert self.exposed() <= exposed
        assert self.snats() <= snats | held
        assert self.unrecorded() <= unrecorded
        self.trigger = RULESET
        Failing.passes += 1

    def working(self) -> frozenset[Element]:
        """The elements of our table, if it translates."""
        table = self.kernel.table
        return table.elements if table is not None and table.intact else frozenset()

    def exposed(self) -> set[Address]:
        """The addresses of ours without a translation."""
        translated = {pair.external for pair in translations(self.working())}
        return {a for a in self.kernel.owned() if a.interface.ip not in translated}

    def snats(self) -> set[str]:
        """The source NAT to addresses without a translation."""
        elements = self.working()
        translated = {str(pair.external) for pair in translations(elements)}
        found = {e for e in elements if e.container is nat_table.INTERNAL}
        return {str(e) for e in found if e.value not in translated}

    def unrecorded(self) -> set[str]:
        """The flags of ours that a new process would not know."""
        records = {e.key[0] for e in self.kernel.elements() if e.container is nat_table.HAIRPIN}
        return self.kernel.hairpins_by_us - records

    def faults_end(self, _: Draw | None = None) -> None:
        """After the first pass without faults the kernel has what it should have, and after the
        second nothing is written.
        """
        self.kernel.broken.clear()
        self.kernel.refuse.clear()
        self.kernel.fail.clear()
        self.kernel.blind = self.kernel.deaf = None
        self.kernel.delay = lambda: None
        self.store.full = False
        self.holds.others = frozenset()
        self.clock.now += 1000
        self.trigger = RETRY
        self._pass()
        assert self.again is not None
        converged = look(self.service._configuration, self.libvirt, self.kernel, self.store)
        assert not converged.plan, converged.plan
        assert {a.interface.ip for a in self.kernel.owned()} == {
            m.external for m in converged.desired.active
        }
        writes = self.kernel.writes
        self._pass()
        assert self.again is not None
        assert self.kernel.writes == writes

    # What others do.

    def domain_changes(self, draw: Draw) -> None:
        state = draw(st.sampled_from(list(DomainState)))
        self.libvirt.set_domain(guest_name(draw(NUMBERS)), state)

    def libvirt_goes_or_comes(self, _: Draw) -> None:
        self.libvirt.reachable = not self.libvirt.reachable

    def configuration_changes(self, draw: Draw) -> None:
        self.service._configuration = draw(st.sampled_from(CONFIGURATIONS))

    def table_is_deleted(self, _: Draw) -> None:
        self.kernel.delete_table()

    def table_is_changed(self, _: Draw) -> None:
        if self.kernel.table is not None:
            self.kernel.table = replace(self.kernel.table, intact=False)

    def element_is_deleted(self, draw: Draw) -> None:
        table = self.kernel.table
        kept = [e for e in self.kernel.elements() if e.container is not nat_table.HAIRPIN]
        if table is not None and kept:
            lost = draw(st.sampled_from(sorted(kept)))
            self.kernel.table = replace(table, elements=table.elements - {lost})

    def addresses_are_flushed(self, _: Draw) -> None:
        self.kernel.addresses = [a for a in self.kernel.addresses if not a.owned]

    def address_of_ours_is_added(self, draw: Draw) -> None:
        address = own_address(external(draw(st.integers(1, 5))))
        if address not in self.kernel.addresses:
            self.kernel.addresses.append(address)

    def chain_goes_or_comes(self, draw: Draw) -> None:
        name = draw(st.sampled_from([FORWARD, LIBVIRT_FORWARD]))
        if self.kernel.chains.pop(name, None) is None:
            self.kernel.chains[name] = [self.kernel.new_rule()]

    def settings_are_switched(self, _: Draw) -> None:
        self.kernel.bridge_netfilter = not self.kernel.bridge_netfilter
        self.kernel.ip_forward = False

    def guest_is_seen_behind_a_port(self, draw: Draw) -> None:
        self.kernel.ports[internal(draw(NUMBERS))] = f"vnet{draw(st.integers(0, 2))}"

    # What fails.

    def write_fails(self, draw: Draw) -> None:
        self.kernel.broken[draw(st.sampled_from(KINDS))] = draw(ERRORS)

    def transactions_are_refused(self, _: Draw) -> None:
        self.kernel.broken[InstallTable] = lambda: TransactionRefused("nftables refused: busy")

    def mapping_is_refused(self, draw: Draw) -> None:
        self.kernel.refuse ^= {external(draw(NUMBERS))}

    def transactions_are_slow(self, _: Draw) -> None:
        self.kernel.delay = self.clock.second_passes

    def address_cannot_be_added(self, draw: Draw) -> None:
        self.kernel.fail ^= {external(draw(NUMBERS))}

    def observation_fails(self, draw: Draw) -> None:
        self.kernel.blind = (draw(st.integers(0, 3)), draw(ERRORS))

    def probe_fails(self, _: Draw) -> None:
        self.kernel.deaf = lambda: TypeError("our fault")

    def store_fails(self, _: Draw) -> None:
        self.store.full = True

    def writes_are_held(self, draw: Draw) -> None:
        planned = look(self.service._configuration, self.libvirt, laptop(), self.store).plan
        keys = sorted({write.key for write in planned.writes if write.key is not None})
        keys += [str(element) for element in sorted(self.kernel.elements())]
        keys += [DeleteAddress(own_address(external(n))).key for n in range(1, 6)]
        self.holds.others = frozenset(draw(st.lists(st.sampled_from(keys), max_size=4)))

    def time_passes(self, draw: Draw) -> None:
        self.clock.now += draw(st.sampled_from([0.1, 1.0, 10.0, 100.0]))

    EVENTS = (
        domain_changes,
        libvirt_goes_or_comes,
        configuration_changes,
        table_is_deleted,
        table_is_changed,
        element_is_deleted,
        addresses_are_flushed,
        address_of_ours_is_added,
        chain_goes_or_comes,
        settings_are_switched,
        guest_is_seen_behind_a_port,
        write_fails,
        transactions_are_refused,
        mapping_is_refused,
        transactions_are_slow,
        address_cannot_be_added,
        observation_fails,
        probe_fails,
        store_fails,
        writes_are_held,
        time_passes,
        faults_end,
    )

    @rule(events=st.lists(st.sampled_from(EVENTS), min_size=1, max_size=4), data=st.data())
    def passes_after(self, events: "list[Callable[[Failing, Draw], None]]", data: Any) -> None:
        """Something happens, and there are two passes after it."""
        for event in events:
            event(self, data.draw)
        self._pass()
        self._pass()


TestFailing = Failing.TestCase
TestFailing.settings = settings(max_examples=100, stateful_step_count=20)


class Manager:
    """What the service manager is sent."""

    managed, watchdog_seconds = True, 30.0

    def __init__(self) -> None:
        self.sent: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *text: self.sent.append(" ".join((name, *text)))


class TestWhatFails:
    """One pass of which a part fails in a way that nobody expects."""

    LINE = "internal error: see the journal"

    @pytest.fixture
    def kernel(self) -> FaultyKernel:
        return FaultyKernel(*laptop().addresses)

    @pytest.fixture
    def manager(self) -> Manager:
        return Manager()

    @pytest.fixture
    def libvirt(self) -> Source:
        return Source(running_guests(1).guests)

    @pytest.fixture
    def clock(self) -> Time:
        return Time()

    @pytest.fixture
    def service(
        self,
        kernel: FaultyKernel,
        libvirt: Source,
        clock: Time,
        manager: Manager,
        tmp_path: Path,
    ) -> Iterator[Service]:
        with installed(kernel, libvirt, clock, Notify=lambda: manager):
            yield Service(tmp_path / "config.toml", CONFIGURATIONS[3], tmp_path, FakeStore())

    def test_start(self, service: Service, kernel: FaultyKernel, manager: Manager) -> None:
        """A start is complete after a pass that failed: the service manager would end the daemon.
        The watchdog is fed, since the pass is repeated.
        """
        kernel.blind = (0, lambda: TypeError("our fault"))
        assert service._pass(frozenset({START})) is None
        assert manager.sent == ["alive", f"ready {self.LINE}"]
        assert service._pass(frozenset({RETRY})) is None
        assert manager.sent[2:] == ["alive", f"status {self.LINE}"]
        kernel.blind = None
        assert service._pass(frozenset({RETRY})) is not None
        assert manager.sent[4:] == ["alive", "status 1 of 1 mappings active"]
        assert OCCURRED.counts["pass"] == OCCURRED.total == 2

    def test_reload(
        self, service: Service, kernel: FaultyKernel, manager: Manager, tmp_path: Path
    ) -> None:
        """A reload that fails leaves the configuration as it is, and is complete after the pass."""
        service._pass(frozenset({START}))
        before, sent = service._configuration, len(manager.sent)

        def odd(_: Path) -> Configuration:
            raise RecursionError

        with patch.object(wiring, "load", odd):
            assert service._pass(frozenset({RELOAD})) is not None
        assert service._configuration is before
        line = "1 of 1 mappings active"
        assert manager.sent[sent:] == ["reloading", "alive", f"ready {line}"]
        assert OCCURRED.counts["reload"] == OCCURRED.total == 1

    def test_after_the_writes(
        self, service: Service, kernel: FaultyKernel, manager: Manager
    ) -> None:
        """What fails after the writes leaves them, and makes another pass."""
        kernel.deaf = lambda: TypeError("our fault")
        assert service._pass(frozenset({START})) is None
        assert kernel.owned() == {own_address(external(1))}
        assert manager.sent == ["alive", f"ready {self.LINE}"]

    def test_unread(self, service: Service, libvirt: Source, clock: Time) -> None:
        """While libvirt fails to give something, it is asked again after delays that grow. Passes
        in between neither delay that nor make it rarer.
        """
        service._pass(frozenset({START}))
        known = libvirt.guests
        libvirt.guests = replace(
            known, domains=tuple(replace(each, unread=True) for each in known.domains)
        )
        for expected in RETRY_SECONDS[1:]:
            assert service._pass(frozenset({RESYNC})) == expected
            clock.now += expected / 2
            assert service._pass(frozenset({RULESET})) == expected / 2
            clock.now += expected / 2
        libvirt.guests = known
        assert service._pass(frozenset({RESYNC})) == inf
        libvirt.guests = replace(
            known, domains=tuple(replace(each, unread=True) for each in known.domains)
        )
        assert service._pass(frozenset({RESYNC})) == RETRY_SECONDS[1]

    def test_status(self, service: Service) -> None:
        """The answer to status has the number of internal errors."""
        service._pass(frozenset({START}))
        with contain(Work.ARP):
            raise KeyError
        answer = json.loads(service._answer_status())
        assert answer["daemon"]["internal_errors"]["arp"] == 1
        assert set(answer["daemon"]["internal_errors"]) == {work.label for work in Work}


def test_number_of_passes() -> None:
    """After all of that: how many passes there were."""
    print(f"{Failing.passes:,} passes with random failures")
    assert Failing.passes >= 500
