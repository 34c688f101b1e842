"""The runtime directory, and the lock that only one daemon can hold."""

import errno
import fcntl
import logging
import os
import signal
import time
from pathlib import Path

from vm_onetoone_nat.errors import VmNatError

log = logging.getLogger(__name__)

_STOP_SECONDS = 60.0


def runtime_path() -> Path:
    """The runtime directory, which may not exist: systemd's RuntimeDirectory=, or the default."""
    return Path(os.environ.get("RUNTIME_DIRECTORY", "/run/vm-onetoone-nat"))


def runtime_directory() -> Path:
    """The runtime directory, created if missing. Raises VmNatError."""
    path = runtime_path()
    try:
        path.mkdir(mode=0o755, exist_ok=True)
    except OSError as error:
        raise VmNatError(f"{path}: {error.strerror}", hint="run as root, or by systemd") from error
    return path


class Instance:
    """The daemon's lock; the kernel releases it when the process ends."""

    def __init__(self, runtime: Path) -> None:
        self._path = runtime / "lock"
        try:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise VmNatError(f"{self._path}: {error.strerror}") from error

    def acquire(self) -> None:
        """Take the lock. Raises VmNatError if another process holds it."""
        if not self._try():
            raise VmNatError(
                f"another vm-onetoone-nat is running (process {self._holder()})",
                hint="stop it first, or use 'systemctl reload vm-onetoone-nat'",
            )
        try:
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            # The lock is held all the same; only `cleanup` cannot find this process to stop it.
            log.warning("%s: the process id could not be written: %s", self._path, error.strerror)

    def stop_other(self) -> int | None:
        """Stop the running daemon, if any, and take the lock; return its process ID.

        Raises VmNatError if it does not end.
        """
        if self._try():
            return None
        holder = self._holder()
        deadline = time.monotonic() + _STOP_SECONDS
        try:
            os.kill(holder, signal.SIGTERM)
        except ProcessLookupError:
            pass
        except OSError as error:
            raise VmNatError(f"process {holder} cannot be ended: {error.strerror}") from error
        while not self._try():
            if time.monotonic() > deadline:
                raise VmNatError(f"process {holder} does not end", hint="kill it and try again")
            time.sleep(0.05)
        return holder

    def _try(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno != errno.EWOULDBLOCK:
                raise VmNatError(f"{self._path}: {error.strerror}") from error
            return False
        return True

    def _holder(self) -> int:
        text = os.pread(self._file, 32, 0).decode(errors="replace").strip()
        if not text.isdigit():
            raise VmNatError(f"{self._path}: locked, but it has no process id")
        return int(text)
