"""Answers that come late or not at all, and connections that are alive and of no use."""

import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from typing import Any

import libvirt
import pytest
from lab import wait_for
from vm_onetoone_nat.errors import LibvirtUnavailable
from vm_onetoone_nat.internal_errors import OCCURRED
from vm_onetoone_nat.model.guests import Guests, Interface
from vm_onetoone_nat.model.trigger import Kind, Trigger
from vm_onetoone_nat.service.runner import RESYNC_SECONDS
from vm_onetoone_nat.virt import connection as libvirt_connection
from vm_onetoone_nat.virt.agents import Agents
from vm_onetoone_nat.virt.answers import BoundedCalls, LibvirtHangs
from vm_onetoone_nat.virt.connection import LibvirtSource
from vm_onetoone_nat.virt.read import Definitions

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
        answered = threading.Event()
        answers = BoundedCalls(answered.set, patience=0.1)
        with pytest.raises(LibvirtHangs):
            answers.call(lambda: time.sleep(0.3))
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
        assert triggers == [CONNECTED]

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
            patched.setattr(libvirt_connection, "read_guests", broken)
            known = source.observe()
            assert (known.domains, known.current) == (before.domains, False)
        wait_for(lambda: triggers.count(CONNECTED) == 2, 60, "it is connected anew")
        assert source.observe().current
        assert Trigger(Kind.LIBVIRT, "libvirt lost") in triggers

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
            patched.setattr(libvirt_connection, "read_guests", broken)
            known = source.observe()
            assert (known.domains, known.current) == (before.domains, False)
        assert source.observe().current
        assert triggers == [CONNECTED]
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
        assert triggers[1:] == [
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


class TestAgents:
    """Guest agents are asked apart, each once."""

    def test_asked_once(self) -> None:
        """An agent is asked once, until it is forgotten or its guest has shown a new address."""
        told = threading.Event()
        agents = Agents(URI, told.set)
        connection = libvirt.open(URI)
        uuid = connection.lookupByName("test").UUIDString()
        connection.close()
        assert agents.addresses(uuid) == {}
        assert told.wait(5)
        known = {"aa:bb:cc:dd:ee:ff": (IPv4Address("192.168.122.3"),)}
        assert agents.addresses(uuid) == known
        agents.ask_again()
        assert agents.addresses(uuid) == known
        agents.invalidate(uuid)
        assert agents.addresses(uuid) == {}
