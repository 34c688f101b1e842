"""The real daemon with faults in it: what it serves while each lasts, and what it says of it."""

import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import inject
import pytest
from lab import Answer, EchoServer, Host, Lan, NamespaceGuest, Stream, tcp, wait_for
from lab.addresses import LAN_BRIDGE, LAN_CLIENT, UPLINK, external, internal
from running import INTERNAL_ERROR, Daemon, mapping

PORT = 7000
SEVERAL = 3
pytestmark = pytest.mark.internal_errors


@pytest.fixture(scope="module")
def guests(host: Host) -> Iterator[tuple[NamespaceGuest, NamespaceGuest]]:
    with (
        NamespaceGuest(host, "one", internal(1)) as one,
        NamespaceGuest(host, "two", internal(2)) as two,
        EchoServer(one, PORT),
        EchoServer(two, PORT),
    ):
        yield one, two


@dataclass(frozen=True)
class Faulty:
    """The daemon with the faults of `inject`, which are there while `switches` has their files."""

    lan: Lan
    host: Host
    one: NamespaceGuest
    daemon: Daemon
    switches: Path

    @contextmanager
    def fault(self, name: str) -> Iterator[None]:
        """The fault is there meanwhile."""
        switch = self.switches / name
        switch.touch()
        try:
            yield
        finally:
            switch.unlink()

    def trigger(self) -> None:
        """An event for each thread that listens."""
        self.host.run("nft", "add table ip labmark; delete table ip labmark")
        for verb in ("add", "del"):
            self.host.run("ip", "address", verb, "10.9.9.9/32", "dev", "lo")
        # Others the kernel drops.
        probe = ("arping", "-D", "-c1", "-w1", "-I", LAN_BRIDGE, str(external(1)))
        self.lan.run(*probe, check=False)

    def served(self) -> bool:
        """Whether guest 2 answers."""
        return tcp(self.lan, external(2), PORT, timeout=1) == Answer(LAN_CLIENT.ip, "two")

    def wait_for_several(self, where: str, times: int = SEVERAL) -> None:
        """Wait until the fault has come so often that it could be said more than once."""

        def several() -> bool:
            # Polls come where there is no event.
            if where != "tick":
                self.trigger()
            count = self.count(where)
            # With this one nothing is told before it is over.
            return where == "status" or count >= times

        for _ in range(times):
            wait_for(several, 60, f"an internal error in {where}, several times")

    @contextmanager
    def unharmed(self, name: str) -> Iterator[str]:
        """Around a fault of that name, whose label it yields: guest 1 is served all the time by the
        same process, which says once what has happened, and counts it.
        """
        assert self.daemon.process is not None
        pid, where = self.daemon.process.pid, WHERE.get(name, name)
        with Stream(self.lan, external(1), PORT, self.one, "flows", rate=100) as stream:
            yield where
            report = stream.finish()
        assert report.whole, report
        self.daemon.wait_until_converged()
        assert (self.daemon.process.pid, self.daemon.ended) == (pid, False)
        metric = f'vm_onetoone_nat_internal_errors_total{{where="{where}"}} '
        (count,) = re.findall(
            f"^{re.escape(metric)}(.*)$", self.daemon.command("metrics").stdout, re.M
        )
        assert float(count) >= SEVERAL
        (said,) = self.daemon.internal_errors()
        assert said.startswith(f"ERROR: {INTERNAL_ERROR}"), said
        assert f"Fault: of {name} (" in said

    def count(self, where: str) -> int:
        """How often it has come, as the daemon answers; 0 if it does not."""
        answer = self.daemon.answer()
        return int(answer["daemon"]["internal_errors"][where]) if answer is not None else 0

    def has_come(self, where: str, times: int) -> bool:
        """Whether it has come so often."""
        return self.count(where) >= times

    def has_address(self) -> bool:
        """Whether guest 2's address is on the uplink."""
        listed = self.host.run("ip", "-4", "-o", "address", "show", "dev", UPLINK).stdout
        return f" {external(2)}/24 " in listed


@pytest.fixture
def faulty(
    lan: Lan,
    host: Host,
    guests: tuple[NamespaceGuest, NamespaceGuest],
    daemon: Daemon,
    tmp_path: Path,
) -> Faulty:
    """Mappings 1 and 2, each for as long as its network."""
    switches = tmp_path / "faults"
    switches.mkdir()
    daemon._program[:] = [sys.executable, inject.__file__, str(switches), "--verbose"]
    daemon.configure(mapping(1), mapping(2))
    daemon.start()
    daemon._program[:] = [sys.executable, "-m", "vm_onetoone_nat", "--verbose"]
    for n in (1, 2):
        daemon.wait_for(external(n), "active")
    daemon.wait_until_converged()
    return Faulty(lan, host, guests[0], daemon, switches)


WHERE = {
    "reconcile": "pass",
    "observation": "pass",
    "decision": "pass",
    "log": "pass",
    "libvirt": "guests",
    "notification": "rtnetlink",
    "packet": "arp",
    "news": "triggers",
}
"""The label of each fault in the metrics, where it is not the same word."""

ENDS_PASSES = ("reconcile", "observation", "decision")
"""While one of these is there no pass writes."""

OTHERS = sorted({*inject.FAULTS} - {"network", "reload", "write"})
"""Those that come with the events of `trigger`."""


@pytest.mark.parametrize("name", OTHERS)
def test_fault(faulty: Faulty, name: str) -> None:
    """While it lasts guest 1 is served, and what does not need that work goes on: guest 2's address
    is put back. The process is the same, and says it once. Afterwards all is as before.
    """
    with faulty.unharmed(name) as where:
        with faulty.fault(name):
            ends_passes = name in ENDS_PASSES
            faulty.wait_for_several(where, 1 if ends_passes else SEVERAL)
            faulty.host.run("ip", "address", "del", f"{external(2)}/24", "dev", UPLINK)
            if ends_passes:
                # They are repeated without an event.
                wait_for(partial(faulty.has_come, where, SEVERAL), 60, "it has come again")
                assert not faulty.has_address()
            else:
                wait_for(faulty.has_address, 60, "it is put back while the fault lasts")
        wait_for(faulty.has_address, 120, "it is put back")
        assert faulty.served()


def test_write(faulty: Faulty) -> None:
    """While one kind of write fails, the others are made: a new mapping is served."""
    faulty.daemon.configure(mapping(1))
    faulty.daemon.reload()
    wait_for(lambda: not faulty.served(), 60, "mapping 2 is gone")
    with faulty.unharmed("write") as where:
        with faulty.fault("write"):
            faulty.daemon.configure(mapping(1), mapping(2))
            faulty.daemon.reload()
            wait_for(faulty.served, 60, "guest 2 is served while it lasts")
            faulty.wait_for_several(where)
        faulty.daemon.wait_until_converged(120)


def test_reload(faulty: Faulty) -> None:
    """A reload that fails leaves what was configured, and the next one counts."""
    with faulty.unharmed("reload") as where:
        faulty.daemon.configure(mapping(1))
        with faulty.fault("reload"):
            for n in range(SEVERAL):
                faulty.daemon.reload()
                wait_for(partial(faulty.has_come, where, n + 1), 60, "it has come again")
            assert faulty.served()
        faulty.daemon.reload()
        wait_for(lambda: not faulty.served(), 60, "mapping 2 is gone")


ODD_NETWORK = f"""<network><name>{inject.ODD}</name><bridge name="virbr9" stp="off"/>
<forward mode="nat"/><ip address="192.168.150.1" prefix="24"/></network>"""


def test_network(faulty: Faulty, host: Host) -> None:
    """A network that cannot be read costs the mappings on it only, which say so."""
    host.path("/run/lab/odd.xml").write_text(ODD_NETWORK)
    odd = mapping(3, network=inject.ODD, internal="192.168.150.3")
    with faulty.unharmed("network") as where, faulty.fault("network"):
        host.virsh("net-define", "/run/lab/odd.xml")
        try:
            host.virsh("net-start", inject.ODD)
            faulty.daemon.configure(mapping(1), mapping(2), odd)
            faulty.daemon.reload()
            faulty.daemon.wait_for(external(3), "error")
            assert faulty.daemon.mapping(external(3))["reason"] == (
                "network 'odd': its definition cannot be read: internal error, see the journal"
            )
            faulty.wait_for_several(where)
            assert faulty.served()
            (faulty.switches / "network").unlink()
            # It is read again after at most a minute.
            faulty.daemon.wait_for(external(3), "active", 120)
            (faulty.switches / "network").touch()
        finally:
            host.virsh("net-destroy", inject.ODD)
            host.virsh("net-undefine", inject.ODD)
    faulty.daemon.configure(mapping(1), mapping(2))


def test_service_manager(
    host: Host, daemon: Daemon, guests: tuple[NamespaceGuest, NamespaceGuest], tmp_path: Path
) -> None:
    """A start whose passes fail is complete for the service manager, and the watchdog is fed."""
    (tmp_path / "reconcile").touch()
    daemon._program[:] = [sys.executable, inject.__file__, str(tmp_path), "--verbose"]
    daemon.configure(mapping(1))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        told = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "3000000"}
        daemon.start(env={**os.environ, **told})

        def sent(text: str) -> None:
            while text not in manager.recv(4096).decode().splitlines():
                pass

        sent("READY=1")
        # Of later passes, and of polls between them.
        for _ in range(10):
            sent("WATCHDOG=1")
        assert not daemon.ended
        (tmp_path / "reconcile").unlink()
        sent("STATUS=1 of 1 mappings active")
    daemon.kill()
