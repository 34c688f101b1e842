"""The Debian packages: built in a machine of the release, installed in another by apt alone."""

import gzip
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pytest
from installed import (
    BASH_COMPLETION,
    CHECKOUT,
    INSTALL,
    PAGES,
    PORT,
    SOURCES,
    check_imports,
    copy_sources,
    source_files,
)
from lab import (
    Answer,
    CommandError,
    EchoServer,
    Failure,
    Lan,
    Machine,
    NamespaceGuest,
    Stream,
    Suite,
    layer,
    tcp,
    wait_for,
)
from lab.addresses import LAN_CLIENT, external, internal
from running import UNIT, Service, mapping
from vm_onetoone_nat.events import Event

NAME = "vm-onetoone-nat"
METRICS = "vm-onetoone-nat-metrics.socket"
METRIC = "vm_onetoone_nat_up 1"

_BUILDER = """
apt-get update -qq
apt-get install -y -qq --no-install-recommends {packages} lintian >/dev/null
apt-get clean
rm -rf /var/lib/apt/lists/*
"""

# They lie where apt looks for them, and apt's lists with them.
_DEPENDENCIES = """
apt-get update -qq
apt-get satisfy -y -qq --no-install-recommends --download-only "{depends}"
"""

# The second is a later one, and brings another example of a configuration. `alone` goes before a
# command that is to do without a network.
_BUILD = """
cd {sources}
find . | sort >/root/before
{alone} scripts/package.sh
echo '# Of the second package.' >>config.example.toml
scripts/package.sh 2
find . -path ./dist -prune -o -print | sort >/root/after
lintian --allow-root dist/*.1_*.deb >/root/lintian 2>&1 || true
"""


@dataclass(frozen=True)
class Built:
    """What two runs of scripts/package.sh, and one of lintian, have left."""

    packages: tuple[Path, Path]
    wheels: tuple[Path, ...]
    lintian: str
    left: set[str]

    def depends(self) -> str:
        """What the first package depends on."""
        command = ["dpkg-deb", "--field", str(self.packages[0]), "Depends"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module", params=get_args(Suite))
def suite(request: pytest.FixtureRequest) -> Suite:
    """Each release."""
    suite: Suite = request.param
    return suite


@pytest.fixture(scope="module")
def built(
    suite: Suite, roots: dict[Suite, Path], tmp_path_factory: pytest.TempPathFactory
) -> Built:
    """Two packages, the second an upgrade of the first."""
    listed = '. scripts/requirements.sh; echo "${package_packages[@]}"'
    packages = subprocess.run(
        ["bash", "-ec", listed], check=True, capture_output=True, text=True, cwd=CHECKOUT
    ).stdout.strip()
    tools = layer("builder", roots[suite], _BUILDER.format(packages=packages))
    folder = tmp_path_factory.mktemp(f"dist-{suite}")
    with Lan("builder-lan") as lan, Machine(lan, roots[suite], "builder", (tools,)) as builder:
        copy_sources(builder)
        # On Debian 13 nothing comes from an index.
        alone = {"bookworm": "", "trixie": "unshare --net"}[suite]
        builder.prepare("sh", "-ec", _BUILD.format(sources=SOURCES, alone=alone))
        for file in (builder.path(SOURCES) / "dist").iterdir():
            shutil.copy(file, folder)
        before, after = (
            set(builder.path(f"/root/{name}").read_text().splitlines())
            for name in ("before", "after")
        )
        lintian = builder.path("/root/lintian").read_text()
    first, second = sorted(folder.glob("*.deb"))
    return Built((first, second), tuple(folder.glob("*.whl")), lintian, after - before)


@pytest.fixture(scope="module")
def packaged(suite: Suite, roots: dict[Suite, Path], built: Built) -> Iterator[Machine]:
    """A machine without the product, booted; apt has what the package depends on."""
    script = _DEPENDENCIES.format(depends=built.depends())
    downloaded = layer("dependencies", roots[suite], script)
    with (
        Lan("packaged-lan") as lan,
        Machine(lan, roots[suite], "packaged", (downloaded,)) as machine,
    ):
        copy_sources(machine)
        for file in built.packages:
            shutil.copy(file, machine.path("/root"))
        machine.boot()
        yield machine


@pytest.fixture(scope="module")
def guest(packaged: Machine) -> Iterator[NamespaceGuest]:
    """Guest 1, that answers on PORT."""
    with NamespaceGuest(packaged, "guest", internal(1)) as guest, EchoServer(guest, PORT):
        yield guest


def apt(machine: Machine, *arguments: str | Path) -> None:
    """Run apt-get, as unattended as it can be: an edited configuration file is kept."""
    options = ("-y", "--no-install-recommends", "-o", "Dpkg::Options::=--force-confold")
    machine.run("apt-get", *options, *arguments, timeout=300)


def ours(machine: Machine) -> set[str]:
    """Every file with our name, but those of /root."""
    found = machine.run(
        *("find", "/", "-xdev", "-path", "/root", "-prune", "-o", "-name", "*onetoone*", "-print"),
    )
    run = machine.run("find", "/run", "-name", "*onetoone*", check=False)
    return {*found.stdout.splitlines(), *run.stdout.splitlines()}


def inside(package: Path) -> Path:
    """Where the machine has it."""
    return Path("/root") / package.name


def metrics(machine: Machine) -> str:
    """What the machine's own Prometheus would read."""
    return machine.run("curl", "-sS", "--fail", "http://127.0.0.1:9788/metrics").stdout


def test_built(suite: Suite, built: Built) -> None:
    """lintian has nothing to say; nothing but dist/ is left in the clone; 13 needs no network."""
    assert built.lintian == ""
    assert built.left == set()
    (wheel,) = built.wheels
    with zipfile.ZipFile(wheel) as archive:
        assert set(source_files()) <= set(archive.namelist())
    architecture = {"bookworm": "amd64", "trixie": "all"}[suite]
    assert all(package.name.endswith(f"_{architecture}.deb") for package in built.packages)


def test_beside_install_sh(packaged: Machine, built: Built) -> None:
    """The package is refused where install.sh has put its unit, and leaves nothing behind."""
    unit = packaged.path(f"/usr/local/lib/systemd/system/{UNIT}")
    unit.parent.mkdir(parents=True, exist_ok=True)
    unit.touch()
    with pytest.raises(CommandError, match="run it with --uninstall first"):
        apt(packaged, "install", inside(built.packages[0]))
    unit.unlink()
    assert {path for path in ours(packaged) if not path.startswith("/var/lib/dpkg/")} == set()


def test_first_installation(packaged: Machine, built: Built) -> None:
    """All is in place, and nothing is enabled or started: it has no configuration yet."""
    machine, service = packaged, Service(packaged)
    before = machine.listing()
    machine.sysctl("net.ipv4.ip_forward", 0)
    apt(machine, "install", inside(built.packages[0]))
    assert machine.failed_units() == []
    assert machine.systemctl("is-enabled", UNIT, METRICS, check=False).split() == ["disabled"] * 2
    assert service.property("ActiveState") == "inactive"
    assert machine.sysctl("net.ipv4.ip_forward") == "0"
    machine.sysctl("net.ipv4.ip_forward", 1)
    assert machine.listing() == before
    example = (CHECKOUT / "config.example.toml").read_text()
    assert machine.path(service.config).read_text() == example
    catalog = machine.run("journalctl", "--list-catalog").stdout
    assert all(event.value.hex in catalog for event in Event)
    for page in PAGES:
        with gzip.open(machine.path(f"/usr/share/man/{page}.gz")) as file:
            assert b"vm-onetoone-nat" in file.read()
    for completion in (BASH_COMPLETION, "zsh/vendor-completions/_vm-onetoone-nat"):
        assert machine.path(f"/usr/share/{completion}").exists()
    compiled = machine.path("/usr/lib/vm-onetoone-nat/vm_onetoone_nat/__pycache__")
    assert any(compiled.glob("cli.*.pyc")), "the daemon could not write it"
    check_imports(machine, "/usr/bin/python3", "/usr/lib/vm-onetoone-nat")
    for arguments in ((), ("--uninstall",), ("--uninstall", "--purge")):
        refused = machine.run(INSTALL, *arguments, check=False)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "the package vm-onetoone-nat is installed" in refused.stderr


def test_upgrade_and_removal(packaged: Machine, built: Built, guest: NamespaceGuest) -> None:
    """An upgrade loses no packet; a stop and removal take all from the kernel; settings stay."""
    machine, lan, service = packaged, packaged.lan, Service(packaged)
    service.configure(mapping(1))
    config = machine.path(service.config)
    kept = config.read_text()
    before = machine.listing()
    machine.systemctl("enable", "--now", UNIT, METRICS)
    service.wait_for(external(1), "active")
    assert tcp(lan, external(1), PORT) == Answer(LAN_CLIENT.ip, "guest")
    assert METRIC in metrics(machine)
    service.reload()
    service.systemctl("stop")
    assert machine.listing() == before
    service.systemctl("start")
    service.wait_for(external(1), "active")
    first = service.property("MainPID")
    with (
        Stream(lan, external(1), PORT, guest, "udp", rate=1000) as packets,
        Stream(lan, external(1), PORT, guest, "tcp", rate=100) as connection,
    ):
        apt(machine, "install", inside(built.packages[1]))
        service.wait_until_converged()
        assert packets.finish().whole
        assert connection.finish().whole
    assert service.property("MainPID") != first
    assert config.read_text() == kept
    assert METRIC in metrics(machine)

    apt(machine, "remove", NAME)
    assert machine.listing() == before
    assert isinstance(tcp(lan, external(1), PORT), Failure)
    assert machine.failed_units() == [], service.log()
    assert config.read_text() == kept
    assert machine.path("/var/lib/vm-onetoone-nat").exists()
    assert not machine.path("/run/vm-onetoone-nat").exists()
    assert machine.systemctl("list-unit-files", "--no-legend", f"{NAME}*", check=False) == ""


def test_purge_after_a_crash(packaged: Machine, built: Built) -> None:
    """What a crashed daemon left in the kernel goes, and every file; the system user stays."""
    machine, service = packaged, Service(packaged)
    before = machine.listing()
    kept = machine.path(service.config).read_text()
    apt(machine, "install", inside(built.packages[1]))
    assert machine.path(service.config).read_text() == kept
    drop_in = machine.path(f"/run/systemd/system/{UNIT}.d")
    drop_in.mkdir()
    (drop_in / "crash.conf").write_text("[Service]\nRestart=no\n")
    machine.systemctl("daemon-reload")
    service.systemctl("start")
    service.wait_for(external(1), "active")
    service.systemctl("kill", "--signal=KILL")
    wait_for(lambda: service.property("ActiveState") == "failed", 60, "it has crashed")
    shutil.rmtree(drop_in)
    assert str(external(1)) in machine.listing()

    apt(machine, "purge", NAME)
    assert machine.listing() == before
    assert ours(machine) == set()
    assert machine.run("getent", "passwd", NAME).returncode == 0
