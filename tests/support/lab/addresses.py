"""The one address plan of all lab tests. It is the laptop of the scenario.

=====================  ==============================  =======================================
who                    address                         where
=====================  ==============================  =======================================
LAN                    192.168.1.0/24                  bridge `lan0` in the `lan` namespace
LAN client, gateway    192.168.1.1                     on `lan0` itself
further LAN hosts      192.168.1.50 and up             `Lan.attach`, `lan_host(n)`
host                   192.168.1.100                   uplink `wlp0s20f3`
external addresses     192.168.1.101 - .199            `external(n)`, n from 1: .101, .102, …
libvirt `default`      192.168.122.0/24                bridge `virbr0`, its address is .1
internal addresses     192.168.122.101 - .199          `internal(n)`, n from 1: .101, .102, …
guest names            el7-x86_64-101, …               `guest_name(n)`
controls of streams    198.18.0.0/15                   `control_wire(n)`, from the sender to
                                                       the echo server, n from 0
=====================  ==============================  =======================================

For hundreds of guests `external` and `internal` stay inside their networks up to n = 99;
a bench that needs more brings its own, wider networks.
"""

from ipaddress import IPv4Address, IPv4Interface, IPv4Network

LAN_NETWORK = IPv4Network("192.168.1.0/24")
LAN_BRIDGE = "lan0"
LAN_CLIENT = IPv4Interface("192.168.1.1/24")
LAN_BROADCAST = LAN_NETWORK.broadcast_address

UPLINK = "wlp0s20f3"
HOST = IPv4Interface("192.168.1.100/24")

LIBVIRT_NETWORK = IPv4Network("192.168.122.0/24")
LIBVIRT_BRIDGE = "virbr0"
LIBVIRT_GATEWAY = IPv4Interface("192.168.122.1/24")

RECORDER_PORT = 8000
PAGE_PORT = 80


def lan_host(n: int) -> IPv4Interface:
    """The n-th further host on the LAN, n from 0 to 49."""
    return _interface(LAN_NETWORK, 50, n, 49)


def external(n: int) -> IPv4Address:
    """The external address of the n-th guest, n from 1 to 99."""
    return _interface(LAN_NETWORK, 100, n, 99).ip


def internal(n: int) -> IPv4Address:
    """The internal address of the n-th guest, n from 1 to 99."""
    return _interface(LIBVIRT_NETWORK, 100, n, 99).ip


def control_wire(n: int) -> tuple[IPv4Interface, IPv4Interface]:
    """Both ends of the wire of the n-th control, in the network for benchmarks (RFC 2544)."""
    first = IPv4Address("198.18.0.0") + 2 * n
    return IPv4Interface((first, 31)), IPv4Interface((first + 1, 31))


def guest_name(n: int) -> str:
    """The domain name of the n-th guest, n from 1."""
    return f"el7-x86_64-{100 + n}"


def mac_of(address: IPv4Address) -> str:
    """A MAC address in QEMU's own range that is as unique as the address."""
    octets = address.packed[1:]
    return "52:54:00:" + ":".join(f"{octet:02x}" for octet in octets)


def _interface(network: IPv4Network, base: int, n: int, last: int) -> IPv4Interface:
    if not 0 <= n <= last:
        raise ValueError(f"the address plan ends at {last}, not {n}")
    return IPv4Interface((network.network_address + base + n, network.prefixlen))
