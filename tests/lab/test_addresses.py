"""Addresses of the real kernel, in a namespace without a host."""

import sys
from collections.abc import Iterator

import pytest
from lab import Namespace

COUNT = 3000

# More than fit one datagram, in both directions.
PROGRAM = f"""
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from vm_onetoone_nat.kernel.addresses import Addresses
from vm_onetoone_nat.errors import KernelError
from vm_onetoone_nat.kernel.links import links
from vm_onetoone_nat.kernel.netlink import ROUTE, Netlink
from vm_onetoone_nat.model.host import Address

def address(n):
    interface = IPv4Interface((IPv4Address("10.0.0.1") + n, 16))
    return Address("uplink", interface, interface.network.broadcast_address, owned=True)

netlink = Netlink(ROUTE, "rtnetlink")
addresses = Addresses(Path("/dev/null"), protocol_kept=True)
wanted = [address(n) for n in range({COUNT})]

def listed():
    return {{a for a in addresses.observe(links(netlink)) if a.owned}}

addresses.add(wanted[:10])
addresses.add(wanted)
assert listed() == set(wanted), "those that are there already are no error"

try:
    addresses.add([Address("nowhere", wanted[0].interface), address(4000)])
except KernelError as error:
    print(error)
addresses.delete([*wanted[:2000], wanted[0]])
assert listed() == {{*wanted[2000:], address(4000)}}, "one that is gone is no error"
print(*addresses.default_routes())
"""


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with Namespace("addresses") as namespace:
        namespace.run("ip", "link", "add", "uplink", "type", "veth", "peer", "name", "other")
        namespace.run("ip", "link", "set", "uplink", "up")
        namespace.run("ip", "link", "set", "other", "up")
        yield namespace


def test_thousands(namespace: Namespace) -> None:
    """Thousands are added, listed and deleted as one is; a failure is told, and stops no other.

    The default route is found among the routes to all of them.
    """
    namespace.run("ip", "address", "add", "192.168.1.100/24", "dev", "uplink")
    namespace.run("ip", "route", "add", "default", "via", "192.168.1.1", "metric", "600")
    said = namespace.run(sys.executable, "-c", PROGRAM)
    assert said.stdout.splitlines() == [
        "interface nowhere is gone",
        "DefaultRoute(priority=600, hops=(Hop(ifindex=3, gateway=IPv4Address('192.168.1.1')),))",
    ]
