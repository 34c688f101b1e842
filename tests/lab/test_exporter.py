"""Metrics: how they are served, and that they count real traffic."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from exposition import exposed, samples
from lab import Answer, EchoServer, Host, Lan, Namespace, NamespaceGuest, tcp, wait_for
from lab.addresses import LAN_CLIENT, external, guest_name, internal
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from reports import entry, report
from running import Daemon, mapping
from vm_onetoone_nat.report.report import report_to_json
from vm_onetoone_nat.service.status_socket import StatusSocket, socket_path

PORT = 7000
METRICS = (sys.executable, "-m", "vm_onetoone_nat", "metrics")

# systemd's part: a listening socket as descriptor 3, and the id of the process that it is for.
INHERIT = """
import os, socket, sys
family, address, *command = sys.argv[1:]
listener = socket.socket(getattr(socket, family))
listener.bind(address if family == "AF_UNIX" else (address, 9788))
listener.listen()
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(command[0], command)
"""
IMPATIENT = """
from vm_onetoone_nat.service.exporter import inherited_sockets, serve
from vm_onetoone_nat.service.metrics import application
serve(inherited_sockets(), application(lambda: None), patience=1)
"""


@pytest.fixture(scope="module")
def place() -> Iterator[Namespace]:
    """Where nothing but its own loopback is reached."""
    with Namespace("metrics") as place:
        yield place


WHERE = {
    "AF_INET": ("127.0.0.1", "http://127.0.0.1:9788"),
    "AF_INET6": ("::1", "http://[::1]:9788"),
    "AF_UNIX": ("", "http://any"),
}


class Exporter:
    """`metrics` with an inherited socket, in `place`; the daemon's socket is in `runtime`."""

    def __init__(
        self, place: Namespace, runtime: Path, family: str, command: tuple[str, ...] = METRICS
    ) -> None:
        address, self.base = WHERE[family]
        self.path = runtime / "http.sock"
        self._place = place
        self._reach = ("--unix-socket", str(self.path)) if family == "AF_UNIX" else ()
        self.process = place.popen(
            *(sys.executable, "-c", INHERIT, family, address or str(self.path), *command),
            env={"RUNTIME_DIRECTORY": str(runtime)},
        )
        wait_for(lambda: self.curl("-o", "/dev/null", "/").returncode == 0, 30, "it listens")

    def curl(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Fetch the path that is the last of `options`."""
        *more, path = options
        url = f"{self.base}{path}"
        return self._place.run(
            *("curl", "-sS", "--globoff", "--max-time", "60", *self._reach, *more, url), check=False
        )

    def status(self, *options: str) -> str:
        """The HTTP status alone."""
        return self.curl("-o", "/dev/null", "-w", "%{http_code}", *options).stdout

    def end(self) -> int:
        """SIGTERM, and its exit code."""
        self.process.terminate()
        return self.process.wait(30)


@pytest.mark.parametrize("family", WHERE)
def test_http(place: Namespace, tmp_path: Path, family: str) -> None:
    """Metrics are served on any kind of socket, with a daemon or without, until SIGTERM."""
    exporter = Exporter(place, tmp_path, family)
    assert samples(exporter.curl("/metrics").stdout) == {"vm_onetoone_nat_up": 0}
    daemon = StatusSocket(socket_path(tmp_path), report_to_json(report(entry(1))).encode)
    daemon.start()
    assert samples(exporter.curl("/metrics").stdout) == exposed(entry(1))
    daemon.stop()
    assert samples(exporter.curl("/metrics").stdout) == {"vm_onetoone_nat_up": 0}
    assert exporter.end() == -signal.SIGTERM


def test_what_is_served(place: Namespace, tmp_path: Path) -> None:
    """Only GET of /metrics; as text or OpenMetrics, compressed or in part, as the client asks."""
    exporter = Exporter(place, tmp_path, "AF_UNIX")
    daemon = StatusSocket(socket_path(tmp_path), report_to_json(report(entry(1))).encode)
    daemon.start()
    try:
        for path in ("/", "/favicon.ico", "/metrics/", "/metricsx", "/../metrics"):
            assert exporter.status("--path-as-is", path) == "404"
        assert exporter.status("--head", "/metrics") == "405"
        assert exporter.status("--data", "a=b", "/metrics") == "405"
        whole = exporter.curl("/metrics").stdout
        assert exporter.curl("--compressed", "/metrics").stdout == whole
        assert samples(exporter.curl("/metrics?name[]=vm_onetoone_nat_up").stdout) == {
            "vm_onetoone_nat_up": 1
        }
        accept = "Accept: application/openmetrics-text; version=1.0.0"
        text = exporter.curl("-H", accept, "/metrics").stdout
        families = list(text_string_to_metric_families(text))  # type: ignore[no-untyped-call]
        assert len(families) == sum(line.startswith("# TYPE") for line in whole.splitlines())
    finally:
        daemon.stop()
        exporter.end()


def test_unreadable(place: Namespace, tmp_path: Path) -> None:
    """A daemon of another version is an error of the scrape, that says what to do."""
    exporter = Exporter(place, tmp_path, "AF_UNIX")
    daemon = StatusSocket(socket_path(tmp_path), lambda: b'{"uplink": "eth0"}')
    daemon.start()
    try:
        assert exporter.status("/metrics") == "500"
        assert "systemctl restart vm-onetoone-nat" in exporter.curl("/metrics").stdout
    finally:
        daemon.stop()
        exporter.end()


@pytest.mark.parametrize(
    "said", [b"", b"GET /metrics HTTP/1.1\r\nHost:", b"\0" * 65], ids=["nothing", "half", "no HTTP"]
)
def test_slow_clients(place: Namespace, tmp_path: Path, said: bytes) -> None:
    """However many connect and do not go on, others are served, and they are hung up on."""
    exporter = Exporter(place, tmp_path, "AF_UNIX", (sys.executable, "-c", IMPATIENT))
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(100)]
        for client in clients:
            client.settimeout(60)
            client.connect(str(exporter.path))
            client.sendall(said)
        assert exporter.status("/metrics") == "200"
        for client in clients:
            while client.recv(1024):
                pass
    exporter.end()


def test_clients_that_leave(place: Namespace, tmp_path: Path) -> None:
    """Clients that go away, or send no HTTP, leave it as it was."""
    exporter = Exporter(place, tmp_path, "AF_UNIX")
    for said in (b"", b"GET", b"\xff\xfe\r\n\r\n", b"GET /metrics HTTP/1.1\r\n\r\n", b"A" * 99_999):
        for _ in range(20):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(exporter.path))
                client.sendall(said)
    assert exporter.status("/metrics") == "200"
    exporter.end()


class Scraped:
    """The metrics of a daemon in the lab."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def samples(self) -> dict[str, float]:
        done = self._daemon.command("metrics")
        assert (done.returncode, done.stderr) == (0, "")
        return samples(done.stdout)

    def carried(self, figure: str, n: int, initiator: str) -> float:
        labels = f'domain="",external="{external(n)}",initiator="{initiator}"'
        return self.samples()[f"vm_onetoone_nat_mapping_{figure}_total{{{labels}}}"]


def test_real_traffic(lan: Lan, host: Host, daemon: Daemon) -> None:
    """Connections, packets and bytes count for the guest that they are of, by who began them."""
    metrics = Scraped(daemon)
    assert metrics.samples() == {"vm_onetoone_nat_up": 0}
    daemon.configure(mapping(1), mapping(2))
    daemon.start()
    for n in (1, 2):
        daemon.wait_for(external(n), "active")
    with (
        NamespaceGuest(host, guest_name(1), internal(1)) as guest,
        EchoServer(guest, PORT),
        EchoServer(lan, PORT),
    ):
        assert tcp(lan, external(1), PORT) == Answer(LAN_CLIENT.ip, guest.name)
        # The daemon lists its counters at most once a second.
        wait_for(lambda: metrics.carried("connections", 1, "lan") == 1, 60, "it is counted")
        assert metrics.carried("connections", 1, "guest") == 0
        came = {figure: metrics.carried(figure, 1, "lan") for figure in ("packets", "bytes")}
        # Both directions: SYN, SYN+ACK, ACK, and the question and its answer with an ACK each.
        assert came["packets"] >= 7
        assert came["bytes"] >= 40 * came["packets"]

        assert tcp(guest, IPv4Address(LAN_CLIENT.ip), PORT) == Answer(external(1), lan.name)
        wait_for(lambda: metrics.carried("connections", 1, "guest") == 1, 60, "it is counted")
        assert metrics.carried("connections", 1, "lan") == 1
        assert metrics.carried("bytes", 1, "guest") >= 7 * 40
        assert metrics.carried("bytes", 2, "lan") == metrics.carried("bytes", 2, "guest") == 0
    seen = metrics.samples()
    assert seen['vm_onetoone_nat_mappings{state="active"}'] == 2
    assert seen["vm_onetoone_nat_passes_total"] >= seen["vm_onetoone_nat_passes_wrote_total"] >= 1


def test_repairs_are_counted(host: Host, daemon: Daemon) -> None:
    """An address that another program removes is a repair, by what gave notice of it."""
    metrics = Scraped(daemon)
    daemon.configure(mapping(1))
    daemon.start()
    daemon.wait_for(external(1), "active")
    key = 'vm_onetoone_nat_repairs_total{cause="address"}'
    assert key not in metrics.samples()
    (held,) = (
        line.split()[1]
        for line in host.run("ip", "-4", "address").stdout.splitlines()
        if f"inet {external(1)}/" in line
    )
    host.run("ip", "address", "del", held, "dev", "wlp0s20f3")
    wait_for(lambda: metrics.samples().get(key) == 1, 60, "the repair is counted")
