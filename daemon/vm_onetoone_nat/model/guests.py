"""Guests and networks, as libvirt has them. Pure."""

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from vm_onetoone_nat.model.family import IPAddress, IPInterface
from vm_onetoone_nat.model.mapping import Mapping


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
    addresses: tuple[IPAddress, ...] = ()
    plugged: bool = True
    tap: str | None = None


@dataclass(frozen=True, slots=True)
class Domain:
    """A guest that libvirt knows.

    `claims` are the mappings in its metadata; their `network` is empty if they name none. `fault`
    is why its definition or metadata cannot be read, else empty. `unread`: reading its definition
    fails now, and what is here is of the one that was read last; of none, there is a `fault`.
    """

    name: str
    uuid: str
    state: DomainState
    interfaces: tuple[Interface, ...] = ()
    claims: tuple[Mapping, ...] = ()
    fault: str = ""
    unread: bool = False


@dataclass(frozen=True)
class Network:
    """A virtual network that libvirt knows. `gateways` are the addresses of its bridge.

    `reservations` and `leases` of its DHCP server are pairs of MAC and address; the latest lease
    comes first. `unreadable` are pairs of MAC, and why its reservation or lease cannot be read.
    `fault` is why its definition cannot be read, else empty. `unread` is as in `Domain`; whether a
    network is active that was never read is not known.
    """

    name: str
    active: bool
    bridge: str | None
    gateways: tuple[IPInterface, ...] = ()
    reservations: tuple[tuple[str, IPAddress], ...] = ()
    leases: tuple[tuple[str, IPAddress], ...] = ()
    unreadable: tuple[tuple[str, str], ...] = ()
    fault: str = ""
    unread: bool = False

    @cached_property
    def given(self) -> dict[IPAddress, str]:
        """The MAC of each address that the DHCP server has reserved or leased."""
        return {address: mac for mac, address in (*self.leases, *self.reservations)}


@dataclass(frozen=True)
class Guests:
    """What libvirt has, read at once; `current` is false if libvirt has disconnected since.

    `networks_current` is false if only the networks are those of an earlier time.
    """

    domains: tuple[Domain, ...] = ()
    networks: tuple[Network, ...] = ()
    current: bool = True
    networks_current: bool = True

    @property
    def unread(self) -> bool:
        """Whether reading some of these fails now, so that they are to be read again soon."""
        return any(d.unread for d in self.domains) or any(n.unread for n in self.networks)

    def network(self, name: str) -> Network | None:
        """The network of that name."""
        return self._networks.get(name)

    def domain(self, reference: str | None) -> Domain | None:
        """The domain of that name, or else the one with that UUID, as virsh resolves it."""
        if reference is None:
            return None
        return self._by_name.get(reference) or self._by_uuid.get(reference.lower())

    @cached_property
    def macs(self) -> frozenset[str]:
        """The MACs of all guests."""
        return frozenset(nic.mac for domain in self.domains for nic in domain.interfaces)

    @cached_property
    def _networks(self) -> dict[str, Network]:
        return {network.name: network for network in self.networks}

    @cached_property
    def _by_name(self) -> dict[str, Domain]:
        return {domain.name: domain for domain in self.domains}

    @cached_property
    def _by_uuid(self) -> dict[str, Domain]:
        return {domain.uuid: domain for domain in self.domains}
