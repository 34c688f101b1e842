"""The files that are installed beside the Python package."""

import re
import subprocess
from pathlib import Path

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
