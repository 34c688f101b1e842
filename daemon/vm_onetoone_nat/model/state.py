"""The values that all modules share: configuration, guests as libvirt has them, kernel state.

All are frozen; addresses are `ipaddress` objects. A class with its own `__hash__` hashes integers,
since ipaddress hashes by way of text. Pure.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from vm_onetoone_nat.model.nat_table import Element, Table, Translation

DEFAULT_FWMARK = 0x00100000


@dataclass(frozen=True, slots=True, order=True)
class AllowedService:
    """One entry of `allow`: a protocol and, for tcp and udp, an inclusive range of ports."""

    protocol: str
    first: int = 0
    last: int = 65535


class Origin(StrEnum):
    """What a mapping comes from; the values are part of `status --json`."""

    CONFIGURATION = "configuration"
    METADATA = "metadata"
    POOL = "pool"


class AddressSource(StrEnum):
    """The source of a guest's own address, most reliable first; part of `status --json`.

    `KEPT`: no other source has an address, so the one that the kernel translates to is kept.
    """

    CONFIGURATION = "configuration"
    METADATA = "metadata"
    RESERVATION = "reservation"
    LEASE = "lease"
    AGENT = "agent"
    NEIGHBOUR = "neighbour"
    KEPT = "kept"


@dataclass(frozen=True, slots=True)
class Mapping:
    """One external address for one guest.

    `prefixlen` None: the prefix length of the uplink's subnet; see `needs_subnet`. `domain` None:
    the mapping is active while its network is. `internal` and `source` None: the guest's address is
    not known yet. `mac` selects one of the guest's interfaces. `remembered`: known from the kernel
    only, so the kernel's elements are kept as they are. `allow` None: everything; `allowed_sources`
    None: anyone. Entries of both are merged, so that no two overlap.
    """

    external: IPv4Address
    network: str
    prefixlen: int | None = None
    internal: IPv4Address | None = None
    domain: str | None = None
    mac: str | None = None
    allow: tuple[AllowedService, ...] | None = None
    allowed_sources: tuple[IPv4Network, ...] | None = None
    origin: Origin = Origin.CONFIGURATION
    source: AddressSource | None = None
    remembered: bool = False

    @property
    def subject(self) -> str:
        """The guest, or the network of a mapping without one, for messages."""
        return self.domain or f"network {self.network}"

    @property
    def needs_subnet(self) -> bool:
        """Whether the external address must be that of a host in a subnet of the uplink.

        An address that is written as /32 is a subnet of its own, and is added as such: it lies
        anywhere, as at hosters that route further addresses to a server.
        """
        return self.prefixlen != 32

    def __hash__(self) -> int:
        return hash((int(self.external), self.network, self.domain))


@dataclass(frozen=True, slots=True, order=True)
class Range:
    """Addresses from `first` to `last`, both included."""

    first: IPv4Address
    last: IPv4Address

    def __contains__(self, address: IPv4Address) -> bool:
        return self.first <= address <= self.last

    def __iter__(self) -> Iterator[IPv4Address]:
        return (IPv4Address(n) for n in range(int(self.first), int(self.last) + 1))


@dataclass(frozen=True, slots=True)
class Pool:
    """External addresses for the guests of a network that have no mapping."""

    network: str
    ranges: tuple[Range, ...]

    def __contains__(self, address: IPv4Address) -> bool:
        return any(address in part for part in self.ranges)


@dataclass(frozen=True, slots=True)
class Configuration:
    """config.toml and its drop-ins, merged; one pool for each network.

    `guest_agent`: query guest agents for addresses. `metadata`: read guests' metadata, in which
    they may claim addresses inside `metadata_external`. `network`: for mappings that name none.
    `uplink` None: the interface of the default route. `origins` is the place of each mapping, such
    as "conf.d/20-b.toml: mapping[0]", relative to the folder of config.toml; it is not compared,
    so a mapping that moves to another file stays the same mapping.
    """

    mappings: tuple[Mapping, ...] = ()
    uplink: str | None = None
    libvirt_uri: str = "qemu:///system"
    fwmark: int = DEFAULT_FWMARK
    conflict_detection: bool = True
    network: str = "default"
    guest_agent: bool = False
    metadata: bool = True
    metadata_external: tuple[IPv4Network, ...] = ()
    pools: tuple[Pool, ...] = ()
    origins: tuple[str, ...] = field(default=(), compare=False)


class DomainState(StrEnum):
    """libvirt's domain states, reduced to what an address depends on.

    `LEAVING`: paused for the last step of a migration to another host.
    """

    RUNNING = "running"
    PAUSED = "paused"
    LEAVING = "leaving"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface of a guest, on a virtual network or directly on a bridge.

    `addresses` are those that the guest agent reports. `plugged` is false while its link is set
    down. `tap` is its end on the host while the guest runs.
    """

    mac: str
    network: str | None = None
    bridge: str | None = None
    addresses: tuple[IPv4Address, ...] = ()
    plugged: bool = True
    tap: str | None = None


@dataclass(frozen=True, slots=True)
class Domain:
    """A guest that libvirt knows.

    `claims` are the mappings in its metadata; their `network` is empty if they name none. `fault`
    is why its definition or metadata cannot be read, else empty.
    """

    name: str
    uuid: str
    state: DomainState
    interfaces: tuple[Interface, ...] = ()
    claims: tuple[Mapping, ...] = ()
    fault: str = ""


@dataclass(frozen=True)
class Network:
    """A virtual network that libvirt knows. `gateways` are the addresses of its bridge.

    `reservations` and `leases` of its DHCP server are pairs of MAC and address; the latest lease
    comes first.
    """

    name: str
    active: bool
    bridge: str | None
    gateways: tuple[IPv4Interface, ...] = ()
    reservations: tuple[tuple[str, IPv4Address], ...] = ()
    leases: tuple[tuple[str, IPv4Address], ...] = ()

    @cached_property
    def given(self) -> dict[IPv4Address, str]:
        """The MAC of each address that the DHCP server has reserved or leased."""
        return {address: mac for mac, address in (*self.leases, *self.reservations)}


@dataclass(frozen=True)
class Guests:
    """What libvirt has, read at once; `current` is false if libvirt has disconnected since."""

    domains: tuple[Domain, ...] = ()
    networks: tuple[Network, ...] = ()
    current: bool = True

    def network(self, name: str) -> Network | None:
        """The network of that name."""
        return self._networks.get(name)

    def domain(self, reference: str | None) -> Domain | None:
        """The domain of that name, or else the one with that UUID, as virsh resolves it."""
        if reference is None:
            return None
        return self._by_name.get(reference) or self._by_uuid.get(reference.lower())

    @cached_property
    def _networks(self) -> dict[str, Network]:
        return {network.name: network for network in self.networks}

    @cached_property
    def _by_name(self) -> dict[str, Domain]:
        return {domain.name: domain for domain in self.domains}

    @cached_property
    def _by_uuid(self) -> dict[str, Domain]:
        return {domain.uuid: domain for domain in self.domains}


@dataclass(frozen=True, slots=True)
class Address:
    """An IPv4 address on an interface.

    `owned`: the daemon added it. `primary`: the first on its interface that is not owned, which is
    the host's own.
    """

    ifname: str
    interface: IPv4Interface
    broadcast: IPv4Address | None = None
    owned: bool = False
    primary: bool = False

    def __hash__(self) -> int:
        return hash((self.ifname, int(self.interface)))

    def __str__(self) -> str:
        return f"{self.interface} on {self.ifname}"


@dataclass(frozen=True, slots=True, order=True)
class ChainName:
    """A chain in a foreign table."""

    family: str
    table: str
    name: str

    def __str__(self) -> str:
        return f"{self.family} {self.table} {self.name}"


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

    address: IPv4Address
    mac: str | None = None


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An entry of the neighbour table on a bridge; `age` is the time since confirmation, in s.

    `fresh`: confirmed lately, or being probed by the kernel.
    """

    ifname: str
    address: IPv4Address
    mac: str
    age: float = 0.0
    fresh: bool = True


@dataclass(frozen=True, slots=True, order=True)
class Allocation:
    """An external address recorded for a guest, from a pool or its metadata; kept over restarts."""

    external: IPv4Address
    uuid: str
    network: str
    origin: Origin


@dataclass(frozen=True, slots=True)
class Stored:
    """What is remembered between runs, read at once.

    `recorded` is false while it is in memory only, so that a restart would lose it.
    """

    allocations: frozenset[Allocation] = frozenset()
    recorded: bool = True


@dataclass(frozen=True)
class Observed:
    """What the kernel has, read at once.

    `uplink`: the interface for external addresses; None if there is none.
    `ports`: pairs of guest address and the bridge port that it is behind.
    `hairpins`: ports with the hairpin flag; `hairpins_set`: those whose flag this process set.
    `bridge_netfilter`: bridged IPv4 frames pass the IP hooks.
    `unavailable`: external addresses not to add on the uplink.
    `probed`: addresses that are being or have been probed; any other has to be probed before it is
    added. None: no probing.
    `routers`: next hops of the default routes.
    `neighbours`: entries of the neighbour table on bridges.
    `flushed`: translations for which this process has flushed bypassing connections; None: this
    process does not flush.
    """

    uplink: str | None
    addresses: tuple[Address, ...] = ()
    table: Table | None = None
    foreign: tuple[ForeignChain, ...] = ()
    ports: tuple[tuple[IPv4Address, str], ...] = ()
    hairpins: frozenset[str] = frozenset()
    hairpins_set: frozenset[str] = frozenset()
    bridge_netfilter: bool = False
    ip_forward: bool = True
    unavailable: tuple[Unavailable, ...] = ()
    probed: frozenset[IPv4Address] | None = None
    routers: frozenset[IPv4Address] = frozenset()
    neighbours: tuple[Neighbour, ...] = ()
    obstacles: tuple[Obstacle, ...] = ()
    flushed: frozenset[Translation] | None = None

    def translated(self, external: IPv4Address) -> IPv4Address | None:
        """The internal address that the kernel translates an external address to."""
        return self.table.translations.get(external) if self.table is not None else None

    @cached_property
    def unavailable_by_ip(self) -> dict[IPv4Address, Unavailable]:
        """`unavailable`, by address."""
        return {each.address: each for each in self.unavailable}

    @cached_property
    def host_addresses(self) -> tuple[Address, ...]:
        """The addresses that are not ours."""
        return tuple(a for a in self.addresses if not a.owned)

    @cached_property
    def host_addresses_by_ip(self) -> dict[IPv4Address, list[Address]]:
        """The addresses that are not ours, by IP address."""
        found: dict[IPv4Address, list[Address]] = {}
        for address in self.host_addresses:
            found.setdefault(address.interface.ip, []).append(address)
        return found

    @cached_property
    def uplink_ips(self) -> frozenset[IPv4Address]:
        """All addresses on the uplink, ours and others."""
        return frozenset(a.interface.ip for a in self.addresses if a.ifname == self.uplink)

    @cached_property
    def uplink_subnets(self) -> tuple[IPv4Network, ...]:
        """The subnets in which the uplink has an address that is not ours."""
        on_uplink = (a.interface.network for a in self.host_addresses if a.ifname == self.uplink)
        return tuple(subnet for subnet in on_uplink if subnet.prefixlen < 32)

    @cached_property
    def neighbours_by_mac(self) -> dict[str, list[Neighbour]]:
        """The neighbours on bridges, by MAC."""
        found: dict[str, list[Neighbour]] = {}
        for neighbour in self.neighbours:
            found.setdefault(neighbour.mac, []).append(neighbour)
        return found


@dataclass(frozen=True, slots=True)
class Sides:
    """What libvirt, the kernel and the store have, read for one pass."""

    guests: Guests
    observed: Observed
    stored: Stored


class MappingState(StrEnum):
    """The state of a mapping; the values are part of `status --json`."""

    ACTIVE = "active"
    INACTIVE = "inactive"
    PENDING = "pending"
    CONFLICT = "conflict"
    ERROR = "error"


class Cause(StrEnum):
    """Why a guest cannot be reached; the values are part of `diagnose --json`."""

    CONFIGURATION = "configuration"
    NO_MAPPING = "no-mapping"
    CLAIM_REFUSED = "claim-refused"
    DAEMON_STOPPED = "daemon-stopped"
    DAEMON_SILENT = "daemon-silent"
    NOT_RELOADED = "not-reloaded"
    LIBVIRT = "libvirt"
    NETWORK_UNKNOWN = "network-unknown"
    NETWORK_INACTIVE = "network-inactive"
    NETWORK_UNROUTED = "network-unrouted"
    GUEST_UNKNOWN = "guest-unknown"
    GUEST_OFF = "guest-off"
    GUEST_PAUSED = "guest-paused"
    GUEST_LEFT = "guest-left"
    NO_INTERFACE = "no-interface"
    LINK_DOWN = "link-down"
    OFF_BRIDGE = "off-bridge"
    ADDRESS_UNKNOWN = "address-unknown"
    ADDRESS_IS_GATEWAY = "address-is-gateway"
    ADDRESS_OUTSIDE_NETWORK = "address-outside-network"
    ADDRESS_OF_ANOTHER = "address-of-another"
    ADDRESS_DIFFERS = "address-differs"
    NO_UPLINK = "no-uplink"
    UPLINK_DOWN = "uplink-down"
    UPLINK_WITHOUT_ADDRESS = "uplink-without-address"
    EXTERNAL_IN_GUESTS_SUBNET = "external-in-guests-subnet"
    EXTERNAL_IS_ROUTER = "external-is-router"
    EXTERNAL_IS_OWN = "external-is-own"
    EXTERNAL_OUTSIDE_SUBNET = "external-outside-subnet"
    EXTERNAL_IS_NO_HOST = "external-is-no-host"
    ROUTE_TO_GUEST = "route-to-guest"
    REVERSE_PATH = "rp-filter"
    IP_FORWARD = "ip-forward"
    FORWARDING = "forwarding"
    ASKING = "asking"
    CONFLICT = "conflict"
    ARP_IGNORED = "arp-ignore"
    EXTERNAL_MISSING = "external-missing"
    RULES_MISSING = "rules-missing"
    ACCEPT_MISSING = "accept-missing"
    REFUSED_BY_KERNEL = "refused-by-kernel"
    FIREWALL = "firewall"
    OTHER_NAT = "other-nat"
    TRACKING_FULL = "conntrack-full"
    TRACKED_ELSEWHERE = "conntrack-stale"
    GUEST_SILENT = "guest-silent"
    GUEST_TWICE = "guest-twice"
    GUEST_GATEWAY = "guest-gateway"
    GUEST_FIREWALL = "guest-firewall"
    CLIENT_ISOLATION = "client-isolation"


@dataclass(frozen=True, slots=True)
class MappingStatus:
    """The state of one mapping. `reason` says why it is not active, `cause` classifies that.

    An active mapping has neither.
    """

    mapping: Mapping
    state: MappingState
    reason: str = ""
    cause: Cause | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Unmapped:
    """A guest that should have a mapping and has none; `external` as its metadata has it."""

    domain: str
    network: str
    reason: str
    external: str | None = None
    origin: Origin = Origin.METADATA


@dataclass(frozen=True, slots=True)
class Gathered:
    """Mappings, guests that get none, and what to record of them: of one source, or of all."""

    mappings: tuple[Mapping, ...] = ()
    unmapped: tuple[Unmapped, ...] = ()
    allocations: frozenset[Allocation] = frozenset()


@dataclass(frozen=True, slots=True)
class Desired:
    """What the kernel should hold, complete, in the types of `Observed`.

    `wanted`: external addresses to have on the uplink, including those in conflict.
    `doubtful`: neighbours for the kernel to probe, since their guest has shown another address.
    """

    statuses: tuple[MappingStatus, ...]
    uplink: str | None
    addresses: tuple[Address, ...]
    elements: frozenset[Element]
    fwmark: int
    hairpins: frozenset[str]
    wanted: frozenset[IPv4Address] = frozenset()
    unmapped: tuple[Unmapped, ...] = ()
    allocations: frozenset[Allocation] = frozenset()
    doubtful: tuple[Neighbour, ...] = ()

    @property
    def content(self) -> tuple[object, ...]:
        """The part that the kernel holds, for comparison."""
        return self.addresses, self.elements, self.fwmark, self.hairpins

    @property
    def active(self) -> tuple[Mapping, ...]:
        """The active mappings."""
        return tuple(s.mapping for s in self.statuses if s.state is MappingState.ACTIVE)
