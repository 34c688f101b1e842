"""What the daemon remembers of its passes, by passes on a kernel in memory."""

from ipaddress import IPv4Address

from fakes import FORWARD, FakeKernel, FakeLibvirt, FakeStore, laptop, running_guests
from lab.addresses import UPLINK, external, guest_name, internal
from vm_onetoone_nat.decide.reconcile import reconcile
from vm_onetoone_nat.model.configuration import Configuration
from vm_onetoone_nat.model.guests import DomainState
from vm_onetoone_nat.model.mapping import Mapping
from vm_onetoone_nat.model.traffic import Counters, Traffic
from vm_onetoone_nat.model.trigger import RELOAD, RESYNC, RETRY, START, Kind, Trigger
from vm_onetoone_nat.report.report import BOUNDS, Passes, Report
from vm_onetoone_nat.service.history import History

ERRORS = {"pass": 2}
DOMAIN = Trigger(Kind.DOMAIN, "domain el7-x86_64-102: started")


class Passing:
    """A host with guests 1 and 2, and a daemon there that began at 0 o'clock."""

    def __init__(self) -> None:
        self.kernel: FakeKernel = laptop()
        self.libvirt: FakeLibvirt = running_guests(1, 2)
        self.history = History(0.0)
        self.mappings: tuple[int, ...] = (1, 2)

    def pass_at(self, now: float, *triggers: Trigger, took: float = 0.0) -> None:
        """A pass that ends then."""
        configuration = Configuration(
            mappings=tuple(
                Mapping(external(n), "default", internal=internal(n), domain=guest_name(n))
                for n in self.mappings
            )
        )
        outcome = reconcile(configuration, self.libvirt, self.kernel, FakeStore())
        self.history.passed(now - took, now, frozenset(triggers), outcome)

    def report(self, now: float, counters: Counters | None = None) -> Report:
        """What is told then."""
        report = self.history.report(now, 4711, "1.2.3", counters, ERRORS)
        assert report is not None
        return report

    def passes(self) -> Passes:
        """What is told of the passes."""
        daemon = self.report(1000.0).daemon
        assert daemon is not None
        return daemon.passes

    def since(self, now: float) -> dict[str, tuple[str, float | None]]:
        """The state of each guest, and for how long it has been in it."""
        return {
            entry.domain or "": (entry.state.value, entry.seconds)
            for entry in self.report(now).entries
        }


def test_before_the_first_pass() -> None:
    """Nothing is told before a pass has seen how things are; then how long the daemon has run."""
    passing = Passing()
    assert passing.history.report(1.0, 4711, "1.2.3", None, ERRORS) is None
    passing.history.failed(1, 2)
    assert passing.history.report(2.0, 4711, "1.2.3", None, ERRORS) is None
    passing.pass_at(3, RETRY)
    daemon = passing.report(4.5).daemon
    assert daemon is not None
    assert (daemon.pid, daemon.version, daemon.seconds) == (4711, "1.2.3", 4.5)
    assert (daemon.passes.total, daemon.passes.failed) == (2, 1)


def test_time_in_state() -> None:
    """A state's time goes on over passes, and begins anew with another state."""
    passing = Passing()
    passing.pass_at(1, START)
    passing.pass_at(5, Trigger(Kind.LINK, "link eth0"))
    assert passing.since(8) == {guest_name(1): ("active", 7), guest_name(2): ("active", 7)}
    passing.libvirt.set_domain(guest_name(2), DomainState.OFF)
    passing.pass_at(10, DOMAIN)
    passing.history.failed(11, 12)
    assert passing.since(13) == {guest_name(1): ("active", 12), guest_name(2): ("inactive", 3)}
    passing.libvirt.set_domain(guest_name(2), DomainState.RUNNING)
    passing.pass_at(20, DOMAIN)
    assert passing.since(20) == {guest_name(1): ("active", 19), guest_name(2): ("active", 0)}


def test_time_of_what_is_configured_anew() -> None:
    """A mapping that was gone begins anew; one that another joins goes on."""
    passing = Passing()
    passing.pass_at(1, START)
    passing.mappings = (2,)
    passing.pass_at(2, RELOAD)
    passing.mappings = (1, 2)
    passing.pass_at(3, RELOAD)
    assert passing.since(4) == {guest_name(1): ("active", 1), guest_name(2): ("active", 3)}


def test_passes() -> None:
    """Each pass is counted, in every bound that it did not exceed; those that wrote too."""
    passing = Passing()
    passing.pass_at(1, START, took=0.0625)
    passing.pass_at(2, RESYNC, took=0.25)
    passing.history.failed(3, 9)
    passes = passing.passes()
    assert (passes.total, passes.failed, passes.wrote) == (3, 1, 1)
    assert passes.seconds == 6.3125
    assert dict(zip(BOUNDS, passes.within, strict=True)) == {
        **dict.fromkeys((0.005, 0.01, 0.025, 0.05), 0),
        0.1: 1,
        **dict.fromkeys((0.25, 0.5, 1.0, 2.5, 5.0), 2),
    }


def damaged(passing: Passing) -> None:
    """What guest 1 needs is taken away."""
    passing.kernel.addresses = [a for a in passing.kernel.addresses if not a.owned]
    del passing.kernel.chains[FORWARD][0]


def test_repairs() -> None:
    """What is written without anything else being desired is a repair, of each kind of trigger."""
    passing = Passing()
    passing.pass_at(1, START)
    assert passing.passes().repairs == {}
    damaged(passing)
    passing.pass_at(
        2,
        Trigger(Kind.ADDRESS, "address 192.168.1.101 removed"),
        Trigger(Kind.NFTABLES, "nftables: written by nft (process 1)", "nft (process 1)"),
        Trigger(Kind.ADDRESS, "address 1 added"),
    )
    assert passing.passes().repairs == {"address": 1, "nftables": 1}
    damaged(passing)
    passing.pass_at(3, Trigger(Kind.ARP, "ARP: an address is free or unavailable"))
    passing.pass_at(4, RESYNC)
    assert passing.passes().repairs == {"address": 1, "arp": 1, "nftables": 1}


def test_no_repairs() -> None:
    """A guest that stops, a start, and a failure of our own that is mended are none."""
    passing = Passing()
    passing.pass_at(1, START)
    passing.libvirt.set_domain(guest_name(1), DomainState.OFF)
    passing.pass_at(2, DOMAIN)
    passing.libvirt.set_domain(guest_name(1), DomainState.RUNNING)
    passing.kernel.fail = {external(1)}
    passing.pass_at(3, DOMAIN)
    assert passing.passes().failed == 1
    passing.kernel.fail = set()
    passing.pass_at(4, RETRY)
    passes = passing.passes()
    assert (passes.wrote, passes.failed, passes.repairs) == (4, 1, {})


def test_a_record_is_no_repair() -> None:
    """Connections that are forgotten anew by another process were not changed by somebody."""
    passing = Passing()
    passing.pass_at(1, START)
    passing.kernel.flushed.clear()
    passing.pass_at(2, RESYNC)
    passes = passing.passes()
    assert (passes.wrote, passes.repairs) == (2, {})


def test_report() -> None:
    """The report has uplink, libvirt and traffic as they are now."""
    passing = Passing()
    passing.libvirt.set_domain(guest_name(2), DomainState.OFF)
    passing.pass_at(1, START)
    came, went = Traffic(1, 2, 3), Traffic(4, 5, 6)
    nobody: dict[IPv4Address, Traffic] = {}
    report = passing.report(2, Counters({external(1): came}, nobody))
    assert (report.uplink, report.libvirt) == (UPLINK, True)
    assert [entry.inbound for entry in report.entries] == [came, Traffic()]
    report = passing.report(2, Counters(nobody, {internal(1): went}))
    assert [entry.outbound for entry in report.entries] == [went, Traffic()]
    passing.libvirt.reachable = False
    passing.pass_at(3, Trigger(Kind.LIBVIRT, "libvirt lost"))
    assert not passing.report(3).libvirt
