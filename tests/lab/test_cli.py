"""The command from outside: exit codes and what it prints, in processes of its own."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "config.example.toml"
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
OWN_NETWORK = ("unshare", "--net")

# Documentation addresses (RFC 5737), which no host has.
CONFIGURATION = """
[[mapping]]
domain = "el7-x86_64-101"
external = "198.51.100.101"
internal = "203.0.113.101"
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory that everyone may read, which pytest's own is not."""
    path = Path(tempfile.mkdtemp(prefix="vm-onetoone-nat-test."))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def configured(folder: Path) -> Path:
    path = folder / "config.toml"
    path.write_text(CONFIGURATION)
    path.chmod(0o644)
    return path


def command(
    *arguments: str | Path, through: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run the command, where no daemon runs."""
    environment = {
        "PATH": os.environ["PATH"],
        "LANG": "C.UTF-8",
        # Not those of a daemon that runs on this machine.
        "RUNTIME_DIRECTORY": "/nonexistent/run",
        "STATE_DIRECTORY": "/nonexistent/state",
    }
    return subprocess.run(
        [*through, sys.executable, "-m", "vm_onetoone_nat", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd="/",
        timeout=60,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("reconcile",),
        ("check", "--nope"),
        ("--nope", "check"),
        ("check", "more"),
        ("check", "--json"),
        ("run", "--json"),
        ("--config",),
        ("plan", "--json=yes"),
    ],
)
def test_bad_usage(arguments: tuple[str, ...]) -> None:
    """A command line that cannot be understood shows the usage and the fault, and exits with 64."""
    done = command(*arguments)
    assert done.returncode == 64
    assert done.stdout == ""
    usage, *_, fault = done.stderr.splitlines()
    assert usage.startswith("usage: vm-onetoone-nat")
    assert fault.startswith("vm-onetoone-nat")


def test_help() -> None:
    """--help names every command, on standard output, and exits with 0."""
    done = command("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for name in ("run", "check", "plan", "status", "metrics", "cleanup"):
        assert f"  {name} " in done.stdout


@pytest.mark.parametrize("name", ["check", "plan", "status", "run"])
@pytest.mark.parametrize("through", [(), NOBODY], ids=["root", "nobody"])
def test_bad_configuration(folder: Path, name: str, through: tuple[str, ...]) -> None:
    """A bad configuration exits with 78, and each fault is one line that names the file."""
    path = folder / "config.toml"
    path.write_text("[settings]\nfwmark = '0x3'\nnope = 1\n")
    done = command("--config", path, name, through=(*OWN_NETWORK, *through))
    assert done.returncode == 78
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"vm-onetoone-nat: {path}: settings.") for line in lines)


@pytest.mark.parametrize("name", ["check", "plan", "status", "run"])
def test_missing_configuration(folder: Path, name: str) -> None:
    """A configuration that is not there exits with 78, with one line that says so."""
    done = command("--config", folder / "none.toml", name, through=OWN_NETWORK)
    assert done.returncode == 78
    assert done.stderr == (
        f"vm-onetoone-nat: {folder}/none.toml: cannot be read: No such file or directory; "
        "write it, starting from config.example.toml\n"
    )


def test_unreadable_configuration(configured: Path) -> None:
    """A configuration that may not be read exits with 78, and says that this is why."""
    configured.chmod(0o600)
    done = command("--config", configured, "check", through=NOBODY)
    assert done.returncode == 78
    assert done.stderr == f"vm-onetoone-nat: {configured}: cannot be read: Permission denied\n"


@pytest.mark.parametrize("through", [(), NOBODY], ids=["root", "nobody"])
def test_check(configured: Path, through: tuple[str, ...]) -> None:
    """`check` of a good file needs no privileges, says so on standard output, and exits with 0."""
    done = command("--config", configured, "check", through=through)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{configured}: 1 mappings, no fault found\n"


def test_check_example() -> None:
    """The example in the repository is without fault on a host that has none of its addresses."""
    done = command("--config", EXAMPLE, "check", through=OWN_NETWORK)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{EXAMPLE}: 3 mappings, no fault found\n"


def test_check_against_the_host(configured: Path) -> None:
    """`check` refuses an external address that is the host's own, with 78."""
    script = (
        "ip link add uplink0 type veth peer name peer0 && "
        'ip addr add 198.51.100.101/24 dev uplink0 && exec "$@"'
    )
    through = (*OWN_NETWORK, "sh", "-c", script, "sh", *NOBODY)
    done = command("--config", configured, "check", through=through)
    assert done.returncode == 78
    assert done.stderr == (
        f"vm-onetoone-nat: {configured}: mapping[0].external: '198.51.100.101' is this host's own "
        "address on uplink0; write a free address of the LAN\n"
    )


@pytest.mark.parametrize("arguments", [("plan",), ("run",), ("cleanup",), ("diagnose", "web")])
def test_without_privileges(configured: Path, arguments: tuple[str, ...]) -> None:
    """A command that needs privileges says so in exactly one line and exits with 1."""
    done = command("--config", configured, *arguments, through=(*OWN_NETWORK, *NOBODY))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "vm-onetoone-nat: this needs CAP_NET_ADMIN: run it as root, with sudo\n"


@pytest.mark.parametrize("module", ["libvirt", "nftables", "pydantic"])
@pytest.mark.parametrize("name", ["run", "plan"])
def test_missing_module(configured: Path, name: str, module: str) -> None:
    """A Python module that is missing is one line that names it, and exits with 69.

    Before, it was a traceback and 1, which systemd answered by a start each second.
    """
    hide = f"import sys, runpy; sys.modules[{module!r}] = None; sys.argv.pop(0); "
    run = "runpy.run_module('vm_onetoone_nat', run_name='__main__', alter_sys=True)"
    done = subprocess.run(
        [sys.executable, "-c", hide + run, "vm-onetoone-nat", "--config", configured, name],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (69, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("vm-onetoone-nat: a Python module cannot be loaded: ")
    assert module in line


def test_status_without_privileges(configured: Path) -> None:
    """Where no daemon answers, `status` says so, and who may ask the kernel."""
    done = command("--config", configured, "status", through=(*OWN_NETWORK, *NOBODY))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "vm-onetoone-nat: the daemon is not running, and only root may read the kernel's state: "
        "run it with sudo\n"
    )


@pytest.mark.parametrize("name", ["plan", "status"])
def test_without_privileges_json(configured: Path, name: str) -> None:
    """With --json it is the same line, and nothing that a program could take for an answer."""
    done = command("--config", configured, name, "--json", through=(*OWN_NETWORK, *NOBODY))
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
