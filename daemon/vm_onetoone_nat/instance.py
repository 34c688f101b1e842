"""The runtime directory, and the lock that keeps two daemons from working on one kernel."""

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
    """The runtime directory, there or not: systemd's RuntimeDirectory= where it gave one."""
    return Path(os.environ.get("RUNTIME_DIRECTORY", "/run/vm-onetoone-nat"))


def runtime_directory() -> Path:
    """The runtime directory, made if need be. Raises VmNatError if it cannot be."""
    path = runtime_path()
    try:
        path.mkdir(mode=0o755, exist_ok=True)
    except OSError as error:
        raise VmNatError(f"{path}: {error.strerror}", hint="run as root, or by systemd") from error
    return path


class Instance:
    """The lock of the one daemon, held until the process ends, however it ends."""

    def __init__(self, runtime: Path) -> None:
        self._path = runtime / "lock"
        try:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise VmNatError(f"{self._path}: {error.strerror}") from error

    def acquire(self) -> None:
        """Become the one daemon. Raises VmNatError if another process is."""
        if not self._try():
            raise VmNatError(
                f"another vm-onetoone-nat is running (process {self._holder()})",
                hint="stop it first, or use 'systemctl reload vm-onetoone-nat'",
            )
        try:
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            # The lock holds all the same; only `cleanup` cannot end this process by itself.
            log.warning("%s: the process id could not be written: %s", self._path, error.strerror)

    def stop_other(self) -> int | None:
        """End the daemon that runs, if one does, and take its place; the id of its process.

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
            raise VmNatError(f"{self._path}: held by a process that has not named itself")
        return int(text)
