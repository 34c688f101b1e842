"""One pass: observe, plan, apply, verify. Nothing is kept from one pass to the next."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Protocol

from vm_onetoone_nat.decide.desired import Refused, desire, mapping_elements, without
from vm_onetoone_nat.decide.host_writes import RecordAllocations
from vm_onetoone_nat.decide.plan import Plan, plan, removal
from vm_onetoone_nat.decide.uplink import shown
from vm_onetoone_nat.decide.writes import About, StoreWrite
from vm_onetoone_nat.errors import KernelError, LibvirtUnavailable, StoreError, TransactionRefused
from vm_onetoone_nat.model.configuration import Configuration
from vm_onetoone_nat.model.desired import Desired
from vm_onetoone_nat.model.family import IPAddress
from vm_onetoone_nat.model.guests import Guests
from vm_onetoone_nat.model.host import Address, Observed
from vm_onetoone_nat.model.mapping import Mapping
from vm_onetoone_nat.model.nat_table import Translation
from vm_onetoone_nat.model.status import MappingState, MappingStatus
from vm_onetoone_nat.model.store import Allocation, Stored


class KernelSide(Protocol):
    """What a pass needs of the kernel; the real one is in `kernel/kernel`."""

    def observe(self, configuration: Configuration) -> Observed: ...
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
    observed = kernel.observe(configuration)
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
    hold: Callable[[Plan], Plan] = lambda plan: plan,
) -> Outcome:
    """One pass. Raises KernelError if the kernel cannot be observed.

    The desired state is computed once: a change during the pass has its own event, and is not a
    failure of this pass. `hold` removes from a plan the writes that are held back.
    """
    before = look(configuration, source, kernel, store)
    outcome = _write(configuration, kernel, store, before, hold)
    kernel.probe(configuration, outcome.look.observed, before.desired)
    return outcome


def _write(
    configuration: Configuration,
    kernel: KernelSide,
    store: StoreSide,
    before: Look,
    hold: Callable[[Plan], Plan],
) -> Outcome:
    """Write the plan. An allocation is recorded before the kernel holds its address, and the kernel
    is written also if that fails.
    """
    planned = hold(before.plan)
    if not planned:
        return Outcome(before)
    written: tuple[Plan, ...] = (planned,)
    failures = _record(planned, store)
    desired = before.desired
    try:
        kernel.apply(planned)
    except TransactionRefused as error:
        failures.append(str(error))
        installed = _install_singly(configuration, kernel, before)
        recorded = Plan(tuple(w for w in planned.writes if isinstance(w, StoreWrite)))
        written = (recorded, *installed.written) if recorded else installed.written
        refused = installed.refused
        failures += [f"mapping {external}: {reason}" for external, reason in refused.items()]
        failures += installed.failures
        desired = without(desired, refused, before.observed)
    except KernelError as error:
        failures.append(str(error))
    observed = kernel.observe(configuration)
    unrecorded = _unrecorded(desired, store.observe())
    after = Look(observed, desired, plan(observed, desired, unrecorded), before.guests)
    left = hold(after.plan)
    if left and not failures:
        failures.append(f"the kernel changed during the pass: {left.writes[0]}")
    return Outcome(after, written, tuple(failures))


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


@dataclass(frozen=True, slots=True)
class _Installed:
    """What was written, the reason for each refused mapping, and failures of no single mapping."""

    written: tuple[Plan, ...] = ()
    refused: Refused = field(default_factory=dict)
    failures: tuple[str, ...] = ()


_Attempt = Callable[[frozenset[IPAddress], Refused], tuple[Plan, ...]]
"""Writes the plan without the mappings that wait and those that are refused; returns what was
written. Raises KernelError."""


def _install_singly(configuration: Configuration, kernel: KernelSide, before: Look) -> _Installed:
    """Write what the kernel accepts; find by bisection the mappings for which it refuses the rest.

    First everything is written but the mappings that lack a part; these keep their addresses and
    connections meanwhile.
    """
    attempt = partial(_attempt, configuration, kernel, before)
    lacking = tuple(sorted((m.external for m in _lacking(before)), key=int))
    try:
        written = attempt(frozenset(lacking), {})
    except KernelError as error:
        # No mapping is at fault: no part of the ruleset can be written now.
        return _Installed(refused=dict.fromkeys(lacking, str(error)))
    if not lacking:
        return _Installed(written)
    found = _bisect(attempt, lacking, frozenset(), {})
    written += found.written
    try:
        # Remove what the kernel still has of the refused mappings.
        return _Installed(written + attempt(frozenset(), found.refused), found.refused)
    except KernelError as error:
        return _Installed(written, found.refused, (str(error),))


def _bisect(
    attempt: _Attempt,
    tried: tuple[IPAddress, ...],
    later: frozenset[IPAddress],
    refused: Refused,
) -> _Installed:
    """Install the mappings `tried`, or else each half of them, while those of `later` wait.

    Returns `refused` with those of `tried` that the kernel refuses.
    """
    try:
        return _Installed(attempt(later, refused), refused)
    except KernelError as error:
        if len(tried) == 1:
            return _Installed(refused={**refused, tried[0]: str(error)})
    half = len(tried) // 2
    first = _bisect(attempt, tried[:half], later.union(tried[half:]), refused)
    second = _bisect(attempt, tried[half:], later, first.refused)
    return _Installed(first.written + second.written, second.refused)


def _attempt(
    configuration: Configuration,
    kernel: KernelSide,
    before: Look,
    waiting: frozenset[IPAddress],
    refused: Refused,
) -> tuple[Plan, ...]:
    """An `_Attempt`, for the first three arguments. Mappings that wait keep what they have."""
    absent = {**dict.fromkeys(waiting, "not tried yet"), **refused}
    desired = without(before.desired, absent, before.observed)
    planned = plan(kernel.observe(configuration), desired)
    planned = Plan(tuple(w for w in planned.writes if w.adds or _external(w.about) not in waiting))
    if not planned:
        return ()
    kernel.apply(planned)
    return (planned,)


def _external(about: About) -> IPAddress | None:
    """The external address that a write is about, if it is an address or a translation."""
    match about:
        case Address():
            return about.interface.ip
        case Translation():
            return about.external
    return None
