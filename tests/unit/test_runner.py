"""The queue: coalescing, retry, resync, stop. Time is a number here, not a wait."""

import os
import signal
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from math import inf

import pytest
from lab.run_queue import RunQueue
from vm_onetoone_nat.model.trigger import Kind, Trigger, Triggers
from vm_onetoone_nat.service import runner
from vm_onetoone_nat.service.runner import EVERY_SECONDS, PASSES, RESYNC_SECONDS, Runner

PATIENCE = 10.0
"""How long a thread may take that is about to do something, in seconds; never waited for."""


def named(text: str) -> Trigger:
    """A trigger with that text."""
    return Trigger(Kind.LINK, text)


def said(triggers: Triggers) -> set[str]:
    """The texts of these triggers."""
    return {trigger.text for trigger in triggers}


class Time:
    """A clock that only advances when nothing is waiting in the queue, a step at a time."""

    def __init__(self, step: float = 0.1) -> None:
        self.now = 1000.0
        self._step = step

    def __call__(self) -> float:
        return self.now

    def passes(self) -> bool:
        """To be called as `tick`."""
        self.now += self._step
        return False


@pytest.fixture(autouse=True)
def no_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty queue is reported at once."""
    monkeypatch.setattr(runner, "TICK_SECONDS", 0.0)


def record(passes: int, result: Callable[[int], bool], clock: Time) -> list[tuple[float, set[str]]]:
    """Run that many passes; when each was, and its triggers. `result` gets the pass number."""
    seen: list[tuple[float, set[str]]] = []

    def reconcile(triggers: Triggers) -> float | None:
        seen.append((clock.now, said(triggers)))
        if len(seen) == passes:
            running.stop()
        return inf if result(len(seen)) else None

    running = Runner(reconcile, clock.passes, clock)
    running.run()
    assert len(seen) == passes
    return seen


def delays(seen: list[tuple[float, set[str]]]) -> list[float]:
    return [after[0] - before[0] for before, after in pairwise(seen)]


def test_first_pass_needs_no_cause() -> None:
    """The first pass comes at once, and says that it is the first."""
    clock = Time()
    assert record(1, lambda _: True, clock) == [(1000.0, {"start"})]


def test_a_thousand_notifications_are_one_pass() -> None:
    """However many triggers are waiting, the next pass has them all, and there is no other."""
    triggers = {f"trigger {n}" for n in range(1000)}
    seen = []

    def reconcile(given: Triggers) -> float | None:
        seen.append(said(given))
        if len(seen) == 1:
            for trigger in sorted(triggers):
                running.notify(named(trigger))
        else:
            running.stop()
        return inf

    clock = Time()
    running = Runner(reconcile, clock.passes, clock)
    running.run()
    assert seen == [{"start"}, triggers]
    assert clock.now == 1000.0


def test_same_cause_twice() -> None:
    """A trigger that came more than once is named once, and makes one pass."""
    seen = []

    def reconcile(given: Triggers) -> float | None:
        seen.append(sorted(said(given)))
        if len(seen) == 1:
            running.notify(named("link"))
            running.notify(named("link"))
        else:
            running.stop()
        return inf

    running = Runner(reconcile)
    running.run()
    assert seen == [["start"], ["link"]]


def test_stop_comes_before_what_is_waiting() -> None:
    """After stop there is no other pass, whatever was asked for before or after it."""
    seen = []

    def reconcile(given: Triggers) -> float | None:
        seen.append(said(given))
        running.notify(named("before"))
        running.stop()
        running.notify(named("after"))
        return inf

    running = Runner(reconcile)
    running.run()
    assert seen == [{"start"}]


def test_stop_before_run() -> None:
    """A stop that came during start-up is not lost: there is one pass and no more."""
    seen = []

    def reconcile(triggers: Triggers) -> float | None:
        seen.append(said(triggers))
        return inf

    running = Runner(reconcile)
    running.stop()
    running.run()
    assert seen == [{"start"}]


def test_resync() -> None:
    """Without a trigger and without a failure, the next look is after the resync interval."""
    clock = Time(step=1.0)
    seen = record(3, lambda _: True, clock)
    assert [triggers for _, triggers in seen] == [{"start"}, {"resync"}, {"resync"}]
    assert delays(seen) == [RESYNC_SECONDS, RESYNC_SECONDS]


def test_failures_are_retried_with_growing_delay() -> None:
    """A pass that fails is repeated, at first soon, then less and less often, for ever."""
    seen = record(10, lambda _: False, Time(step=0.1))
    assert [triggers for _, triggers in seen[1:]] == [{"retry"}] * 9
    assert delays(seen) == pytest.approx(
        [0.2, 1.0, 2.0, 5.0, 15.0, 30.0, 60.0, 60.0, 60.0], abs=0.15
    )


def test_success_ends_the_retries() -> None:
    """After a success the next look is a resync, and the next failure starts at the shortest."""
    seen = record(6, lambda n: n in (3, 4), Time(step=0.1))
    assert [triggers for _, triggers in seen] == [
        {"start"},
        {"retry"},
        {"retry"},
        {"resync"},
        {"resync"},
        {"retry"},
    ]
    assert delays(seen) == pytest.approx([0.2, 1.0, 300.0, 300.0, 0.2], abs=0.15)


def test_trigger_during_backoff() -> None:
    """A trigger does not wait for the retry, and a failure after it keeps the longer delay."""
    clock = Time(step=0.1)
    seen: list[tuple[float, set[str]]] = []

    def reconcile(triggers: Triggers) -> float | None:
        seen.append((clock.now, said(triggers)))
        if len(seen) == 3:
            running.notify(named("link"))
        if len(seen) == 5:
            running.stop()
        return None

    running = Runner(reconcile, clock.passes, clock)
    running.run()
    assert [triggers for _, triggers in seen] == [
        {"start"},
        {"retry"},
        {"retry"},
        {"link"},
        {"retry"},
    ]
    assert delays(seen) == pytest.approx([0.2, 1.0, 0.0, 5.0], abs=0.15)


def test_change_that_nobody_told_of() -> None:
    """A setting that changes without notification is looked for, and makes a pass of its own."""
    answers = iter([False, False, True])
    seen = []

    def reconcile(triggers: Triggers) -> float | None:
        seen.append(said(triggers))
        if len(seen) == 2:
            running.stop()
        return inf

    running = Runner(reconcile, lambda: next(answers))
    running.run()
    assert seen == [{"start"}, {"setting changed"}]
    assert list(answers) == []


def test_change_is_not_asked_for_while_causes_wait() -> None:
    """What is waiting comes first: the next pass looks at everything anyway."""
    asked = []
    seen = []

    def reconcile(triggers: Triggers) -> float | None:
        seen.append(said(triggers))
        if len(seen) == 1:
            running.notify(named("link"))
        else:
            running.stop()
        return inf

    def changed() -> bool:
        asked.append(True)
        return True

    running = Runner(reconcile, changed)
    running.run()
    assert (seen, asked) == ([{"start"}, {"link"}], [])


def test_notify_from_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A notification from any thread wakes the runner that waits, and so does stop."""
    monkeypatch.setattr(runner, "TICK_SECONDS", PATIENCE * 10)
    seen = []
    first, second = threading.Event(), threading.Event()

    def reconcile(triggers: Triggers) -> float | None:
        seen.append(said(triggers))
        (second if first.is_set() else first).set()
        return inf

    running = Runner(reconcile)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    assert first.wait(PATIENCE)
    running.notify(named("from outside"))
    assert second.wait(PATIENCE)
    running.stop()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert seen == [{"start"}, {"from outside"}]


def test_notifications_of_many_threads_all_arrive() -> None:
    """No trigger is lost between threads that notify at once and a runner that drains."""
    wanted = {f"{thread} {n}" for thread in range(8) for n in range(100)}
    seen: set[str] = set()

    def reconcile(triggers: Triggers) -> float | None:
        seen.update(said(triggers))
        if wanted <= seen:
            running.stop()
        return inf

    running = Runner(reconcile)

    def tell(thread: int) -> None:
        for n in range(100):
            running.notify(named(f"{thread} {n}"))

    threads = [threading.Thread(target=tell, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    guard = threading.Timer(PATIENCE, running.stop)
    guard.start()
    running.run()
    guard.cancel()
    for thread in threads:
        thread.join()
    assert wanted <= seen


def test_notify_from_a_signal_handler() -> None:
    """A signal handler may notify and stop while a pass is under way."""
    seen = []

    def reconcile(triggers: Triggers) -> float | None:
        seen.append(said(triggers))
        signal.raise_signal(signal.SIGUSR1 if len(seen) == 1 else signal.SIGUSR2)
        return inf

    running = Runner(reconcile)
    before = {
        signal.SIGUSR1: signal.signal(signal.SIGUSR1, lambda *_: running.notify(named("reload"))),
        signal.SIGUSR2: signal.signal(signal.SIGUSR2, lambda *_: running.stop()),
    }
    try:
        running.run()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert seen == [{"start"}, {"reload"}]


def test_a_flood_is_answered_by_few_passes() -> None:
    """A thousand triggers within a second have ten passes at most, and the last one is not late."""
    begun: list[float] = []
    heard: set[str] = set()

    def reconcile(triggers: Triggers) -> float | None:
        begun.append(time.monotonic())
        heard.update(said(triggers))
        if "last" in said(triggers):
            running.stop()
        return inf

    def flood() -> None:
        for n in range(1000):
            running.notify(named(f"event {n}"))
            time.sleep(max(0.0, started + n / 1000 - time.monotonic()))
        running.notify(named("last"))

    running = Runner(reconcile)
    thread = threading.Thread(target=flood)
    started = time.monotonic()
    thread.start()
    running.run()
    thread.join()
    assert heard >= {f"event {n}" for n in range(1000)}
    spaced = zip(begun, begun[PASSES:], strict=False)
    assert all(after - before >= EVERY_SECONDS for before, after in spaced)
    assert len(begun) <= (begun[-1] - begun[0]) / EVERY_SECONDS + PASSES


def test_retries_do_not_put_off_what_comes_after(monkeypatch: pytest.MonkeyPatch) -> None:
    """After many passes that failed in a row, a trigger waits no longer than in a flood."""
    monkeypatch.setattr("vm_onetoone_nat.internal_errors.RETRY_SECONDS", (0.01,))
    failures = 5 * PASSES
    begun: list[float] = []

    def reconcile(triggers: Triggers) -> float | None:
        begun.append(time.monotonic())
        if "trigger" in said(triggers):
            running.stop()
        if len(begun) <= failures:
            return None
        running.notify(named("trigger"))
        return inf

    running = Runner(reconcile)
    with RunQueue(lambda: [os.getpid()]) as waiting:
        running.run()
    assert len(begun) == failures + 2
    assert waiting.undisturbed(begun[-2], begun[-1]) < 2 * EVERY_SECONDS


def test_stop_during_a_flood() -> None:
    """A stop does not wait until the next pass may begin."""
    seen = []

    def reconcile(triggers: Triggers) -> float | None:
        seen.append(time.monotonic())
        running.notify(named(f"event {len(seen)}"))
        if len(seen) == PASSES:
            threading.Timer(EVERY_SECONDS / 4, running.stop).start()
        return inf

    running = Runner(reconcile)
    with RunQueue(lambda: [os.getpid()]) as waiting:
        running.run()
        ended = time.monotonic()
    assert len(seen) == PASSES
    assert waiting.undisturbed(seen[0], ended) < EVERY_SECONDS


def test_causes_that_are_no_news() -> None:
    """Causes that tell nothing new make no pass; the next that does has one."""
    seen = []

    def reconcile(triggers: Triggers) -> float | None:
        seen.append(said(triggers))
        if len(seen) == 2:
            running.stop()
        else:
            running.notify(named("own write"))
            threading.Timer(0.1, running.notify, (named("foreign write"),)).start()
        return inf

    running = Runner(reconcile, is_news=lambda triggers: said(triggers) != {"own write"})
    running.run()
    assert seen == [{"start"}, {"foreign write"}]


def test_look_again() -> None:
    """A pass that wants another look after some time has it then."""
    clock = Time(step=0.5)
    seen: list[float] = []

    def reconcile(triggers: Triggers) -> float | None:
        seen.append(clock.now)
        if len(seen) == 2:
            running.stop()
        return 7.0

    running = Runner(reconcile, clock.passes, clock)
    running.run()
    assert seen[1] - seen[0] == pytest.approx(7.0, abs=0.6)
