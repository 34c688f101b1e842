"""The report of `status`, by the daemon or from the kernel's state, and its JSON. Pure."""

import json
from collections.abc import Mapping as ReadOnly
from dataclasses import asdict, dataclass, field
from typing import Any

from vm_onetoone_nat.errors import VmNatError
from vm_onetoone_nat.model.status import MappingState, MappingStatus, Unmapped
from vm_onetoone_nat.model.traffic import Counters, Traffic

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Upper bounds of the histogram of pass durations, in seconds."""


class UnreadableReport(VmNatError):
    """The daemon's answer cannot be parsed."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One mapping, or a guest that should have one.

    `external` is text as written; None if a guest has none. `seconds` is the time in this state.
    `inbound` and `outbound` are None if the counters are not known.
    """

    external: str | None
    internal: str | None
    domain: str | None
    network: str
    state: MappingState
    reason: str
    origin: str
    source: str | None
    seconds: float | None = None
    inbound: Traffic | None = None
    outbound: Traffic | None = None


@dataclass(frozen=True, slots=True)
class Passes:
    """The passes since the daemon started.

    `within` counts those that took no longer than each of BOUNDS. `repairs` counts those that
    reverted a change by another program, by kind of trigger; a pass counts for each of its kinds.
    """

    total: int = 0
    failed: int = 0
    wrote: int = 0
    seconds: float = 0.0
    within: tuple[int, ...] = (0,) * len(BOUNDS)
    repairs: ReadOnly[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Running:
    """The daemon that answered; `seconds` is its uptime.

    `internal_errors` counts its internal errors, by the work in which they occurred.
    """

    pid: int
    version: str
    seconds: float
    passes: Passes
    internal_errors: ReadOnly[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Report:
    """The whole report; `daemon` is None if it was made from the kernel's state."""

    uplink: str
    libvirt: bool
    entries: tuple[Entry, ...]
    daemon: Running | None = None

    def count(self, state: MappingState) -> int:
        """The number of entries in this state."""
        return sum(entry.state is state for entry in self.entries)


def mapped(status: MappingStatus, seconds: float | None, counters: Counters | None) -> Entry:
    """The entry of a mapping."""
    mapping = status.mapping
    inbound, outbound = counters.of(mapping) if counters is not None else (None, None)
    return Entry(
        external=str(mapping.external),
        internal=str(mapping.internal) if mapping.internal is not None else None,
        domain=mapping.domain,
        network=mapping.network,
        state=status.state,
        reason=status.reason,
        origin=mapping.origin.value,
        source=mapping.source.value if mapping.source is not None else None,
        seconds=seconds,
        inbound=inbound,
        outbound=outbound,
    )


def unmapped(guest: Unmapped) -> Entry:
    """The entry of a guest that should have a mapping and has none."""
    return Entry(
        external=guest.external,
        internal=None,
        domain=guest.domain,
        network=guest.network,
        state=MappingState.ERROR,
        reason=guest.reason,
        origin=guest.origin.value,
        source=None,
    )


def report_to_json(report: Report) -> str:
    """The document of `status --json`, which is also the daemon's answer at its socket."""
    document = {
        "uplink": report.uplink,
        "libvirt": "connected" if report.libvirt else "disconnected",
        "daemon": None if report.daemon is None else asdict(report.daemon),
        "mappings": [asdict(entry) for entry in report.entries],
    }
    return json.dumps(document, indent=2)


def report_from_json(text: str) -> Report:
    """Parse such a document. Raises UnreadableReport."""
    try:
        document = json.loads(text)
        return Report(
            uplink=document["uplink"],
            libvirt=document["libvirt"] == "connected",
            entries=tuple(_entry(each) for each in document["mappings"]),
            daemon=_running(document["daemon"]),
        )
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise UnreadableReport(
            "the daemon's answer cannot be read",
            hint="it may be of another version: 'systemctl restart vm-onetoone-nat'",
        ) from error


def _entry(value: dict[str, Any]) -> Entry:
    traffic = {
        side: Traffic(**value[side]) if value[side] is not None else None
        for side in ("inbound", "outbound")
    }
    return Entry(**{**value, "state": MappingState(value["state"]), **traffic})


def _running(value: dict[str, Any] | None) -> Running | None:
    if value is None:
        return None
    passes = Passes(**{**value["passes"], "within": tuple(value["passes"]["within"])})
    if len(passes.within) != len(BOUNDS):
        raise ValueError("durations are counted by other bounds")
    return Running(**{**value, "passes": passes})
