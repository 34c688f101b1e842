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
from vm_onetoone_nat.internal_errors import OCCURRED
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
    """A pass that fails is repeated, at first soon, then less and less often, without an end."""
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


def test_work_between_events() -> None:
    """What a pass has left is done in slices; an event is served after the slice in which it came.

    The watchdog, which `tick` feeds, is fed after each slice.
    """
    order: list[str] = []

    def reconcile(triggers: Triggers) -> float | None:
        order.extend(said(triggers))
        if "last" in said(triggers):
            running.stop()
        return inf

    def work() -> bool:
        order.append("slice")
        slices = order.count("slice")
        if slices == 2:
            running.notify(named("event"))
        if slices == 4:
            running.notify(named("last"))
        return slices < 4

    def tick() -> bool:
        order.append("tick")
        return False

    running = Runner(reconcile, tick)
    running.run(work)
    first, second = ("start", "slice", "tick", "slice"), ("event", "slice", "tick", "slice", "last")
    assert order == [*first, *second]


def test_no_work_while_triggers_wait() -> None:
    """However much is left, the triggers that are queued come first."""
    order: list[str] = []

    def reconcile(triggers: Triggers) -> float | None:
        order.append(f"pass {len(triggers)}")
        if len(order) == 1:
            for n in range(1000):
                running.notify(named(f"event {n}"))
        else:
            running.stop()
        return inf

    def work() -> bool:
        order.append("slice")
        return True

    running = Runner(reconcile)
    running.run(work)
    assert order == ["pass 1", "pass 1000"]


def test_work_in_a_flood(monkeypatch: pytest.MonkeyPatch) -> None:
    """While triggers come faster than passes may start, work is done in between."""
    monkeypatch.setattr(runner, "EVERY_SECONDS", 0.05)
    passes, slices = [], []

    def reconcile(triggers: Triggers) -> float | None:
        passes.append(triggers)
        if len(passes) == 3 * PASSES:
            running.stop()
        running.notify(named(f"event {len(passes)}"))
        return inf

    def work() -> bool:
        slices.append(len(passes))
        time.sleep(0.001)
        return True

    running = Runner(reconcile)
    running.run(work)
    assert set(slices) >= set(range(PASSES, 3 * PASSES))


def test_work_that_fails() -> None:
    """It is repeated with growing delay until all is done, even if a part of it succeeds."""
    clock = Time(step=0.1)
    results = [None, True, None, None, None, False, None, True]
    tried: list[float] = []

    def work() -> bool | None:
        tried.append(clock.now)
        result = results[len(tried) - 1]
        if result is False:
            running.notify(named("more"))
        if len(tried) == len(results):
            running.stop()
        return result

    running = Runner(lambda _: inf, clock.passes, clock)
    running.run(work)
    waits = [after - before for before, after in pairwise(tried)]
    assert waits == pytest.approx([0.2, 0.1, 1.0, 2.0, 5.0, 0.0, 0.2], abs=0.15)


def test_work_that_fails_does_not_delay_events() -> None:
    """While it waits, an event is served at once, and the work is tried again after its pass."""
    clock = Time(step=0.1)
    order: list[str] = []

    def reconcile(triggers: Triggers) -> float | None:
        order.extend(said(triggers))
        if len(order) > 2:
            running.stop()
        return inf

    def work() -> None:
        order.append("failure")
        running.notify(named("event"))

    running = Runner(reconcile, clock.passes, clock)
    running.run(work)
    assert order == ["start", "failure", "event"]
    assert clock.now == 1000.0


def test_stop_during_work() -> None:
    """A stop does not wait until all is done."""
    slices = []

    def work() -> bool:
        slices.append(True)
        if len(slices) == 2:
            running.stop()
        return True

    running = Runner(lambda _: inf)
    running.run(work)
    assert len(slices) == 2


class TestInternalErrors:
    """What it calls raises what nobody expects."""

    pytestmark = pytest.mark.internal_errors

    def test_pass(self) -> None:
        """A pass that raises is one that failed: it is repeated with the same delays."""
        clock = Time()

        def raises(number: int) -> bool:
            if number < 4:
                raise KeyError(number)
            return True

        seen = record(4, raises, clock)
        assert delays(seen) == pytest.approx([0.2, 1.0, 2.0], abs=0.15)
        assert [triggers for _, triggers in seen[1:]] == [{"retry"}] * 3
        assert OCCURRED.counts["pass"] == OCCURRED.total == 3

    def test_events_meanwhile(self) -> None:
        """While passes raise, a trigger makes one at once: it does not wait for the repetition."""
        seen: list[set[str]] = []

        def reconcile(triggers: Triggers) -> float | None:
            seen.append(said(triggers))
            if len(seen) == 3:
                running.stop()
            else:
                running.notify(named(f"event {len(seen)}"))
            raise KeyError

        clock = Time()
        running = Runner(reconcile, clock.passes, clock)
        running.run()
        assert seen == [{"start"}, {"event 1"}, {"event 2"}]
        assert clock.now == 1000.0

    def test_tick(self) -> None:
        """A poll that raises has seen no change, and comes again."""
        ticks: list[int] = []

        def tick() -> bool:
            ticks.append(1)
            if len(ticks) == 3:
                running.stop()
            raise OSError

        running = Runner(lambda _: inf, tick)
        running.run()
        assert len(ticks) == OCCURRED.counts["tick"] == 3

    def test_news(self) -> None:
        """A trigger of which it cannot be found out whether it is news makes a pass."""
        seen: list[set[str]] = []

        def reconcile(triggers: Triggers) -> float | None:
            seen.append(said(triggers))
            if len(seen) == 2:
                running.stop()
            else:
                running.notify(named("event"))
            return inf

        def is_news(_: Triggers) -> bool:
            raise TypeError

        running = Runner(reconcile, is_news=is_news)
        running.run()
        assert seen == [{"start"}, {"event"}]
        assert OCCURRED.counts["triggers"] == 1
