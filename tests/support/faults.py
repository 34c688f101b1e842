"""Faults that tests cause, and what packets show of the repair."""

import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import inf

from lab import Namespace, Stream, StreamReport, udp, wait_for
from lab.addresses import external
from lab.intervals import Intervals, overlap, touches, union
from lab.namespace import Process
from lab.run_queue import RunQueue
from lab.traffic import Answer
from running import Product
from vm_onetoone_nat.service.runner import EVERY_SECONDS

LIMIT = 0.25
"""Within so many seconds the daemon has repaired what it can repair at once. A repair takes some
0.05 s; 0.3 s more are to be found."""

STORM = LIMIT + EVERY_SECONDS
"""The same while events come in faster than passes: a repair waits for the next one."""

RATE = 200
_BEFORE = 0.3
_AFTER = 0.4
_GENERATION = re.compile(r"# new generation \d+ by process \d+ \((.*)\)")
_OURS = ("python3", "vm-onetoone-nat")  # by hand, and installed
_IN_THE_WAY = ("vm_onetoone_nat", "vm-onetoone-nat", "libvirtd", "qemu-system")


@dataclass(frozen=True)
class Site:
    """A guest that answers on `port`, its product, and somebody on the LAN who sends to it.

    `number` is the guest's in the address plan.
    """

    lan: Namespace
    guest: Namespace
    product: Product
    port: int
    number: int = 1


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
        self.began = self.since = time.monotonic()

    def settled(self) -> None:
        """The fault is complete, or over: from now on the daemon can do something about it."""
        self.since = time.monotonic()


@contextmanager
def fault(  # noqa: PLR0913
    name: str,
    site: Site,
    *,
    limit: float = LIMIT,
    least: float = 0.5,
    others_go_on: bool = False,
    listed: bool = True,
    rate: int = RATE,
    queue: RunQueue | None = None,
) -> Iterator[Traffic]:
    """Send to a guest by new UDP flows all the time, around a block that causes a fault.

    AssertionError unless every message is answered that is sent later than `limit` seconds after
    the fault, and the share `least` of all. Only time counts in which the daemon could do
    something: the stream's control ran, and the daemon did not wait for a processor. Where
    `others_go_on` after the block, the fault is complete with their last write to nftables. What is
    `listed` is a row of the table in docs/faults.md. `rate` is in messages per second. `queue`
    watches what a repair waits for already, and goes on to.
    """
    with ExitStack() as stack:
        writes = stack.enter_context(OthersWrites(site.product.host)) if others_go_on else None
        waiting = queue or stack.enter_context(RunQueue(lambda: in_the_way(site.product.host)))
        stream = stack.enter_context(
            Stream(site.lan, external(site.number), site.port, site.guest, "flows", rate=rate)
        )
        time.sleep(_BEFORE)
        traffic = Traffic()

        def complete() -> float:
            return traffic.since if writes is None else max(traffic.since, writes.last)

        yield traffic
        since, ended = _over(name, site, traffic.began, complete, limit)
        report = stream.finish()
    idle = union(report.stalls, waiting.waits)
    repaired = _repaired(report, waiting, idle, since)
    judged = [at for at in report.sent_at if not touches(idle, at, at)]
    test = os.environ["PYTEST_CURRENT_TEST"].partition("[")[0].partition(" ")[0].rpartition("/")[2]
    found = Fault(name, test, repaired, report)
    print(found, report)
    if listed:
        FAULTS.append(found)
    assert repaired < limit, f"repaired after {repaired:.3f} s, not {limit:g}: {report}"
    assert ended - since > limit, f"{name}: others go on to write"
    answered = len(judged) - len(set(judged) & set(report.lost_at))
    assert answered >= least * len(judged) > 0, (answered, len(judged), report)


def _over(
    name: str, site: Site, began: float, complete: Callable[[], float], limit: float
) -> tuple[float, float]:
    """Wait until the fault is over and the guest answers; when it was complete, and the end.

    Then it goes on for as long as the fault took: on a slower machine both are longer, and the
    share of what is answered is the same. Others may write once more while the guest is asked: then
    it was not over yet.
    """
    since = ended = -inf

    def over() -> bool:
        return time.monotonic() > complete() + limit + max(_AFTER, complete() - began)

    for _ in range(10):
        wait_for(over, 120, f"{name}: it is over")
        if not _answers(site):
            wait_for(lambda: _answers(site), 60, f"{name}: the guest answers again")
            time.sleep(_AFTER)
        since, ended = complete(), time.monotonic()
        if ended - since > limit:
            break
    return since, ended


def _repaired(report: StreamReport, waiting: RunQueue, idle: Intervals, since: float) -> float:
    """The seconds until the last loss in which the daemon could have done something about it."""
    until = report.last_lost
    if until is None or until <= since:
        return 0.0
    # Threads of the daemon's own that wait for each other are its own affair.
    return max(until - since - overlap(idle, since, until), waiting.ran(since, until))


def _answers(site: Site) -> bool:
    return isinstance(udp(site.lan, external(site.number), site.port, timeout=1), Answer)


def in_the_way(host: Namespace) -> list[int]:
    """The processes that a repair waits for."""
    return [
        pid
        for pid, command in host.processes().items()
        if any(name in command for name in _IN_THE_WAY) and "strace" not in command
    ]


class OthersWrites:
    """When other programs have written to nftables, as the kernel's own monitor has it."""

    def __init__(self, host: Namespace) -> None:
        self._host = host
        self._seen: list[tuple[float, str]] = []
        self._process: Process | None = None
        self._thread = threading.Thread(target=self._read, daemon=True)

    @property
    def last(self) -> float:
        """When the last of them was seen, on the monotonic clock."""
        return max((at for at, writer in self._seen if writer not in _OURS), default=-inf)

    def __enter__(self) -> "OthersWrites":
        monitor = ("stdbuf", "-oL", "nft", "monitor")
        self._process = self._host.popen(*monitor, stdout=subprocess.PIPE)
        self._thread.start()

        def sees() -> bool:
            self._host.run("nft", "add table ip labmark; delete table ip labmark")
            return bool(self._seen)

        wait_for(sees, 30, "nft monitor sees a write")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(30)
        self._thread.join()

    def _read(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                found = _GENERATION.match(line)
                if found:
                    self._seen.append((time.monotonic(), found[1]))
