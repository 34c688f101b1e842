"""The values that everything else speaks in: configuration, libvirt's side, the kernel's side.

All are frozen; addresses are `ipaddress` objects. Nothing here touches the system.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property, lru_cache
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

TABLE = "vm_onetoone_nat"
DEFAULT_FWMARK = 0x00100000

# Values that each pass over thousands of mappings reads or makes again. Where a class has a hash of
# its own, it is of numbers: ipaddress's goes by way of text.
_VALUES = 1 << 14


@lru_cache(_VALUES)
def address(text: str) -> IPv4Address:
    """The address that a text is, made once: each pass reads the same thousands again."""
    return IPv4Address(text)


@lru_cache(_VALUES)
def interface(packed: bytes, prefixlen: int) -> IPv4Interface:
    """The address of four bytes with its prefix, made once as `address`."""
    return IPv4Interface((packed, prefixlen))


@dataclass(frozen=True, slots=True, order=True)
class AllowedService:
    """What `allow` admits: a protocol and, for tcp and udp, an inclusive range of ports."""

    protocol: str
    first: int = 0
    last: int = 65535


class Origin(StrEnum):
    """Who asked for a mapping; the values are part of `status --json`."""

    CONFIGURATION = "configuration"
    METADATA = "metadata"
    POOL = "pool"


class AddressSource(StrEnum):
    """How a guest's own address is known, the most reliable first; part of `status --json`.

    `KEPT` is what the kernel translates to, while nothing tells of another address.
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

    `prefixlen` None means the uplink's; `domain` None, that the mapping lives as long as its
    network; `internal` None, that the address is not known yet, and `source` then too. `mac`
    chooses among a guest's interfaces. `remembered` is true for one of which only the kernel
    tells, so that its policy is what the kernel has. `allow` and `allowed_sources` None mean
    everything and anyone; both are merged, so that no two entries overlap.
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
        """Whom it is for, in words: its guest, or all of its network."""
        return self.domain or f"network {self.network}"

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
    """The whole of config.toml and its drop-ins, merged; one pool for each network.

    `guest_agent` tells whether guests' agents are asked for their addresses. Guests may claim
    addresses inside `metadata_external` by their metadata, which is not read at all where
    `metadata` is false. `network` is that of mappings that name none. `uplink` None means the
    interface of the default route. `origins` has the place of each mapping, "conf.d/20-b.toml:
    mapping[0]", the file as seen from the folder of config.toml; a mapping that moves from one
    file to another is the same mapping.
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
    """libvirt's domain states, as far as an address is concerned.

    `LEAVING` is paused for the last step of a migration to another host.
    """

    RUNNING = "running"
    PAUSED = "paused"
    LEAVING = "leaving"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface of a guest, on a virtual network or directly on a bridge.

    `addresses` are what the guest agent tells of it; not `plugged` is one whose link is set down.
    `tap` is its other end, on the host, while the guest runs.
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

    `claims` are the mappings in its metadata, whose `network` is empty where they name none;
    `fault` tells why its definition or its metadata cannot be read, and is empty where they can.
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

    `reservations` and `leases` are of its DHCP server, by MAC; the latest lease comes first.
    """

    name: str
    active: bool
    bridge: str | None
    gateways: tuple[IPv4Interface, ...] = ()
    reservations: tuple[tuple[str, IPv4Address], ...] = ()
    leases: tuple[tuple[str, IPv4Address], ...] = ()

    @cached_property
    def given(self) -> dict[IPv4Address, str]:
        """The MAC to which the DHCP server has given an address, for each that it has given."""
        return {address: mac for mac, address in (*self.leases, *self.reservations)}


@dataclass(frozen=True)
class Guests:
    """Everything read from libvirt in one look; not `current` if libvirt has gone since."""

    domains: tuple[Domain, ...] = ()
    networks: tuple[Network, ...] = ()
    current: bool = True

    def network(self, name: str) -> Network | None:
        """The network of that name."""
        return self._networks.get(name)

    def domain(self, reference: str | None) -> Domain | None:
        """The domain of that name; only where there is none, the one with that UUID, as virsh."""
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

    `owned` is true for an address that the daemon added; `primary` for the first that an
    interface has, which is the host's own and no guest's.
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
class Element:
    """An element of a set or map of our table; `value` is empty in a set."""

    container: str
    key: str
    value: str = ""

    def __str__(self) -> str:
        """What it does, in the words of those who read rules."""
        match self.container:
            case "external":
                return f"dnat {self.key} to {self.value}"
            case "internal":
                return f"snat {self.key} to {self.value}"
            case "inbound":
                limit = ", as allowed" if self.value == "goto restrict" else ""
                return f"forward connections to {self.key}{limit}"
            case "outbound":
                return f"forward connections from {self.key}"
            case "hairpin":
                return f"record of the hairpin on {self.key}"
            case "allowed":
                external, source, protocol, ports = self.key.split(" . ")
                return f"allow {protocol} {ports} from {source} to {external}"
        return f"{self.container} {self.key}"


@lru_cache(4 * _VALUES)
def element(container: str, key: str, value: str = "") -> Element:
    """An element, made once: those that are listed and those that are desired are then compared
    without a look inside."""
    return Element(container, key, value)


@dataclass(frozen=True, slots=True, order=True)
class Translation:
    """A pair of addresses that the kernel translates into each other."""

    external: IPv4Address
    internal: IPv4Address

    def __hash__(self) -> int:
        return hash((int(self.external), int(self.internal)))


@lru_cache(_VALUES)
def translation(external: str, internal: str) -> Translation:
    """The translation between two addresses, made once."""
    return Translation(address(external), address(internal))


def translations(elements: Iterable[Element]) -> frozenset[Translation]:
    """What these elements of our table translate."""
    return frozenset(
        Translation(address(e.key), address(e.value)) for e in elements if e.container == "external"
    )


@dataclass(frozen=True)
class Table:
    """Our nftables table. `intact` is false where chains, rules or declarations differ from ours.

    `fwmark` is the mark bit that the table sets, if that can still be read from it.
    """

    intact: bool
    elements: frozenset[Element] = frozenset()
    fwmark: int | None = None

    @cached_property
    def translations(self) -> dict[IPv4Address, IPv4Address]:
        """What it translates to what: internal addresses by external ones."""
        return {t.external: t.internal for t in translations(self.elements)}


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
    """A rule in a foreign chain that accepts one mark bit, and nothing else."""

    handle: int
    fwmark: int
    at_head: bool


@dataclass(frozen=True, slots=True)
class ForeignChain:
    """A foreign base chain that would reject, and the accepts of a mark found in it."""

    name: ChainName
    accepts: tuple[AcceptRule, ...] = ()


@dataclass(frozen=True, slots=True)
class Obstacle:
    """A foreign firewall that may refuse guests and is not ours to write to, and what to do."""

    where: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Unavailable:
    """An address that must not be taken: the host `mac` has it, or, None, that is being asked."""

    address: IPv4Address
    mac: str | None = None


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An entry of the neighbour table on a bridge. `age` is the time since it was confirmed, in s.

    A `fresh` one is known to be right: confirmed lately, or just being asked.
    """

    ifname: str
    address: IPv4Address
    mac: str
    age: float = 0.0
    fresh: bool = True


@dataclass(frozen=True, slots=True, order=True)
class Allocation:
    """An external address that a guest was given, or was the first to claim; kept over restarts."""

    external: IPv4Address
    uuid: str
    network: str
    origin: Origin


@dataclass(frozen=True)
class Observed:
    """Everything read from the kernel in one look.

    `uplink` is the interface that carries external addresses: None when there is none.
    `ports` has the bridge ports, by the guest address seen behind each, and `hairpins` every
    port with the hairpin flag set, `hairpins_set` those where this process set it.
    `bridge_netfilter` is true when bridged IPv4 frames pass the
    IP hooks. `contested` has the external addresses that may not be taken on the uplink; where
    `asked` is not None, neither may one that is not in there, before the LAN was asked for it.
    `routers` are the next hops of the default routes. `neighbours` are those on bridges.
    `allocations` are the recorded ones, `recorded` is false where they are in memory only.
    `flushed` has the translations that this process has freed of flows from before them; None
    where that is no business of this process.
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
    allocations: frozenset[Allocation] = frozenset()
    recorded: bool = True
    obstacles: tuple[Obstacle, ...] = ()
    flushed: frozenset[Translation] | None = None

    def translated(self, external: IPv4Address) -> IPv4Address | None:
        """The guest's address that the kernel translates an external one to."""
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
        """The addresses that are not ours, by the address alone."""
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


class MappingState(StrEnum):
    """What `status` says of a mapping; the values are part of its JSON."""

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
    """What became of one mapping, and why it is not active where it is not.

    `cause` classifies `reason`, which says it in full; None where the state is active.
    """

    mapping: Mapping
    state: MappingState
    reason: str = ""
    cause: Cause | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Unmapped:
    """A guest that should have a mapping and has none, and why; `external` as it was written."""

    domain: str
    network: str
    reason: str
    external: str | None = None
    origin: Origin = Origin.METADATA


@dataclass(frozen=True, slots=True)
class Desired:
    """What the kernel should hold: the same types as `Observed`, complete and exact.

    `claims` are the external addresses that are wanted, also those that another host has.
    `doubtful` are neighbours that the kernel should ask whether they are there, since their guest
    has shown another address.
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
        """All of it that the kernel holds, to compare."""
        return self.addresses, self.elements, self.fwmark, self.hairpins

    @property
    def active(self) -> tuple[Mapping, ...]:
        """The mappings that translate packets."""
        return tuple(s.mapping for s in self.statuses if s.state is MappingState.ACTIVE)
