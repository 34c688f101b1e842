"""Bridge ports of guests: the port behind which an address is, and the hairpin flag."""

import logging
import os
import socket
from collections.abc import Collection, Mapping, Sequence
from errno import ENODEV

from vm_onetoone_nat.errors import KernelError
from vm_onetoone_nat.kernel.classify import kernel_errors
from vm_onetoone_nat.kernel.messages import link, neighbour
from vm_onetoone_nat.kernel.neighbours import neighbours
from vm_onetoone_nat.kernel.netlink import ROUTE, Netlink
from vm_onetoone_nat.kernel.proc import sysctl
from vm_onetoone_nat.model.family import IPV4, Family, IPAddress
from vm_onetoone_nat.model.host import Neighbour
from vm_onetoone_nat.model.links import Link

# linux/neighbour.h: NUD_* states. Valid ones have a usable MAC; _PROBE makes the kernel probe.
_REACHABLE, _STALE, _DELAY, _PROBE, _NOARP, _PERMANENT = 0x02, 0x04, 0x08, 0x10, 0x40, 0x80
_FRESH = _REACHABLE | _DELAY | _PROBE | _NOARP | _PERMANENT
_VALID = _FRESH | _STALE
_VLANS = (None, 1)
"""Those in which a MAC is looked up: no VLAN, and the usual one of a bridge that filters VLANs."""
_AT_ONCE = 128
"""Answers that fit into the socket's buffer."""

log = logging.getLogger(__name__)


def bridge_netfilter(family: Family = IPV4) -> bool:
    """Whether bridged frames pass the IP hooks in this network namespace (br_netfilter)."""
    try:
        return sysctl(family.bridge_netfilter).read_text().strip() == "1"
    except FileNotFoundError:
        return False


class Bridge:
    """Bridge ports in the network namespace in which it was created."""

    def __init__(self) -> None:
        self._netlink = Netlink(ROUTE, "rtnetlink")
        self.hairpins_set: set[str] = set()
        """Ports whose flag this process set. Our table records them too, unless it is deleted."""

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()

    def neighbours(self, links: Mapping[int, Link]) -> tuple[Neighbour, ...]:
        """The valid entries of the neighbour table on bridges. Raises KernelError."""
        found = []
        for entry in neighbours(self._netlink):
            link = links.get(entry.ifindex)
            if link is None or not link.is_bridge or not entry.state & _VALID:
                continue
            if entry.address is not None and entry.mac is not None:
                fresh = bool(entry.state & _FRESH)
                found.append(Neighbour(link.name, entry.address, entry.mac, entry.age, fresh))
        return tuple(found)

    def probe(self, bridge: Link, moved: Neighbour) -> None:
        """Make the kernel probe a neighbour; without a reply it deletes the entry."""
        request = neighbour.change(bridge.index, moved.address, moved.mac, _PROBE)
        try:
            self._change(request, f"neighbour {moved.address}")
        except KernelError as error:
            log.debug("%s", error)

    def ports(
        self, links: Mapping[int, Link], neighbours: Collection[Neighbour]
    ) -> tuple[tuple[IPAddress, str], ...]:
        """The port behind each of these neighbours on a bridge, if the bridge has learned it.

        The neighbour table has the guest's MAC, the forwarding database the MAC's port. The kernel
        forwards by these, not by the domain's definition. The database is asked for these MACs
        only: a guest may fill it with others. Raises KernelError.
        """
        bridges = {link.name: link.index for link in links.values() if link.is_bridge}
        wanted = {(bridges[n.ifname], n.mac) for n in neighbours if n.ifname in bridges}
        learned: dict[tuple[int, str], str] = {}
        for vlan in _VLANS:
            missing = sorted(wanted - learned.keys())
            learned |= self._learned(links, [(bridge, mac, vlan) for bridge, mac in missing])
        return tuple(
            (n.address, learned[bridges[n.ifname], n.mac])
            for n in neighbours
            if (bridges.get(n.ifname, 0), n.mac) in learned
        )

    def _learned(
        self, links: Mapping[int, Link], asked: Sequence[tuple[int, str, int | None]]
    ) -> dict[tuple[int, str], str]:
        """The port behind each MAC of a bridge that the bridge has learned, by both."""
        found = {}
        for first in range(0, len(asked), _AT_ONCE):
            batch = asked[first : first + _AT_ONCE]
            for answer in self._netlink.ask(neighbour.lookups(batch), len(batch)):
                for entry in neighbour.entries(answer):
                    link = links.get(entry.ifindex)
                    if link is not None and link.master is not None and entry.mac is not None:
                        found[link.master, entry.mac] = link.name
        return found

    def set_hairpin(self, name: str, on: bool) -> None:
        """Set or clear the hairpin flag of a port; a missing port is not an error."""
        try:
            index = socket.if_nametoindex(name)
        except OSError:
            self.hairpins_set.discard(name)
            return
        if self._change(link.set_hairpin(index, on), f"hairpin flag of bridge port {name}"):
            (self.hairpins_set.add if on else self.hairpins_set.discard)(name)

    def _change(self, request: bytes, what: str) -> bool:
        """Send one request; false if the interface has gone. Raises KernelError."""
        with kernel_errors(what):
            self._netlink.send(request)
            error = self._netlink.receive().results[0]
        if error not in (0, ENODEV):
            raise KernelError(f"{what}: {os.strerror(error)}")
        return not error
