"""Notifications to the service manager: readiness, status, reload, watchdog (sd_notify(3))."""

import os
import time

from vm_onetoone_nat.journal import encodable


class Notify:
    """Notifies the service manager that started this process; does nothing without one."""

    def __init__(self) -> None:
        self._sent: str | None = None
        self.managed = "NOTIFY_SOCKET" in os.environ

    @property
    def watchdog_seconds(self) -> float | None:
        """The watchdog timeout: without `alive` for so long the process is killed. None: off."""
        microseconds = os.environ.get("WATCHDOG_USEC", "")
        watched = self.managed and os.environ.get("WATCHDOG_PID") == str(os.getpid())
        return int(microseconds) / 1e6 if watched and microseconds.isdigit() else None

    def ready(self, status: str) -> None:
        """Startup or reload is complete; `systemctl status` shows `status`."""
        self._sent = status
        self._send(f"READY=1\nSTATUS={status}")

    def status(self, status: str) -> None:
        """Send `status` if it has changed."""
        if status != self._sent:
            self._sent = status
            self._send(f"STATUS={status}")

    def waiting(self, status: str, seconds: float) -> None:
        """Startup goes on for at least so many seconds more: the start does not time out."""
        self._sent = status
        self._send(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}\nSTATUS={status}")

    def reloading(self) -> None:
        """A reload begins; `ready` ends it."""
        microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send(f"RELOADING=1\nMONOTONIC_USEC={microseconds}")

    def stopping(self) -> None:
        """The daemon is stopping."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """Feed the watchdog."""
        self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if self.managed:
            # Here, since only a process under systemd needs the library.
            from systemd import daemon  # type: ignore[attr-defined]

            daemon.notify(encodable(message))
