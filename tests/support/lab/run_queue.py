"""When programs wanted to run and were kept waiting by others, as the scheduler accounts for it."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Self

from .intervals import Intervals, overlap, union

_SAMPLE_SECONDS = 0.01
_FIND_SECONDS = 0.1


class RunQueue:
    """Watches the processes that `find` lists, which is asked again and again, as they come and go.

    For each of their threads the kernel counts the time on a processor and the time that it waited
    for one (/proc/PID/task/TID/schedstat, CONFIG_SCHED_INFO). A wait is known when it is over.
    """

    def __init__(self, find: Callable[[], list[int]]) -> None:
        self._find = find
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._counts: dict[str, tuple[int, int]] = {}
        self._waits: list[tuple[float, float]] = []
        self._runs: list[tuple[float, float]] = []

    def __enter__(self) -> Self:
        self._sample(self._find(), new=False)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def waits(self) -> Intervals:
        """When any of their threads waited for a processor. Read it after the end."""
        return union(self._waits)

    def undisturbed(self, begin: float, end: float) -> float:
        """How many seconds between two times none of them waited. Read it after the end."""
        return end - begin - overlap(self.waits, begin, end)

    def ran(self, begin: float, end: float) -> float:
        """How many seconds at least one of them ran between two times; a lower bound."""
        return overlap(union(self._runs), begin, end)

    def _watch(self) -> None:
        found = self._find()
        sought = time.monotonic()
        while not self._over.wait(_SAMPLE_SECONDS):
            if time.monotonic() - sought > _FIND_SECONDS:
                found, sought = self._find(), time.monotonic()
            self._sample(found, new=True)

    def _sample(self, pids: list[int], *, new: bool) -> None:
        for task, ran, waited in _schedstats(pids):
            now = time.monotonic()
            # What began after the watch did has waited since then only.
            before = self._counts.get(task, (0, 0) if new else (ran, waited))
            self._counts[task] = (ran, waited)
            if waited > before[1]:
                self._waits.append((now - (waited - before[1]) / 1e9, now))
            if ran > before[0]:
                self._runs.append((now - (ran - before[0]) / 1e9, now))


def _schedstats(pids: list[int]) -> Iterator[tuple[str, int, int]]:
    """Each thread with its nanoseconds on a processor, and waiting for one."""
    for pid in pids:
        tasks = f"/proc/{pid}/task"
        try:
            # Not by Path, which takes several times as long: this is done a hundred times a second.
            for task in os.listdir(tasks):  # noqa: PTH208
                with open(f"{tasks}/{task}/schedstat", "rb", buffering=0) as file:  # noqa: PTH123
                    ran, waited, _ = file.read(100).split()
                yield f"{pid}/{task}", int(ran), int(waited)
        except (OSError, ValueError):
            # It has ended meanwhile.
            continue
