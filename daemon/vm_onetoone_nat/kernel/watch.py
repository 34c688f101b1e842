"""Kernel notifications that trigger a pass: interfaces, addresses, routes, neighbours, rules."""

import logging
from collections.abc import Callable, Set
from contextlib import closing
from functools import reduce
from operator import or_

from vm_onetoone_nat.errors import KernelError
from vm_onetoone_nat.internal_errors import Work
from vm_onetoone_nat.kernel.listener import Listener, Source
from vm_onetoone_nat.kernel.messages import neighbour
from vm_onetoone_nat.kernel.messages.changes import triggers
from vm_onetoone_nat.kernel.messages.nft_commits import Commits
from vm_onetoone_nat.kernel.messages.rtnetlink import notifications
from vm_onetoone_nat.kernel.neighbours import neighbours
from vm_onetoone_nat.kernel.netlink import NETFILTER, ROUTE, Netlink
from vm_onetoone_nat.kernel.socket_filter import (
    bridges_only_for,
    no_foreign_sets,
    nothing_of_our_own,
)
from vm_onetoone_nat.model.family import FAMILIES, IPAddress
from vm_onetoone_nat.model.trigger import Kind, Trigger

log = logging.getLogger(__name__)

_BRIDGE_PORT = Trigger(Kind.BRIDGE, "bridge port")
_CHANGES_LOST = Trigger(Kind.RTNETLINK_LOST, "rtnetlink: notifications were lost")
_NEIGHBOURS_LOST = Trigger(Kind.RTNETLINK_LOST, "neighbours: notifications were lost")
_COMMITS_LOST = Trigger(Kind.NFTABLES_LOST, "nftables: notifications were lost")

_LINK_GROUP, _NEIGHBOUR_GROUP = 1 << 0, 1 << 2  # RTMGRP_LINK, RTMGRP_NEIGH
_CHANGES = Source(
    Work.RTNETLINK, ROUTE, reduce(or_, (family.groups for family in FAMILIES), _LINK_GROUP)
)
_NEIGHBOURS = Source(Work.NEIGHBOURS, ROUTE, _NEIGHBOUR_GROUP)
_COMMITS = Source(Work.NFTABLES, NETFILTER, 1 << 6)  # NFNLGRP_NFTABLES


class Watch:
    """Three threads that call `notify` with a trigger for each relevant notification.

    `is_guest` returns whether a neighbour, by address and MAC, may be a guest: neighbour entries
    change all the time, and most belong to no mapping. `portid` is the netlink port by which this
    process changes addresses; its own changes are ignored. `nft_portid` is that by which it writes
    to nftables: a trigger of its own names no other program.

    Guests cause the notifications about neighbours. They have a socket of their own, so that a
    flood of them delays no others.
    """

    def __init__(
        self,
        notify: Callable[[Trigger], None],
        is_guest: Callable[[str, str], bool],
        portid: int,
        nft_portid: int,
    ) -> None:
        self._notify = notify
        self._is_guest = is_guest
        self._portid = portid
        self._macs: dict[IPAddress, str] = {}
        self._followed: Set[str] = frozenset()
        self._commits = Commits(nft_portid)
        self._neighbours = Listener(
            _NEIGHBOURS, bridges_only_for(()), self._neighbour, self._neighbours_lost
        )
        self._listeners = (
            self._neighbours,
            Listener(
                _CHANGES,
                nothing_of_our_own(portid),
                self._changed,
                lambda: notify(_CHANGES_LOST),
            ),
            Listener(_COMMITS, no_foreign_sets(), self._committed, lambda: notify(_COMMITS_LOST)),
        )

    @property
    def generation(self) -> int:
        """The last notified generation of the ruleset that may concern us."""
        return self._commits.generation

    def start(self) -> None:
        """Start listening; no notification after the return is missed."""
        for listener in self._listeners:
            listener.listen()
        self._macs = _known_neighbours()
        for listener in self._listeners:
            listener.start()

    def follow(self, macs: Set[str]) -> None:
        """Trigger a pass when a bridge learns another port for one of these MACs. From any thread.

        No other entries of bridges are received: a guest may forge any number of MACs.
        """
        if macs == self._followed:
            return
        added = macs - self._followed
        self._neighbours.filter(bridges_only_for(macs))
        self._followed = macs
        if added:
            # It may have learned one before this.
            self._notify(_BRIDGE_PORT)

    def _neighbours_lost(self) -> None:
        self._macs = _known_neighbours()
        self._notify(_NEIGHBOURS_LOST)

    def _changed(self, data: bytes) -> None:
        for trigger in triggers(data, self._portid):
            self._notify(trigger)

    def _committed(self, data: bytes) -> None:
        trigger = self._commits.read(data)
        if trigger is not None:
            self._notify(trigger)

    def _neighbour(self, data: bytes) -> None:
        for kind, _, start, end in notifications(data):
            trigger = self._moved(neighbour.parse(data, start, end), gone=kind == neighbour.DELETE)
            if trigger is not None:
                self._notify(trigger)

    def _moved(self, entry: neighbour.Entry, *, gone: bool) -> Trigger | None:
        """The trigger for an entry; None if it is not relevant."""
        if entry.family == neighbour.BRIDGE:
            # A bridge has learned the port of a MAC, perhaps a guest's.
            return _BRIDGE_PORT if entry.mac in self._followed and not gone else None
        if entry.address is None:
            return None
        if gone or entry.mac is None:
            # A guest that has changed its address no longer answers at the old one.
            before = self._macs.pop(entry.address, None)
            return _moved_to(before) if before is not None else None
        if not self._is_guest(str(entry.address), entry.mac):
            return None
        # An entry that expires and is renewed is notified every half minute.
        before, self._macs[entry.address] = self._macs.get(entry.address), entry.mac
        return _moved_to(entry.mac) if entry.mac != before else None


def _moved_to(mac: str) -> Trigger:
    """The address of the guest with that MAC has changed."""
    return Trigger(Kind.NEIGHBOUR, "neighbour", mac=mac)


def _known_neighbours() -> dict[IPAddress, str]:
    """The MACs of neighbours, so that a mere renewal of an entry is no trigger."""
    try:
        with closing(Netlink(ROUTE, "rtnetlink")) as netlink:
            return {
                entry.address: entry.mac
                for entry in neighbours(netlink)
                if entry.address is not None and entry.mac is not None
            }
    except KernelError as error:
        # Then each renewal is one.
        log.debug("neighbours: %s", error)
        return {}
