"""The three sides of a pass, and what it needs of them. Pure."""

from collections.abc import Set
from dataclasses import dataclass
from typing import Protocol

from vm_onetoone_nat.decide.hold import hold_back
from vm_onetoone_nat.decide.plan import Plan
from vm_onetoone_nat.decide.writes import WritesFailed
from vm_onetoone_nat.model.configuration import Configuration
from vm_onetoone_nat.model.desired import Desired
from vm_onetoone_nat.model.guests import Guests
from vm_onetoone_nat.model.host import Observed
from vm_onetoone_nat.model.store import Allocation, Stored


class KernelSide(Protocol):
    """What a pass needs of the kernel; the real one is in `kernel/kernel`.

    `observe` raises KernelError; it looks up the bridge ports of guests, whose MACs are `macs`, and
    of what is translated already. `apply` writes a plan in its order. It raises WritesFailed after
    it has made all writes that neither failed nor depend on one that did, or TransactionRefused:
    then nothing after the transaction has been written.
    """

    def observe(self, configuration: Configuration, macs: Set[str] = frozenset()) -> Observed: ...
    def apply(self, plan: Plan) -> None: ...
    def probe(self, configuration: Configuration, seen: Observed, desired: Desired) -> None: ...


class GuestSide(Protocol):
    """What a pass needs of libvirt; the real ones are in `virt/source` and `virt/once`."""

    def observe(self) -> Guests: ...


class StoreSide(Protocol):
    """What a pass needs of what is remembered between runs; the real one is in `store/file`.

    `observe` has what was recorded last, also if `record` raised StoreError: then it is in memory,
    and not `recorded`. What cannot be read counts as nothing.
    """

    def observe(self) -> Stored: ...
    def record(self, allocations: frozenset[Allocation]) -> None: ...


@dataclass(frozen=True, slots=True)
class Written:
    """What was written to the kernel, plan by plan, and what failed."""

    plans: tuple[Plan, ...] = ()
    failures: tuple[str, ...] = ()

    def __add__(self, other: "Written") -> "Written":
        return Written(self.plans + other.plans, self.failures + other.failures)


@dataclass(frozen=True, slots=True)
class KernelOfPass:
    """The kernel in one pass, in which the writes of the keys `held` are not made."""

    configuration: Configuration
    kernel: KernelSide
    held: Set[str]

    def observe(self) -> Observed:
        """Raises KernelError."""
        return self.kernel.observe(self.configuration)

    def possible(self, planned: Plan, observed: Observed) -> Plan:
        """What may be written of a plan."""
        return hold_back(planned, self.held, observed)

    def apply(self, planned: Plan) -> Written:
        """Write it. Raises TransactionRefused."""
        if not planned:
            return Written()
        try:
            self.kernel.apply(planned)
        except WritesFailed as error:
            made = Plan(tuple(write for write in planned.writes if write not in error.writes))
            return Written((made,) if made else (), (str(error),))
        return Written((planned,))
