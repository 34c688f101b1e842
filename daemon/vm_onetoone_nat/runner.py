"""The queue between everything that happens and the one thread that reconciles.

An event carries no work, only a cause for the log. However many are waiting, one pass answers
them all; a pass that failed is repeated with growing delay until one succeeds.
"""

import logging
import time
from collections.abc import Callable
from math import inf
from queue import Empty, SimpleQueue

RESYNC_SECONDS = 300.0
"""How often to look without a cause: a net under the notifications, not a way to notice."""

TICK_SECONDS = 5.0
"""How often `tick` is called while nothing happens."""

_RETRY_SECONDS = (0.2, 1.0, 2.0, 5.0, 15.0, 30.0, 60.0)

log = logging.getLogger(__name__)


class Runner:
    """Runs `reconcile` in the calling thread until `stop`.

    `reconcile` gets the causes and returns whether the kernel is as desired. `tick` returns
    whether an input changed that sends no notification; it is called more often than every
    TICK_SECONDS where `longest_tick`, in seconds, is shorter.
    """

    def __init__(
        self,
        reconcile: Callable[[frozenset[str]], bool],
        tick: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
        longest_tick: float = inf,
    ) -> None:
        self._reconcile = reconcile
        self._tick = tick
        self._longest_tick = longest_tick
        self._clock = clock
        # SimpleQueue, since its put() may be called from a signal handler.
        self._queue: SimpleQueue[str | None] = SimpleQueue()
        self._failed = 0

    def notify(self, cause: str) -> None:
        """Ask for another look. From any thread, and from a signal handler."""
        self._queue.put(cause)

    def stop(self) -> None:
        """Let `run` return after the pass under way. From any thread or signal handler."""
        self._queue.put(None)

    def run(self) -> None:
        """Pass after pass until `stop`; the first at once."""
        causes: frozenset[str] | None = frozenset({"start"})
        while causes is not None:
            log.debug("pass", extra={"causes": sorted(causes)})
            self._failed = 0 if self._reconcile(causes) else self._failed + 1
            causes = self._wait(self._clock() + self._delay())

    def _delay(self) -> float:
        if self._failed == 0:
            return RESYNC_SECONDS
        return _RETRY_SECONDS[min(self._failed, len(_RETRY_SECONDS)) - 1]

    def _wait(self, until: float) -> frozenset[str] | None:
        """The causes of the next pass, or None to stop."""
        while True:
            remaining = until - self._clock()
            if remaining <= 0:
                return frozenset({"retry" if self._failed else "resync"})
            try:
                first = self._queue.get(timeout=min(remaining, TICK_SECONDS, self._longest_tick))
            except Empty:
                if self._tick():
                    return frozenset({"setting changed"})
                continue
            return self._drain(first)

    def _drain(self, first: str | None) -> frozenset[str] | None:
        waiting = [first]
        try:
            while True:
                waiting.append(self._queue.get_nowait())
        except Empty:
            pass
        if None in waiting:
            return None
        return frozenset(cause for cause in waiting if cause is not None)
