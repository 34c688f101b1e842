"""The judgements of the lab find what they are made for, on a quiet and on a loaded machine.

Each is made of a product or a path that is broken on purpose for 0.3 s.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from faults import FAULTS, Site, fault
from lab import EchoServer, Host, Lan, NamespaceGuest, Stream
from lab.addresses import external, internal
from running import Daemon, mapping

PORT = 7000
OUTAGE = 0.3
BUSY = 4

# A daemon whose writes to the kernel come late.
LATE = f"""
import sys, time
from vm_onetoone_nat.kernel.kernel import Kernel
apply = Kernel.apply
def late(self, plan):
    time.sleep({OUTAGE})
    apply(self, plan)
Kernel.apply = late
from vm_onetoone_nat.cli import main
main()
"""


@pytest.fixture(scope="module", params=[0, BUSY], ids=["quiet", "loaded"])
def load(request: pytest.FixtureRequest) -> Iterator[None]:
    """So many processes that never rest."""
    with ExitStack() as stack:
        for _ in range(request.param):
            busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            stack.callback(busy.wait)
            stack.callback(busy.kill)
        yield


@pytest.fixture(scope="module")
def guest(load: None, host: Host) -> Iterator[NamespaceGuest]:
    with NamespaceGuest(host, "guest", internal(1)) as guest, EchoServer(guest, PORT):
        yield guest


@pytest.fixture
def site(lan: Lan, guest: NamespaceGuest, daemon: Daemon) -> Site:
    return Site(lan, guest, daemon, PORT)


def interrupt(host: Host, seconds: float) -> None:
    """Let nothing pass between the LAN and the guests for that time."""
    hook = "{ type filter hook forward priority -300; policy drop; }"
    host.run("nft", f"add table ip outage; add chain ip outage outage {hook}")
    time.sleep(seconds)
    host.run("nft", "delete table ip outage")


@pytest.mark.parametrize("protocol", ["udp", "tcp", "flows"])
def test_outage(
    lan: Lan, host: Host, running: Daemon, guest: NamespaceGuest, protocol: str
) -> None:
    """An outage makes no whole stream; without one it is whole."""
    for seconds in (0.0, OUTAGE):
        with Stream(lan, external(1), PORT, guest, protocol, rate=100) as stream:
            time.sleep(0.5)
            if seconds:
                interrupt(host, seconds)
            time.sleep(0.5)
            report = stream.finish()
        assert report.whole == (seconds == 0), report


def test_lost_segment(lan: Lan, host: Host, running: Daemon, guest: NamespaceGuest) -> None:
    """A segment that is lost, and sent again so soon that no answer is late, is found."""
    with Stream(lan, external(1), PORT, guest, "tcp", rate=100) as stream:
        time.sleep(0.5)
        interrupt(host, 0.05)
        time.sleep(0.5)
        report = stream.finish()
    assert not report.whole, report


def test_repair(site: Site, host: Host, running: Daemon) -> None:
    """A repair that is made at once is in time."""
    with fault("table deleted", site):
        host.run("nft", "delete", "table", "inet", "vm_onetoone_nat")
    FAULTS.clear()


def test_late_repair(site: Site, host: Host, daemon: Daemon, tmp_path: Path) -> None:
    """A repair that is made later is not."""
    daemon._program[:] = [sys.executable, "-c", LATE, "--verbose"]
    daemon.configure(mapping(1))
    daemon.start()
    daemon.wait_for(external(1), "active")
    with (
        pytest.raises(AssertionError, match=r"repaired after 0\.[2-5]"),
        fault("table deleted", site),
    ):
        host.run("nft", "delete", "table", "inet", "vm_onetoone_nat")
    FAULTS.clear()
