"""Kernel notifications that trigger a pass: interfaces, addresses, routes, neighbours, rules."""

import logging
import threading
import time
from collections.abc import Callable
from functools import reduce
from operator import or_
from socket import AF_BRIDGE
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink import NETLINK_NETFILTER, rtnl
from pyroute2.netlink.nfnetlink.nftsocket import nft_gen_msg
from pyroute2.netlink.nlsocket import NetlinkSocket

from vm_onetoone_nat.kernel.neighbours import neighbours
from vm_onetoone_nat.kernel.socket_filter import (
    NEW_GENERATION,
    generations_only,
    nothing_of_our_own,
)
from vm_onetoone_nat.model.family import FAMILIES
from vm_onetoone_nat.model.trigger import Kind, Trigger

log = logging.getLogger(__name__)

_BRIDGE_PORT = Trigger(Kind.BRIDGE, "bridge port")
_UNPARSED = Trigger(Kind.RULESET, "ruleset changed, in a notification that could not be parsed")

_RTNETLINK_GROUPS = (
    rtnl.RTMGRP_LINK | rtnl.RTMGRP_NEIGH | reduce(or_, (family.groups for family in FAMILIES))
)
_NFTABLES_GROUP = 1 << 6  # NFNLGRP_NFTABLES
_MAIN_TABLE = 254
_REOPEN_SECONDS = 0.1


class Watch:
    """Two threads that call `notify` with a trigger for each relevant notification.

    `neighbours` returns whether a neighbour, by address and MAC, may be a guest: neighbour entries
    change all the time, and most belong to no mapping. `portid` is the netlink port by which this
    process changes addresses; its own changes are ignored.
    """

    def __init__(
        self, notify: Callable[[Trigger], None], neighbours: Callable[[str, str], bool], portid: int
    ) -> None:
        self._notify = notify
        self._neighbours = neighbours
        self._portid = portid
        self._macs: dict[str, str] = {}
        self.generation = 0
        """The last notified generation of the ruleset."""

    def start(self) -> None:
        """Start listening; no notification after the return is missed."""
        for name, listen, lost in (
            ("rtnetlink", self._rtnetlink, Kind.RTNETLINK_LOST),
            ("nftables", self._nftables, Kind.NFTABLES_LOST),
        ):
            listening = threading.Event()
            arguments = (listen, listening, Trigger(lost, f"{name}: notifications were lost"))
            threading.Thread(target=self._run, args=arguments, name=name, daemon=True).start()
            listening.wait()

    def _run(
        self,
        listen: Callable[[threading.Event], None],
        listening: threading.Event,
        lost: Trigger,
    ) -> None:
        while True:
            try:
                listen(listening)
            except Exception as error:
                # Most likely ENOBUFS: the kernel has dropped notifications. After any error the
                # thread goes on with a new socket, and the pass observes everything, since what
                # was missed is unknown.
                log.debug("%s: %r", lost.text, error)
            time.sleep(_REOPEN_SECONDS)
            self._notify(lost)

    # Create, bind and read a socket in one thread: pyroute2 ties it to the thread's event loop.

    def _rtnetlink(self, listening: threading.Event) -> None:
        with IPRoute() as netlink:
            nothing_of_our_own(netlink, self._portid)
            netlink.bind(groups=_RTNETLINK_GROUPS)
            self._macs = _known_neighbours()
            listening.set()
            while True:
                for message in netlink.get():
                    if (trigger := self._interesting(message)) is not None:
                        self._notify(trigger)

    def _nftables(self, listening: threading.Event) -> None:
        with NetlinkSocket(family=NETLINK_NETFILTER) as netlink:
            netlink.register_policy({NEW_GENERATION: nft_gen_msg})
            generations_only(netlink)
            netlink.bind(groups=_NFTABLES_GROUP)
            listening.set()
            while True:
                for message in netlink.get():
                    generation = message.get_attr("NFTA_GEN_ID")
                    if generation is None:
                        # Seen with pyroute2 0.7.7: a message that it could not parse.
                        self._notify(_UNPARSED)
                        continue
                    self.generation = generation
                    name = message.get_attr("NFTA_GEN_PROC_NAME")
                    pid = message.get_attr("NFTA_GEN_PROC_PID")
                    writer = f"{name} (process {pid})"
                    self._notify(Trigger(Kind.NFTABLES, f"nftables: written by {writer}", writer))

    def _interesting(self, message: Any) -> Trigger | None:
        """The trigger for a message; None if it is not relevant."""
        match message["event"]:
            case "RTM_NEWLINK" | "RTM_DELLINK":
                # A Wi-Fi driver sends one with this attribute at each scan.
                if message.get_attr("IFLA_WIRELESS") is not None:
                    return None
                return Trigger(Kind.LINK, f"link {message.get_attr('IFLA_IFNAME')}")
            case "RTM_NEWADDR" | "RTM_DELADDR" as event:
                port = message["header"]["pid"]
                if port == self._portid:
                    return None
                verb = "added" if event == "RTM_NEWADDR" else "removed"
                writer = f"process {port}" if 0 < port < 1 << 22 else None
                by = f" by {writer}" if writer is not None else ""
                text = f"address {message.get_attr('IFA_LOCAL')} {verb}{by}"
                return Trigger(Kind.ADDRESS, text, writer)
            case "RTM_NEWROUTE" | "RTM_DELROUTE":
                is_default = message["dst_len"] == 0 and message["table"] == _MAIN_TABLE
                return Trigger(Kind.ROUTE, "route: default") if is_default else None
            case "RTM_NEWNEIGH" | "RTM_DELNEIGH":
                return self._neighbour(message)
            case "RTM_NEWNETCONF":
                return Trigger(Kind.FORWARDING, "forwarding")
        return None

    def _neighbour(self, message: Any) -> Trigger | None:
        address, mac = message.get_attr("NDA_DST"), message.get_attr("NDA_LLADDR")
        gone = message["event"] == "RTM_DELNEIGH" or mac is None
        if message["family"] == AF_BRIDGE:
            # A bridge has learned the port of a MAC, perhaps a guest's.
            return _BRIDGE_PORT if mac in self._macs.values() and not gone else None
        if gone:
            # A guest that has changed its address no longer answers at the old one.
            before = self._macs.pop(address, None)
            return _changed(before) if before is not None else None
        if not self._neighbours(address or "", mac):
            return None
        # An entry that expires and is renewed is notified every half minute.
        before, self._macs[address] = self._macs.get(address), mac
        return _changed(mac) if mac != before else None


def _changed(mac: str) -> Trigger:
    """A guest's address has changed."""
    return Trigger(Kind.NEIGHBOUR, "neighbour", mac=mac)


def _known_neighbours() -> dict[str, str]:
    """The MACs of neighbours, so that a mere renewal of an entry is no trigger."""
    with IPRoute() as netlink:
        return {
            entry.get_attr("NDA_DST"): mac
            for entry in neighbours(netlink)
            if (mac := entry.get_attr("NDA_LLADDR")) is not None
        }
