"""libvirt as the daemon sees it: observes domains and networks, gets their events.

There are two connections. With modular daemons, domains are virtqemud's and networks
virtnetworkd's, and each may be away or hang on its own: what concerns networks must neither block
nor end what concerns domains.

Callbacks run in the thread of libvirt's event loop and only call `notify`. The thread that
reconciles calls `observe`.
"""

import threading
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import libvirt

from vm_onetoone_nat.errors import LibvirtUnavailable
from vm_onetoone_nat.internal_errors import Work, contain, thread
from vm_onetoone_nat.model.guests import Domain, Guests
from vm_onetoone_nat.model.trigger import Kind, Trigger
from vm_onetoone_nat.virt.agents import Agents
from vm_onetoone_nat.virt.connection import Connection, silence
from vm_onetoone_nat.virt.read import Definitions, read_domains, read_networks

_AGENT = Trigger(Kind.GUEST, "guest agent")

_FIRST_ATTEMPT_SECONDS = 2


class LibvirtSource:
    """The daemon's side of libvirt: reconnects whenever it is lost, notifies of every event.

    `notify` is called in threads of libvirt and of this class; it must not block.
    """

    def __init__(
        self, uri: str, notify: Callable[[Trigger], None], *, guest_agent: bool = False
    ) -> None:
        silence()
        self._agents = Agents(uri, lambda: notify(_AGENT)) if guest_agent else None
        self._notify = notify
        self._domains = Connection(uri, "libvirt", self._follow_domains, notify)
        self._networks = Connection(uri, "libvirt's networks", self._follow_networks, notify)
        self._known: Guests | None = None
        self._definitions = Definitions()
        self._stopped = threading.Event()
        # Before any open(): a connection opened earlier never delivers an event.
        libvirt.virEventRegisterDefaultImpl()
        self._loop = thread(Work.LIBVIRT_EVENTS, self._run_loop)

    def start(self) -> None:
        """Start the threads; return after the first attempt to connect, or after a timeout."""
        self._loop.start()
        until = time.monotonic() + _FIRST_ATTEMPT_SECONDS
        both = (self._domains, self._networks)
        for connection in both:
            connection.start()
        for connection in both:
            connection.wait_until_tried(until - time.monotonic())

    def ask_agents_again(self, macs: Collection[str]) -> None:
        """Query the agents of the guests with these MACs again: they have shown an address."""
        if self._agents is None or self._known is None:
            return
        for domain in self._known.domains:
            if any(nic.mac in macs for nic in domain.interfaces):
                self._agents.ask_again(domain.uuid)

    def stop(self) -> None:
        """Stop connecting. The threads end with the process, since libvirt may block them."""
        self._stopped.set()
        self._domains.stop()
        self._networks.stop()

    def observe(self) -> Guests:
        """All domains and networks; while domains cannot be read, the last ones, not `current`.

        While networks cannot be read, the last known ones. Repairs go on with those. Raises
        LibvirtUnavailable if there are none.
        """
        try:
            with contain(Work.GUESTS, raises=LibvirtUnavailable):
                self._known = self._observe()
        except LibvirtUnavailable:
            if self._known is None:
                raise
            return replace(self._known, current=False)
        return self._known

    def _observe(self) -> Guests:
        domains = self._domains.call(self._read_domains)
        last = () if self._known is None else self._known.networks
        try:
            return Guests(domains, self._networks.call(lambda c: read_networks(c, last)))
        except LibvirtUnavailable:
            if self._known is None:
                raise
            return Guests(domains, last, networks_current=False)

    def _read_domains(self, connection: Any) -> tuple[Domain, ...]:
        return read_domains(connection, self._definitions, self._agents)

    def _run_loop(self) -> None:
        while not self._stopped.is_set():
            libvirt.virEventRunDefaultImpl()

    def _follow_domains(self, connection: Any, ending: ExitStack) -> None:
        # Events that happened without a connection are lost.
        self._definitions.all_changed()

        def follow(event: int, callback: Callable[..., None], what: str | None = None) -> None:
            number = connection.domainEventRegisterAny(None, event, callback, what)
            ending.callback(connection.domainEventDeregisterAny, number)

        follow(libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._on_domain)
        for event, what in (
            (libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED, "device added"),
            (libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, "device removed"),
            (libvirt.VIR_DOMAIN_EVENT_ID_METADATA_CHANGE, "metadata changed"),
        ):
            follow(event, self._on_change, what)
        follow(libvirt.VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE, self._on_agent)

    def _follow_networks(self, connection: Any, ending: ExitStack) -> None:
        number = connection.networkEventRegisterAny(
            None, libvirt.VIR_NETWORK_EVENT_ID_LIFECYCLE, self._on_network, None
        )
        ending.callback(connection.networkEventDeregisterAny, number)

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
