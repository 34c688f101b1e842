"""A mapping: one external address for one guest.

A class with its own `__hash__` hashes integers, since ipaddress hashes by way of text. Pure.
"""

from dataclasses import dataclass
from enum import StrEnum

from vm_onetoone_nat.model.family import IPAddress, IPNetwork

ICMP = "icmp"
"""The protocol of a service: ICMP of the mapping's family."""


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

    external: IPAddress
    network: str
    prefixlen: int | None = None
    internal: IPAddress | None = None
    domain: str | None = None
    mac: str | None = None
    allow: tuple[AllowedService, ...] | None = None
    allowed_sources: tuple[IPNetwork, ...] | None = None
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

        An address that is written with a prefix of all its bits is a subnet of its own, and is
        added as such: it lies anywhere, as at hosters that route further addresses to a server.
        """
        return self.prefixlen is None or self.prefixlen != self.external.max_prefixlen

    def __hash__(self) -> int:
        return hash((int(self.external), self.network, self.domain))
