"""The daemon's connection to libvirt: connects and reconnects, observes, gets events.

Three threads: libvirt's event loop has its own, and its callbacks only call `notify`. Connecting
has its own, since `open` blocks while libvirtd hangs. The thread that reconciles calls `observe`.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import libvirt

from vm_onetoone_nat.errors import LibvirtUnavailable
from vm_onetoone_nat.events import Event
from vm_onetoone_nat.internal_errors import Work, contain, thread
from vm_onetoone_nat.journal import entry
from vm_onetoone_nat.model.guests import Guests
from vm_onetoone_nat.model.trigger import Kind, Trigger
from vm_onetoone_nat.virt.agents import Agents
from vm_onetoone_nat.virt.answers import BoundedCalls, LibvirtHangs
from vm_onetoone_nat.virt.read import Definitions, read_guests

_AGENT = Trigger(Kind.GUEST, "guest agent")
_ANSWERS = Trigger(Kind.LIBVIRT, "libvirt answers")
_CONNECTED = Trigger(Kind.LIBVIRT, "libvirt connected")
_LOST = Trigger(Kind.LIBVIRT, "libvirt lost")

log = logging.getLogger(__name__)

_FIRST_ATTEMPT_SECONDS = 2
_KEEPALIVE_SECONDS = 10
_KEEPALIVE_COUNT = 3
_BACKOFF_SECONDS = (1.0, 2.0, 5.0, 10.0)


class LibvirtSource:
    """The daemon's connection: reconnects whenever it is lost, calls `notify` for every event.

    `notify` is called in threads of libvirt and of this class; it must not block.
    """

    def __init__(
        self, uri: str, notify: Callable[[Trigger], None], *, guest_agent: bool = False
    ) -> None:
        silence()
        self._agents = Agents(uri, lambda: notify(_AGENT)) if guest_agent else None
        self._uri = uri
        self._notify = notify
        self._connection: Any = None
        self._calls = BoundedCalls(lambda: notify(_ANSWERS))
        self._known: Guests | None = None
        self._definitions = Definitions()
        self._lost = threading.Event()
        self._tried = threading.Event()
        self._stopped = threading.Event()
        # Before any open(): a connection opened earlier never delivers an event.
        libvirt.virEventRegisterDefaultImpl()
        self._loop = thread(Work.LIBVIRT_EVENTS, self._run_loop)
        self._connector = thread(Work.LIBVIRT, self._connect)

    def start(self) -> None:
        """Start both threads; return after the first attempt, or after a timeout."""
        self._loop.start()
        self._connector.start()
        self._tried.wait(_FIRST_ATTEMPT_SECONDS)

    def ask_agents_again(self) -> None:
        """Query guest agents again: a guest has shown an address that may be new to them."""
        if self._agents is not None:
            self._agents.ask_again()

    def stop(self) -> None:
        """Stop connecting. The threads end with the process, since libvirt may block them."""
        self._stopped.set()
        self._lost.set()

    def observe(self) -> Guests:
        """All domains and networks; while libvirt cannot be reached, the last ones, not `current`.

        Repairs go on with those. Raises LibvirtUnavailable if there are none.
        """
        try:
            with contain(Work.GUESTS, raises=LibvirtUnavailable):
                self._known = self._ask()
        except LibvirtUnavailable:
            if self._known is None:
                raise
            return replace(self._known, current=False)
        return self._known

    def _ask(self) -> Guests:
        connection = self._connection
        if connection is None:
            raise LibvirtUnavailable("libvirt is not connected")
        try:
            definitions = self._definitions
            return self._calls.call(lambda: read_guests(connection, definitions, self._agents))
        except LibvirtHangs:
            # keepalive decides whether to close the connection.
            raise
        except LibvirtUnavailable:
            # Reconnect even if the connection is alive: with modular daemons it leads to virtqemud,
            # whose own connection to virtnetworkd, with its events, stays broken after a restart
            # of virtnetworkd.
            self._lost.set()
            raise

    def _run_loop(self) -> None:
        while not self._stopped.is_set():
            libvirt.virEventRunDefaultImpl()

    def _connect(self) -> None:
        attempt = 0
        while not self._stopped.is_set():
            self._lost.clear()
            try:
                connection = connect(self._uri)
                # Events that happened without a connection are lost.
                self._definitions = Definitions()
                self._subscribe(connection)
            except (LibvirtUnavailable, libvirt.libvirtError) as error:
                if attempt == 0:
                    log.warning(
                        "waiting for libvirt at %s: %s",
                        self._uri,
                        error,
                        extra=entry(Event.LIBVIRT_UNAVAILABLE, reason=error),
                    )
                self._tried.set()
                delay = _BACKOFF_SECONDS[min(attempt, len(_BACKOFF_SECONDS) - 1)]
                attempt += 1
                self._stopped.wait(delay)
                continue
            attempt = 0
            log.info("connected to libvirt at %s", self._uri, extra=entry(Event.LIBVIRT_CONNECTED))
            self._connection = connection
            self._tried.set()
            self._notify(_CONNECTED)
            self._lost.wait()
            self._connection = None
            if not self._stopped.is_set():
                log.warning(
                    "lost libvirt at %s; what is active stays active",
                    self._uri,
                    extra=entry(Event.LIBVIRT_LOST),
                )
                self._notify(_LOST)
            _close(connection)

    def _subscribe(self, connection: Any) -> None:
        """Register every callback again: registrations end with their connection."""
        connection.registerCloseCallback(self._on_close, None)
        connection.domainEventRegisterAny(
            None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._on_domain, None
        )
        for event, what in (
            (libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED, "device added"),
            (libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, "device removed"),
            (libvirt.VIR_DOMAIN_EVENT_ID_METADATA_CHANGE, "metadata changed"),
        ):
            connection.domainEventRegisterAny(None, event, self._on_change, what)
        connection.domainEventRegisterAny(
            None, libvirt.VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE, self._on_agent, None
        )
        connection.networkEventRegisterAny(
            None, libvirt.VIR_NETWORK_EVENT_ID_LIFECYCLE, self._on_network, None
        )
        try:
            connection.setKeepAlive(_KEEPALIVE_SECONDS, _KEEPALIVE_COUNT)
        except libvirt.libvirtError as error:
            # Drivers without a socket, such as test:///default, do not support it.
            if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
                raise

    def _on_close(self, _connection: Any, _reason: int, _opaque: None) -> None:
        self._lost.set()

    def _on_domain(
        self, _connection: Any, domain: Any, event: int, _detail: int, _opaque: None
    ) -> None:
        self._changed(domain, str(_DOMAIN_EVENTS.get(event, event)))

    def _on_change(self, _connection: Any, domain: Any, *details: Any) -> None:
        # The registered value is the last argument; events differ in the others.
        self._changed(domain, details[-1])

    def _on_agent(
        self, _connection: Any, domain: Any, _state: int, _reason: int, _opaque: None
    ) -> None:
        if self._agents is not None:
            with contain(Work.LIBVIRT_EVENTS):
                self._agents.invalidate(domain.UUIDString())
            self._changed(domain, "guest agent")

    # An event that cannot be read is a trigger all the same.

    def _changed(self, domain: Any, what: str) -> None:
        trigger = Trigger(Kind.DOMAIN, f"a domain: {what}")
        with contain(Work.LIBVIRT_EVENTS):
            self._definitions.changed(domain.UUIDString())
            trigger = Trigger(Kind.DOMAIN, f"domain {domain.name()}: {what}")
        self._notify(trigger)

    def _on_network(
        self, _connection: Any, network: Any, event: int, _detail: int, _opaque: None
    ) -> None:
        what = _NETWORK_EVENTS.get(event, event)
        trigger = Trigger(Kind.NETWORK, f"a network: {what}")
        with contain(Work.LIBVIRT_EVENTS):
            trigger = Trigger(Kind.NETWORK, f"network {network.name()}: {what}")
        self._notify(trigger)


_DOMAIN_EVENTS = {
    libvirt.VIR_DOMAIN_EVENT_DEFINED: "defined",
    libvirt.VIR_DOMAIN_EVENT_UNDEFINED: "undefined",
    libvirt.VIR_DOMAIN_EVENT_STARTED: "started",
    libvirt.VIR_DOMAIN_EVENT_SUSPENDED: "suspended",
    libvirt.VIR_DOMAIN_EVENT_RESUMED: "resumed",
    libvirt.VIR_DOMAIN_EVENT_STOPPED: "stopped",
    libvirt.VIR_DOMAIN_EVENT_SHUTDOWN: "shutdown",
    libvirt.VIR_DOMAIN_EVENT_PMSUSPENDED: "suspended by power management",
    libvirt.VIR_DOMAIN_EVENT_CRASHED: "crashed",
}
_NETWORK_EVENTS = {
    libvirt.VIR_NETWORK_EVENT_DEFINED: "defined",
    libvirt.VIR_NETWORK_EVENT_UNDEFINED: "undefined",
    libvirt.VIR_NETWORK_EVENT_STARTED: "started",
    libvirt.VIR_NETWORK_EVENT_STOPPED: "stopped",
}


def silence() -> None:
    """Keep libvirt from printing errors: they are raised as exceptions."""
    libvirt.registerErrorHandler(lambda _context, _error: None, None)


def connect(uri: str) -> Any:
    """A read-only connection. Raises LibvirtUnavailable."""
    try:
        return libvirt.openReadOnly(uri)
    except libvirt.libvirtError as error:
        raise LibvirtUnavailable(error.get_error_message()) from error


def _close(connection: Any) -> None:
    try:
        connection.unregisterCloseCallback()
        connection.close()
    except libvirt.libvirtError as error:
        log.debug("closing a lost connection: %s", error)
