"""The status socket: the daemon sends one JSON document to each client and closes the connection.

Owner and group of the daemon may connect; what clients send is not read.
"""

import logging
import os
import socket
import struct
import threading
from collections.abc import Callable
from errno import ELOOP
from functools import partial
from pathlib import Path
from socketserver import StreamRequestHandler, UnixStreamServer

from vm_onetoone_nat.errors import PrivilegeError, VmNatError
from vm_onetoone_nat.internal_errors import Work, contain, thread
from vm_onetoone_nat.service.threading_server import BoundedThreads

log = logging.getLogger(__name__)

_MODE = 0o660
_POLL_SECONDS = 86400.0
"""The server wakes for connections, and else once a day."""
_AT_ONCE = 128
"""Clients that are answered at once, each in a thread; others wait."""
_PATIENCE_SECONDS = 5
_PATIENCE = struct.pack("@ll", _PATIENCE_SECONDS, 0)  # struct timeval


class NoAnswer(VmNatError):
    """The daemon's status cannot be had from the daemon: it is `NotRunning`, or `Silent`."""


class NotRunning(NoAnswer):
    """No daemon has the socket."""


class Silent(NoAnswer):
    """A daemon has the socket but does not answer."""


def socket_path(runtime: Path) -> Path:
    """Where the daemon listens."""
    return runtime / "status.sock"


class StatusSocket:
    """Sends each client what `answer` returns, in threads of its own.

    Only the lock holder may create it: it replaces a stale socket.
    """

    def __init__(self, path: Path, answer: Callable[[], bytes]) -> None:
        self._path = path
        self._answer = answer

    def start(self) -> None:
        """Start to answer, until the process ends. Raises OSError."""
        answer = self._answer

        class Handler(StreamRequestHandler):
            timeout = _PATIENCE_SECONDS

            def handle(self) -> None:
                content = b""
                with contain(Work.STATUS):
                    content = answer()
                self.wfile.write(content)

        self._path.unlink(missing_ok=True)
        server = _Server(str(self._path), Handler)
        _set_mode(self._path)
        thread(Work.STATUS, partial(server.serve_forever, _POLL_SECONDS)).start()

    def stop(self) -> None:
        """Remove the socket."""
        self._path.unlink(missing_ok=True)


class _Server(BoundedThreads, UnixStreamServer):
    # Clients beyond this many waiting ones see that the daemon does not answer.
    request_queue_size = 128

    def __init__(self, path: str, handler: type[StreamRequestHandler]) -> None:
        super().__init__(path, handler)
        self.slots = threading.BoundedSemaphore(_AT_ONCE)

    def handle_error(self, _request: object, _client: object) -> None:
        # Most likely the client disconnected before the end of the answer.
        log.debug("status could not be sent", exc_info=True)


def _set_mode(path: Path) -> None:
    """Set the mode of the socket, and of nothing that a link in its place leads to.

    Raises OSError.
    """
    try:
        path.chmod(_MODE, follow_symlinks=False)
    except NotImplementedError as error:
        raise OSError(ELOOP, os.strerror(ELOOP), str(path)) from error


def ask(path: Path) -> str:
    """Get the daemon's answer. Raises NotRunning, Silent, PrivilegeError."""
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            # Blocking, with the kernel's timeout: with Python's, connect(2) fails at once if the
            # backlog of the socket is full.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _PATIENCE)
            connection.connect(str(path))
            connection.settimeout(_PATIENCE_SECONDS)
            parts = []
            while part := connection.recv(1 << 16):
                parts.append(part)
        except PermissionError as error:
            raise PrivilegeError(
                "only root and members of the group vm-onetoone-nat may read the status",
                hint="run it with sudo, or 'sudo adduser USER vm-onetoone-nat' and log in again",
            ) from error
        except (TimeoutError, BlockingIOError) as error:
            raise Silent("the daemon does not answer") from error
        except OSError as error:
            raise NotRunning("the daemon is not running") from error
    if not parts:
        raise Silent("the daemon does not answer")
    return b"".join(parts).decode()
