"""What the kernel should hold. Pure."""

from dataclasses import dataclass

from vm_onetoone_nat.model.family import IPAddress
from vm_onetoone_nat.model.guests import Guests
from vm_onetoone_nat.model.host import Address, Neighbour, Observed
from vm_onetoone_nat.model.mapping import Mapping
from vm_onetoone_nat.model.nat_table import Element
from vm_onetoone_nat.model.status import MappingState, MappingStatus, Unmapped
from vm_onetoone_nat.model.store import Allocation, Stored


@dataclass(frozen=True, slots=True)
class Sides:
    """What libvirt, the kernel and the store have, read for one pass."""

    guests: Guests
    observed: Observed
    stored: Stored


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
    addresses: tuple[Address, ...]
    elements: frozenset[Element]
    fwmark: int
    hairpins: frozenset[str]
    wanted: frozenset[IPAddress] = frozenset()
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
