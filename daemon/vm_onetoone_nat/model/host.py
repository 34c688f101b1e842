"""The kernel's side: what a pass observes of this host.

A class with its own `__hash__` hashes integers, since ipaddress hashes by way of text. Pure.
"""

from dataclasses import dataclass
from functools import cached_property

from vm_onetoone_nat.model.family import IPAddress, IPInterface, IPNetwork
from vm_onetoone_nat.model.links import DefaultRoute, Link, gateways
from vm_onetoone_nat.model.nat_table import Table, Translation


@dataclass(frozen=True, slots=True)
class Address:
    """An address on an interface.

    `owned`: the daemon added it. `primary`: the first on its interface that is not owned, which is
    the host's own.
    """

    ifname: str
    interface: IPInterface
    broadcast: IPAddress | None = None
    owned: bool = False
    primary: bool = False

    def __hash__(self) -> int:
        return hash((self.ifname, int(self.interface)))

    def __str__(self) -> str:
        return f"{self.interface} on {self.ifname}"


@dataclass(frozen=True)
class Uplink:
    """An interface that carries external addresses, as `decide.uplink` has chosen it.

    `addresses`: all on it, ours and others, in the kernel's order. `routers`: the routers of the
    host's default routes.
    """

    link: Link
    addresses: tuple[Address, ...] = ()
    routers: frozenset[IPAddress] = frozenset()

    @cached_property
    def name(self) -> str:
        """The interface's name."""
        return self.link.name

    @cached_property
    def host_ips(self) -> frozenset[IPAddress]:
        """The host's own addresses on it: those that are not ours."""
        return frozenset(a.interface.ip for a in self.addresses if not a.owned)

    @cached_property
    def held_ips(self) -> frozenset[IPAddress]:
        """Our addresses on it."""
        return frozenset(a.interface.ip for a in self.addresses if a.owned)

    @cached_property
    def ips(self) -> frozenset[IPAddress]:
        """All addresses on it."""
        return self.host_ips | self.held_ips

    @cached_property
    def subnets(self) -> tuple[IPNetwork, ...]:
        """The subnets in which it has an address that is not ours."""
        networks = (a.interface.network for a in self.addresses if not a.owned)
        return tuple(network for network in networks if network.prefixlen < network.max_prefixlen)

    def subnet_of(self, address: IPAddress) -> IPNetwork | None:
        """The first of its subnets that contains an address."""
        return next((subnet for subnet in self.subnets if address in subnet), None)


@dataclass(frozen=True, slots=True, order=True)
class ChainName:
    """A chain in a foreign table. The kernel takes any bytes as a name."""

    family: str
    table: str
    name: str

    def __str__(self) -> str:
        text = f"{self.family} {self.table} {self.name}"
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


@dataclass(frozen=True, slots=True)
class AcceptRule:
    """A rule in a foreign chain that accepts packets with one mark bit."""

    handle: int
    fwmark: int
    at_head: bool


@dataclass(frozen=True, slots=True)
class ForeignChain:
    """A foreign base chain that may reject guests, and its rules that accept a mark bit."""

    name: ChainName
    accepts: tuple[AcceptRule, ...] = ()


@dataclass(frozen=True, slots=True)
class Obstacle:
    """A foreign firewall that may reject guests and that the daemon does not write to."""

    where: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Unavailable:
    """An external address not to add: in conflict with host `mac`, or, None, being probed."""

    address: IPAddress
    mac: str | None = None


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An entry of the neighbour table on a bridge; `age` is the time since confirmation, in s.

    `fresh`: confirmed lately, or being probed by the kernel.
    """

    ifname: str
    address: IPAddress
    mac: str
    age: float = 0.0
    fresh: bool = True


@dataclass(frozen=True)
class Observed:
    """What the kernel has, read at once.

    `uplink`: what `decide.uplink` chose from `links`, `routes` and `addresses`, if any.
    `ports`: pairs of the address and the bridge port of a neighbour that may be a mapped guest.
    `hairpins`: ports with the hairpin flag; `hairpins_set`: those whose flag this process set.
    `bridge_netfilter`: bridged frames pass the IP hooks.
    `unavailable`: external addresses not to add on the uplink.
    `probed`: addresses that are being or have been probed; any other has to be probed before it is
    added. None: no probing.
    `links`: all interfaces. `routes`: the default routes.
    `neighbours`: entries of the neighbour table on bridges.
    `persistent`: nftables has tables that only their owner writes, and that outlive it.
    `flushed`: translations that this process has served, whose bypassing connections it has flushed
    or is going to; None: this process does not flush.
    """

    uplink: Uplink | None
    addresses: tuple[Address, ...] = ()
    table: Table | None = None
    foreign: tuple[ForeignChain, ...] = ()
    ports: tuple[tuple[IPAddress, str], ...] = ()
    hairpins: frozenset[str] = frozenset()
    hairpins_set: frozenset[str] = frozenset()
    bridge_netfilter: bool = False
    ip_forward: bool = True
    unavailable: tuple[Unavailable, ...] = ()
    probed: frozenset[IPAddress] | None = None
    links: tuple[Link, ...] = ()
    routes: tuple[DefaultRoute, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    obstacles: tuple[Obstacle, ...] = ()
    persistent: bool = False
    flushed: frozenset[Translation] | None = None

    def translated(self, external: IPAddress) -> IPAddress | None:
        """The internal address that the kernel translates an external address to."""
        return self.table.translations.get(external) if self.table is not None else None

    @cached_property
    def unavailable_by_ip(self) -> dict[IPAddress, Unavailable]:
        """`unavailable`, by address."""
        return {each.address: each for each in self.unavailable}

    @cached_property
    def host_addresses(self) -> tuple[Address, ...]:
        """The addresses that are not ours."""
        return tuple(a for a in self.addresses if not a.owned)

    @cached_property
    def host_addresses_by_ip(self) -> dict[IPAddress, list[Address]]:
        """The addresses that are not ours, by IP address."""
        found: dict[IPAddress, list[Address]] = {}
        for address in self.host_addresses:
            found.setdefault(address.interface.ip, []).append(address)
        return found

    @cached_property
    def routers(self) -> frozenset[IPAddress]:
        """The routers of all default routes."""
        return gateways(self.routes)

    @cached_property
    def neighbours_by_mac(self) -> dict[str, list[Neighbour]]:
        """The neighbours on bridges, by MAC."""
        found: dict[str, list[Neighbour]] = {}
        for neighbour in self.neighbours:
            found.setdefault(neighbour.mac, []).append(neighbour)
        return found
