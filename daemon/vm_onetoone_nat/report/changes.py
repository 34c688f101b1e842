"""The reason for each write of a plan, as text. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import singledispatchmethod

from vm_onetoone_nat.decide.reconcile import Look
from vm_onetoone_nat.decide.writes import OurTable, Write
from vm_onetoone_nat.model.family import address
from vm_onetoone_nat.model.host import Address, ChainName
from vm_onetoone_nat.model.nat_table import Element, Translation
from vm_onetoone_nat.model.status import MappingState, MappingStatus


@dataclass(frozen=True, slots=True)
class Change:
    """A write as `plan` shows it, `+` for an addition and `-` for a removal, and its reason."""

    change: str
    why: str


def changes(seen: Look) -> tuple[Change, ...]:
    """Every write of the plan, in the order of application."""
    reasons = _Reasons(seen)
    return tuple(Change(str(write), reasons.of(write)) for write in seen.plan.writes if write.shown)


def render_changes(found: Iterable[Change]) -> list[str]:
    """The changes as lines, grouped by reason."""
    by_reason: dict[str, list[str]] = {}
    for change in found:
        by_reason.setdefault(change.why, []).append(change.change)
    return [line for why, lines in by_reason.items() for line in (f"{why}:", *lines)]


class _Reasons:
    def __init__(self, seen: Look) -> None:
        self._seen = seen
        statuses = seen.desired.statuses
        self._by_external = {s.mapping.external: s for s in statuses}
        self._by_internal = {s.mapping.internal: s for s in statuses if s.mapping.internal}

    def of(self, write: Write) -> str:
        return self._why(write.about, write.adds)

    @singledispatchmethod
    def _why(self, about: object, adds: bool) -> str:
        raise TypeError(about)

    @_why.register
    def _(self, about: str, adds: bool) -> str:
        return about

    @_why.register
    def _(self, about: Address, adds: bool) -> str:
        return self._mapping(self._by_external.get(about.interface.ip), adds)

    @_why.register
    def _(self, about: Translation, adds: bool) -> str:
        return self._mapping(self._by_external.get(about.external), adds)

    @_why.register
    def _(self, about: ChainName, adds: bool) -> str:
        if adds:
            return f"chain {about} would refuse guests"
        return f"chain {about} needs one rule of ours, at its head"

    @_why.register
    def _(self, about: OurTable, adds: bool) -> str:
        observed = self._seen.observed.table
        if observed is None:
            return "our table does not exist"
        if observed.fwmark not in (None, self._seen.desired.fwmark):
            return "'settings.fwmark' has changed"
        if observed.persistent != self._seen.observed.persistent:
            return "our table has to have an owner, so that no other program can change it"
        return "another program changed our table"

    @_why.register
    def _(self, about: Element, adds: bool) -> str:
        container = about.container
        if container.why:
            return container.why
        known = self._by_external if container.by_external else self._by_internal
        return self._mapping(known.get(address(about.key[0])), adds)

    def _mapping(self, status: MappingStatus | None, adds: bool) -> str:
        if status is None:
            return "no mapping needs it any more"
        mapping = status.mapping
        name = mapping.subject
        if status.state is not MappingState.ACTIVE:
            return f"{name} is {status.state.value}, {status.reason}"
        if adds:
            return f"{name} gets {mapping.external}"
        return f"the mapping of {name} is {mapping.external} to {mapping.internal}"
