"""The runtime directory, and the lock that only one daemon can hold."""

import errno
import fcntl
import os
import select
import signal
import struct
from collections.abc import Callable
from pathlib import Path

from vm_onetoone_nat.errors import VmNatError
from vm_onetoone_nat.store.text import open_regular

_STOP_SECONDS = 60.0
_FLOCK = struct.Struct("@hhqqi")
"""struct flock of fcntl(2): type, whence, start, length, process ID."""


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
    """The daemon's lock; the kernel releases it when the process ends.

    A POSIX lock (fcntl(2)): the kernel knows its holder, and nothing that is written in a file is
    believed. The kernel releases it also if this process closes another descriptor of the file: no
    other part of the program may open it.
    """

    def __init__(self, runtime: Path) -> None:
        self._path = runtime / "lock"
        try:
            # Only its owner: who may read a file may lock it, and so keep the daemon from starting.
            self._file = open_regular(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise VmNatError(f"{self._path}: {error.strerror}") from error

    def acquire(self, wait: Callable[[int], None] | None = None) -> None:
        """Take the lock. While process N holds it, call `wait(N)`, which returns after some time.

        Without `wait`, raises VmNatError if another process holds it.
        """
        while not self.try_acquire():
            holder = self._holder()
            if holder is None:
                continue
            if wait is None:
                raise VmNatError(
                    f"another vm-onetoone-nat is running (process {holder})",
                    hint="stop it first, or use 'systemctl reload vm-onetoone-nat'",
                )
            wait(holder)

    def try_acquire(self) -> bool:
        """Take the lock, unless another process holds it. Raises VmNatError."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise VmNatError(f"{self._path}: {error.strerror}") from error
            return False
        return True

    def stop_other(self) -> int | None:
        """Stop the running daemon, if any, and take the lock; return its process ID.

        Raises VmNatError if it does not end.
        """
        stopped = None
        while not self.try_acquire():
            holder = self._holder()
            if holder is not None:
                stopped = holder
                self._stop(holder)
        return stopped

    def _stop(self, holder: int) -> None:
        """End the process that holds the lock, and wait until it has ended. Raises VmNatError."""
        try:
            process = os.pidfd_open(holder)
        except ProcessLookupError:
            return
        try:
            # The process may have ended, and another have its number: then it is not the holder.
            if self._holder() != holder:
                return
            signal.pidfd_send_signal(process, signal.SIGTERM)
            poll = select.poll()
            poll.register(process, select.POLLIN)
            if not poll.poll(1000 * _STOP_SECONDS):
                raise VmNatError(f"process {holder} does not end", hint="kill it and try again")
        except ProcessLookupError:
            return
        except OSError as error:
            raise VmNatError(f"process {holder} cannot be ended: {error.strerror}") from error
        finally:
            os.close(process)

    def _holder(self) -> int | None:
        """The process that holds the lock, by the kernel's word. Raises VmNatError."""
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, *_, holder = _FLOCK.unpack(fcntl.fcntl(self._file, fcntl.F_GETLK, asked))
        if kind == fcntl.F_UNLCK:
            return None
        if holder <= 0:
            raise VmNatError(f"{self._path}: locked by a process that cannot be seen from here")
        return int(holder)
