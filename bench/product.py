"""The daemon in a process of its own, as installed, and its resources."""

import socket
import sys
import threading
import time
from pathlib import Path
from queue import SimpleQueue

from lab import wait_for
from running import Daemon

from .laptop import Laptop, external, internal


class Product(Daemon):
    """`vm-onetoone-nat run`; this class acts as its service manager."""

    def __init__(self, host: Laptop, directory: Path, *, verbose: bool = False) -> None:
        super().__init__(host, directory)
        self._program = [str(Path(sys.executable).with_name("vm-onetoone-nat"))]
        if verbose:
            self._program.append("--verbose")
        path = host.path("/run/lab/notify")
        path.unlink(missing_ok=True)
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(path))
        self._ready: SimpleQueue[float] = SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def map(self, count: int, *, detect: bool = False, **keys: str) -> None:
        """Write a configuration of this many mappings; `keys` are format strings with `n`."""
        lines = ["[settings]", f"conflict_detection = {str(detect).lower()}"]
        if uri := keys.pop("uri", None):
            lines.append(f'libvirt_uri = "{uri}"')
        self.host.path(self.config).write_text("\n".join(lines) + "\n")
        for n in range(1, count + 1):
            self.add(n, **{key: value.format(n=n) for key, value in keys.items()})

    def add(self, n: int, **keys: str) -> None:
        """Append one mapping."""
        lines = ["[[mapping]]", f'external = "{external(n)}"', f'internal = "{internal(n)}"']
        lines += [f'{key} = "{value}"' for key, value in keys.items()]
        with self.host.path(self.config).open("a") as file:
            file.write("\n".join(lines) + "\n")

    def begin(self) -> float:
        """Start it and wait until it is ready; return how long that took, in seconds."""
        self._discard()
        began = time.monotonic()
        self.start(env={"NOTIFY_SOCKET": "/run/lab/notify"})
        return self.ready() - began

    def reload_at(self) -> float:
        """Send SIGHUP; return the time at which it was sent."""
        self._discard()
        began = time.monotonic()
        self.reload()
        return began

    def ready(self, timeout: float = 120) -> float:
        """Wait for its READY=1; return its time, monotonic."""
        return self._ready.get(timeout=timeout)

    def end(self) -> None:
        """Stop it, and clean up."""
        if self.process is not None and not self.ended:
            self.stop()
        done = self.command("cleanup")
        assert done.returncode == 0, done.stderr

    @property
    def pid(self) -> int:
        """Its PID in this process's namespace."""
        assert self.process is not None
        process = self.process
        return wait_for(lambda: process.inner_pid or 0, 10, "the daemon has started")

    def resident(self) -> dict[str, int]:
        """Its memory in bytes, from /proc/PID/status: VmRSS, its peak VmHWM, and its parts."""
        status = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in status)
        return {
            name: int(fields[name].split()[0]) * 1024
            for name in ("VmRSS", "VmHWM", "RssAnon", "RssFile")
        }

    def _discard(self) -> None:
        """Discard earlier READY=1 messages."""
        while not self._ready.empty():
            self._ready.get()

    def _listen(self) -> None:
        """Receive messages at once: the sender blocks while the socket is full."""
        while True:
            if self._notify.recv(4096).startswith(b"READY=1"):
                self._ready.put(time.monotonic())
