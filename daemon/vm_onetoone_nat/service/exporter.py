"""HTTP on sockets passed by systemd (sd_listen_fds(3)), at any address or on a Unix socket.

It creates no socket, so its unit needs no network access.
"""

import logging
import socket
import threading
from contextlib import suppress
from socketserver import BaseServer
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import WSGIApplication

from vm_onetoone_nat.service.threading_server import BoundedThreads

log = logging.getLogger(__name__)

_PATIENCE_SECONDS = 15.0
"""The time limit for a request and its answer."""
_AT_ONCE = 32
"""The number of clients of a socket that are answered at once; others wait."""


def inherited_sockets() -> list[socket.socket]:
    """The listening sockets passed to this process. Call it once: it unsets the environment."""
    # Here, since only a process under systemd needs the library.
    from systemd import daemon  # type: ignore[attr-defined]

    descriptors = daemon.listen_fds(unset_environment=True)
    return [socket.socket(fileno=descriptor) for descriptor in descriptors]


def serve(
    listeners: list[socket.socket],
    application: WSGIApplication,
    patience: float = _PATIENCE_SECONDS,
) -> None:
    """Answer on each of the sockets, until the process ends."""
    threads = [
        # Without a poll interval it wakes only for connections.
        threading.Thread(
            target=_Server(each, application, patience).serve_forever, args=(None,), daemon=True
        )
        for each in listeners
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


class _Server(BoundedThreads, WSGIServer):
    def __init__(
        self, listener: socket.socket, application: WSGIApplication, patience: float
    ) -> None:
        # Not super().__init__: it would create a socket.
        BaseServer.__init__(self, ("", 0), _Handler)
        self.socket = listener
        self.server_name, self.server_port = "localhost", 0
        self.setup_environ()
        self.set_app(application)
        self._patience = patience
        self.slots = threading.BoundedSemaphore(_AT_ONCE)

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        request, _ = self.socket.accept()
        # A client on a Unix socket has no address, and the address of others is not used.
        return request, ("", 0)

    def finish_request(self, request: Any, client_address: Any) -> None:
        timer = threading.Timer(self._patience, _hang_up, (request,))
        timer.daemon = True
        try:
            timer.start()
            super().finish_request(request, client_address)
        finally:
            timer.cancel()

    def handle_error(self, request: object, client_address: object) -> None:
        # Most likely the client disconnected before the end of the answer.
        log.debug("metrics could not be sent", exc_info=True)


def _hang_up(connection: socket.socket) -> None:
    """Shut down a connection, so that blocked reads and writes end."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
