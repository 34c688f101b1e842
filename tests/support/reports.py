"""Reports with known figures: the guests of the address plan, after a day."""

from lab.addresses import UPLINK, external, guest_name, internal
from vm_onetoone_nat.report import BOUNDS, Entry, Passes, Report, Running
from vm_onetoone_nat.state import MappingState
from vm_onetoone_nat.traffic import Traffic

CONTRACT = {"external", "internal", "domain", "network", "state", "reason"}
"""What every mapping in `status --json` has."""

DAY = 86400.0
PASSES = Passes(
    total=20,
    failed=2,
    wrote=5,
    seconds=0.75,
    within=tuple(min(20, 2 * n) for n in range(1, len(BOUNDS) + 1)),
    repairs={"address": 1, "nftables": 3},
)


def entry(n: int, state: MappingState = MappingState.ACTIVE, reason: str = "") -> Entry:
    """Guest n, with a reservation, for a day in its state; it has had traffic if it is active."""
    active = state is MappingState.ACTIVE
    return Entry(
        external=str(external(n)),
        internal=str(internal(n)),
        domain=guest_name(n),
        network="default",
        state=state,
        reason=reason,
        origin="configuration",
        source="reservation",
        seconds=DAY,
        inbound=Traffic(100 + n, 2_000, 3_000_000) if active else Traffic(),
        outbound=Traffic(200 + n, 4_000, 5_000_000) if active else Traffic(),
    )


def report(*entries: Entry) -> Report:
    """What a daemon that runs tells of these."""
    return Report(UPLINK, True, entries, Running(4711, "1.2.3", DAY, PASSES))
