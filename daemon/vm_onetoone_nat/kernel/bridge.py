"""Bridge ports of guests: the port behind which an address is, and the hairpin flag."""

import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from errno import ENODEV
from socket import AF_BRIDGE

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from vm_onetoone_nat.errors import KernelError
from vm_onetoone_nat.kernel.classify import kernel_errors
from vm_onetoone_nat.kernel.neighbours import neighbours
from vm_onetoone_nat.kernel.proc import sysctl
from vm_onetoone_nat.model.family import IPV4, Family, IPAddress, address
from vm_onetoone_nat.model.host import Neighbour
from vm_onetoone_nat.model.links import Link

# linux/neighbour.h: NUD_* states. Valid ones have a usable MAC; _PROBE makes the kernel probe.
_REACHABLE, _STALE, _DELAY, _PROBE, _NOARP, _PERMANENT = 0x02, 0x04, 0x08, 0x10, 0x40, 0x80
_FRESH = _REACHABLE | _DELAY | _PROBE | _NOARP | _PERMANENT
_VALID = _FRESH | _STALE
_TICKS = 100  # in a second: USER_HZ

log = logging.getLogger(__name__)


def bridge_netfilter(family: Family = IPV4) -> bool:
    """Whether bridged frames pass the IP hooks in this network namespace (br_netfilter).

    Raises KernelError.
    """
    setting = sysctl(family.bridge_netfilter)
    with kernel_errors(f"{setting} cannot be read"), suppress(FileNotFoundError):
        return setting.read_text().strip() == "1"
    return False


class Bridge:
    """Bridge ports in the network namespace in which it was created."""

    def __init__(self, netlink: IPRoute) -> None:
        self._netlink = netlink
        self.hairpins_set: set[str] = set()
        """Ports whose flag this process set. Our table records them too, unless it is deleted."""

    def neighbours(self, links: Mapping[int, Link]) -> tuple[Neighbour, ...]:
        """The valid entries of the neighbour table on bridges."""
        found = []
        for entry in neighbours(self._netlink):
            link = links.get(entry["ifindex"])
            mac, at = entry.get_attr("NDA_LLADDR"), entry.get_attr("NDA_DST")
            if link is None or not link.is_bridge or not entry["state"] & _VALID:
                continue
            if not (mac and at):
                continue
            times = entry.get_attr("NDA_CACHEINFO")
            age = min(times["ndm_confirmed"], times["ndm_updated"]) / _TICKS if times else 0.0
            found.append(Neighbour(link.name, address(at), mac, age, bool(entry["state"] & _FRESH)))
        return tuple(found)

    def probe(self, bridge: Link, neighbour: Neighbour) -> None:
        """Make the kernel probe a neighbour; without a reply it deletes the entry."""
        try:
            with kernel_errors(f"neighbour {neighbour.address}"):
                self._netlink.neigh(
                    "change",
                    dst=str(neighbour.address),
                    lladdr=neighbour.mac,
                    ifindex=bridge.index,
                    state=_PROBE,
                )
        except KernelError as error:
            log.debug("%s", error)

    def ports(
        self, links: Mapping[int, Link], neighbours: Iterable[Neighbour]
    ) -> tuple[tuple[IPAddress, str], ...]:
        """The port behind each neighbour on a bridge, if the bridge has learned it.

        The neighbour table has the guest's MAC, the forwarding database the MAC's port. The kernel
        forwards by these, not by the domain's definition.
        """
        learned = {}
        for entry in self._netlink.get_neighbours(family=AF_BRIDGE):
            link = links.get(entry["ifindex"])
            if link is not None and link.is_bridge_port:
                master = links.get(entry.get_attr("NDA_MASTER"))
                if master is not None:
                    learned[master.name, entry.get_attr("NDA_LLADDR")] = link.name
        return tuple(
            (n.address, seen)
            for n in neighbours
            if (seen := learned.get((n.ifname, n.mac))) is not None
        )

    def set_hairpin(self, name: str, on: bool) -> None:
        """Set or clear the hairpin flag of a port; a missing port is not an error."""
        with kernel_errors(f"hairpin flag of bridge port {name}"):
            indexes = self._netlink.link_lookup(ifname=name)
            if not indexes:
                self.hairpins_set.discard(name)
                return
            try:
                self._netlink.brport("set", index=indexes[0], mode=int(on))
                (self.hairpins_set.add if on else self.hairpins_set.discard)(name)
            except NetlinkError as error:
                if error.code != ENODEV:
                    raise
