"""The kinds of writes outside nftables: addresses, hairpin flags, settings, connections. Pure."""

from dataclasses import dataclass

from vm_onetoone_nat.decide.writes import About, Order, StoreWrite, Write
from vm_onetoone_nat.model.family import IPV4, Family, IPAddress
from vm_onetoone_nat.model.host import Address
from vm_onetoone_nat.model.nat_table import HAIRPIN_REASON, Translation
from vm_onetoone_nat.model.status import Cause
from vm_onetoone_nat.model.store import Allocation


@dataclass(frozen=True, slots=True)
class RecordAllocations(StoreWrite):
    """Record all allocations, instead of the recorded ones."""

    allocations: frozenset[Allocation]
    order = Order.RECORD_ALLOCATIONS
    adds = True
    about = "guests keep their addresses over a restart"

    @property
    def words(self) -> str:
        return f"record of {len(self.allocations)} allocated addresses"


@dataclass(frozen=True, slots=True)
class EnableIpForward(Write):
    """Turn on forwarding of a family, for the whole host."""

    family: Family = IPV4
    order = Order.ENABLE_IP_FORWARD
    adds = True
    cause = Cause.IP_FORWARD
    lacked_by_all = True
    about = "without it the host forwards nothing"

    @property
    def words(self) -> str:
        return f"{self.key} = 1"

    @property
    def key(self) -> str:
        return f"sysctl {self.family.forwarding}"

    @property
    def reason(self) -> str:
        return f"{self.family.forwarding} is off"


@dataclass(frozen=True, slots=True)
class _AddressWrite(Write):
    """`part_of` is the key of the write that adds the address's translation."""

    address: Address
    part_of: str | None = None

    @property
    def words(self) -> str:
        return f"address {self.address}"

    @property
    def about(self) -> About:
        return self.address

    @property
    def key(self) -> str:
        return self.part_of or self.words


class DeleteAddress(_AddressWrite):
    """Delete an address of ours."""

    __slots__ = ()
    order = Order.DELETE_ADDRESS
    adds = False

    @property
    def inverse(self) -> Write:
        return AddAddress(self.address)


class AddAddress(_AddressWrite):
    """Add an address as ours."""

    __slots__ = ()
    order = Order.ADD_ADDRESS
    adds = True
    cause = Cause.EXTERNAL_MISSING

    @property
    def inverse(self) -> Write:
        return DeleteAddress(self.address)


@dataclass(frozen=True, slots=True)
class _HairpinWrite(Write):
    """`part_of` is the key of the write that records the port in our table."""

    port: str
    part_of: str | None = None
    about = HAIRPIN_REASON

    @property
    def words(self) -> str:
        return f"hairpin on bridge port {self.port}"

    @property
    def key(self) -> str:
        return self.part_of or self.words


class ClearHairpin(_HairpinWrite):
    """Clear the hairpin flag of a bridge port."""

    __slots__ = ()
    order = Order.CLEAR_HAIRPIN
    adds = False

    @property
    def inverse(self) -> Write:
        return SetHairpin(self.port)


class SetHairpin(_HairpinWrite):
    """Set the hairpin flag of a bridge port."""

    __slots__ = ()
    order = Order.SET_HAIRPIN
    adds = True

    @property
    def inverse(self) -> Write:
        return ClearHairpin(self.port)


@dataclass(frozen=True, slots=True)
class _FlushWrite(Write):
    """`part_of` is the key of the write that changes the translation."""

    translation: Translation
    part_of: str | None = None
    adds = False
    restores = False

    @property
    def about(self) -> About:
        return self.translation

    @property
    def key(self) -> str | None:
        return self.part_of


class FlushTranslated(_FlushWrite):
    """End the connections of a translation that is deleted."""

    __slots__ = ()
    order = Order.FLUSH_TRANSLATED

    @property
    def words(self) -> str:
        return f"connections of {self.translation.external} and {self.translation.internal}"


@dataclass(frozen=True, slots=True)
class FlushBypassing(_FlushWrite):
    """End the flows from before a translation, which bypass it.

    The guest's own leave with one of `host_sources`.
    """

    host_sources: frozenset[IPAddress] = frozenset()
    order = Order.FLUSH_BYPASSING
    shown = False

    @property
    def words(self) -> str:
        return f"flows that bypass {self.translation.external} and {self.translation.internal}"
