"""A connection to libvirt that is replaced whenever it is lost.

Connecting has a thread of its own, since `open` blocks while libvirtd hangs. Callbacks run in the
thread of libvirt's event loop.
"""

import logging
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeVar

import libvirt

from vm_onetoone_nat.errors import LibvirtUnavailable
from vm_onetoone_nat.events import Event
from vm_onetoone_nat.internal_errors import Work, thread
from vm_onetoone_nat.journal import entry
from vm_onetoone_nat.model.trigger import Kind, Trigger
from vm_onetoone_nat.virt.answers import BoundedCalls, LibvirtHangs
from vm_onetoone_nat.virt.units import libvirt_units

T = TypeVar("T")

_ANSWERS = Trigger(Kind.LIBVIRT, "libvirt answers")
_CONNECTED = Trigger(Kind.LIBVIRT, "libvirt connected")
_LOST = Trigger(Kind.LIBVIRT, "libvirt lost")

_KEEPALIVE_SECONDS = 10
_KEEPALIVE_COUNT = 3
_BACKOFF_SECONDS = (1.0, 2.0, 5.0, 10.0)
_SETTLE_SECONDS = 0.1
"""Before the first attempt after a loss: a libvirtd that ends closes its clients before its socket.
An attempt in between fails, and libvirt 9.0 may leave a descriptor of it open."""

log = logging.getLogger(__name__)


class _NotConnected(LibvirtUnavailable):
    """There is no connection now."""

    def __init__(self) -> None:
        super().__init__("libvirt is not connected")


class Connection:
    """A read-only connection; `notify` is called when it is there, lost, or answers late.

    `subscribe` registers callbacks on each new connection, since registrations end with theirs. It
    adds to the stack what deregisters them. `name` is for the log.
    """

    def __init__(
        self,
        uri: str,
        name: str,
        subscribe: Callable[[Any, ExitStack], None],
        notify: Callable[[Trigger], None],
    ) -> None:
        self._uri = uri
        self._name = name
        self._subscribe = subscribe
        self._notify = notify
        self._open: Any = None
        # Held by a call, and to close: libvirt frees a connection that is closed during a call.
        self._in_use = threading.Lock()
        self._calls = BoundedCalls(lambda: notify(_ANSWERS))
        self._answered = False
        # The text only: an error has a traceback, whose frames have objects of the connection.
        self._fault = ""
        self._lost = threading.Event()
        self._tried = threading.Event()
        self._stopped = threading.Event()

    def start(self) -> None:
        """Connect, in a thread of its own. libvirt's event loop must be registered before."""
        thread(Work.LIBVIRT, self._run).start()

    def wait_until_tried(self, timeout: float) -> None:
        """Wait until the first attempt has succeeded or failed, at most `timeout` seconds."""
        self._tried.wait(timeout)

    def stop(self) -> None:
        """Close the connection, and open no other. The thread may end later: libvirt may block."""
        self._stopped.set()
        self._lost.set()

    def call(self, read: Callable[[Any], T]) -> T:
        """Return what `read` returns for the connection. Raises LibvirtUnavailable.

        A call that hangs is waited for once, at most 5 s; until it has returned, others raise
        LibvirtHangs at once.
        """
        if self._open is None:
            raise _NotConnected
        try:
            return self._calls.call(lambda: self._read(read))
        except (LibvirtHangs, _NotConnected):
            # If it hangs, keepalive decides whether to close the connection.
            raise
        except LibvirtUnavailable as error:
            self._fault = str(error)
            # Reconnect even if the connection is alive: with modular daemons it leads to virtqemud,
            # whose own connection to virtnetworkd, with its events, stays broken after a restart
            # of virtnetworkd.
            self._lost.set()
            raise

    def _read(self, read: Callable[[Any], T]) -> T:
        with self._in_use:
            if self._open is None:
                raise _NotConnected
            found = read(self._open)
            if not self._answered:
                self._answered = True
                self._log_connected()
            return found

    def _run(self) -> None:
        attempt = 0
        while not self._stopped.is_set():
            fault = self._serve()
            if fault is None:
                attempt = 0
                self._stopped.wait(_SETTLE_SECONDS)
                continue
            if attempt == 0:
                self._log_unavailable(fault)
            delay = _BACKOFF_SECONDS[min(attempt, len(_BACKOFF_SECONDS) - 1)]
            attempt += 1
            self._stopped.wait(delay)

    def _serve(self) -> str | None:
        """Connect, and wait until the connection is lost.

        Returns why there was none, or none that answered; None if it answered.
        """
        self._lost.clear()
        self._answered, self._fault = False, "the connection was closed"
        try:
            self._open, ending = self._connect()
        except (LibvirtUnavailable, libvirt.libvirtError) as error:
            return str(error)
        finally:
            self._tried.set()
        self._notify(_CONNECTED)
        self._lost.wait()
        self._open = None
        if not self._stopped.is_set():
            if self._answered:
                self._log_lost()
            self._notify(_LOST)
        self._close(ending)
        return None if self._answered else self._fault

    def _connect(self) -> tuple[Any, ExitStack]:
        """A connection with its callbacks, and what ends both.

        Raises LibvirtUnavailable and libvirtError; then the connection is closed. Every callback
        has a reference to its connection: one that is left keeps the connection open.
        """
        with ExitStack() as ending:
            connection = connect(self._uri)
            ending.callback(connection.close)
            connection.registerCloseCallback(self._on_close, None)
            ending.callback(connection.unregisterCloseCallback)
            self._subscribe(connection, ending)
            _keep_alive(connection)
            return connection, ending.pop_all()

    def _close(self, ending: ExitStack) -> None:
        """End a connection. Deregistration fails on a broken one, and ends the callback even so."""
        with self._in_use:
            try:
                ending.close()
            except libvirt.libvirtError as error:
                log.debug("closing a lost connection: %s", error)

    def _on_close(self, _connection: Any, _reason: int, _opaque: None) -> None:
        self._lost.set()

    def _log_connected(self) -> None:
        log.info(
            "connected to %s at %s", self._name, self._uri, extra=entry(Event.LIBVIRT_CONNECTED)
        )

    def _log_unavailable(self, fault: str) -> None:
        log.warning(
            "waiting for %s at %s: %s",
            self._name,
            self._uri,
            fault,
            extra=entry(Event.LIBVIRT_UNAVAILABLE, reason=fault, units=libvirt_units()),
        )

    def _log_lost(self) -> None:
        log.warning(
            "lost %s at %s; what is active stays active",
            self._name,
            self._uri,
            extra=entry(Event.LIBVIRT_LOST, units=libvirt_units()),
        )


def silence() -> None:
    """Keep libvirt from printing errors: they are raised as exceptions."""
    libvirt.registerErrorHandler(lambda _context, _error: None, None)


def connect(uri: str) -> Any:
    """A read-only connection. Raises LibvirtUnavailable."""
    try:
        return libvirt.openReadOnly(uri)
    except libvirt.libvirtError as error:
        raise LibvirtUnavailable(error.get_error_message()) from error


def _keep_alive(connection: Any) -> None:
    """Have libvirt close the connection if the other side does not answer for 40 s."""
    try:
        connection.setKeepAlive(_KEEPALIVE_SECONDS, _KEEPALIVE_COUNT)
    except libvirt.libvirtError as error:
        # Drivers without a socket, such as test:///default, do not support it.
        if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
            raise
