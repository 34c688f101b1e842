"""A value that is read once for all who ask within a second."""

import threading
from itertools import count

import pytest
from vm_onetoone_nat.service.recent import SECONDS, Recent


class Clock:
    """Seconds, as the test says."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_once_a_second() -> None:
    """Within a second the same value is returned; after it another is read."""
    clock, numbers = Clock(), count()
    recent = Recent(lambda: next(numbers), clock=clock)
    assert [recent.get() for _ in range(100)] == [0] * 100
    clock.now += SECONDS - 0.01
    assert recent.get() == 0
    clock.now += 0.01
    assert [recent.get() for _ in range(100)] == [1] * 100


def test_many_at_once() -> None:
    """Of many threads that ask at once one reads, and the others wait for what it reads.

    Before, each asker of the status had the kernel list the table for it. A read that takes longer
    than a value may be old serves them all, too.
    """
    clock, numbers = Clock(), count()
    begun, go_on = threading.Event(), threading.Event()

    def read() -> int:
        begun.set()
        go_on.wait()
        clock.now += 5 * SECONDS
        return next(numbers)

    recent = Recent(read, clock=clock)
    found: list[int] = []
    askers = [threading.Thread(target=lambda: found.append(recent.get())) for _ in range(50)]
    for asker in askers:
        asker.start()
    assert begun.wait(60)
    assert found == []
    go_on.set()
    for asker in askers:
        asker.join()
    assert found == [0] * 50


def test_version() -> None:
    """With another version the value is read at once: a status has the last pass in it."""
    version, numbers = [1], count()
    recent = Recent(lambda: next(numbers), lambda: version[0], Clock())
    assert [recent.get() for _ in range(10)] == [0] * 10
    version[0] = 2
    assert [recent.get() for _ in range(10)] == [1] * 10


def test_error() -> None:
    """An error is raised to who asks, is not remembered, and keeps nobody from the next attempt."""
    answers = [1.0, 0.0]
    recent = Recent(lambda: 1 / answers.pop())
    with pytest.raises(ZeroDivisionError):
        recent.get()
    assert recent.get() == 1.0
