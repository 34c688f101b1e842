"""Internal errors: exceptions that nothing handles. They end the work in which they occur, no more.

Such an exception is a fault of this program, or of a library that it uses: a failure that is
expected is a `VmNatError`. Every piece of work that must not end the daemon, or a thread of it, has
one of these boundaries around it.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from traceback import walk_tb

from vm_onetoone_nat.errors import VmNatError
from vm_onetoone_nat.events import Event
from vm_onetoone_nat.journal import entry

RETRY_SECONDS = (0.2, 1.0, 2.0, 5.0, 15.0, 30.0, 60.0)
"""The delays before failed work is repeated; the last one for all further repetitions."""

GONE_SECONDS = 90.0
"""An error that has not occurred for so long is logged when it occurs again: longer than any delay
before a repetition."""

_PACKAGE = Path(__file__).parent
_LONGEST = 300
"""The most characters of an exception's text in the log."""

log = logging.getLogger(__name__)


class Work(Enum):
    """What may fail by an internal error; the value says it in the log."""

    PASS = "a pass"
    RELOAD = "the reload of the configuration"
    TICK = "the poll of settings"
    TRIGGERS = "the look at a trigger"
    GUESTS = "reading libvirt"
    DOMAIN = "reading a guest's definition"
    NETWORK = "reading a network's definition"
    WRITE = "a write to the kernel"
    PROBE = "the request for probes"
    STORE = "the record of allocations"
    STATUS = "the answer to status"
    RTNETLINK = "the thread rtnetlink"
    NFTABLES = "the thread nftables"
    ARP = "the thread arp"
    LIBVIRT = "the thread libvirt"
    LIBVIRT_EVENTS = "the thread libvirt-events"
    AGENT = "the thread agent"

    @property
    def label(self) -> str:
        """The label `where` of the metric internal_errors_total. Stable: users rely on it."""
        return self.name.lower().replace("_", "-")


class InternalErrors:
    """Counts internal errors, and logs each once, not at every repetition. From any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._last: dict[tuple[Work, str], float] = {}
        self._counts: Counter[Work] = Counter()

    def add(self, work: Work, error: Exception) -> None:
        """Count an error, and log it unless it has occurred lately."""
        where = _raised_at(error)
        kind, now = (work, f"{type(error).__name__} {where}"), self._clock()
        with self._lock:
            self._counts[work] += 1
            before, self._last[kind] = self._last.get(kind), now
        if before is not None and now - before < GONE_SECONDS:
            return
        text = " ".join(str(error).split())[:_LONGEST]
        reason = f"{type(error).__name__}: {text} ({where})"
        log.error(
            "internal error in %s: %s",
            work.value,
            reason,
            extra=entry(Event.INTERNAL_ERROR, reason=reason),
        )
        log.debug("the traceback of this error", exc_info=error)

    @property
    def counts(self) -> Mapping[str, int]:
        """How many there were, by label, since the process started."""
        with self._lock:
            return {work.label: self._counts[work] for work in Work}

    @property
    def total(self) -> int:
        """How many there were in all."""
        return sum(self.counts.values())

    def clear(self) -> None:
        """Forget all that occurred."""
        with self._lock:
            self._last.clear()
            self._counts.clear()


OCCURRED = InternalErrors()
"""Those of this process."""


@contextmanager
def contain(work: Work, raises: type[VmNatError] | None = None) -> Iterator[None]:
    """Let a block end early by an internal error, instead of raising it.

    With `raises`, a caller handles that error: it is raised in place of an internal one, and what
    is a `VmNatError` already passes.
    """
    try:
        yield
    except Exception as error:
        if raises is not None and isinstance(error, VmNatError):
            raise
        OCCURRED.add(work, error)
        if raises is not None:
            raise raises(f"internal error in {work.value}: {error!r}") from error


def thread(work: Work, run: Callable[[], None]) -> threading.Thread:
    """A thread, to be started, that calls `run` until it returns, and ends with the process.

    If `run` raises, it is called again, after a delay that grows while it keeps failing.
    """
    name = work.label
    return threading.Thread(target=_repeat, args=(work, run), name=name, daemon=True)


def _repeat(work: Work, run: Callable[[], None]) -> None:
    failures = 0
    while True:
        began = time.monotonic()
        with contain(work):
            run()
            return
        if time.monotonic() - began > GONE_SECONDS:
            failures = 0
        time.sleep(retry_seconds(failures))
        failures += 1


def retry_seconds(failures: int) -> float:
    """The delay before work is repeated that has failed so many times before the last one."""
    return RETRY_SECONDS[min(failures, len(RETRY_SECONDS) - 1)]


def _raised_at(error: Exception) -> str:
    """The innermost line of this program that raised an error, or called what raised it."""
    places = [(Path(f.f_code.co_filename), line) for f, line in walk_tb(error.__traceback__)]
    ours = [(p, line) for p, line in places if p.is_relative_to(_PACKAGE) and p != Path(__file__)]
    path, line = (ours or places or [(Path("?"), 0)])[-1]
    shown = path.relative_to(_PACKAGE) if ours else path.name
    return f"{shown}, line {line}"
