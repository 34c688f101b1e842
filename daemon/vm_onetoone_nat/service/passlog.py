"""The log entries of a pass: what it changed, and each new state or failure once."""

import logging
from collections import Counter
from math import inf

from vm_onetoone_nat.decide.fights import Fight
from vm_onetoone_nat.decide.host_writes import EnableIpForward
from vm_onetoone_nat.decide.plan import describe
from vm_onetoone_nat.decide.reconcile import Outcome
from vm_onetoone_nat.decide.uplink import carrier
from vm_onetoone_nat.events import Event
from vm_onetoone_nat.journal import entry
from vm_onetoone_nat.model.family import IPV4
from vm_onetoone_nat.model.host import Obstacle, Uplink
from vm_onetoone_nat.model.mapping import AddressSource, Mapping
from vm_onetoone_nat.model.status import MappingState, MappingStatus, Unmapped
from vm_onetoone_nat.model.trigger import Triggers, texts

log = logging.getLogger(__name__)


class PassLog:
    """Logs passes. It keeps what it has logged, so that a converged pass logs nothing."""

    def __init__(self) -> None:
        self._obstacles = Obstacles()
        self._logged: dict[object, MappingStatus] = {}
        self._unmapped: tuple[Unmapped, ...] = ()
        self._uplink = ""
        self._failures: tuple[str, ...] = ()
        self._work_failure = ""

    def passed(self, now: float, outcome: Outcome, triggers: Triggers) -> None:
        """Log what a pass has changed, and what is new since the last one."""
        for written in outcome.written if log.isEnabledFor(logging.DEBUG) else ():
            for line in describe(written):
                log.debug("%s (%s)", line, texts(triggers))
        enabled = any(EnableIpForward() in plan.writes for plan in outcome.written)
        if enabled and outcome.look.observed.ip_forward:
            log.warning(
                "%s was off: turned on for the whole host",
                IPV4.forwarding,
                extra=entry(Event.IP_FORWARD_ENABLED),
            )
        for obstacle in self._obstacles.lasting(now, outcome.look.observed.obstacles):
            log.warning(
                "%s may refuse guests: %s",
                obstacle.where,
                obstacle.remedy,
                extra=entry(Event.FIREWALL_REFUSES, reason=obstacle.where),
            )
        uplink = outcome.look.uplink_name
        if uplink != self._uplink:
            log.info(
                "the uplink is %s",
                uplink or "gone",
                extra=entry(Event.UPLINK_CHANGED, uplink=uplink or None),
            )
            self._uplink = uplink
        for status in outcome.statuses:
            if self._logged.get(status.mapping) != status:
                _log_status(status, carrier(status.mapping, outcome.look.observed))
        self._logged = {status.mapping: status for status in outcome.statuses}
        for unmapped in outcome.look.desired.unmapped:
            if unmapped not in self._unmapped:
                _log_unmapped(unmapped)
        self._unmapped = outcome.look.desired.unmapped
        self.failed(outcome.failures)

    def failed(self, failures: tuple[str, ...]) -> None:
        """Log each failure once, not at every retry."""
        for failure in failures:
            if failure not in self._failures:
                log.error("%s", failure, extra=entry(Event.RECONCILE_FAILED, reason=failure))
        self._failures = failures

    def work_failed(self, failure: str) -> None:
        """Log why connections could not be flushed, once until they have been."""
        if failure != self._work_failure:
            log.error("%s", failure, extra=entry(Event.FLUSH_FAILED, reason=failure))
        self._work_failure = failure

    def work_done(self) -> None:
        """All have been flushed: the same failure is a new one."""
        self._work_failure = ""

    def fight(self, fight: Fight) -> None:
        """Log that another program undoes a write again and again."""
        rivals = "; ".join(fight.rivals) or "by an unknown program"
        log.warning(
            "%s is undone again and again (%s): repairs are delayed, by %g s at first",
            fight.what,
            rivals,
            fight.hold,
            extra=entry(Event.FIGHT, reason=f"{fight.what}: {rivals}"),
        )

    def next_look(self, now: float) -> float:
        """Seconds until a pass may have an obstacle to log; infinite if none is new."""
        return self._obstacles.next_look(now)


class Obstacles:
    """Which foreign firewalls to log: not those that exist for a moment only.

    firewalld drops all packets while it reloads.
    """

    LASTING_SECONDS = 2.0

    def __init__(self) -> None:
        self._since: dict[Obstacle, float] = {}
        self._logged: set[Obstacle] = set()

    def lasting(self, now: float, seen: tuple[Obstacle, ...]) -> tuple[Obstacle, ...]:
        """Those seen for LASTING_SECONDS, each returned once."""
        self._since = {obstacle: self._since.get(obstacle, now) for obstacle in seen}
        self._logged &= self._since.keys()
        lasting = tuple(
            obstacle
            for obstacle, since in self._since.items()
            if obstacle not in self._logged and now - since >= self.LASTING_SECONDS
        )
        self._logged.update(lasting)
        return lasting

    def next_look(self, now: float) -> float:
        """Seconds until the next may have lasted; infinite if none is new."""
        waiting = [s for obstacle, s in self._since.items() if obstacle not in self._logged]
        return max(0.0, min(waiting, default=inf) + self.LASTING_SECONDS - now)


_EVENTS = {
    MappingState.ACTIVE: (logging.INFO, Event.MAPPING_ACTIVE),
    MappingState.INACTIVE: (logging.INFO, Event.MAPPING_INACTIVE),
    MappingState.PENDING: (logging.INFO, Event.MAPPING_PENDING),
    MappingState.CONFLICT: (logging.WARNING, Event.MAPPING_CONFLICT),
    MappingState.ERROR: (logging.WARNING, Event.MAPPING_ERROR),
}


def _log_unmapped(unmapped: Unmapped) -> None:
    log.warning(
        "%s has no external address: %s",
        unmapped.domain,
        unmapped.reason,
        extra=entry(
            Event.GUEST_UNMAPPED,
            domain=unmapped.domain,
            network=unmapped.network,
            external=unmapped.external,
            state=MappingState.ERROR.value,
            reason=unmapped.reason,
        ),
    )


def _log_status(status: MappingStatus, uplink: Uplink | None) -> None:
    mapping = status.mapping
    level, event = _EVENTS[status.state]
    log.log(
        level,
        "%s (%s, %s) is %s%s",
        mapping.external,
        _internal(mapping),
        mapping.subject,
        status.state.value,
        f": {status.reason}" if status.reason else "",
        extra=entry(event, uplink=uplink and uplink.name, **_fields(status)),
    )


def _fields(status: MappingStatus) -> dict[str, object]:
    """The fields that name a mapping, and those of its state."""
    mapping = status.mapping
    return {
        "domain": mapping.domain,
        "external": mapping.external,
        "internal": mapping.internal,
        "network": mapping.network,
        "state": status.state.value,
        "reason": status.reason or None,
    }


def _internal(mapping: Mapping) -> str:
    """The internal address, with its source unless it was written."""
    if mapping.internal is None:
        return "address unknown"
    if mapping.source in (None, AddressSource.CONFIGURATION, AddressSource.METADATA):
        return str(mapping.internal)
    return f"{mapping.internal} by {mapping.source}"


def summary(outcome: Outcome) -> str:
    """The one line that `systemctl status` shows."""
    states = Counter(status.state for status in outcome.statuses)
    states[MappingState.ERROR] += len(outcome.look.desired.unmapped)
    total = sum(states.values())
    line = f"{states[MappingState.ACTIVE]} of {total} mappings active"
    for state in (MappingState.ERROR, MappingState.CONFLICT, MappingState.PENDING):
        if states[state]:
            line += f", {states[state]} {state.value}"
    return line if outcome.look.libvirt else f"{line}; libvirt cannot be reached"
