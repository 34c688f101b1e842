"""The LAN: one bridge, the client on it, and further hosts plugged into it."""

from ipaddress import IPv4Interface

from .addresses import LAN_BRIDGE, LAN_BROADCAST, LAN_CLIENT
from .namespace import Namespace

_MAC = "02:00:00:00:00:01"


class Lan(Namespace):
    """A namespace that is a switch with a client, which is the LAN's gateway too.

    It answers on 192.168.1.1, on its bridge `lan0`.
    """

    def __init__(self, name: str = "lan") -> None:
        super().__init__(name)
        self._ports = 0
        # Only frames of the LAN: the switch itself filters nothing.
        self.bridge_netfilter(False)
        self.sysctl("net.ipv6.conf.default.accept_dad", 0)
        # What TCP sends again after some milliseconds, only to make sure, is no sign of a loss.
        self.sysctl("net.ipv4.tcp_early_retrans", 0)
        self.run(
            "ip",
            "-batch",
            "-",
            input=(
                # Or the bridge has the least MAC of its ports, and another when hosts come and go.
                f"link add {LAN_BRIDGE} address {_MAC} type bridge"
                " forward_delay 0 stp_state 0 mcast_snooping 0\n"
                f"address add {LAN_CLIENT} brd {LAN_BROADCAST} dev {LAN_BRIDGE}\n"
                f"link set {LAN_BRIDGE} up\n"
            ),
        )

    def attach(
        self,
        namespace: Namespace,
        ifname: str,
        address: IPv4Interface | None = None,
        mac: str | None = None,
    ) -> str:
        """Plug `namespace` into the LAN by its new interface `ifname`.

        Returns the name of the switch port, to unplug it by `unplug`.
        """
        self._ports += 1
        port = f"port{self._ports}"
        self.wire(port, namespace, ifname, address=address, mac=mac, port_of=LAN_BRIDGE)
        return port

    def set_carrier(self, port: str, up: bool) -> None:
        """Take the link of a port down, or up again, as Wi-Fi loses and finds its access point."""
        self.run("ip", "link", "set", port, "up" if up else "down")

    def host(self, name: str, address: IPv4Interface, mac: str | None = None) -> Namespace:
        """A further host on the LAN, on its interface `eth0`."""
        other = Namespace(name)
        try:
            self.attach(other, "eth0", address, mac)
            other.run("ip", "route", "add", "default", "via", str(LAN_CLIENT.ip))
        except BaseException:
            other.close()
            raise
        return other
