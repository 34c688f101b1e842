"""The queue between event sources and the one thread that reconciles.

An event carries no work, only its trigger. One pass serves all events that are queued. A pass that
fails, also by an internal error, is repeated with increasing delay until one succeeds.
"""

import logging
import time
from collections.abc import Callable
from math import inf
from queue import Empty, SimpleQueue

from vm_onetoone_nat.internal_errors import Work, contain, retry_seconds
from vm_onetoone_nat.model.trigger import RESYNC, RETRY, SETTING, START, Trigger, Triggers, texts

RESYNC_SECONDS = 300.0
"""Longest time between passes: a safety net for lost notifications."""

TICK_SECONDS = 10.0
"""How often `tick` is called while the queue is empty."""

PASSES = 4
EVERY_SECONDS = 0.25
"""Token bucket: PASSES passes may start back to back after an idle time, then one every
EVERY_SECONDS; triggers that come faster wait. A guest that starts causes several notifications
about its interface before libvirt's event."""

log = logging.getLogger(__name__)


class Runner:
    """Runs `reconcile` in the calling thread until `stop`. No exception of a callable ends it.

    `reconcile` takes the triggers and returns the seconds until the next pass at the latest, or
    None if it failed. `is_news` returns whether triggers need a pass at all. `tick` polls inputs
    that send no notification, and returns whether one changed. It is called every TICK_SECONDS, or
    every `longest_tick` seconds if that is shorter.
    """

    def __init__(
        self,
        reconcile: Callable[[Triggers], float | None],
        tick: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
        *,
        is_news: Callable[[Triggers], bool] = lambda _triggers: True,
        longest_tick: float = inf,
    ) -> None:
        self._reconcile = reconcile
        self._tick = tick
        self._is_news = is_news
        self._tick_seconds = min(TICK_SECONDS, longest_tick)
        self._clock = clock
        # SimpleQueue, since its put() may be called from a signal handler.
        self._queue: SimpleQueue[Trigger | None] = SimpleQueue()
        self._failed = 0
        # Token bucket: the time at which it is full again.
        self._full_at = -inf

    def notify(self, trigger: Trigger) -> None:
        """Request a pass. From any thread, and from a signal handler."""
        self._queue.put(trigger)

    def stop(self) -> None:
        """Let `run` return after the current pass. From any thread or signal handler."""
        self._queue.put(None)

    def run(self) -> None:
        """Run passes until `stop`, the first immediately."""
        triggers: Triggers | None = frozenset({START})
        while triggers is not None:
            began = self._clock()
            full_at = max(self._full_at, began) + EVERY_SECONDS
            # A retry does not wait for a token, so it must not delay the triggers after it.
            self._full_at = min(full_at, began + PASSES * EVERY_SECONDS)
            again = self._pass(triggers)
            log.debug("the pass took %.1f ms", 1000 * (self._clock() - began))
            if again is None:
                again = retry_seconds(self._failed)
                self._failed += 1
            else:
                self._failed = 0
            triggers = self._wait(self._clock() + min(again, RESYNC_SECONDS))

    def _pass(self, triggers: Triggers) -> float | None:
        """One call of `reconcile`; None if it failed."""
        with contain(Work.PASS):
            log.debug("pass: %s", texts(triggers))
            return self._reconcile(triggers)
        return None

    def _wait(self, until: float) -> Triggers | None:
        """The triggers of the next pass, or None to stop."""
        while True:
            remaining = until - self._clock()
            if remaining <= 0:
                return frozenset({RETRY if self._failed else RESYNC})
            try:
                first = self._queue.get(timeout=min(remaining, self._tick_seconds))
            except Empty:
                if self._setting_changed():
                    return frozenset({SETTING})
                continue
            triggers = self._gather(first)
            if triggers is None or self._need_a_pass(triggers):
                return triggers

    def _setting_changed(self) -> bool:
        with contain(Work.TICK):
            return self._tick()
        return False

    def _need_a_pass(self, triggers: Triggers) -> bool:
        """Whether they are news, or that cannot be found out."""
        with contain(Work.TRIGGERS):
            return self._is_news(triggers)
        return True

    def _gather(self, first: Trigger | None) -> Triggers | None:
        """All that is queued, and all that comes until a pass may start; None to stop."""
        waiting = {first}
        earliest = self._full_at - (PASSES - 1) * EVERY_SECONDS
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
