"""Reports with known figures: the guests of the address plan, after a day."""

from hypothesis import strategies as st
from lab.addresses import UPLINK, external, guest_name, internal
from vm_onetoone_nat.model.mapping import AddressSource, Origin
from vm_onetoone_nat.model.status import MappingState
from vm_onetoone_nat.model.traffic import Traffic
from vm_onetoone_nat.report.report import BOUNDS, Entry, Passes, Report, Running

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
        inbound=Traffic(100 + n, 2_000, 3_000_000, 6) if active else Traffic(),
        outbound=Traffic(200 + n, 4_000, 5_000_000, 7) if active else Traffic(),
    )


def report(*entries: Entry) -> Report:
    """What a daemon that runs tells of these."""
    return Report(UPLINK, True, entries, Running(4711, "1.2.3", DAY, PASSES))


counts = st.integers(0, 2**64)
times = st.floats(0, 1e9)
traffics = st.none() | st.builds(Traffic, counts, counts, counts)
entries = st.builds(
    Entry,
    external=st.none() | st.text(),
    internal=st.none() | st.text(),
    domain=st.none() | st.text(),
    network=st.text(),
    state=st.sampled_from(MappingState),
    reason=st.text(),
    origin=st.sampled_from([each.value for each in Origin]),
    source=st.none() | st.sampled_from([each.value for each in AddressSource]),
    seconds=st.none() | times,
    inbound=traffics,
    outbound=traffics,
)
passes = st.builds(
    Passes,
    total=counts,
    failed=counts,
    wrote=counts,
    seconds=times,
    within=st.tuples(*(counts for _ in BOUNDS)),
    repairs=st.dictionaries(st.text(), counts),
)
daemons = st.builds(Running, pid=counts, version=st.text(), seconds=times, passes=passes)
reports = st.builds(
    Report,
    uplink=st.text(),
    libvirt=st.booleans(),
    entries=st.lists(entries).map(tuple),
    daemon=st.none() | daemons,
)
"""Any report."""
