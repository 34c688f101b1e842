"""What the service manager is told: readiness, status, reloading, the watchdog (sd_notify(3))."""

import os
import time


class Notify:
    """Speaks to the service manager that started this process; to nobody if there is none."""

    def __init__(self) -> None:
        self._said: str | None = None
        self.managed = "NOTIFY_SOCKET" in os.environ

    @property
    def watchdog_seconds(self) -> float | None:
        """How long the service manager waits for `alive` before it kills; None: for ever."""
        microseconds = os.environ.get("WATCHDOG_USEC", "")
        watched = self.managed and os.environ.get("WATCHDOG_PID") == str(os.getpid())
        return int(microseconds) / 1e6 if watched and microseconds.isdigit() else None

    def ready(self, status: str) -> None:
        """Started, or done reloading; `status` is for people."""
        self._said = status
        self._send(f"READY=1\nSTATUS={status}")

    def status(self, status: str) -> None:
        """Say `status` if it is another one than before."""
        if status != self._said:
            self._said = status
            self._send(f"STATUS={status}")

    def reloading(self) -> None:
        """Reading the configuration again; `ready` ends it."""
        microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send(f"RELOADING=1\nMONOTONIC_USEC={microseconds}")

    def stopping(self) -> None:
        """On the way out."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """Feed the watchdog."""
        self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if self.managed:
            # Here, since only a process under systemd needs the library.
            from systemd import daemon  # type: ignore[attr-defined]

            daemon.notify(message)
