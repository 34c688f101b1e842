"""Waiting for a condition instead of sleeping."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class WaitTimeoutError(AssertionError):
    """A condition did not come true in time; to pytest a failed assertion."""


def wait_for(condition: Callable[[], T], timeout: float, what: str, interval: float = 0.05) -> T:
    """Poll `condition` until it is truthy and return that value.

    Times are in seconds. The condition is tried at least once more after the deadline, so
    that a machine which stalled for longer than `timeout` does not fail a true condition.
    Raises WaitTimeoutError, which names `what`.
    """
    deadline = time.monotonic() + timeout
    while True:
        last_try = time.monotonic() >= deadline
        value = condition()
        if value:
            return value
        if last_try:
            raise WaitTimeoutError(f"not within {timeout:g} s: {what} (last value: {value!r})")
        time.sleep(interval)
