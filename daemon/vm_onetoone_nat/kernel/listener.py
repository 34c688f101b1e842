"""A thread that receives notifications of the kernel by netlink."""

import logging
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from vm_onetoone_nat.internal_errors import Work, contain, thread
from vm_onetoone_nat.kernel.socket_filter import Filter, attach

log = logging.getLogger(__name__)

_SO_RCVBUFFORCE = 33
_BUFFER = 4 << 20
"""Bytes that may wait. The kernel counts about 1 KiB for each notification."""
_DATAGRAM = 1 << 16
_CALM_SECONDS = 10.0
"""Without a loss for so long, the next one is reported at once."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 4.0


@dataclass(frozen=True, slots=True)
class Source:
    """What notifies: the netlink protocol, and its groups as bits. `work` names the thread."""

    work: Work
    protocol: int
    groups: int


class Listener:
    """Calls `received` with each datagram, and `lost` after the kernel has dropped some.

    Both are called in its thread. What is dropped is unknown, so `lost` is called when nothing
    waits any more: from then on nothing is missed. While notifications are lost again and again,
    there are growing pauses in which nothing is received.
    """

    def __init__(
        self,
        source: Source,
        filter_: Filter,
        received: Callable[[bytes], None],
        lost: Callable[[], None],
    ) -> None:
        self._source = source
        self._received = received
        self._lost = lost
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, source.protocol)
        for option in (socket.SO_RCVBUF, _SO_RCVBUFFORCE):
            with suppress(PermissionError):
                self._socket.setsockopt(socket.SOL_SOCKET, option, _BUFFER)
        self.filter(filter_)
        self._missed = False
        self._pause = 0.0
        self._reported = float("-inf")

    def filter(self, filter_: Filter) -> None:
        """Replace the filter; if the kernel refuses it, all is received. From any thread."""
        attach(self._socket, filter_)

    def listen(self) -> None:
        """Subscribe; no notification after the return is missed."""
        self._socket.bind((0, self._source.groups))

    def start(self) -> None:
        """Start the thread."""
        thread(self._source.work, self._run).start()

    def _run(self) -> None:
        while True:
            # Also after a report that failed, and with it this thread.
            if self._missed:
                self._report()
            # What cannot be parsed is as good as lost.
            self._missed = True
            try:
                data = self._socket.recv(_DATAGRAM)
            except OSError as error:
                # Most likely ENOBUFS.
                log.debug("%s: notifications were lost: %r", self._source.work.label, error)
            else:
                with contain(self._source.work):
                    self._received(data)
                    self._missed = False

    def _report(self) -> None:
        calm = time.monotonic() - self._reported > _CALM_SECONDS
        self._pause = 0.0 if calm else min(max(2 * self._pause, _FIRST_PAUSE), _LONGEST_PAUSE)
        time.sleep(self._pause)
        self._discard()
        self._reported = time.monotonic()
        self._lost()
        self._missed = False

    def _discard(self) -> None:
        """Discard what waits. The kernel drops everything until nothing waits (af_netlink.c)."""
        while True:
            try:
                self._socket.recv(1, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as error:
                log.debug("%s: %r", self._source.work.label, error)
