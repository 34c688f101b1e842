"""Answers that come late or not at all, and connections that are alive and of no use."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import libvirt
import pytest
from lab import wait_for
from vm_onetoone_nat.errors import LibvirtUnavailable
from vm_onetoone_nat.internal_errors import OCCURRED
from vm_onetoone_nat.model.guests import DomainState, Guests, Interface
from vm_onetoone_nat.model.trigger import Kind, Trigger
from vm_onetoone_nat.service.runner import RESYNC_SECONDS
from vm_onetoone_nat.virt import connection as libvirt_connection
from vm_onetoone_nat.virt import source as libvirt_source
from vm_onetoone_nat.virt.answers import BoundedCalls, LibvirtHangs
from vm_onetoone_nat.virt.read import Definitions
from vm_onetoone_nat.virt.source import LibvirtSource

URI = "test:///default"
CONNECTED = Trigger(Kind.LIBVIRT, "libvirt connected")


class CountedDomain:
    """A domain of libvirt's that counts how often its definition is read."""

    def __init__(self, domain: Any) -> None:
        self._domain = domain
        self.read = 0
        self.text: str | None = None
        self.meanwhile: Callable[[], None] = lambda: None

    def UUIDString(self) -> str:  # noqa: N802
        return str(self._domain.UUIDString())

    def XMLDesc(self) -> str:  # noqa: N802
        self.read += 1
        self.meanwhile()
        return str(self._domain.XMLDesc()) if self.text is None else self.text


class TestAnswers:
    """How long is waited, and for what."""

    def test_answer(self) -> None:
        """What is answered in time is returned, and what is raised is raised."""
        answers = BoundedCalls(lambda: None)
        assert answers.call(lambda: 7) == 7
        with pytest.raises(ZeroDivisionError):
            answers.call(lambda: 1 // 0)

    def test_hangs(self) -> None:
        """A call that hangs is waited for once; after that no time is lost, until it returns."""
        released, answered = threading.Event(), threading.Event()
        answers = BoundedCalls(answered.set, patience=0.2)
        began = time.monotonic()
        with pytest.raises(LibvirtHangs, match=r"has not answered for 0\.2 s"):
            answers.call(released.wait)
        assert time.monotonic() - began >= 0.2
        # Were it waited for again, the test would not end.
        answers._patience = 3600.0
        for _ in range(3):
            with pytest.raises(LibvirtHangs, match="still does not answer"):
                answers.call(lambda: 7)
        assert not answered.is_set()
        released.set()
        assert answered.wait(60)
        assert answers.call(lambda: 7) == 7

    def test_slow(self) -> None:
        """A libvirt that is slow, and not hung, is given the time that it needs."""
        slow, answered = threading.Event(), threading.Event()
        answers = BoundedCalls(answered.set, patience=0.1)
        with pytest.raises(LibvirtHangs):
            answers.call(slow.wait)
        slow.set()
        assert answered.wait(60)
        assert answers.call(lambda: time.sleep(0.3) or 7) == 7  # type: ignore[func-returns-value]


class TestSource:
    """libvirt's own test driver behind a connection."""

    @pytest.fixture
    def triggers(self) -> list[Trigger]:
        return []

    @pytest.fixture
    def source(self, triggers: list[Trigger]) -> Iterator[LibvirtSource]:
        source = LibvirtSource(URI, triggers.append)
        source.start()
        yield source
        source.stop()

    def test_read(self, source: LibvirtSource, triggers: list[Trigger]) -> None:
        """Connected, what libvirt has is read, and it is current."""
        guests = source.observe()
        assert [domain.name for domain in guests.domains] == ["test"]
        assert guests.current
        assert triggers == [CONNECTED, CONNECTED]

    def test_reconnected_after_an_error(
        self, source: LibvirtSource, triggers: list[Trigger], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A connection that is alive and answers with errors is replaced, with its events.

        So it is with modular daemons when virtnetworkd alone was restarted: virtqemud's connection
        to it stays broken, and only a new connection to virtqemud makes a new one.
        """
        before = source.observe()

        def broken(*_: object) -> Guests:
            raise LibvirtUnavailable("client socket is closed")

        with monkeypatch.context() as patched:
            patched.setattr(libvirt_source, "read_domains", broken)
            known = source.observe()
            assert (known.domains, known.current) == (before.domains, False)
        wait_for(lambda: triggers.count(CONNECTED) == 3, 60, "it is connected again")
        assert source.observe().current
        assert Trigger(Kind.LIBVIRT, "libvirt lost") in triggers

    def test_unread_after_reconnecting(
        self, source: LibvirtSource, triggers: list[Trigger], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Over a new connection definitions are read again; if that fails, the last ones stay."""
        before = source.observe()

        def fail(*_: object) -> str:
            raise libvirt.libvirtError("cannot acquire state change lock")

        with monkeypatch.context() as patched:
            patched.setattr(libvirt.virDomain, "XMLDesc", fail)
            assert source.observe().domains == before.domains
            source._domains._lost.set()
            wait_for(lambda: triggers.count(CONNECTED) == 3, 60, "it is connected again")
            seen = source.observe()
            assert seen.domains == tuple(replace(each, unread=True) for each in before.domains)
            assert seen.current
        assert source.observe().domains == before.domains

    @pytest.mark.internal_errors
    def test_fault_of_ours(
        self, source: LibvirtSource, triggers: list[Trigger], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where reading ends in what nobody expects, the last that was read is known, and counts as
        not current. The connection is kept: another would not help.
        """
        before = source.observe()

        def broken(*_: object) -> Guests:
            raise KeyError("x")

        with monkeypatch.context() as patched:
            patched.setattr("vm_onetoone_nat.virt.source.read_domains", broken)
            known = source.observe()
            assert (known.domains, known.current) == (before.domains, False)
        assert source.observe().current
        assert triggers == [CONNECTED, CONNECTED]
        assert OCCURRED.counts["guests"] == OCCURRED.total == 1

    @pytest.mark.internal_errors
    def test_event_that_cannot_be_read(
        self, source: LibvirtSource, triggers: list[Trigger]
    ) -> None:
        """An event about an object of which nothing can be read is a trigger all the same."""

        class Odd:
            def __getattr__(self, _: str) -> None:
                raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "odd")

        source._on_domain(None, Odd(), libvirt.VIR_DOMAIN_EVENT_STARTED, 0, None)
        source._on_change(None, Odd(), "device added")
        source._on_network(None, Odd(), libvirt.VIR_NETWORK_EVENT_STARTED, 0, None)
        assert [each for each in triggers if each != CONNECTED] == [
            Trigger(Kind.DOMAIN, "a domain: started"),
            Trigger(Kind.DOMAIN, "a domain: device added"),
            Trigger(Kind.NETWORK, "a network: started"),
        ]
        assert OCCURRED.counts["libvirt-events"] == OCCURRED.total == 3

    @pytest.mark.internal_errors
    def test_connector_goes_on(
        self, triggers: list[Trigger], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where connecting ends in what nobody expects, it is tried again."""
        failures = [KeyError("x"), KeyError("y")]
        connect = libvirt_connection.connect

        def broken(uri: str) -> Any:
            if failures:
                raise failures.pop()
            return connect(uri)

        monkeypatch.setattr("vm_onetoone_nat.internal_errors.RETRY_SECONDS", (0.01,))
        monkeypatch.setattr(libvirt_connection, "connect", broken)
        source = LibvirtSource(URI, triggers.append)
        source.start()
        wait_for(lambda: CONNECTED in triggers, 60, "it is connected")
        assert source.observe().current
        assert OCCURRED.counts["libvirt"] == OCCURRED.total == 2
        source.stop()

    def test_never_reached(self, triggers: list[Trigger]) -> None:
        """Where libvirt was never reached nothing is known."""
        source = LibvirtSource("test:///nonexistent", triggers.append)
        source.start()
        with pytest.raises(LibvirtUnavailable):
            source.observe()
        source.stop()


LOSSES = 100


class Connections:
    """What becomes of the connections that libvirt's test driver opens."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.opened = 0
        self.left: list[int] = []
        self._open, self._close = libvirt.openReadOnly, libvirt.virConnect.close
        patch.setattr(libvirt, "openReadOnly", self.open)

        def close(connection: Any) -> int:
            return self.close(connection)

        patch.setattr(libvirt.virConnect, "close", close)

    def open(self, uri: str) -> Any:
        connection = self._open(uri)
        self.opened += 1
        return connection

    def close(self, connection: Any) -> int:
        """`left` has the references that remain, and keep the connection open: none is right."""
        left: int = self._close(connection)
        self.left.append(left)
        return left

    def are_ended(self, least: int) -> bool:
        """Whether so many were opened, and all but the last two are closed."""
        return least <= self.opened <= len(self.left) + 2


class TestLosses:
    """Each loss ends its connection, whatever was lost, and whatever fails while it ends."""

    @pytest.fixture
    def connections(self, monkeypatch: pytest.MonkeyPatch) -> Connections:
        monkeypatch.setattr(libvirt_connection, "_BACKOFF_SECONDS", (0.001,))
        monkeypatch.setattr(libvirt_connection, "_SETTLE_SECONDS", 0.001)
        return Connections(monkeypatch)

    @pytest.fixture
    def source(self, connections: Connections) -> Iterator[LibvirtSource]:
        """A source with two connections, which are closed in the end."""
        source = LibvirtSource(URI, lambda _trigger: None)
        yield source
        source.stop()
        wait_for(lambda: connections.opened == len(connections.left), 60, "all are closed")
        assert set(connections.left) == {0}

    @pytest.mark.parametrize("part", ["domains", "networks"])
    def test_errors(
        self,
        source: LibvirtSource,
        connections: Connections,
        part: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A connection that answers with errors is ended when it is replaced, each of 100 times.

        Before, its callbacks kept each of them open.
        """
        source.start()
        known = source.observe()

        def broken(*_: object) -> tuple[()]:
            raise LibvirtUnavailable("client socket is closed")

        with monkeypatch.context() as patched:
            patched.setattr(libvirt_source, f"read_{part}", broken)

            def is_lost() -> bool:
                assert source.observe().networks == known.networks
                return connections.opened > LOSSES

            wait_for(is_lost, 60, "100 losses", 0.001)
        wait_for(lambda: source.observe() == known, 60, "all is current")

    @pytest.mark.parametrize(
        "method", ["networkEventRegisterAny", "domainEventRegisterAny", "registerCloseCallback"]
    )
    def test_subscription_fails(
        self,
        source: LibvirtSource,
        connections: Connections,
        method: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A connection that cannot be subscribed to is closed, each of 100 times.

        So it is for networks while virtnetworkd is away: virtqemud answers, and it does not.
        """

        def fail(*_: object) -> int:
            raise libvirt.libvirtError("Failed to connect socket to '/run/libvirt/virtnetworkd'")

        with monkeypatch.context() as patched:
            patched.setattr(libvirt.virConnect, method, fail)
            source.start()
            wait_for(lambda: connections.are_ended(LOSSES), 60, "100 attempts")
        wait_for(lambda: is_connected(source), 60, "it is connected")

    def test_deregistration_fails(
        self, source: LibvirtSource, connections: Connections, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An error while a connection is ended keeps none of the other callbacks on it.

        So it is on a broken connection: libvirt removes the callback, then cannot say so.
        """
        for name in ("unregisterCloseCallback", "domainEventDeregisterAny"):
            original = getattr(libvirt.virConnect, name)

            def fail(*arguments: object, original: Callable[..., None] = original) -> None:
                original(*arguments)
                raise libvirt.libvirtError("client socket is closed")

            monkeypatch.setattr(libvirt.virConnect, name, fail)
        source.start()
        for n in range(3, 13):
            source._domains._lost.set()
            wait_for(lambda n=n: connections.are_ended(n), 60, f"loss {n}", 0.001)  # type: ignore[misc]

    def test_closed_only_after_a_call(
        self, source: LibvirtSource, connections: Connections, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A connection that is lost during a call is closed after it: libvirt frees it at once."""
        begun, go_on = threading.Event(), threading.Event()

        def slow(*_: object) -> tuple[()]:
            begun.set()
            go_on.wait()
            return ()

        source.start()
        source.observe()
        monkeypatch.setattr(libvirt_source, "read_networks", slow)
        reader = threading.Thread(target=source.observe)
        reader.start()
        assert begun.wait(60)
        source._networks._lost.set()
        wait_for(lambda: source._networks._open is None, 60, "it is lost")
        reader.join()
        assert connections.left == []
        go_on.set()
        wait_for(lambda: connections.left == [0], 60, "it is closed")


class TestNetworksAway:
    """Domains are followed while networks cannot be read.

    So it is with modular daemons: virtqemud has the domains, and passes what concerns networks on
    to virtnetworkd, which may be away or hang.
    """

    @pytest.fixture
    def source(self) -> Iterator[LibvirtSource]:
        source = LibvirtSource(URI, lambda _trigger: None)
        source.start()
        yield source
        source.stop()

    @pytest.fixture
    def domain(self) -> Iterator[Any]:
        """A running domain of the test driver's, which a test destroys."""
        connection = libvirt.open(URI)
        domain = connection.lookupByName("test")
        yield domain
        if not domain.isActive():
            domain.create()
        connection.close()

    def test_away(
        self, source: LibvirtSource, domain: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With networks that cannot be listed, the last known ones count, and domains are read."""
        before = source.observe()

        def fail(*_: object) -> list[object]:
            raise libvirt.libvirtError("Failed to connect socket to '/run/libvirt/virtnetworkd'")

        with monkeypatch.context() as patched:
            patched.setattr(libvirt.virConnect, "listAllNetworks", fail)
            patched.setattr(libvirt.virConnect, "networkEventRegisterAny", fail)
            assert state(source.observe()) is DomainState.RUNNING
            domain.destroy()
            seen = source.observe()
            assert state(seen) is DomainState.OFF
            assert (seen.networks, seen.current) == (before.networks, True)
            assert not seen.networks_current
        wait_for(lambda: is_connected(source), 60, "networks are read again")

    def test_denied(self, source: LibvirtSource, monkeypatch: pytest.MonkeyPatch) -> None:
        """A network that cannot be read is not a loss of the connection; it stays as it was."""
        before = source.observe()

        def fail(*_: object) -> str:
            raise libvirt.libvirtError("access denied")

        monkeypatch.setattr(libvirt.virNetwork, "XMLDesc", fail)
        seen = source.observe()
        assert seen.networks == tuple(replace(each, unread=True) for each in before.networks)
        assert (seen.networks_current, seen.unread) == (True, True)
        assert not source._networks._lost.is_set()

    def test_hangs(
        self, source: LibvirtSource, domain: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A listing of networks that hangs costs one pass 1 to 5 s; later ones wait for nothing."""
        before = source.observe()
        released = threading.Event()
        original = libvirt.virConnect.listAllNetworks

        def hang(connection: Any) -> list[object]:
            released.wait()
            networks: list[object] = original(connection)
            return networks

        monkeypatch.setattr(libvirt.virConnect, "listAllNetworks", hang)
        assert source.observe().networks == before.networks
        # Were it waited for again, the test would not end.
        source._networks._calls._patience = 3600.0
        domain.destroy()
        for _ in range(3):
            seen = source.observe()
            assert state(seen) is DomainState.OFF
            assert (seen.networks, seen.current) == (before.networks, True)
        released.set()
        wait_for(lambda: is_connected(source), 60, "networks are read again")


def is_connected(source: LibvirtSource) -> bool:
    """Whether all is read."""
    try:
        guests = source.observe()
    except LibvirtUnavailable:
        return False
    return guests.current and guests.networks_current


def state(guests: Guests) -> DomainState:
    """The state of the only domain."""
    (domain,) = guests.domains
    return domain.state


class TestDefinitions:
    """What is read of a domain's definition, and when again."""

    @pytest.fixture
    def domain(self) -> Iterator[CountedDomain]:
        connection = libvirt.open(URI)
        yield CountedDomain(connection.lookupByName("test"))
        connection.close()

    def test_read_once(self, domain: CountedDomain) -> None:
        """It is read once, again after a change, and again after some minutes."""
        now = [100.0]
        definitions = Definitions(lambda: now[0])
        first = definitions.of(domain, domain.UUIDString())
        assert definitions.of(domain, domain.UUIDString()) == first
        assert domain.read == 1
        definitions.changed(domain.UUIDString())
        assert definitions.of(domain, domain.UUIDString()) == first
        assert domain.read == 2
        now[0] += Definitions.LONGEST_SECONDS
        assert definitions.of(domain, domain.UUIDString()) == first
        assert domain.read == 3

    def test_expires_before_a_resync(self) -> None:
        """A resync, which finds the changes without an event, reads all definitions again."""
        assert RESYNC_SECONDS - 15 < Definitions.LONGEST_SECONDS < RESYNC_SECONDS

    def test_changed_meanwhile(self, domain: CountedDomain) -> None:
        """What changed while it was read is read again."""
        definitions = Definitions()
        domain.meanwhile = lambda: definitions.changed(domain.UUIDString())
        definitions.of(domain, domain.UUIDString())
        domain.meanwhile = lambda: None
        definitions.of(domain, domain.UUIDString())
        assert domain.read == 2

    def test_unreadable(self, domain: CountedDomain) -> None:
        """XML that makes no sense is a fault of that domain."""
        domain.text = "<domain>&undefined;</domain>"
        definition = Definitions().of(domain, domain.UUIDString())
        assert definition.fault.startswith("its definition cannot be read: undefined entity")

    def test_bad_metadata(self, domain: CountedDomain) -> None:
        """With bad metadata the rest counts still."""
        domain.text = (
            '<domain><metadata><n:x xmlns:n="urn:vm-onetoone-nat:1"/></metadata><devices>'
            '<interface><mac address="52:54:00:AA:00:01"/><source network="default"/></interface>'
            "</devices></domain>"
        )
        definition = Definitions().of(domain, domain.UUIDString())
        assert definition.interfaces == (Interface("52:54:00:aa:00:01", "default"),)
        assert definition.fault == "metadata: unknown element <x>; write <mapping external=...>"
