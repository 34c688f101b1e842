"""One pass: observe, plan, apply, verify. Nothing is kept from one pass to the next."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from ipaddress import IPv4Address
from typing import Protocol

from vm_onetoone_nat.desired import desire, mapping_elements, without
from vm_onetoone_nat.errors import KernelError, LibvirtUnavailable, StoreError, TransactionRefused
from vm_onetoone_nat.plan import Plan, describe, plan, removal
from vm_onetoone_nat.state import (
    Allocation,
    Cause,
    Configuration,
    Desired,
    Guests,
    Mapping,
    MappingState,
    MappingStatus,
    Observed,
    Stored,
)


class KernelSide(Protocol):
    """What a pass needs of the kernel; the real one is `kernel.Kernel`."""

    def observe(self, configuration: Configuration) -> Observed: ...
    def apply(self, plan: Plan) -> None: ...
    def probe(self, configuration: Configuration, seen: Observed, desired: Desired) -> None: ...


class GuestSide(Protocol):
    """What a pass needs of libvirt; the real ones are in `libvirt_source`."""

    def observe(self) -> Guests: ...


class StoreSide(Protocol):
    """What a pass needs of what is remembered between runs; the real one is `store.FileStore`.

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
        """Whether libvirt answers."""
        return self.guests is not None and self.guests.current


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
    written = [planned]
    failures = _record(planned, store)
    desired = before.desired
    try:
        kernel.apply(planned)
    except TransactionRefused as error:
        failures.append(str(error))
        singly, refused = _install_singly(configuration, kernel, before)
        recorded = Plan(allocations=planned.allocations)
        written = [recorded, *singly] if recorded else singly
        failures += [f"mapping {external}: {reason}" for external, reason in refused.items()]
        desired = without(desired, refused, before.observed)
    except KernelError as error:
        failures.append(str(error))
    observed = kernel.observe(configuration)
    unrecorded = _unrecorded(desired, store.observe())
    after = Look(observed, desired, plan(observed, desired, unrecorded), before.guests)
    left = hold(after.plan)
    if left and not failures:
        failures.append(f"the kernel changed during the pass: {describe(left)[0]}")
    return Outcome(after, tuple(written), tuple(failures))


def _record(planned: Plan, store: StoreSide) -> list[str]:
    """Record the allocations of a plan; return the failure, if any."""
    if planned.allocations is not None:
        try:
            store.record(planned.allocations)
        except StoreError as error:
            return [str(error)]
    return []


def remove(fwmark: int, kernel: KernelSide) -> Plan:
    """Remove all that is ours, from any state; return what was removed. Raises KernelError."""
    observed = kernel.observe(Configuration(fwmark=fwmark))
    planned = removal(observed, fwmark)
    if planned:
        kernel.apply(planned)
        left = removal(kernel.observe(Configuration(fwmark=fwmark)), fwmark)
        if left:
            raise KernelError(f"not everything could be removed: {describe(left)[0]}")
    return planned


def settled(seen: Look) -> tuple[MappingStatus, ...]:
    """The statuses, with an error for each active mapping of which the kernel lacks a part."""
    if not seen.plan:
        return seen.desired.statuses
    lacking = {m.external for m in seen.desired.active}
    if seen.plan.enable_ip_forward:
        cause, reason = Cause.IP_FORWARD, "net.ipv4.ip_forward is off"
    elif seen.plan.transaction.insert_accepts:
        chain, _ = seen.plan.transaction.insert_accepts[0]
        reason = f"the rule that admits guests is not at the head of chain {chain}"
        cause = Cause.ACCEPT_MISSING
    else:
        lacking = {m.external for m in _lacking(seen)}
        cause, reason = Cause.RULES_MISSING, "the kernel lacks a part of it: see 'plan'"
        if not seen.plan.transaction:
            cause = Cause.EXTERNAL_MISSING
    return tuple(
        MappingStatus(s.mapping, MappingState.ERROR, reason, cause)
        if s.state is MappingState.ACTIVE and s.mapping.external in lacking
        else s
        for s in seen.desired.statuses
    )


def _lacking(seen: Look) -> tuple[Mapping, ...]:
    """The active mappings of which the plan has to add a part."""
    addresses = {a.interface.ip for a in seen.plan.add_addresses}
    elements = set(seen.plan.transaction.add_elements)
    if not addresses and not elements:
        return ()
    return tuple(
        m
        for m in seen.desired.active
        if m.external in addresses or not elements.isdisjoint(mapping_elements(m))
    )


def _install_singly(
    configuration: Configuration, kernel: KernelSide, before: Look
) -> tuple[list[Plan], dict[IPv4Address, str]]:
    """Write what the kernel accepts; find by bisection the mappings for which it refuses the rest.

    First everything is written but the mappings that lack a part; these keep their addresses and
    connections meanwhile. Returns what was written, and the reason for each refused mapping.
    """
    waiting = {m.external for m in _lacking(before)}
    written: list[Plan] = []
    refused: dict[IPv4Address, str] = {}

    def attempt() -> None:
        held = dict.fromkeys(waiting, "not tried yet")
        desired = without(before.desired, held | refused, before.observed)
        planned = plan(kernel.observe(configuration), desired)
        planned = replace(
            planned,
            delete_addresses=tuple(
                a for a in planned.delete_addresses if a.interface.ip not in waiting
            ),
            flush_translated=tuple(
                t for t in planned.flush_translated if t.external not in waiting
            ),
        )
        if planned:
            kernel.apply(planned)
            written.append(planned)

    def install(tried: list[IPv4Address]) -> None:
        waiting.difference_update(tried)
        try:
            attempt()
        except (TransactionRefused, KernelError) as error:
            if len(tried) == 1:
                refused[tried[0]] = str(error)
                return
            waiting.update(tried)
            half = len(tried) // 2
            install(tried[:half])
            install(tried[half:])

    lacking = sorted(waiting)
    try:
        attempt()
    except (TransactionRefused, KernelError) as error:
        # No mapping is at fault: no part of the ruleset can be written now.
        return written, dict.fromkeys(lacking, str(error))
    if lacking:
        install(lacking)
        attempt()
    return written, refused
