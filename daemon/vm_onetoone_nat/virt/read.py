"""Reads domains and networks from a connection."""

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from math import inf
from typing import Any

import libvirt

from vm_onetoone_nat.errors import LibvirtUnavailable
from vm_onetoone_nat.internal_errors import Work, contain
from vm_onetoone_nat.model.family import LIBVIRT_TYPES, IPAddress, address
from vm_onetoone_nat.model.guests import Domain, DomainState, Network
from vm_onetoone_nat.virt.agents import Agents
from vm_onetoone_nat.virt.xml import (
    Definition,
    parse_domain,
    parse_network,
)

log = logging.getLogger(__name__)

_CONNECTION = (libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE)
"""Where errors of the connection come from; others are about one object."""

_UNEXPECTED = "its definition cannot be read: internal error, see the journal"

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


class Definitions:
    """A cache of domains' definitions, invalidated by libvirt's events.

    Reading a thousand domains takes a second; a pass takes milliseconds. libvirt sends no event for
    some changes, so a definition expires after LONGEST_SECONDS: each resync reads it again. One
    that is invalid stays in use while reading it fails.
    """

    LONGEST_SECONDS = 290.0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # With the time at which each was read, long ago if it is invalid.
        self._read: dict[str, tuple[float, Definition]] = {}
        self._failing: set[str] = set()
        self._changes = 0
        self._lock = threading.Lock()

    def of(self, domain: Any, uuid: str) -> Definition:
        """The definition of the domain with that UUID; of a running guest, the live one.

        If it cannot be read, the last one, `unread`. Raises the libvirtError of a connection.
        """
        now = self._clock()
        with self._lock:
            at, known = self._read.get(uuid, (-inf, None))
            changes = self._changes
        if known is not None and now - at < self.LONGEST_SECONDS:
            return known
        found = _definition(domain)
        if found.unread:
            if uuid not in self._failing:
                self._failing.add(uuid)
                log.warning("domain %s: %s", uuid, found.fault)
            return found if known is None else replace(known, unread=True)
        self._failing.discard(uuid)
        with self._lock:
            # A change during the read may be missing in it.
            self._read[uuid] = now if changes == self._changes else -inf, found
        return found

    def changed(self, uuid: str) -> None:
        """Invalidate: libvirt sent an event about this domain. From any thread."""
        with self._lock:
            self._changes += 1
            if (read := self._read.get(uuid)) is not None:
                self._read[uuid] = -inf, read[1]

    def all_changed(self) -> None:
        """Invalidate all: events may have been lost. From any thread."""
        with self._lock:
            self._changes += 1
            self._read = {uuid: (-inf, known) for uuid, (_, known) in self._read.items()}

    def keep(self, uuids: Collection[str]) -> None:
        """Forget all domains but these."""
        with self._lock:
            self._read = {uuid: read for uuid, read in self._read.items() if uuid in uuids}
        self._failing.intersection_update(uuids)


def read_domains(
    connection: Any, definitions: Definitions, agents: Agents | None
) -> tuple[Domain, ...]:
    """All domains of a connection. Raises LibvirtUnavailable.

    What cannot be read of one of them is a fault of that one only. None is left out: an internal
    error about which there are, or which of them run, is raised.
    A read-only connection is enough; with `agents` None no guest agent is queried.
    """
    with _errors():
        every = connection.listAllDomains()
        running = {d.ID() for d in connection.listAllDomains(_RUNNING)}
        domains = tuple(_domain(each, running, definitions, agents) for each in every)
    uuids = {domain.uuid for domain in domains}
    definitions.keep(uuids)
    if agents is not None:
        agents.keep(uuids)
    return domains


def read_networks(connection: Any, last: Iterable[Network] = ()) -> tuple[Network, ...]:
    """All networks of a connection, which may be read-only. Raises LibvirtUnavailable.

    What cannot be read of one of them is a fault of that one only: it is as in `last`, `unread`.
    """
    known = {network.name: network for network in last}
    with _errors():
        return tuple(_network(each, known) for each in connection.listAllNetworks())


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except libvirt.libvirtError as error:
        raise LibvirtUnavailable(f"libvirt: {error.get_error_message()}") from error


def _domain(
    domain: Any, running: set[int], definitions: Definitions, agents: Agents | None
) -> Domain:
    name, uuid, state = domain.name(), domain.UUIDString(), _listed_state(domain, running)
    definition = definitions.of(domain, uuid)
    interfaces = definition.interfaces
    if agents is not None and definition.agent:
        with contain(Work.AGENT):
            reported = agents.addresses(uuid, frozenset(nic.mac for nic in interfaces))
            interfaces = tuple(
                replace(nic, addresses=reported.get(nic.mac, ())) for nic in interfaces
            )
    return Domain(
        name, uuid, state, interfaces, definition.claims, definition.fault, definition.unread
    )


def _definition(domain: Any) -> Definition:
    """Only a fault, `unread`, if it cannot be read. Raises the libvirtError of a connection."""
    fault = _UNEXPECTED
    with contain(Work.DOMAIN, handled=libvirt.libvirtError):
        try:
            return parse_domain(domain.XMLDesc())
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return Definition()
            if error.get_error_domain() in _CONNECTION:
                raise
            fault = f"its definition cannot be read: {error.get_error_message()}"
    return Definition(fault=fault, unread=True)


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


def _network(network: Any, known: Mapping[str, Network]) -> Network:
    name, fault = network.name(), _UNEXPECTED
    last = known.get(name)
    active = last is None or last.active
    with contain(Work.NETWORK, handled=libvirt.libvirtError):
        try:
            active = bool(network.isActive())
            return _defined(network, active)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_NETWORK:
                return Network(name, active=False, bridge=None)
            if error.get_error_domain() in _CONNECTION:
                raise
            fault = f"its definition cannot be read: {error.get_error_message()}"
    if last is None or not last.unread:
        log.warning("network %s: %s", name, fault)
    if last is None:
        return Network(name, active, bridge=None, fault=fault, unread=True)
    return replace(last, active=active, unread=True)


def _defined(network: Any, active: bool) -> Network:
    """A network as its XML has it, with bridge, addresses and reservations, and its leases.

    Raises libvirtError.
    """
    found = parse_network(network.XMLDesc())
    leases, unreadable = _NO_LEASES
    if active:
        with contain(Work.NETWORK, handled=libvirt.libvirtError):
            leases, unreadable = _leases(network)
    return Network(
        network.name(),
        active,
        found.bridge,
        found.gateways,
        found.reservations,
        leases,
        found.unreadable + unreadable,
        found.fault,
    )


_Leases = tuple[tuple[tuple[str, IPAddress], ...], tuple[tuple[str, str], ...]]
_NO_LEASES: _Leases = ((), ())


def _leases(network: Any) -> _Leases:
    """The leases of a network's DHCP server by MAC, the latest first, and `Network.unreadable`."""
    try:
        leases = network.DHCPLeases()
    except libvirt.libvirtError as error:
        # Drivers without a DHCP server, and while its file is being written.
        log.debug("leases of network %s: %s", network.name(), error)
        return _NO_LEASES
    leases.sort(key=lambda lease: lease["expirytime"], reverse=True)
    found, unreadable = [], []
    for lease in leases:
        if lease["type"] in LIBVIRT_TYPES and lease["mac"]:
            mac = lease["mac"].lower()
            try:
                found.append((mac, address(lease["ipaddr"])))
            except ValueError as error:
                unreadable.append((mac, f"its lease cannot be read: {error}"))
    return tuple(found), tuple(unreadable)
