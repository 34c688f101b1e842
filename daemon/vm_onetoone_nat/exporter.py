"""HTTP on the sockets that systemd hands over (sd_listen_fds(3)): any address, or a Unix socket.

It makes no socket itself, so that its unit may be without a network of its own.
"""

import logging
import socket
import threading
from contextlib import suppress
from socketserver import BaseServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import WSGIApplication

log = logging.getLogger(__name__)

_PATIENCE_SECONDS = 15.0
"""A client has so long for all of its request and the answer."""
_AT_ONCE = 32
"""So many clients of a socket are answered at once; the next wait."""


def inherited_sockets() -> list[socket.socket]:
    """The listening sockets that this process was started with. Once: it forgets them."""
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
        # Without an interval it wakes for those who connect only.
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
        """Nothing: whoever asks, it is no event of this host."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(
        self, listener: socket.socket, application: WSGIApplication, patience: float
    ) -> None:
        # Not that of the classes between, which make a socket of their own.
        BaseServer.__init__(self, ("", 0), _Handler)
        self.socket = listener
        self.server_name, self.server_port = "localhost", 0
        self.setup_environ()
        self.set_app(application)
        self._patience = patience
        self._slots = threading.BoundedSemaphore(_AT_ONCE)

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        request, _ = self.socket.accept()
        # A client by a Unix socket has no address, and nobody asks for any other's.
        return request, ("", 0)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._slots.acquire()
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._slots.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        timer = threading.Timer(self._patience, _hang_up, (request,))
        timer.daemon = True
        try:
            timer.start()
            super().process_request_thread(request, client_address)
        finally:
            timer.cancel()
            self._slots.release()

    def handle_error(self, request: object, client_address: object) -> None:
        # Who went away before the end of the answer, most likely.
        log.debug("metrics could not be told", exc_info=True)


def _hang_up(connection: socket.socket) -> None:
    """End what waits for the other side. It may have ended meanwhile."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
