"""What every host of guests has, however it is made: libvirt, and a network to look at."""

import re

from .namespace import Namespace

_TIMERS = re.compile(r" [a-z_]+_timer +\d+\.\d+")
_LIFETIMES = re.compile(r"(valid|preferred)_lft \d+sec")
# While the kernel asks whether another host has an IPv6 address.
_TENTATIVE = re.compile(r" tentative\b")
_LEARNED = re.compile(r" fdb_n_learned \d+")
# For half a minute after a port began to forward, spanning tree reports it and forgets faster.
_TOPOLOGY = re.compile(r" (topology_change(_detected|_ack)?|ageing_time) \d+")
_SYSCTLS = (
    r"^net\.(bridge\.|ipv4\.ip_forward$|ipv4\.conf\..*\."
    r"(forwarding|rp_filter|route_localnet|accept_local|proxy_arp|send_redirects|arp_[a-z]*)$)"
)


class Hypervisor(Namespace):
    """A host of guests, with libvirt."""

    def virsh(self, *arguments: str, timeout: float = 120, input: str | None = None) -> str:
        """Run virsh on the system libvirtd and return what it printed."""
        command = ("virsh", "-q", "-c", "qemu:///system", *arguments)
        return self.run(*command, timeout=timeout, input=input).stdout

    def listing(self) -> str:
        """Everything that the daemon may change, as text that is equal when nothing changed.

        The ruleset without counters and handles, addresses, routes, flags of bridge ports and
        the forwarding sysctls; timers, lifetimes and learned forwarding entries are left out.
        """
        ruleset = self.run("nft", "--stateless", "list", "ruleset").stdout
        addresses = self.run("ip", "-d", "address", "show").stdout
        addresses = _LIFETIMES.sub(r"\1_lft limited", addresses)
        for volatile in (_TIMERS, _TENTATIVE, _LEARNED, _TOPOLOGY):
            addresses = volatile.sub("", addresses)
        routes = self.run("ip", "-4", "route", "show", "table", "all").stdout
        ports = self.run("bridge", "-d", "link", "show").stdout
        sysctls = self.run("sysctl", "-a", "-r", _SYSCTLS)
        sections = {
            "ruleset": ruleset,
            "addresses": addresses,
            "routes": routes,
            "bridge ports": ports,
            "sysctls": sysctls.stdout,
        }
        return "\n".join(f"# {title}\n{text}" for title, text in sections.items())
