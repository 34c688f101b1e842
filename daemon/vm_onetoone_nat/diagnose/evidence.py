"""The input of `steps`: all that is known about one mapping. Pure."""

from dataclasses import dataclass
from enum import StrEnum

from vm_onetoone_nat.decide.reconcile import Look
from vm_onetoone_nat.decide.uplink import carrier
from vm_onetoone_nat.diagnose.hooks import Obstruction
from vm_onetoone_nat.model.family import IPAddress
from vm_onetoone_nat.model.guests import Network
from vm_onetoone_nat.model.host import ChainName, Uplink
from vm_onetoone_nat.model.mapping import Mapping
from vm_onetoone_nat.model.status import MappingStatus
from vm_onetoone_nat.model.traffic import Tracked, Traffic


class Daemon(StrEnum):
    """Whether the daemon answers at its socket."""

    RUNNING = "running"
    SILENT = "silent"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers of the guest and of hosts on the LAN.

    `conflicts`: MACs that answer ARP for the external address on the LAN. `guest`: MACs that answer
    for the internal address on the bridge. `near`: the guest answers the bridge's own address.
    `far`: it answers an address behind its gateway. `router`: the router answers; None if the LAN
    has none. `neighbours`: other hosts of the LAN that were probed, and whether each answered.
    """

    conflicts: frozenset[str] = frozenset()
    guest: frozenset[str] = frozenset()
    near: bool = False
    far: bool = False
    router: bool | None = None
    neighbours: tuple[tuple[IPAddress, bool], ...] = ()


@dataclass(frozen=True, slots=True)
class Sysctls:
    """Settings below /proc/sys/net, of the interfaces of the path.

    `strict`: interfaces with a strict reverse path filter. `unrouted`: interfaces that do not
    forward. `arp_ignore`: that of the uplink.
    """

    strict: frozenset[str] = frozenset()
    unrouted: tuple[str, ...] = ()
    arp_ignore: int = 0
    tracking_full: bool = False


@dataclass(frozen=True, slots=True)
class Routes:
    """The interfaces through which the host sends to the guest and to a host of the LAN."""

    to_guest: str | None
    lan_host: IPAddress | None
    to_lan: str | None


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is known about one mapping. The optional parts need an active mapping.

    `off_bridge` is the guest's tap device if it is not a port of the network's bridge.
    `unreadable`: chains of other programs that cannot be listed.
    `libvirt_units` are those that manage guests and networks here.
    """

    look: Look
    status: MappingStatus
    daemon: Daemon
    reloaded: bool
    guest_macs: frozenset[str]
    plugged: bool
    off_bridge: str | None
    elsewhere: tuple[IPAddress, ...]
    uplink_runs: bool
    wireless: bool
    sysctls: Sysctls
    libvirt_units: str = "libvirtd"
    answers: Answers | None = None
    routes: Routes | None = None
    obstructions: tuple[Obstruction, ...] = ()
    unreadable: tuple[ChainName, ...] = ()
    tracked: Tracked | None = None
    traffic: tuple[Traffic, Traffic] | None = None

    @property
    def mapping(self) -> Mapping:
        """The mapping."""
        return self.status.mapping

    @property
    def uplink(self) -> Uplink | None:
        """The uplink that carries its external address."""
        return carrier(self.mapping, self.look.observed)

    @property
    def network(self) -> Network | None:
        """Its network, as libvirt has it."""
        guests = self.look.guests
        return guests.network(self.mapping.network) if guests is not None else None
