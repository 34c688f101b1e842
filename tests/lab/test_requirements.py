"""What the lab says of a machine that lacks something."""

import subprocess
import sys
from pathlib import Path

import pytest
from lab import requirements
from lab.requirements import missing

TESTS = Path(__file__).parents[1]


def test_this_machine() -> None:
    """Where the lab's tests run, nothing is missing."""
    assert missing() == []


def test_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command or a file that is not there is named by its package."""
    monkeypatch.setitem(requirements._COMMANDS, "no-such-command", "package-of-a-command")
    monkeypatch.setitem(requirements._FILES, "/nonexistent/*.so", "package-of-a-file")
    assert missing() == [
        "Debian's package package-of-a-command",
        "Debian's package package-of-a-file",
    ]


def test_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A feature that the kernel lacks is named, with what the attempt said."""
    monkeypatch.setitem(requirements._FEATURES, "a feature", "echo not here >&2; false")
    assert missing() == ["of the kernel: a feature (not here)"]


@pytest.mark.parametrize(("tier", "code"), [("lab/test_lab.py", 4), ("unit/test_unit.py", 0)])
def test_ordinary_user(tmp_path: Path, tier: str, code: int) -> None:
    """An ordinary user is refused before the first test of the lab, and runs the unit tests."""
    user = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    pytest_ = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0")
    done = subprocess.run(
        [*user, *pytest_, str(TESTS / tier)],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/nonexistent"},
        cwd=TESTS.parent,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert ("the lab needs:\n  root: run it with sudo" in done.stderr) == (code != 0)
