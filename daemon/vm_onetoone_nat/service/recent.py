"""A value that is costly to read, shared by those who ask for it at the same time."""

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

SECONDS = 1.0
"""How old a value may be."""


class Recent(Generic[T]):
    """What `read` returned at most SECONDS ago. It is read by one thread at a time.

    Threads that ask meanwhile wait for it. What `read` raises is raised, and read again.
    """

    def __init__(self, read: Callable[[], T], clock: Callable[[], float] = time.monotonic) -> None:
        self._read = read
        self._clock = clock
        self._lock = threading.Lock()
        self._known: tuple[float, T] | None = None

    def get(self) -> T:
        """The value. From any thread."""
        with self._lock:
            if self._known is None or self._clock() - self._known[0] >= SECONDS:
                value = self._read()
                # After it: a read that takes longer serves all that waited for it.
                self._known = self._clock(), value
            return self._known[1]
