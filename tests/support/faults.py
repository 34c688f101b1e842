"""Faults that tests cause, and what packets show of the repair."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address

from lab import Namespace, Stream, StreamReport

LIMIT = 1.0
"""Within so many seconds the daemon has repaired what it can repair."""

RATE = 200
_BEFORE = 0.3
_AFTER = 0.4


@dataclass(frozen=True)
class Fault:
    """One row of the table: `repaired` is in seconds after the fault was there, or was over."""

    name: str
    test: str
    repaired: float
    report: StreamReport

    def __str__(self) -> str:
        repaired = f"{1000 * self.repaired:,.0f} ms" if self.report.lost else "nothing lost"
        packets = f"{self.report.answered:,} of {self.report.sent:,}"
        cells = (self.name, f"`{self.test}`", repaired, packets)
        return f"| {' | '.join(cells)} |"


FAULTS: list[Fault] = []
"""Those of this run, in order."""


class Traffic:
    """A stream to a guest; `settled` begins the time that the repair takes."""

    def __init__(self) -> None:
        self.since = time.monotonic()

    def settled(self) -> None:
        """The fault is complete, or over: from now on the daemon can do something about it."""
        self.since = time.monotonic()


@contextmanager
def fault(  # noqa: PLR0913
    name: str,
    sender: Namespace,
    destination: IPv4Address,
    port: int,
    *,
    limit: float = LIMIT,
    least: float = 0.5,
) -> Iterator[Traffic]:
    """Send to `destination` by new UDP flows all the time, around a block that causes a fault.

    AssertionError unless every message is answered that is sent later than `limit` seconds after
    the fault, and the share `least` of all.
    """
    with Stream(sender, destination, port, "flows", rate=RATE) as stream:
        time.sleep(_BEFORE)
        traffic = Traffic()
        yield traffic
        time.sleep(max(0.0, traffic.since + limit + _AFTER - time.monotonic()))
        ended = time.monotonic()
        report = stream.finish()
    repaired = max(0.0, (report.last_lost or 0.0) - traffic.since)
    test = os.environ["PYTEST_CURRENT_TEST"].partition("[")[0].partition(" ")[0].rpartition("/")[2]
    FAULTS.append(Fault(name, test, repaired, report))
    print(FAULTS[-1])
    assert repaired < limit, (repaired, report)
    assert ended - traffic.since > limit
    assert report.answered >= least * report.sent, report
