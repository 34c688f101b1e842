"""Calls into libvirt that may never return."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from vm_onetoone_nat.errors import LibvirtUnavailable

T = TypeVar("T")

ANSWER_SECONDS = (1.0, 5.0)
"""The timeout of a call to libvirt: initially and, after slow answers, at most."""


class LibvirtHangs(LibvirtUnavailable):
    """libvirt does not answer a call."""


class BoundedCalls:
    """Calls libvirt in a thread of its own, with a timeout.

    A call into a hung libvirtd blocks until keepalive closes the connection; signals and repairs
    must not wait for that. There is one call at a time; `answered` is called when a call returns
    after its timeout.
    """

    def __init__(self, answered: Callable[[], None], patience: float = ANSWER_SECONDS[0]) -> None:
        self._answered = answered
        self._patience = patience
        self._pending: Future[Any] | None = None

    def call(self, function: Callable[[], T]) -> T:
        """Return or raise what `function` does. Raises LibvirtHangs after the timeout."""
        if self._pending is not None and not self._pending.done():
            raise LibvirtHangs("libvirt still does not answer")
        answer: Future[T] = Future()
        self._pending = answer
        began = time.monotonic()

        def run() -> None:
            try:
                answer.set_result(function())
            except Exception as error:
                answer.set_exception(error)

        threading.Thread(target=run, name="libvirt-call", daemon=True).start()
        try:
            return answer.result(timeout=self._patience)
        except TimeoutError as error:
            answer.add_done_callback(lambda _: self._late(time.monotonic() - began))
            raise LibvirtHangs(f"libvirt has not answered for {self._patience:g} s") from error

    def _late(self, seconds: float) -> None:
        """Adapt the timeout to a slow libvirt, up to the maximum."""
        least, most = ANSWER_SECONDS
        self._patience = min(most, max(least, 2 * seconds))
        self._answered()
