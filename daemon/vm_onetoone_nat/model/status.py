"""The state of a mapping, and why it is not active. Pure."""

from dataclasses import dataclass, field
from enum import StrEnum

from vm_onetoone_nat.model.mapping import Mapping, Origin


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
