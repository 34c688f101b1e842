"""The queue between everything that happens and the one thread that reconciles.

An event carries no work, only a trigger for the log. However many are waiting, one pass answers
them all; a pass that failed is repeated with growing delay until one succeeds.
"""

import logging
import time
from collections.abc import Callable
from math import inf
from queue import Empty, SimpleQueue

RESYNC_SECONDS = 300.0
"""How often to look without a trigger: a net under the notifications, not a way to notice."""

TICK_SECONDS = 10.0
"""How often `tick` is called while nothing happens."""

PASSES = 4
EVERY_SECONDS = 0.25
"""So many passes may begin at once after a rest, as a guest that starts shows its interface some
times before libvirt tells of it; then one in that time, and what comes in faster waits for it."""

_RETRY_SECONDS = (0.2, 1.0, 2.0, 5.0, 15.0, 30.0, 60.0)

log = logging.getLogger(__name__)


class Runner:
    """Runs `reconcile` in the calling thread until `stop`.

    `reconcile` takes the triggers and returns the seconds until the next pass at the latest, or
    None if it failed. `is_news` returns whether triggers need a pass at all. `tick` polls inputs
    that send no notification, and returns whether one changed. It is called every TICK_SECONDS, or
    every `longest_tick` seconds if that is shorter.
    """

    def __init__(
        self,
        reconcile: Callable[[frozenset[str]], float | None],
        tick: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
        *,
        is_news: Callable[[frozenset[str]], bool] = lambda _triggers: True,
        longest_tick: float = inf,
    ) -> None:
        self._reconcile = reconcile
        self._tick = tick
        self._is_news = is_news
        self._tick_seconds = min(TICK_SECONDS, longest_tick)
        self._clock = clock
        # SimpleQueue, since its put() may be called from a signal handler.
        self._queue: SimpleQueue[str | None] = SimpleQueue()
        self._failed = 0
        # When all passes that have begun would have, had they come one by one.
        self._paid = -inf

    def notify(self, trigger: str) -> None:
        """Ask for another look. From any thread, and from a signal handler."""
        self._queue.put(trigger)

    def stop(self) -> None:
        """Let `run` return after the pass under way. From any thread or signal handler."""
        self._queue.put(None)

    def run(self) -> None:
        """Pass after pass until `stop`; the first at once."""
        triggers: frozenset[str] | None = frozenset({"start"})
        while triggers is not None:
            log.debug("pass: %s", ", ".join(sorted(triggers)))
            began = self._clock()
            paid = max(self._paid, began) + EVERY_SECONDS
            # A retry does not wait for its turn, and so it must not put off what comes after it.
            self._paid = min(paid, began + PASSES * EVERY_SECONDS)
            again = self._reconcile(triggers)
            log.debug("the pass took %.1f ms", 1000 * (self._clock() - began))
            if again is None:
                again = _RETRY_SECONDS[min(self._failed, len(_RETRY_SECONDS) - 1)]
                self._failed += 1
            else:
                self._failed = 0
            triggers = self._wait(self._clock() + min(again, RESYNC_SECONDS))

    def _wait(self, until: float) -> frozenset[str] | None:
        """The triggers of the next pass, or None to stop."""
        while True:
            remaining = until - self._clock()
            if remaining <= 0:
                return frozenset({"retry" if self._failed else "resync"})
            try:
                first = self._queue.get(timeout=min(remaining, self._tick_seconds))
            except Empty:
                if self._tick():
                    return frozenset({"setting changed"})
                continue
            triggers = self._gather(first)
            if triggers is None or self._is_news(triggers):
                return triggers

    def _gather(self, first: str | None) -> frozenset[str] | None:
        """All that waits, and all that comes until a pass may begin; None to stop."""
        waiting = {first}
        earliest = self._paid - (PASSES - 1) * EVERY_SECONDS
        while None not in waiting:
            pause = earliest - self._clock()
            try:
                waiting.add(
                    self._queue.get(timeout=pause) if pause > 0 else self._queue.get_nowait()
                )
            except Empty:
                if pause <= 0:
                    return frozenset(trigger for trigger in waiting if trigger is not None)
        return None
