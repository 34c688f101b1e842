"""The socket at which the running daemon tells how things are: one JSON document, then the end.

Owner and group of the daemon may connect; nothing that they send is read.
"""

import logging
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingUnixStreamServer

from vm_onetoone_nat.errors import PrivilegeError, VmNatError

log = logging.getLogger(__name__)

_MODE = 0o660
_PATIENCE_SECONDS = 5
_PATIENCE = struct.pack("@ll", _PATIENCE_SECONDS, 0)  # struct timeval


class NotRunning(VmNatError):
    """No daemon answers at the socket."""


class Silent(NotRunning):
    """A daemon has the socket, and says nothing."""


def socket_path(runtime: Path) -> Path:
    """Where the daemon listens."""
    return runtime / "status.sock"


class StatusSocket:
    """Answers each who connects, from threads of its own, with what `answer` returns then.

    To be made only by the one daemon: what has its path is taken for a dead one's.
    """

    def __init__(self, path: Path, answer: Callable[[], str]) -> None:
        self._path = path
        self._answer = answer

    def start(self) -> None:
        """Answer from now on, until the process ends. Raises OSError."""
        answer = self._answer

        class Handler(StreamRequestHandler):
            timeout = _PATIENCE_SECONDS

            def handle(self) -> None:
                self.wfile.write(answer().encode())

        self._path.unlink(missing_ok=True)
        server = _Server(str(self._path), Handler)
        self._path.chmod(_MODE)
        # Without an interval it wakes for those who connect only.
        threading.Thread(
            target=server.serve_forever, args=(None,), name="status", daemon=True
        ).start()

    def stop(self) -> None:
        """Be found by nobody any more."""
        self._path.unlink(missing_ok=True)


class _Server(ThreadingUnixStreamServer):
    daemon_threads = True
    # Who comes while so many wait is told that the daemon does not answer.
    request_queue_size = 128

    def handle_error(self, _request: object, _client: object) -> None:
        # Who went away before the end of the answer, most likely.
        log.debug("status could not be told", exc_info=True)


def ask(path: Path) -> str:
    """What the daemon answers. Raises NotRunning, PrivilegeError."""
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            # Blocking, with the kernel's own limit: by Python's, connect(2) to a socket where
            # others wait would fail at once.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _PATIENCE)
            connection.connect(str(path))
            connection.settimeout(_PATIENCE_SECONDS)
            parts = []
            while part := connection.recv(1 << 16):
                parts.append(part)
        except PermissionError as error:
            raise PrivilegeError(
                "this is told to root and to members of the group vm-onetoone-nat only",
                hint="run it with sudo, or 'sudo adduser USER vm-onetoone-nat' and log in again",
            ) from error
        except (TimeoutError, BlockingIOError) as error:
            raise Silent("the daemon does not answer") from error
        except OSError as error:
            raise NotRunning("the daemon is not running") from error
    if not parts:
        raise Silent("the daemon does not answer")
    return b"".join(parts).decode()
