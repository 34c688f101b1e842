"""The contract of the guest side of a pass, on the fake and on libvirt's own test driver."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import libvirt
import pytest
from fakes import FakeLibvirt, default_network, domain
from vm_onetoone_nat.decide.sides import GuestSide
from vm_onetoone_nat.errors import LibvirtUnavailable
from vm_onetoone_nat.model.guests import DomainState, Guests
from vm_onetoone_nat.virt.connection import LibvirtSource
from vm_onetoone_nat.virt.once import LibvirtOnce

URI = "test:///default"
GUEST = "guest1"


class World(Protocol):
    """libvirt with the network `default` and guests of no interest, and what its users do."""

    @property
    def source(self) -> GuestSide: ...

    def set_domain(self, state: DomainState) -> None:
        """The guest, defined from now on, is in that state."""

    def undefine(self) -> None:
        """The guest is stopped and no longer known."""

    def set_network(self, active: bool) -> None:
        """The network is started or stopped."""

    def break_off(self) -> None:
        """libvirt no longer answers."""

    def close(self) -> None: ...


class Fake:
    def __init__(self) -> None:
        self.source = FakeLibvirt(Guests(networks=(default_network(),)))

    def set_domain(self, state: DomainState) -> None:
        self.source.set_domain(GUEST, state)

    def undefine(self) -> None:
        self.source.undefine(GUEST)

    def set_network(self, active: bool) -> None:
        self.source.set_network(active)

    def break_off(self) -> None:
        self.source.reachable = False

    def close(self) -> None:
        pass


XML = f"""<domain type="test"><name>{GUEST}</name><uuid>{domain(GUEST).uuid}</uuid>
<memory>1024</memory><os><type>hvm</type></os></domain>"""


class Driver:
    """libvirt's test driver: all connections of this process share its domains and networks.

    The guest that it begins with is left alone, for other tests.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self._connection: Any = libvirt.open(URI)
        self.source = self._connect()

    def set_domain(self, state: DomainState) -> None:
        guest = self._connection.defineXML(XML)
        if guest.isActive():
            guest.destroy()
        if state is not DomainState.OFF:
            guest.create()
        if state is DomainState.PAUSED:
            guest.suspend()

    def undefine(self) -> None:
        guest = self._connection.lookupByName(GUEST)
        if guest.isActive():
            guest.destroy()
        guest.undefine()

    def set_network(self, active: bool) -> None:
        network = self._connection.networkLookupByName("default")
        (network.create if active else network.destroy)()

    def break_off(self) -> None:
        def broken(*_: object) -> Guests:
            raise LibvirtUnavailable("client socket is closed")

        for module in ("connection", "once"):
            self._patch.setattr(f"vm_onetoone_nat.virt.{module}.read_guests", broken)

    def close(self) -> None:
        if GUEST in (each.name() for each in self._connection.listAllDomains()):
            self.undefine()
        self._connection.close()

    def _connect(self) -> GuestSide:
        return LibvirtOnce(URI)


class Daemon(Driver):
    """The same by the connection of the daemon, which gets events."""

    def _connect(self) -> GuestSide:
        self._source = LibvirtSource(URI, lambda _trigger: None)
        self._source.start()
        return self._source

    def close(self) -> None:
        self._source.stop()
        super().close()


KINDS: dict[str, Callable[[pytest.MonkeyPatch], World]] = {
    "fake": lambda _patch: Fake(),
    "command": Driver,
    "daemon": Daemon,
}


@pytest.fixture(params=KINDS)
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    world = KINDS[request.param](monkeypatch)
    yield world
    world.close()


def state_of(source: GuestSide) -> DomainState | None:
    found = source.observe().domain(GUEST)
    return found.state if found is not None else None


def test_network(world: World) -> None:
    """The network has its bridge and gateway, whether it is active or not."""
    assert world.source.observe().networks == (default_network(),)
    for active in (False, True):
        world.set_network(active)
        (network,) = world.source.observe().networks
        known = default_network(active)
        assert (network.name, network.active, network.bridge, network.gateways) == (
            (known.name, known.active, known.bridge, known.gateways)
        )


@pytest.mark.parametrize("state", [DomainState.RUNNING, DomainState.PAUSED, DomainState.OFF])
def test_domain(world: World, state: DomainState) -> None:
    """A guest is known with its UUID in each state, and no longer when it is undefined."""
    world.set_domain(state)
    guests = world.source.observe()
    assert guests.domain(GUEST) == guests.domain(domain(GUEST).uuid) == domain(GUEST, state)
    world.undefine()
    assert state_of(world.source) is None


def test_changes(world: World) -> None:
    """Each observation has what libvirt has then."""
    for state in (
        DomainState.OFF,
        DomainState.RUNNING,
        DomainState.PAUSED,
        DomainState.RUNNING,
        DomainState.OFF,
    ):
        world.set_domain(state)
        assert state_of(world.source) is state


def test_never_reached(world: World) -> None:
    """Before libvirt has answered once, nothing is known."""
    world.break_off()
    with pytest.raises(LibvirtUnavailable):
        world.source.observe()


@pytest.mark.parametrize("world", ["fake", "daemon"], indirect=True)
def test_lost(world: World) -> None:
    """The daemon goes on with what libvirt answered last, and knows that it is not current."""
    world.set_domain(DomainState.RUNNING)
    before = world.source.observe()
    assert before.current
    world.break_off()
    world.set_domain(DomainState.OFF)
    for _ in range(2):
        known = world.source.observe()
        assert (known.domains, known.networks) == (before.domains, before.networks)
        assert not known.current
