"""Calls into libvirt that may never return."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

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
        # Not the result: an error has a traceback, whose frames have objects of the connection.
        self._returned = threading.Event()
        self._returned.set()

    def call(self, function: Callable[[], T]) -> T:
        """Return or raise what `function` does. Raises LibvirtHangs after the timeout."""
        if not self._returned.is_set():
            raise LibvirtHangs("libvirt still does not answer")
        answer: Future[T] = Future()
        returned = threading.Event()
        began = time.monotonic()

        def run() -> None:
            try:
                found = function()
            except Exception as error:
                returned.set()
                answer.set_exception(error)
            else:
                returned.set()
                answer.set_result(found)

        threading.Thread(target=run, name="libvirt-call", daemon=True).start()
        self._returned = returned
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
