"""Addresses that guest agents report (libvirt).

A query to an agent needs a read-write connection, which gives full control of every guest; it is
opened only if the configuration enables it. What an agent answers is the guest's word: it is
checked, and what is wrong in it concerns that guest only.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf
from typing import Any

import libvirt

from vm_onetoone_nat.errors import LibvirtUnavailable
from vm_onetoone_nat.events import Event
from vm_onetoone_nat.internal_errors import Work, contain
from vm_onetoone_nat.journal import entry
from vm_onetoone_nat.model.family import LIBVIRT_TYPES, IPAddress, address

log = logging.getLogger(__name__)

AddressesByMac = Mapping[str, tuple[IPAddress, ...]]
"""A guest's addresses by MAC."""

AT_ONCE = 8
"""Agents that are asked at once. One that hangs blocks a thread here, and one of the 20 workers of
libvirtd (max_workers in libvirtd.conf), for RESPONSE_SECONDS."""

RESPONSE_SECONDS = 5
"""The time in which an agent must answer a query. libvirt's default is to wait without limit."""

HELD_SECONDS = 60.0
"""If all threads wait for longer, that is logged."""

PAUSE_SECONDS = 2.0
"""Between two queries of one agent, whatever its guest does."""

MOST_ADDRESSES = 64
"""Of one MAC; further ones are ignored."""


@dataclass
class _Guest:
    """`macs` are those it was asked for; None: it is to be asked again when that is of use.

    `due` is when its agent is to be asked, infinite if not. `logged`: whether a fault was.
    """

    macs: frozenset[str] | None = None
    due: float = inf
    known: AddressesByMac = field(default_factory=dict)
    asked: float = -inf
    asking: bool = False
    logged: bool = False


class Agents:
    """Queries agents in at most AT_ONCE threads, since an agent, or libvirt, may not answer.

    An agent that hangs occupies one thread, and is not asked again meanwhile. `answered` is called
    in these threads when an agent reports a change. The methods may be called from any thread.
    """

    def __init__(self, uri: str, answered: Callable[[], None]) -> None:
        self._uri = uri
        self._answered = answered
        self._guests: dict[str, _Guest] = {}
        self._changed = threading.Condition()
        self._threads = 0
        self._held = False

    def addresses(self, uuid: str, macs: frozenset[str]) -> AddressesByMac:
        """The addresses that this guest's agent has reported for these MACs, its own.

        The first call starts a query, and so does the first one with other MACs, after `invalidate`
        and after `ask_again`. Call it only while the agent is connected.
        """
        with self._changed:
            guest = self._guests.setdefault(uuid, _Guest())
            if macs != guest.macs:
                self._ask_soon(guest)
                guest.macs = macs
            return guest.known

    def invalidate(self, uuid: str) -> None:
        """The agent of this guest has connected or disconnected."""
        with self._changed:
            if (guest := self._guests.get(uuid)) is not None:
                guest.known, guest.macs = {}, None

    def ask_again(self, uuid: str) -> None:
        """Query this guest's agent again at the next call: the guest has shown an address."""
        with self._changed:
            if (guest := self._guests.get(uuid)) is not None:
                guest.macs = None

    def keep(self, uuids: Collection[str]) -> None:
        """Forget all guests but these. One whose agent hangs is known as long as it does.

        To be called at each pass: it logs when no thread is left to ask others.
        """
        with self._changed:
            for uuid in [u for u, g in self._guests.items() if u not in uuids and not g.asking]:
                del self._guests[uuid]
            before, self._held = self._held, self._all_held()
        if self._held and not before:
            fault = f"all {AT_ONCE} queries wait for more than {HELD_SECONDS:g} s; no other is made"
            log.warning("guest agents: %s", fault, extra=entry(Event.AGENT_FAILED, reason=fault))

    def _all_held(self) -> bool:
        since = time.monotonic() - HELD_SECONDS
        return sum(g.asking and g.asked <= since for g in self._guests.values()) >= AT_ONCE

    def _ask_soon(self, guest: _Guest) -> None:
        if guest.due < inf:
            return
        # One that is being asked is asked again by the same thread.
        if not guest.asking and self._threads < AT_ONCE:
            threading.Thread(target=self._work, name="agent", daemon=True).start()
            self._threads += 1
        guest.due = max(time.monotonic(), guest.asked + PAUSE_SECONDS)
        self._changed.notify()

    def _work(self) -> None:
        while (asked := self._next()) is not None:
            uuid, guest = asked
            found, fault = dict[str, tuple[IPAddress, ...]](), "internal error: see the journal"
            with contain(Work.AGENT):
                try:
                    found = reported_addresses(ask_agent(self._uri, uuid), guest.macs or ())
                    fault = ""
                except (LibvirtUnavailable, ValueError) as error:
                    fault = str(error)
            self._finish(uuid, guest, found, fault)

    def _next(self) -> tuple[str, _Guest] | None:
        """Wait until an agent is to be asked; None if none is, and the thread ends."""
        with self._changed:
            while True:
                waiting = ((g.due, uuid) for uuid, g in self._guests.items() if not g.asking)
                due, uuid = min(waiting, default=(inf, ""))
                now = time.monotonic()
                if due <= now:
                    guest = self._guests[uuid]
                    guest.asking, guest.asked, guest.due = True, now, inf
                    return uuid, guest
                if due == inf:
                    self._threads -= 1
                    return None
                self._changed.wait(due - now)

    def _finish(self, uuid: str, guest: _Guest, found: AddressesByMac, fault: str) -> None:
        with self._changed:
            guest.asking = False
            before, guest.known = guest.known, found
            is_new, guest.logged = bool(fault) and not guest.logged, guest.logged or bool(fault)
        if is_new:
            log.warning(
                "guest agent of %s: %s",
                uuid,
                fault,
                extra=entry(Event.AGENT_FAILED, reason=fault),
            )
        if found != before:
            self._answered()


def reported_addresses(reported: object, macs: Collection[str]) -> dict[str, tuple[IPAddress, ...]]:
    """The addresses of interfaces with these MACs. Raises ValueError if it is no such report.

    `reported` has the form of virDomain.interfaceAddresses().
    """
    if not isinstance(reported, dict):
        raise ValueError(f"it reports no interfaces: {reported!r:.80}")
    found: dict[str, tuple[IPAddress, ...]] = {}
    for interface in reported.values():
        match interface:
            case {"hwaddr": str(mac), "addrs": list(listed)} if mac.lower() in macs:
                known = found.get(mac.lower(), ())
                more = map(_address, listed[: MOST_ADDRESSES - len(known)])
                found[mac.lower()] = (*known, *(each for each in more if each is not None))
            case {"hwaddr": str() | None, "addrs": list() | None}:
                pass
            case _:
                raise ValueError(f"it reports no interface: {interface!r:.80}")
    return found


def _address(listed: object) -> IPAddress | None:
    """One address; None if it is of another family. Raises ValueError."""
    match listed:
        case {"type": int(kind), "addr": str(text)}:
            return address(text) if kind in LIBVIRT_TYPES else None
    raise ValueError(f"it reports no address: {listed!r:.80}")


def ask_agent(uri: str, uuid: str) -> object:
    """What libvirt's own call returns; it may never return if libvirt hangs.

    Raises LibvirtUnavailable, also if the agent does not answer in RESPONSE_SECONDS.
    """
    try:
        connection = libvirt.open(uri)
        try:
            domain = connection.lookupByUUIDString(uuid)
            # It holds for all programs that query this agent, such as one that freezes its file
            # systems for a backup, and cannot be read.
            _limit(domain, RESPONSE_SECONDS)
            try:
                return domain.interfaceAddresses(libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT)
            finally:
                _limit(domain, libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK)
        finally:
            connection.close()
    except libvirt.libvirtError as error:
        raise LibvirtUnavailable(error.get_error_message()) from error


def _limit(domain: Any, seconds: int) -> None:
    """Set how long libvirt waits for this guest's agent, if its driver can do that."""
    with suppress(libvirt.libvirtError):
        domain.agentSetResponseTimeout(seconds)
