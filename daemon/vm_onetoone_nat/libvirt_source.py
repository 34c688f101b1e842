"""The libvirt side of a pass: connects and reconnects, reads domains and networks, gets events.

Three threads: libvirt's event loop has its own, and its callbacks only call `notify`. Connecting
has its own, since `open` blocks while libvirtd hangs. The thread that reconciles calls `observe`.
"""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Interface
from typing import Any, TypeVar
from xml.etree import ElementTree

import libvirt

from vm_onetoone_nat import metadata
from vm_onetoone_nat.agents import Agents
from vm_onetoone_nat.errors import LibvirtUnavailable
from vm_onetoone_nat.events import Event
from vm_onetoone_nat.journal import entry
from vm_onetoone_nat.runner import RESYNC_SECONDS
from vm_onetoone_nat.state import Domain, DomainState, Guests, Interface, Mapping, Network
from vm_onetoone_nat.trigger import Kind, Trigger

log = logging.getLogger(__name__)

T = TypeVar("T")

_ANSWER_SECONDS = (1.0, 5.0)
"""The timeout of a call to libvirt: initially and, after slow answers, at most."""
_FIRST_ATTEMPT_SECONDS = 2
_KEEPALIVE_SECONDS = 10
_KEEPALIVE_COUNT = 3
_BACKOFF_SECONDS = (1.0, 2.0, 5.0, 10.0)

_AGENT = Trigger(Kind.GUEST, "guest agent")
_ANSWERS = Trigger(Kind.LIBVIRT, "libvirt answers")
_CONNECTED = Trigger(Kind.LIBVIRT, "libvirt connected")
_LOST = Trigger(Kind.LIBVIRT, "libvirt lost")

_RUNNING = libvirt.VIR_CONNECT_LIST_DOMAINS_RUNNING

_STATES = {
    libvirt.VIR_DOMAIN_RUNNING: DomainState.RUNNING,
    libvirt.VIR_DOMAIN_BLOCKED: DomainState.RUNNING,
    libvirt.VIR_DOMAIN_SHUTDOWN: DomainState.RUNNING,
    libvirt.VIR_DOMAIN_PAUSED: DomainState.PAUSED,
    libvirt.VIR_DOMAIN_PMSUSPENDED: DomainState.PAUSED,
}
_LEAVING = {libvirt.VIR_DOMAIN_PAUSED_MIGRATION, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY}
"""Reasons for a pause after which the guest runs on another host.

The destination shows the first of them too, until the guest runs there."""


@dataclass(frozen=True, slots=True)
class Definition:
    """The parts of a domain's XML that are used."""

    interfaces: tuple[Interface, ...] = ()
    claims: tuple[Mapping, ...] = ()
    fault: str = ""
    agent: bool = False


class Definitions:
    """A cache of domains' definitions, invalidated by libvirt's events.

    Reading a thousand domains takes a second; a pass takes milliseconds. libvirt sends no event for
    some changes, so a definition expires after LONGEST_SECONDS.
    """

    LONGEST_SECONDS = RESYNC_SECONDS - 10

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._read: dict[str, tuple[float, Definition]] = {}
        self._changes = 0
        self._lock = threading.Lock()

    def of(self, domain: Any, uuid: str) -> Definition:
        """The definition of the domain with that UUID; of a running guest, the live one."""
        now = self._clock()
        with self._lock:
            at, known = self._read.get(uuid, (0.0, None))
            changes = self._changes
        if known is not None and now - at < self.LONGEST_SECONDS:
            return known
        found = _definition(domain)
        with self._lock:
            # A change during the read may be missing in it.
            if changes == self._changes:
                self._read[uuid] = now, found
        return found

    def changed(self, uuid: str) -> None:
        """Invalidate: libvirt sent an event about this domain. From any thread."""
        with self._lock:
            self._changes += 1
            self._read.pop(uuid, None)


def read_guests(connection: Any, definitions: Definitions, agents: Agents | None) -> Guests:
    """All domains and networks of a connection. Raises LibvirtUnavailable.

    A read-only connection is enough; with `agents` None no guest agent is queried.
    """
    try:
        every = connection.listAllDomains()
        running = {d.ID() for d in connection.listAllDomains(_RUNNING)}
        domains = tuple(_domain(d, _listed_state(d, running), definitions, agents) for d in every)
        networks = tuple(_network(n) for n in connection.listAllNetworks())
    except libvirt.libvirtError as error:
        raise LibvirtUnavailable(f"libvirt: {error.get_error_message()}") from error
    return Guests(domains, networks)


class LibvirtHangs(LibvirtUnavailable):
    """libvirt does not answer a call."""


class BoundedCalls:
    """Calls libvirt in a thread of its own, with a timeout.

    A call into a hung libvirtd blocks until keepalive closes the connection; signals and repairs
    must not wait for that. There is one call at a time; `answered` is called when a call returns
    after its timeout.
    """

    def __init__(self, answered: Callable[[], None], patience: float = _ANSWER_SECONDS[0]) -> None:
        self._answered = answered
        self._patience = patience
        self._pending: Future[Any] | None = None

    def call(self, function: Callable[[], T]) -> T:
        """Return or raise what `function` does. Raises LibvirtHangs after the timeout."""
        if self._pending is not None and not self._pending.done():
            raise LibvirtHangs("libvirt still does not answer")
        answer: Future[T] = Future()
        self._pending = answer
        began = time.monotonic()

        def run() -> None:
            try:
                answer.set_result(function())
            except Exception as error:
                answer.set_exception(error)

        threading.Thread(target=run, name="libvirt-call", daemon=True).start()
        try:
            return answer.result(timeout=self._patience)
        except TimeoutError as error:
            answer.add_done_callback(lambda _: self._late(time.monotonic() - began))
            raise LibvirtHangs(f"libvirt has not answered for {self._patience:g} s") from error

    def _late(self, seconds: float) -> None:
        """Adapt the timeout to a slow libvirt, up to the maximum."""
        least, most = _ANSWER_SECONDS
        self._patience = min(most, max(least, 2 * seconds))
        self._answered()


class LibvirtOnce:
    """A connection for one command: opened by the first `observe`, without events."""

    def __init__(self, uri: str, *, guest_agent: bool = False) -> None:
        _quiet()
        self._uri = uri
        self._connection: Any = None
        self._agent_answered = threading.Event()
        self._agents = Agents(uri, self._agent_answered.set) if guest_agent else None
        self._calls = BoundedCalls(lambda: None, _ANSWER_SECONDS[1])

    def observe(self) -> Guests:
        """All domains and networks. Raises LibvirtUnavailable."""
        if self._connection is None:
            self._connection = self._calls.call(lambda: _open(self._uri))
        guests = self._calls.call(self._read)
        if self._agents is not None and self._agent_answered.wait(_ANSWER_SECONDS[0]):
            guests = self._calls.call(self._read)
        return guests

    def _read(self) -> Guests:
        return read_guests(self._connection, Definitions(), self._agents)


class LibvirtSource:
    """The daemon's connection: reconnects whenever it is lost, calls `notify` for every event.

    `notify` is called in threads of libvirt and of this class; it must not block.
    """

    def __init__(
        self, uri: str, notify: Callable[[Trigger], None], *, guest_agent: bool = False
    ) -> None:
        _quiet()
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
        self._loop = threading.Thread(target=self._run_loop, name="libvirt-events", daemon=True)
        self._connector = threading.Thread(target=self._connect, name="libvirt", daemon=True)

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
                connection = _open(self._uri)
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
            self._agents.invalidate(domain.UUIDString())
            self._changed(domain, "guest agent")

    def _changed(self, domain: Any, what: str) -> None:
        self._definitions.changed(domain.UUIDString())
        self._notify(Trigger(Kind.DOMAIN, f"domain {domain.name()}: {what}"))

    def _on_network(
        self, _connection: Any, network: Any, event: int, _detail: int, _opaque: None
    ) -> None:
        what = _NETWORK_EVENTS.get(event, event)
        self._notify(Trigger(Kind.NETWORK, f"network {network.name()}: {what}"))


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


def _quiet() -> None:
    """Keep libvirt from printing errors: they are raised as exceptions."""
    libvirt.registerErrorHandler(lambda _context, _error: None, None)


def _open(uri: str) -> Any:
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


def _domain(
    domain: Any, state: DomainState, definitions: Definitions, agents: Agents | None
) -> Domain:
    uuid = domain.UUIDString()
    definition = definitions.of(domain, uuid)
    interfaces = definition.interfaces
    if agents is not None and definition.agent:
        reported = agents.addresses(uuid)
        interfaces = tuple(replace(nic, addresses=reported.get(nic.mac, ())) for nic in interfaces)
    return Domain(
        domain.name(),
        uuid,
        state,
        interfaces,
        definition.claims,
        definition.fault,
    )


def _definition(domain: Any) -> Definition:
    """Parse a domain's XML. Unreadable XML is a fault of that guest only."""
    try:
        text = domain.XMLDesc()
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return Definition()
        raise
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        return Definition(fault=f"its definition cannot be read: {error}")
    interfaces = tuple(map(_interface, root.iterfind("devices/interface[mac]")))
    try:
        claims, fault = metadata.claims(root.iterfind("metadata/*")), ""
    except metadata.MetadataError as error:
        claims, fault = (), f"metadata: {'; '.join(error.problems)}"
    channel = root.find("devices/channel/target[@name='org.qemu.guest_agent.0']")
    agent = channel is not None and channel.get("state") == "connected"
    return Definition(interfaces, claims, fault, agent)


def _interface(element: ElementTree.Element) -> Interface:
    mac, source, link, target = map(element.find, ("mac", "source", "link", "target"))
    assert mac is not None
    place = {} if source is None else source.attrib
    return Interface(
        mac.attrib["address"].lower(),
        place.get("network"),
        place.get("bridge"),
        plugged=link is None or link.get("state") != "down",
        tap=target.get("dev") if target is not None else None,
    )


def _listed_state(domain: Any, running: set[int]) -> DomainState:
    """The state of a listed domain, queried singly only if the lists do not show it.

    The two lists are not read at the same moment, so a running guest may be missing in `running`;
    it must not count as stopped.
    """
    number = domain.ID()
    if number == -1:
        return DomainState.OFF
    if number in running:
        return DomainState.RUNNING
    # A paused one may be migrating to another host, which only its own state shows.
    return _state(domain)


def _state(domain: Any) -> DomainState:
    try:
        state, reason = domain.state()
        if state == libvirt.VIR_DOMAIN_PAUSED and reason in _LEAVING:
            return DomainState.LEAVING
        return _STATES.get(state, DomainState.OFF)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return DomainState.OFF
        raise


def _network(network: Any) -> Network:
    """One network; its XML alone has the bridge, its addresses and the reservations."""
    try:
        active = bool(network.isActive())
        root = ElementTree.fromstring(network.XMLDesc())
        leases = _leases(network) if active else ()
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_NETWORK:
            return Network(network.name(), active=False, bridge=None)
        raise
    bridge = root.find("bridge")
    subnets = [e for e in root.findall("ip") if e.get("family", "ipv4") == "ipv4"]
    gateways = tuple(
        IPv4Interface((address, element.get("prefix") or element.get("netmask") or 32))
        for element in subnets
        if (address := element.get("address"))
    )
    reservations = tuple(
        (mac.lower(), IPv4Address(address))
        for element in subnets
        for host in element.iterfind("dhcp/host")
        if (mac := host.get("mac")) and (address := host.get("ip"))
    )
    name = bridge.get("name") if bridge is not None else None
    return Network(network.name(), active, name, gateways, reservations, leases)


def _leases(network: Any) -> tuple[tuple[str, IPv4Address], ...]:
    """The leases of a network's DHCP server by MAC, the latest first."""
    try:
        leases = network.DHCPLeases()
    except libvirt.libvirtError as error:
        # Drivers without a DHCP server, and while its file is being written.
        log.debug("leases of network %s: %s", network.name(), error)
        return ()
    leases.sort(key=lambda lease: lease["expirytime"], reverse=True)
    return tuple(
        (lease["mac"].lower(), IPv4Address(lease["ipaddr"]))
        for lease in leases
        if lease["type"] == libvirt.VIR_IP_ADDR_TYPE_IPV4 and lease["mac"]
    )
