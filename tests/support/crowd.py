"""What other programs and guests may have on a host, in masses, and what the daemon does then."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab import Host, Namespace
from lab.addresses import LIBVIRT_BRIDGE
from running import Daemon

ELEMENTS, CHANGED, EVERY = 100_000, 2_000, 0.1
"""A foreign set has so many elements. So many of them change each time, every so many seconds."""

MACS = 60_000
"""So many does a guest forge."""

_PROGRAMS = Path(sys.modules["lab"].__file__ or "").parent / "inside"


@contextmanager
def churn(host: Host) -> Iterator[None]:
    """Elements of a foreign set change, many times a second."""
    numbers = (str(ELEMENTS), str(CHANGED), str(EVERY))
    program = host.python(_PROGRAMS / "churn.py", *numbers)
    with host.popen(*program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            yield
            process.stdin.close()
            assert int(process.stdout.read()) > 0
        finally:
            process.kill()


def forge(guest: Namespace, count: int, rate: float = 1e6) -> None:
    """A guest sends frames from so many MACs, at most `rate` in a second."""
    guest.run(*guest.python(_PROGRAMS / "forged_macs.py", "eth0", str(count), str(rate)))


def learned(host: Host) -> int:
    """How many of these the guests' bridge has learned."""
    return host.run("bridge", "fdb", "show", "br", LIBVIRT_BRIDGE).stdout.count("0a:00:")


def share(daemon: Daemon, seconds: float) -> float:
    """The share of one processor that the daemon uses in the next seconds."""
    before, began = _used(daemon), time.monotonic()
    time.sleep(seconds)
    return (_used(daemon) - before) / (time.monotonic() - began)


def _used(daemon: Daemon) -> float:
    assert daemon.process is not None
    tasks = Path(f"/proc/{daemon.process.inner_pid}/task")
    spent = (int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir())
    return sum(spent) / 1e9


def repair(host: Host, undo: str, done: str) -> float:
    """The time from the end of one command until the other one succeeds, in s."""
    script = f"{undo}; date +%s%N; until {done} >/dev/null 2>&1; do :; done; date +%s%N"
    began, ended = host.run("sh", "-ec", script).stdout.split()
    return (int(ended) - int(began)) / 1e9
