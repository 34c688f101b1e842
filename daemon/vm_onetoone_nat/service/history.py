"""What `status` and `metrics` show of past passes; no decision depends on it. Pure."""

from collections.abc import Mapping as ReadOnly
from dataclasses import dataclass, field, replace

from vm_onetoone_nat.decide.reconcile import Outcome
from vm_onetoone_nat.decide.writes import StoreWrite
from vm_onetoone_nat.model.family import IPAddress
from vm_onetoone_nat.model.status import MappingState
from vm_onetoone_nat.model.traffic import Counters
from vm_onetoone_nat.model.trigger import Triggers, kinds
from vm_onetoone_nat.report.report import BOUNDS, Passes, Report, Running, mapped, unmapped

_Subject = tuple[IPAddress, str | None]
"""The identity of a mapping: its external address and its guest."""


@dataclass(frozen=True, slots=True)
class _Moment:
    """All that `report` reads. Replaced as a whole, since another thread reads it."""

    outcome: Outcome | None = None
    since: tuple[tuple[_Subject, MappingState, float], ...] = ()
    passes: Passes = field(default_factory=Passes)


class History:
    """Written by the thread that reconciles, after each pass; read from any thread.

    Times are in seconds, of one monotonic clock.
    """

    def __init__(self, now: float) -> None:
        self._started = now
        self._moment = _Moment()
        self._held: tuple[object, ...] | None = None

    def passed(self, began: float, now: float, triggers: Triggers, outcome: Outcome) -> None:
        """Record a pass that observed the kernel; it may have failed later."""
        desired = outcome.look.desired
        again = bool(outcome.written) and self._held == desired.content
        self._held = None if outcome.failures else desired.content
        passes = self._timed(now - began, failed=bool(outcome.failures))
        writes = [write for plan in outcome.written for write in plan.writes]
        if any(not isinstance(write, StoreWrite) for write in writes):
            passes = replace(passes, wrote=passes.wrote + 1)
            if again and any(write.restores for write in writes):
                passes = replace(passes, repairs=_counted(passes.repairs, triggers))
        known = {(subject, state): at for subject, state, at in self._moment.since}
        since = []
        for status in outcome.statuses:
            subject = status.mapping.external, status.mapping.domain
            at = known.get((subject, status.state), now)
            since.append((subject, status.state, at))
        self._moment = _Moment(outcome, tuple(since), passes)

    def failed(self, began: float, now: float) -> None:
        """Record a pass that did not come to an outcome."""
        self._moment = replace(self._moment, passes=self._timed(now - began, failed=True))

    def report(
        self,
        now: float,
        pid: int,
        version: str,
        counters: Counters | None,
        internal_errors: ReadOnly[str, int],
    ) -> Report | None:
        """The state after the last pass that observed it; None before the first."""
        moment = self._moment
        if moment.outcome is None:
            return None
        running = Running(pid, version, now - self._started, moment.passes, internal_errors)
        look = moment.outcome.look
        entries = [
            mapped(status, now - at, counters)
            for status, (_, _, at) in zip(moment.outcome.statuses, moment.since, strict=True)
        ]
        entries += [unmapped(guest) for guest in look.desired.unmapped]
        return Report(look.uplink_name, look.libvirt, tuple(entries), running)

    def _timed(self, seconds: float, *, failed: bool) -> Passes:
        passes = self._moment.passes
        return replace(
            passes,
            total=passes.total + 1,
            failed=passes.failed + failed,
            seconds=passes.seconds + seconds,
            within=tuple(
                count + (seconds <= bound)
                for count, bound in zip(passes.within, BOUNDS, strict=True)
            ),
        )


def _counted(repairs: ReadOnly[str, int], triggers: Triggers) -> dict[str, int]:
    """Count one repair for each label of the triggers."""
    labels = {kind.label for kind in kinds(triggers)}
    return {each: repairs.get(each, 0) + (each in labels) for each in sorted({*repairs, *labels})}
