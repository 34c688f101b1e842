"""The metrics of the installed service: who can read them, and what their unit may do."""

import re
from collections.abc import Iterator

import pytest
from exposition import samples
from lab import Failure, Lan, Machine, tcp, wait_for
from lab.addresses import HOST, external
from running import Service

SOCKET = "vm-onetoone-nat-metrics.socket"
UNIT = "vm-onetoone-nat-metrics.service"
PORT = 9788


@pytest.fixture
def metrics(service: Service) -> Iterator[Machine]:
    """The machine, with the service started and the metrics enabled."""
    service.host.systemctl("enable", "--now", SOCKET)
    yield service.host
    service.host.systemctl("disable", "--now", SOCKET)
    assert service.host.failed_units() == []


def scrape(machine: Machine, *where: str) -> dict[str, float]:
    """The metrics as the machine itself gets them."""
    return samples(machine.run("curl", "-sS", "--fail", "--max-time", "30", *where).stdout)


def test_scrape(metrics: Machine, service: Service, lan: Lan) -> None:
    """The host itself reads the metrics, and nobody on the LAN; a stopped daemon is down."""
    url = f"http://127.0.0.1:{PORT}/metrics"
    mapping = f'domain="",external="{external(1)}"'
    seen = scrape(metrics, url)
    assert seen["vm_onetoone_nat_up"] == 1
    assert seen["vm_onetoone_nat_libvirt_connected"] == 1
    assert seen['vm_onetoone_nat_mappings{state="active"}'] == 1
    assert seen[f'vm_onetoone_nat_mapping_state{{{mapping},state="active"}}'] == 1
    assert tcp(lan, HOST.ip, PORT) is Failure.REFUSED

    service.systemctl("stop")
    assert scrape(metrics, url) == {"vm_onetoone_nat_up": 0}
    service.systemctl("start")
    wait_for(lambda: scrape(metrics, url)["vm_onetoone_nat_up"], 60, "it is up again")


def test_elsewhere(metrics: Machine, lan: Lan) -> None:
    """A drop-in moves them to a Unix socket; at an address of the LAN, only this host is heard."""
    folder = metrics.path(f"/run/systemd/system/{SOCKET}.d")
    folder.mkdir(parents=True)
    path = "/run/vm-onetoone-nat-metrics.sock"
    try:
        (folder / "elsewhere.conf").write_text(
            f"[Socket]\nListenStream=\nListenStream={path}\nListenStream=0.0.0.0:{PORT}\n"
            "SocketMode=0660\n"
        )
        metrics.systemctl("daemon-reload")
        metrics.systemctl("stop", UNIT)
        metrics.systemctl("restart", SOCKET)
        assert scrape(metrics, "--unix-socket", path, "http://metrics/metrics")
        assert metrics.run("stat", "-c", "%a", path).stdout == "660\n"
        assert scrape(metrics, f"http://127.0.0.1:{PORT}/metrics")["vm_onetoone_nat_up"] == 1
        assert tcp(lan, HOST.ip, PORT, timeout=1) is Failure.SILENT
    finally:
        (folder / "elsewhere.conf").unlink()
        folder.rmdir()
        metrics.systemctl("stop", SOCKET)
        metrics.systemctl("daemon-reload")
        metrics.systemctl("start", SOCKET)


def test_unprivileged(metrics: Machine) -> None:
    """What answers by HTTP has no capability, no network, no user that stays, and reads little."""
    assert scrape(metrics, f"http://127.0.0.1:{PORT}/metrics")["vm_onetoone_nat_up"] == 1
    pid = metrics.systemctl("show", "--value", "-p", "MainPID", UNIT).strip()
    status = metrics.run("cat", f"/proc/{pid}/status").stdout
    fields = dict(line.split(":\t", 1) for line in status.splitlines())
    known = metrics.run("id", "-u", "vm-onetoone-nat").stdout.strip()
    assert not {"0", known} & set(fields["Uid"].split())
    for kind in ("CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(fields[kind], 16) == 0
    own = metrics.run("readlink", f"/proc/{pid}/ns/net").stdout
    assert own != metrics.run("readlink", "/proc/1/ns/net").stdout
    analysis = metrics.run("systemd-analyze", "security", "--no-pager", UNIT).stdout
    print(*(line for line in analysis.splitlines() if not line.startswith("✓")), sep="\n")
    overall = re.search(r"Overall exposure level for \S+: ([\d.]+)", analysis)
    assert overall is not None
    assert float(overall[1]) <= 0.3
