"""One pass: observe, plan, apply, verify. Only `Search` is kept from one pass to the next."""

from dataclasses import dataclass
from functools import cached_property

from vm_onetoone_nat.decide.bisect import Limits, Search
from vm_onetoone_nat.decide.desired import desire, mapping_elements, without
from vm_onetoone_nat.decide.hold import withdrawals
from vm_onetoone_nat.decide.host_writes import RecordAllocations
from vm_onetoone_nat.decide.plan import Plan, plan, removal
from vm_onetoone_nat.decide.sides import GuestSide, KernelOfPass, KernelSide, StoreSide, Written
from vm_onetoone_nat.decide.uplink import shown
from vm_onetoone_nat.decide.writes import StoreWrite
from vm_onetoone_nat.errors import KernelError, LibvirtUnavailable, StoreError, TransactionRefused
from vm_onetoone_nat.model.configuration import Configuration
from vm_onetoone_nat.model.desired import Desired
from vm_onetoone_nat.model.family import IPAddress
from vm_onetoone_nat.model.guests import Guests
from vm_onetoone_nat.model.host import Address, Observed
from vm_onetoone_nat.model.mapping import Mapping
from vm_onetoone_nat.model.status import MappingState, MappingStatus
from vm_onetoone_nat.model.store import Allocation, Stored


@dataclass(frozen=True, slots=True)
class Look:
    """All sides as observed once, and the plan that follows."""

    observed: Observed
    desired: Desired
    plan: Plan
    guests: Guests | None

    @property
    def libvirt(self) -> bool:
        """Whether libvirt answers, about guests and about networks."""
        guests = self.guests
        return guests is not None and guests.current and guests.networks_current

    @property
    def uplink_name(self) -> str:
        """The uplink's name; empty if there is none."""
        return shown(self.observed)


@dataclass(frozen=True)
class Outcome:
    """What a pass did. `failures` is empty if the kernel now holds the desired state."""

    look: Look
    written: tuple[Plan, ...] = ()
    failures: tuple[str, ...] = ()

    @cached_property
    def statuses(self) -> tuple[MappingStatus, ...]:
        """The status of each mapping after the pass."""
        return settled(self.look)


def look(
    configuration: Configuration, source: GuestSide, kernel: KernelSide, store: StoreSide
) -> Look:
    """Observe and plan; writes nothing. Raises KernelError."""
    try:
        guests = source.observe()
    except LibvirtUnavailable:
        guests = None
    observed = kernel.observe(configuration, guests.macs if guests is not None else frozenset())
    stored = store.observe()
    desired = desire(configuration, guests, observed, stored)
    return Look(observed, desired, plan(observed, desired, _unrecorded(desired, stored)), guests)


def _unrecorded(desired: Desired, stored: Stored) -> frozenset[Allocation] | None:
    """The allocations to record; None if the store has them."""
    same = stored.recorded and desired.allocations == stored.allocations
    return None if same else desired.allocations


def reconcile(
    configuration: Configuration,
    source: GuestSide,
    kernel: KernelSide,
    store: StoreSide,
    limits: Limits | None = None,
) -> Outcome:
    """One pass. Raises KernelError if the kernel cannot be observed.

    The desired state is computed once: a change during the pass has its own event, and is not a
    failure of this pass. The search of `limits` is kept from one pass to the next.
    """
    before = look(configuration, source, kernel, store)
    limits = limits or Limits()
    of_pass = KernelOfPass(configuration, kernel, limits.held)
    outcome = _write(of_pass, store, before, limits.search)
    kernel.probe(configuration, outcome.look.observed, before.desired)
    return outcome


def _write(kernel: KernelOfPass, store: StoreSide, before: Look, search: Search) -> Outcome:
    """Write the plan. An allocation is recorded before the kernel holds its address, and the kernel
    is written also if that fails.
    """
    planned = kernel.possible(before.plan, before.observed)
    if not planned:
        return Outcome(before)
    failures = _record(planned, store)
    desired = before.desired
    try:
        written = kernel.apply(planned)
    except TransactionRefused as error:
        recorded = Plan(tuple(w for w in planned.writes if isinstance(w, StoreWrite)))
        written, refused = search.install(kernel, desired, before.observed, _externals(before))
        written = Written((recorded,) if recorded else (), (str(error),)) + written
        desired = without(desired, refused, before.observed)
    else:
        search.forget()
    if written.failures:
        written += _withdraw(kernel)
    failures += written.failures
    observed = kernel.observe()
    unrecorded = _unrecorded(desired, store.observe())
    after = Look(observed, desired, plan(observed, desired, unrecorded), before.guests)
    left = kernel.possible(after.plan, observed)
    if left and not failures:
        failures.append(f"the kernel changed during the pass: {left.writes[0]}")
    return Outcome(after, written.plans, tuple(failures))


def _withdraw(kernel: KernelOfPass) -> Written:
    """Delete the addresses whose translation could not be written."""
    try:
        return kernel.apply(Plan(tuple(withdrawals(kernel.observe()))))
    except TransactionRefused as error:
        # Addresses are deleted before the transaction.
        return Written(failures=(str(error),))


def _record(planned: Plan, store: StoreSide) -> list[str]:
    """Record the allocations of a plan; return the failure, if any."""
    failures = []
    for write in planned.writes:
        if isinstance(write, RecordAllocations):
            try:
                store.record(write.allocations)
            except StoreError as error:
                failures.append(str(error))
    return failures


def remove(fwmark: int, kernel: KernelSide) -> Plan:
    """Remove all that is ours, from any state; return what was removed. Raises KernelError."""
    observed = kernel.observe(Configuration(fwmark=fwmark))
    planned = removal(observed, fwmark)
    if planned:
        kernel.apply(planned)
        left = removal(kernel.observe(Configuration(fwmark=fwmark)), fwmark)
        if left:
            raise KernelError(f"not everything could be removed: {left.writes[0]}")
    return planned


def _externals(seen: Look) -> tuple[IPAddress, ...]:
    """The external addresses of the active mappings of which the kernel lacks a part."""
    return tuple(sorted((m.external for m in _lacking(seen)), key=int))


def settled(seen: Look) -> tuple[MappingStatus, ...]:
    """The statuses, with an error for each active mapping of which the kernel lacks a part."""
    if not seen.plan:
        return seen.desired.statuses
    general = next((w for w in seen.plan.writes if w.lacked_by_all), None)
    first = general or next((w for w in seen.plan.writes if w.cause is not None), None)
    if first is None:
        return seen.desired.statuses
    lacking = {m.external for m in (seen.desired.active if general else _lacking(seen))}
    return tuple(
        MappingStatus(s.mapping, MappingState.ERROR, first.reason, first.cause)
        if s.state is MappingState.ACTIVE and s.mapping.external in lacking
        else s
        for s in seen.desired.statuses
    )


def _lacking(seen: Look) -> tuple[Mapping, ...]:
    """The active mappings of which the plan has to add a part."""
    added = {write.about for write in seen.plan.writes if write.adds}
    addresses = {about.interface.ip for about in added if isinstance(about, Address)}
    return tuple(
        m
        for m in seen.desired.active
        if m.external in addresses or not added.isdisjoint(mapping_elements(m))
    )
