"""The installed service in a booted machine: Debian 12 and 13, real systemd, journald, libvirt."""

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from installed import PORT
from lab import (
    Answer,
    Failure,
    IdleDomain,
    Lan,
    Machine,
    NamespaceGuest,
    Stream,
    tcp,
    wait_for,
)
from lab.addresses import LAN_CLIENT, UPLINK, external, internal
from running import UNIT, Service, mapping
from vm_onetoone_nat.events import Event

HANG = Path(__file__).parent.parent / "support/lab/inside/hang.py"
LIBVIRT = ("libvirtd.service", "libvirtd.socket", "libvirtd-ro.socket", "libvirtd-admin.socket")


def entries(service: Service, event: Event) -> list[dict[str, str]]:
    """The journal's entries of that kind."""
    return service.journal(f"MESSAGE_ID={event.value.hex}")


def test_unprivileged(service: Service) -> None:
    """It runs as its own user with two capabilities, and systemd finds little exposed."""
    status = service.host.run("cat", f"/proc/{service.property('MainPID')}/status").stdout
    fields = dict(line.split(":\t", 1) for line in status.splitlines())
    uid = service.host.run("id", "-u", "vm-onetoone-nat").stdout.strip()
    assert uid != "0"
    assert fields["Uid"].split() == [uid] * 4
    for kind in ("CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(fields[kind], 16) == 1 << 12 | 1 << 13  # CAP_NET_ADMIN, CAP_NET_RAW
    assert "CAP_NET_RAW" not in service.log(), "it can listen to ARP"
    analysis = service.host.run("systemd-analyze", "security", "--no-pager", UNIT).stdout
    print(*(line for line in analysis.splitlines() if not line.startswith("✓")), sep="\n")
    overall = re.search(r"Overall exposure level for \S+: ([\d.]+)", analysis)
    assert overall is not None
    assert float(overall[1]) <= 1.5


def restart(service: Service) -> None:
    service.systemctl("restart")


def reload(service: Service) -> None:
    service.systemctl("reload")


def crash(service: Service) -> None:
    """SIGKILL, and until systemd has it up again."""
    before = service.property("NRestarts")
    service.systemctl("kill", "--kill-whom=main", "--signal=KILL")
    wait_for(lambda: service.property("NRestarts") != before, 60, "systemd has noticed")
    wait_for(lambda: service.property("ActiveState") == "active", 60, "it is up again")


DISTURBANCES: dict[Callable[[Service], None], int] = {restart: 10, reload: 10, crash: 3}


@pytest.mark.parametrize("disturb", DISTURBANCES)
def test_lossless(
    service: Service, lan: Lan, guest: NamespaceGuest, disturb: Callable[[Service], None]
) -> None:
    """500 packets a second from a LAN client through a guest: none is lost, whatever we do."""
    with (
        Stream(lan, external(1), PORT, guest, "udp", rate=500) as packets,
        Stream(lan, external(1), PORT, guest, "tcp", rate=100) as connection,
    ):
        time.sleep(0.5)
        started = time.monotonic()
        for _ in range(DISTURBANCES[disturb]):
            disturb(service)
        service.wait_until_converged()
        took = time.monotonic() - started
        time.sleep(0.5)
        reports = {"udp": packets.finish(), "tcp": connection.finish()}
    for protocol, report in reports.items():
        print(f"{DISTURBANCES[disturb]} in {took:.1f} s, {protocol}: {report}")
        assert report.whole, report
        assert report.sources == (LAN_CLIENT.ip,)
        assert report.ran > took / 2, "too little was seen to know"


def has_hairpin(guest: NamespaceGuest) -> bool:
    """Whether the guest's bridge port has the flag."""
    return "hairpin on" in guest.host.run("bridge", "-d", "link", "show", "dev", guest.port).stdout


def test_stop_leaves_nothing(service: Service, lan: Lan, guest: NamespaceGuest) -> None:
    """Ruleset, addresses and hairpin flags are as before the start, a crash between or not."""
    machine = service.host
    service.systemctl("stop")
    before = machine.listing()
    for again in (False, True):
        service.systemctl("start")
        service.wait_for(external(1), "active")
        service.wait_until_converged()
        if again:
            crash(service)
        assert tcp(lan, external(1), PORT) == Answer(LAN_CLIENT.ip, "guest")
        # As soon as the guest has been seen on its port.
        wait_for(lambda: has_hairpin(guest), 60, "hairpin is on")
        assert machine.listing() != before
        service.systemctl("stop")
        assert machine.listing() == before
    assert isinstance(tcp(lan, external(1), PORT), Failure)


def test_bad_reload(service: Service, lan: Lan, guest: NamespaceGuest) -> None:
    """`systemctl reload` fails and says where; what ran goes on; the next good one works."""
    running = service.host.listing()
    refused = len(entries(service, Event.CONFIGURATION_REFUSED))
    service.configure(mapping(1), mapping(2, external=str(external(1))))
    reload = service.host.run("systemctl", "reload", UNIT, check=False)
    assert reload.returncode != 0
    problem = (
        f"{service.config}: mapping[1].external: '{external(1)}' is already used by mapping[0]"
    )
    said = entries(service, Event.CONFIGURATION_REFUSED)[refused:]
    assert [e["PRIORITY"] for e in said] == ["3"]
    assert said[0]["VMNAT_REASON"].startswith(problem)
    assert said[0]["MESSAGE"].startswith(problem)
    assert service.property("ActiveState") == "active"
    assert service.host.listing() == running
    assert tcp(lan, external(1), PORT) == Answer(LAN_CLIENT.ip, "guest")

    service.configure(mapping(1), mapping(3))
    service.systemctl("reload")
    service.wait_for(external(3), "active")
    assert service.property("StatusText") == "2 of 2 mappings active"


def test_journal_of_a_guest(service: Service) -> None:
    """A guest's start and stop are entries with all fields, and `journalctl -x` explains them."""
    machine = service.host
    cursor = machine.journal("-n", "1")[0]["__CURSOR"]
    domain = IdleDomain(machine, "idle")
    domain.define()
    try:
        domain.start()
        service.wait_for(external(2), "active")
        domain.destroy()
        service.wait_for(external(2), "inactive")
        said = service.journal("--after-cursor", cursor, "VMNAT_DOMAIN=idle")
    finally:
        domain.undefine()
    expected = {
        "VMNAT_DOMAIN": "idle",
        "VMNAT_EXTERNAL": str(external(2)),
        "VMNAT_INTERNAL": str(internal(2)),
        "VMNAT_NETWORK": "default",
        "VMNAT_UPLINK": UPLINK,
        "PRIORITY": "6",
        "SYSLOG_IDENTIFIER": "vm-onetoone-nat",
    }
    for event, state in ((Event.MAPPING_ACTIVE, "active"), (Event.MAPPING_INACTIVE, "inactive")):
        entry = [e for e in said if e["MESSAGE_ID"] == event.value.hex][-1]
        assert entry["VMNAT_STATE"] == state
        assert expected.items() <= entry.items()
        if event is Event.MAPPING_INACTIVE:
            assert entry["VMNAT_REASON"] == "domain 'idle' is not running"
    explained = machine.run(
        "journalctl", "-x", "--no-pager", "-u", UNIT, "VMNAT_DOMAIN=idle"
    ).stdout
    assert f"Subject: {external(2)} is active" in explained
    assert f"Subject: {external(2)} is inactive" in explained


def test_catalog(machine: Machine) -> None:
    """The journal's database explains each kind of entry that the code can write."""
    for event in Event:
        text = machine.run("journalctl", "--no-pager", "--dump-catalog", event.value.hex).stdout
        assert "Defined-By: vm-onetoone-nat" in text, event
        assert len(text.splitlines()) > 4, event


def test_unit(machine: Machine) -> None:
    """systemd accepts the units; an older one warns of two keys that it does not know yet."""
    known = machine.path("/etc/debian_version").read_text().startswith("12.")
    for unit in (UNIT, "vm-onetoone-nat-metrics.service"):
        done = machine.run("systemd-analyze", "verify", "--man=no", unit)
        said = [line for line in done.stderr.splitlines() if "onetoone" in line]
        ignored = ["RestartSteps", "RestartMaxDelaySec"] if known else []
        assert len(said) == len(ignored), said
        for line, key in zip(said, ignored, strict=True):
            assert re.search(f"Unknown key (name )?'{key}'", line)
    limits = {"MemoryMax": str(512 << 20), "TasksMax": "256", "LimitNOFILE": "1024"}
    for name, limit in limits.items():
        assert Service(machine).property(name) == limit


def test_a_daemon_by_hand(service: Service) -> None:
    """While a daemon by hand runs, the service waits, says so once, and leaves it alone if stopped.

    Before, it was started each second without a limit.
    """
    machine = service.host
    service.systemctl("stop")
    before = len(entries(service, Event.OTHER_RUNS))
    by_hand = machine.popen("vm-onetoone-nat", "run", stderr=subprocess.DEVNULL)
    try:
        service.wait_for(external(1), "active")
        ruleset = machine.listing()
        for last in (False, True):
            service.systemctl("start", "--no-block")
            wait_for(
                lambda: "Waiting for the daemon in process" in service.property("StatusText"),
                60,
                "it waits",
            )
            # It tries again every 5 s.
            time.sleep(12)
            assert service.property("NRestarts") == "0"
            assert service.property("ActiveState") == "activating"
            if not last:
                service.systemctl("stop")
                assert service.property("ActiveState") == "inactive"
        assert machine.listing() == ruleset
        assert len(entries(service, Event.OTHER_RUNS)) == before + 2
        by_hand.terminate()
        by_hand.wait(60)
        wait_for(lambda: service.property("ActiveState") == "active", 60, "it is up")
        service.wait_for(external(1), "active")
    finally:
        by_hand.kill()
        by_hand.wait(60)


def test_missing_module(service: Service) -> None:
    """With a module that is missing the unit has failed, says which, and is not started again."""
    machine = service.host
    module = machine.path("/usr/lib/python3/dist-packages/libvirt.py")
    hidden = module.with_suffix(".hidden")
    module.rename(hidden)
    try:
        machine.run("systemctl", "restart", UNIT, check=False)
        wait_for(lambda: service.property("ActiveState") == "failed", 60, "it has failed")
        time.sleep(5)
        assert service.property("ExecMainStatus") == "69"
        assert service.property("NRestarts") == "0"
        assert service.property("ActiveState") == "failed"
        assert "a Python module cannot be loaded: No module named 'libvirt'" in service.log()
    finally:
        hidden.rename(module)
    service.systemctl("start")
    service.wait_for(external(1), "active")


def with_short_watchdog(machine: Machine, seconds: int) -> Path:
    """A drop-in for the unit, to be deleted in the end."""
    folder = machine.path(f"/run/systemd/system/{UNIT}.d")
    folder.mkdir(parents=True)
    (folder / "watchdog.conf").write_text(f"[Service]\nWatchdogSec={seconds}\n")
    machine.systemctl("daemon-reload")
    return folder


def test_watchdog(service: Service, lan: Lan, guest: NamespaceGuest) -> None:
    """An idle daemon is left alone and logs nothing; one that hangs in a pass is restarted."""
    machine = service.host
    folder = with_short_watchdog(machine, 3)
    try:
        service.systemctl("restart")
        service.wait_until_converged()
        idle = service.property("MainPID")
        said = len(service.journal())
        time.sleep(10)
        assert service.property("MainPID") == idle
        assert len(service.journal()) == said

        assert tcp(lan, external(1), PORT) == Answer(LAN_CLIENT.ip, "guest")
        wait_for(lambda: has_hairpin(guest), 60, "hairpin is on")
        service.wait_until_converged()
        running = machine.listing()
        (outside,) = (p for p, argv in machine.processes().items() if argv.endswith("nat run"))
        with (
            Stream(lan, external(1), PORT, guest, rate=1000) as stream,
            subprocess.Popen(
                [sys.executable, "-I", HANG, str(outside)], stdout=subprocess.PIPE, text=True
            ) as hang,
        ):
            assert hang.stdout is not None
            assert hang.stdout.readline() == "attached\n"
            # Any change makes it look again.
            for verb in ("add", "del"):
                machine.run("ip", "address", verb, "10.9.9.9/32", "dev", "lo")
            assert hang.stdout.readline() == "held\n"
            wait_for(lambda: service.property("NRestarts") == "1", 60, "it is restarted")
            wait_for(lambda: service.property("ActiveState") == "active", 60, "it is up")
            service.wait_until_converged()
            report = stream.finish()
        assert report.whole
        assert service.property("MainPID") != idle
        assert machine.listing() == running
        log = service.log()
        assert "Watchdog timeout" in log
        # The stack, to tell where it hung.
        assert "Fatal Python error: Aborted" in log
        assert "in reconcile" in log
    finally:
        shutil.rmtree(folder)
        machine.systemctl("daemon-reload")
