"""The family of IP addresses that mappings have, as data: another one is another `Family`. Pure.

Values are parsed once: each pass over thousands of mappings parses the same.
"""

from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

IPAddress = IPv4Address
IPInterface = IPv4Interface
IPNetwork = IPv4Network
"""The types of a mapping's addresses, of every family."""

PARSED = 1 << 14
"""Size of the caches of parsed values."""


@dataclass(frozen=True, eq=False, slots=True)
class Family:
    """One version of IP, with the words that other programs have for it. One object for each.

    `name`: in libvirt's XML, in /proc/sys/net, and of `meta nfproto` in nftables.
    `title`: in messages.
    `version`: as the objects of ipaddress have it.
    `number`: AF_* (linux/socket.h).
    `bits`: the length of an address.
    `address`, `interface`, `network`: the types of ipaddress.
    `separator`: the character that marks a written address.
    `usual_prefixlen`, `shortest_prefixlen`: of a LAN.
    `unusable`: where no host has its address, beside what ipaddress calls reserved and the like.
    `has_broadcast`: subnets have a broadcast address.
    `nft`: nftables' table family, protocol of `payload`, family of a translation, `meta protocol`.
    `nft_type`: nftables' type of an address.
    `icmp`: the protocol in nftables, /etc/protocols; `icmp_number`: the same as IPPROTO_*.
    `echo_request`, `echo_reply`: ICMP's types.
    `header_received`: a raw socket receives packets with their IP header (ip(7), RFC 3542).
    `forwarding`: the sysctl that forwards for the whole host.
    `bridge_netfilter`: the sysctl by which bridged packets pass the IP hooks.
    `libvirt_type`: virIPAddrType.
    `tuple_addresses`: connection tracking's attributes of source and destination (CTA_IP_*).
    `dump_filter`: connection tracking lists the entries of one address. The kernel compares those
    of IPv6 the wrong way round: it lists all others (5.8 to 6.18, ctnetlink_filter_match_tuple).
    `groups`: rtnetlink's groups of addresses, routes and netconf (linux/rtnetlink.h).
    """

    name: str
    title: str
    version: int
    number: int
    bits: int
    address: type[IPAddress]
    interface: type[IPInterface]
    network: type[IPNetwork]
    separator: str
    usual_prefixlen: int
    shortest_prefixlen: int
    unusable: tuple[IPNetwork, ...]
    has_broadcast: bool
    nft: str
    nft_type: str
    icmp: str
    icmp_number: int
    echo_request: int
    echo_reply: int
    header_received: bool
    forwarding: str
    bridge_netfilter: str
    libvirt_type: int
    tuple_addresses: tuple[int, int]
    dump_filter: bool
    groups: int

    @property
    def anywhere(self) -> IPNetwork:
        """The network of all addresses."""
        return self.network((0, 0))

    @property
    def unspecified(self) -> IPAddress:
        """The address that no host has."""
        return self.address(0)

    def setting(self, ifname: str, key: str) -> str:
        """The path below /proc/sys of an interface's setting; its name may contain dots."""
        return f"net/{self.name}/conf/{ifname}/{key}"


IPV4 = Family(
    name="ipv4",
    title="IPv4",
    version=4,
    number=2,
    bits=32,
    address=IPv4Address,
    interface=IPv4Interface,
    network=IPv4Network,
    separator=".",
    usual_prefixlen=24,
    shortest_prefixlen=8,
    unusable=(IPv4Network("0.0.0.0/8"),),
    has_broadcast=True,
    nft="ip",
    nft_type="ipv4_addr",
    icmp="icmp",
    icmp_number=1,
    echo_request=8,
    echo_reply=0,
    header_received=True,
    forwarding="net.ipv4.ip_forward",
    bridge_netfilter="net.bridge.bridge-nf-call-iptables",
    libvirt_type=0,
    tuple_addresses=(1, 2),
    dump_filter=True,
    groups=1 << 4 | 1 << 6 | 1 << 23,
)

FAMILIES = (IPV4,)
"""All families. A text that is of none is an error of the first."""

TITLES = " or ".join(family.title for family in FAMILIES)

LIBVIRT_TYPES = frozenset(family.libvirt_type for family in FAMILIES)

_BY_VERSION = {family.version: family for family in FAMILIES}
_BY_SIZE = {family.bits // 8: family for family in FAMILIES}


def family_of(value: IPAddress | IPNetwork) -> Family:
    """The family of an address, interface or network."""
    return _BY_VERSION[value.version]


def family_of_text(text: str) -> Family:
    """The family that a written address or network is of, if it is one."""
    return next((family for family in FAMILIES if family.separator in text), FAMILIES[0])


@lru_cache(PARSED)
def address(text: str) -> IPAddress:
    """Parse an address. Raises ValueError."""
    return family_of_text(text).address(text)


@lru_cache(PARSED)
def unpacked(packed: bytes) -> IPAddress:
    """The address in these bytes."""
    return _BY_SIZE[len(packed)].address(packed)


@lru_cache(PARSED)
def interface(packed: bytes, prefixlen: int) -> IPInterface:
    """The address in these bytes, with its prefix length."""
    return _BY_SIZE[len(packed)].interface((packed, prefixlen))


def network(text: str) -> IPNetwork:
    """Parse a network. Raises ValueError, NetmaskValueError, AddressValueError."""
    return family_of_text(text).network(text)


def host_network(host: IPAddress) -> IPNetwork:
    """The network of this one address."""
    return family_of(host).network(host)
