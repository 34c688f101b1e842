"""A value that is costly to read, shared by those who ask for it at the same time."""

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

SECONDS = 1.0
"""How old a value may be."""


class Recent(Generic[T]):
    """What `read` returned at most SECONDS ago, and since `version` changed last.

    It is read by one thread at a time; threads that ask meanwhile wait for it. What `read` raises
    is raised, and read again.
    """

    def __init__(
        self,
        read: Callable[[], T],
        version: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._version = version
        self._clock = clock
        self._lock = threading.Lock()
        self._known: tuple[float, object, T] | None = None

    def get(self) -> T:
        """The value. From any thread."""
        with self._lock:
            version = self._version()
            if self._known is not None:
                at, known, value = self._known
                if version == known and self._clock() - at < SECONDS:
                    return value
            value = self._read()
            # The time after it: a read that takes longer serves all that waited for it.
            self._known = self._clock(), version, value
            return value
