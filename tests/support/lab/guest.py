"""A fast guest: a namespace on a port of libvirt's bridge."""

import json
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

from .addresses import LIBVIRT_BRIDGE, LIBVIRT_GATEWAY, LIBVIRT_NETWORK, mac_of
from .namespace import Namespace
from .waiting import wait_for


class NamespaceGuest(Namespace):
    """A guest without a domain: `eth0` in a namespace, its other end a port of `virbr0`.

    With `wait` unset the port may not forward yet; call `wait_until_forwarding` later, once
    for many guests plugged in a row.
    """

    def __init__(
        self,
        host: Namespace,
        name: str,
        address: IPv4Address,
        mac: str | None = None,
        wait: bool = True,
    ) -> None:
        super().__init__(name)
        self.host = host
        self.address = address
        self.mac = mac or mac_of(address)
        # An interface name has 15 characters at most, a guest's name may have more.
        self.port = f"lab{int(address):08x}"
        try:
            self.sysctl("net.ipv6.conf.default.accept_dad", 0)
            self.plug(wait)
        except BaseException:
            self.close()
            raise

    def plug(self, wait: bool = True) -> None:
        """Give the guest its interface, as at its start."""
        self.host.wire(
            self.port,
            self,
            "eth0",
            address=IPv4Interface((self.address, LIBVIRT_NETWORK.prefixlen)),
            mac=self.mac,
            port_of=LIBVIRT_BRIDGE,
        )
        self.run("ip", "route", "add", "default", "via", str(LIBVIRT_GATEWAY.ip))
        if wait:
            self.wait_until_forwarding()

    def unplug(self) -> None:
        """Remove the interface and its bridge port, as at the guest's stop."""
        self.host.run("ip", "link", "delete", self.port)

    def close(self) -> None:
        # The kernel deletes a dead namespace's interfaces some time later, and until then the
        # port's name is taken.
        if self.host.alive:
            self.host.run("ip", "link", "delete", self.port, check=False)
        super().close()

    def rejoin(self, wait: bool = True) -> None:
        """Put the port back into the bridge after the network was stopped and started.

        libvirt does this for the interfaces of domains.
        """
        self.host.run("ip", "link", "set", self.port, "master", LIBVIRT_BRIDGE, "up")
        if wait:
            self.wait_until_forwarding()

    def wait_until_forwarding(self, timeout: float = 30) -> None:
        """Wait until the bridge forwards the guest's frames."""
        wait_until_forwarding(self.host, self.port, timeout)


class Voice(Namespace):
    """What a domain that idles in its BIOS would say: a MAC, behind the domain's tap.

    What the domain itself would get is its voice's. Without `tap` it is at a port of its own of
    `bridge`, as another guest is. It has no address until `dhcp` or `static`.
    """

    def __init__(
        self,
        host: Namespace,
        name: str,
        mac: str,
        *,
        tap: str | None = None,
        bridge: str = LIBVIRT_BRIDGE,
    ) -> None:
        super().__init__(name)
        self._host = host
        self._port = "voice" + mac.replace(":", "")[-6:]
        try:
            self.sysctl("net.ipv6.conf.default.accept_dad", 0)
            host.wire(self._port, self, "eth0", mac=mac, port_of=None if tap else bridge)
            if tap is not None:
                self.behind(tap)
            else:
                wait_until_forwarding(host, self._port)
        except BaseException:
            self.close()
            raise

    def behind(self, tap: str) -> None:
        """Be behind this tap from now on, as after another start of the domain."""
        self._host.run("tc", "qdisc", "delete", "dev", self._port, "clsact", check=False)
        self._redirect(self._port, "ingress", tap)
        self._redirect(tap, "egress", self._port)
        wait_until_forwarding(self._host, tap)

    def _redirect(self, source: str, direction: str, target: str) -> None:
        """Have what passes an interface in one direction pass another one instead."""
        self._host.run("tc", "qdisc", "add", "dev", source, "clsact")
        every = ("protocol", "all", "u32", "match", "u32", "0", "0")
        action = ("action", "mirred", direction, "redirect", "dev", target)
        self._host.run("tc", "filter", "add", "dev", source, direction, *every, *action)

    def dhcp(self) -> IPv4Address:
        """Ask for a lease, as a guest does when it boots, and take it."""
        script = str(Path(__file__).with_name("inside") / "dhcp.sh")
        self.run("busybox", "udhcpc", "-i", "eth0", "-n", "-q", "-f", "-s", script)
        return self.address()

    def static(self, interface: IPv4Interface, gateway: IPv4Address) -> None:
        """Take an address that nobody was asked for, in the place of any other."""
        self.run("ip", "-4", "address", "flush", "dev", "eth0")
        self.run("ip", "address", "add", str(interface), "brd", "+", "dev", "eth0")
        self.run("ip", "route", "replace", "default", "via", str(gateway))

    def speak(self, to: IPv4Address) -> None:
        """Send a packet."""
        self.run("ping", "-n", "-q", "-c", "1", "-W", "1", str(to), check=False)

    def address(self) -> IPv4Address:
        """The address that it has."""
        (entry,) = json.loads(self.run("ip", "-4", "-j", "address", "show", "dev", "eth0").stdout)
        return IPv4Address(entry["addr_info"][0]["local"])

    def close(self) -> None:
        if self._host.alive:
            self._host.run("ip", "link", "delete", self._port, check=False)
        super().close()


def wait_until_forwarding(host: Namespace, port: str, timeout: float = 30) -> None:
    """Wait until a bridge port of the host forwards: two to four seconds after it joined."""

    def forwards() -> bool:
        listed = host.run("bridge", "-j", "link", "show", "dev", port, check=False).stdout
        ports = json.loads(listed or "[]")
        return any(each["ifname"] == port and each["state"] == "forwarding" for each in ports)

    wait_for(forwards, timeout, f"bridge port {port} forwards", interval=0.1)
