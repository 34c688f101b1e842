"""The lab's laptop on a LAN, and with a libvirt network, wide enough for thousands of guests.

==================  ==============  =====================================
who                 address         where
==================  ==============  =====================================
LAN                 10.64.0.0/16    the lab's bridge `lan0`
LAN client          10.64.0.1       on `lan0` itself, beside the lab's own
host                10.64.0.2       uplink
external addresses  10.64.16.1 …    `external(n)`, n from 1
libvirt `default`   10.65.0.0/16    bridge `virbr0`, its address is .0.1
internal addresses  10.65.16.1 …    `internal(n)`, n from 1
==================  ==============  =====================================
"""

from ipaddress import IPv4Address, IPv4Interface

from lab import Host, Lan, Namespace, NamespaceGuest
from lab.addresses import LAN_BRIDGE, LIBVIRT_BRIDGE, UPLINK

CLIENT = IPv4Interface("10.64.0.1/16")
HOST = IPv4Interface("10.64.0.2/16")
GATEWAY = IPv4Interface("10.65.0.1/16")
LARGEST = 8000

NETWORK = f"""
<network>
  <name>default</name>
  <forward mode="nat"/>
  <bridge name="{LIBVIRT_BRIDGE}" stp="off" delay="0"/>
  <ip address="{GATEWAY.ip}" netmask="{GATEWAY.netmask}"/>
</network>
"""


def external(n: int) -> IPv4Interface:
    """The external address of the n-th guest, with the LAN's prefix."""
    return IPv4Interface((_nth(CLIENT, n), CLIENT.network.prefixlen))


def internal(n: int) -> IPv4Address:
    """The internal address of the n-th guest."""
    return _nth(GATEWAY, n)


def _nth(interface: IPv4Interface, n: int) -> IPv4Address:
    assert 1 <= n <= LARGEST
    return interface.network.network_address + 16 * 256 + n


class WideLan(Lan):
    """The LAN, with a wide network beside its own."""

    def __init__(self) -> None:
        super().__init__()
        self.run("ip", "address", "add", str(CLIENT), "brd", "+", "dev", LAN_BRIDGE)


class Laptop(Host):
    """The laptop, with an address on the wide LAN and a wide network `default`."""

    def __init__(self, lan: Lan, name: str = "host") -> None:
        super().__init__(lan, name, HOST)

    def lease(self) -> None:
        broadcast = HOST.network.broadcast_address
        commands = (
            f"address flush dev {UPLINK}",
            f"address add {HOST} brd {broadcast} dev {UPLINK}",
            f"route replace default via {CLIENT.ip} dev {UPLINK}",
        )
        self.run("ip", "-4", "-batch", "-", input="\n".join(commands) + "\n")

    def start_libvirt(self) -> None:
        self.libvirtd.start()
        self.virsh("net-define", "/proc/self/fd/0", input=NETWORK)
        self.start_network()


class Guest(NamespaceGuest):
    """The n-th guest, on a port of `virbr0`."""

    def __init__(self, host: Namespace, n: int) -> None:
        super().__init__(host, f"guest{n}", internal(n))

    def plug(self, wait: bool = True) -> None:
        self.host.wire(
            self.port,
            self,
            "eth0",
            address=IPv4Interface((self.address, GATEWAY.network.prefixlen)),
            mac=self.mac,
            port_of=LIBVIRT_BRIDGE,
        )
        self.run("ip", "route", "add", "default", "via", str(GATEWAY.ip))
        if wait:
            self.wait_until_forwarding()
