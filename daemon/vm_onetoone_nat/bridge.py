"""Bridge ports of guests: where an address is, and the hairpin flag (pyroute2, sysctl)."""

import os
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address
from pathlib import Path
from socket import AF_BRIDGE, AF_INET

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from vm_onetoone_nat.errors import KernelError
from vm_onetoone_nat.links import Link
from vm_onetoone_nat.state import Port

_CALL_IPTABLES = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
_ENODEV = 19


def bridge_netfilter() -> bool:
    """Whether bridged IPv4 frames pass the IP hooks in this network namespace (br_netfilter)."""
    try:
        return _CALL_IPTABLES.read_text().strip() == "1"
    except FileNotFoundError:
        return False


class Bridge:
    """Bridge ports in the network namespace that it was made in."""

    def __init__(self, netlink: IPRoute) -> None:
        self._netlink = netlink
        self.hairpins_set: set[str] = set()
        """Ports whose flag was set here. Our table records that too, until somebody deletes it."""

    def ports(
        self, links: Mapping[int, Link], internals: Iterable[IPv4Address]
    ) -> tuple[tuple[IPv4Address, Port], ...]:
        """The port behind each guest address, as far as the host has heard from the guest.

        The neighbour table gives the guest's MAC, the forwarding database the MAC's port: what
        the kernel forwards by, whatever the domain's definition says.
        """
        learned = {}
        for entry in self._netlink.get_neighbours(family=AF_BRIDGE):
            link = links.get(entry["ifindex"])
            if link is not None and link.is_bridge_port:
                port = Port(link.name, link.hairpin)
                learned[entry.get_attr("NDA_MASTER"), entry.get_attr("NDA_LLADDR")] = port
        wanted = {str(address) for address in internals}
        found = []
        for entry in self._netlink.get_neighbours(family=AF_INET):
            address, mac = entry.get_attr("NDA_DST"), entry.get_attr("NDA_LLADDR")
            seen = learned.get((entry["ifindex"], mac))
            if address in wanted and seen is not None:
                found.append((IPv4Address(address), seen))
        return tuple(found)

    def set_hairpin(self, name: str, on: bool) -> None:
        """Set or clear the hairpin flag of a port; a port that is gone is no error."""
        indexes = self._netlink.link_lookup(ifname=name)
        if not indexes:
            self.hairpins_set.discard(name)
            return
        try:
            self._netlink.brport("set", index=indexes[0], mode=int(on))
            (self.hairpins_set.add if on else self.hairpins_set.discard)(name)
        except NetlinkError as error:
            if error.code != _ENODEV:
                raise KernelError(
                    f"hairpin flag of bridge port {name}: {os.strerror(error.code)}"
                ) from error
