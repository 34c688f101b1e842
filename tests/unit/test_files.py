"""The files that are installed beside the Python package."""

import re
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]


def bash(script: str, *arguments: object) -> str:
    """What a script prints that has read scripts/files.sh."""
    command = ("bash", "-euo", "pipefail", "-c", f". scripts/files.sh; {script}", "bash")
    return subprocess.run(
        [*command, *map(str, arguments)], cwd=CHECKOUT, check=True, capture_output=True, text=True
    ).stdout


def test_no_sysctl_is_installed() -> None:
    """No file sets a sysctl, at boot or at an installation: the host's settings are its owner's.

    Before, one turned forwarding on for the whole host, before anything was mapped.
    """
    installed = bash('printf "%s\\n" "${!installed_files[@]}" "${installed_files[@]}"')
    assert "systemd/vm-onetoone-nat.service\n" in installed
    assert "sysctl" not in installed
    for path in (CHECKOUT / "scripts" / "install.sh", *(CHECKOUT / "packaging/debian").iterdir()):
        assert not re.search("sysctl", path.read_text()), path


def test_pinned() -> None:
    """Each library that root takes from the index has one version, and hashes of its wheels."""
    text = (CHECKOUT / "packaging" / "bookworm-requirements.txt").read_text()
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line[:1] not in ("", "#")]
    pinned = {}
    for line in lines:
        name, *hashes = line.split()
        assert re.fullmatch(r"[a-z0-9-]+==[0-9.]+", name)
        assert all(re.fullmatch("--hash=sha256:[0-9a-f]{64}", each) for each in hashes)
        pinned[name.partition("==")[0]] = len(set(hashes))
    assert pinned.pop("pydantic-core") == len(
        ("amd64", "arm64", "armhf", "i386", "ppc64el", "s390x")
    )
    assert pinned.keys() >= {"pydantic", "pyroute2"}
    assert set(pinned.values()) == {1}


@pytest.mark.parametrize("script", ["install.sh", "package.sh"])
def test_root_takes_only_what_is_pinned(script: str) -> None:
    """Each call of pip takes wheels by their hashes, or nothing from the index.

    Before, install.sh took whatever versions the index had, and ran their build scripts as root.
    """
    text = (CHECKOUT / "scripts" / script).read_text().replace("\\\n", " ")
    calls = [line for line in text.splitlines() if re.search(r"pip\S* (install|wheel)", line)]
    assert len(calls) == 2
    for call in calls:
        assert "--no-deps" in call
        pinned = "--require-hashes" in call and "--only-binary :all:" in call
        assert pinned or "--no-index" in call or "pip wheel" in call


def test_upgrade_removes_the_old_file(tmp_path: Path) -> None:
    """The file of version 0.1.0 is removed by an upgrade and by an uninstallation; others stay."""
    for remove in ("remove_obsolete_files", "remove_files"):
        old = tmp_path / "lib/sysctl.d/50-vm-onetoone-nat.conf"
        other = tmp_path / "lib/sysctl.d/60-other.conf"
        old.parent.mkdir(parents=True, exist_ok=True)
        for path in (old, other):
            path.touch()
        bash(f'{remove} "$1"', tmp_path)
        assert [*old.parent.iterdir()] == [other]
    assert "remove_obsolete_files" in bash("declare -f install_files")
