"""Whether a unit ends for good: what systemd lists at the time of ExecStopPost=, and the files."""

import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest
from vm_onetoone_nat.cli import EX_USAGE
from vm_onetoone_nat.errors import CannotRun, ConfigError
from vm_onetoone_nat.events import Event
from vm_onetoone_nat.service import status_socket
from vm_onetoone_nat.service.unit import decide
from vm_onetoone_nat.virt import agents

UNIT = "vm-onetoone-nat.service"
SYSTEMD = Path(__file__).parents[2] / "systemd"


@pytest.mark.parametrize(
    ("jobs", "result", "stopping"),
    [
        (f"871 {UNIT} stop running\n", "success", True),
        (f"871 {UNIT} stop running\n", "signal", True),
        (f"871 {UNIT} restart running\n", "success", False),
        (f"871 {UNIT} start waiting\n", "exit-code", False),
        ("", "success", True),
        ("", "signal", False),
        ("", "watchdog", False),
        ("", "exit-code", False),
        ("", "", False),
        ("12 other.service stop running\n", "core-dump", False),
        (f"12 other.service stop running\n871 {UNIT} restart waiting\n", "success", False),
    ],
)
def test_only_a_stop_cleans_up(jobs: str, result: str, stopping: bool) -> None:
    """A stop, and an end that nobody restarts; not a restart, a crash or a watchdog's kill."""
    assert decide(jobs, UNIT, result) is stopping


_RESTART = f"""
import sys
from vm_onetoone_nat.cli import main
sys.argv[1:] = ["cleanup", "--unit", "{UNIT}"]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print(*sorted(sys.modules))
"""


def test_a_restart_loads_little(tmp_path: Path) -> None:
    """`cleanup --unit`, which each restart waits for, loads no library and no other command."""
    systemctl = tmp_path / "systemctl"
    systemctl.write_text(f"#!/bin/sh\necho '871 {UNIT} restart running'\n")
    systemctl.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-I", "-c", _RESTART],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
    )
    loaded = done.stdout.split()
    tops = {name.partition(".")[0] for name in loaded}
    libraries = {"libvirt", "pydantic", "pyroute2", "nftables", "prometheus_client", "systemd"}
    assert tops & libraries == set()
    assert {name.partition(".")[2] for name in loaded if name.startswith("vm_onetoone_nat.")} == {
        *("cli", "errors", "events", "journal"),
        *("commands", "commands.cleanup", "service", "service.unit"),
    }


def catalog() -> dict[str, str]:
    """The catalog's texts by MESSAGE_ID, as 32 hexadecimal digits."""
    text = (SYSTEMD / "vm-onetoone-nat.catalog").read_text()
    parts = re.split(r"^-- ([0-9a-f]{32})$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_event_is_in_the_catalog() -> None:
    """Each MESSAGE_ID of the code has a text, with a subject and something to read; none else."""
    entries = catalog()
    assert set(entries) == {event.value.hex for event in Event}
    for entry in entries.values():
        headers, _, body = entry.strip().partition("\n\n")
        assert re.match(r"Subject: \S.*\nDefined-By: vm-onetoone-nat$", headers)
        assert body


def test_catalog_fields_exist() -> None:
    """Every field that a text fills in is one that entries of that event carry."""
    carried = {"DOMAIN", "EXTERNAL", "INTERNAL", "NETWORK", "UPLINK", "STATE", "REASON", "UNITS"}
    for entry in catalog().values():
        assert set(re.findall(r"@VMNAT_([A-Z]+)@", entry)) <= carried


def read_unit(name: str) -> configparser.ConfigParser:
    """A unit file. Of a key that is there twice it has the last value."""
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(SYSTEMD / name)
    return unit


@pytest.mark.parametrize(
    ("name", "final"),
    [
        (UNIT, {EX_USAGE, CannotRun.exit_code, ConfigError.exit_code}),
        ("vm-onetoone-nat-metrics.service", {EX_USAGE, CannotRun.exit_code}),
    ],
)
def test_restarts(name: str, final: set[int]) -> None:
    """What cannot succeed is not started again, and what fails again and again is slowly.

    Before, a missing Python module was a start each second without a limit.
    """
    service = read_unit(name)["Service"]
    assert {int(code) for code in service["RestartPreventExitStatus"].split()} == final
    assert service["Restart"] == "on-failure"
    assert int(service["RestartSec"]) == 1
    assert int(service["RestartSteps"]) > 1
    assert 10 <= int(service["RestartMaxDelaySec"]) <= 60


@pytest.mark.parametrize("name", [UNIT, "vm-onetoone-nat-metrics.service"])
def test_limits(name: str) -> None:
    """Memory, tasks and descriptors are limited, with room for all clients at once."""
    service = read_unit(name)["Service"]
    assert re.fullmatch(r"\d+M", service["MemoryMax"])
    assert int(service["TasksMax"]) > status_socket._AT_ONCE + agents.AT_ONCE + 32
    assert int(service["LimitNOFILE"]) > 2 * (status_socket._AT_ONCE + agents.AT_ONCE) + 64


def test_capabilities() -> None:
    """The unit runs as its own user, with two capabilities and no other."""
    service = read_unit(UNIT)["Service"]
    for key in ("CapabilityBoundingSet", "AmbientCapabilities"):
        assert service[key].split() == ["CAP_NET_ADMIN", "CAP_NET_RAW"]
    assert service["User"] == "vm-onetoone-nat"
