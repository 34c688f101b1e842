"""The record of allocated addresses: whole or not at all, and never in the way."""

from pathlib import Path

import pytest
from lab.addresses import external
from vm_onetoone_nat.allocations import Allocations, state_directory
from vm_onetoone_nat.errors import KernelError
from vm_onetoone_nat.state import Allocation, Origin

ONE = Allocation(external(1), "00000000-0000-4000-8000-000000000001", "default", Origin.POOL)
TWO = Allocation(external(2), "00000000-0000-4000-8000-000000000002", "lab", Origin.METADATA)


def test_written_and_read(tmp_path: Path) -> None:
    """What was written is read by another process; nothing is there before."""
    path = tmp_path / "state" / "allocations.json"
    allocations = Allocations(path)
    assert allocations.read() == frozenset()
    allocations.write(frozenset({ONE, TWO}))
    assert Allocations(path).read() == {ONE, TWO}
    assert [file.name for file in path.parent.iterdir()] == ["allocations.json"]


def test_cannot_be_written(tmp_path: Path) -> None:
    """It says so, and goes on from memory until it can be written again."""
    path = tmp_path / "file" / "allocations.json"
    path.parent.write_text("not a folder")
    allocations = Allocations(path)
    with pytest.raises(KernelError, match=r"cannot be written: .*: until it is written, a restart"):
        allocations.write(frozenset({ONE}))
    assert allocations.read() == {ONE}
    assert not allocations.recorded
    path.parent.unlink()
    allocations.write(frozenset({ONE}))
    assert allocations.recorded
    assert Allocations(path).read() == {ONE}


@pytest.mark.parametrize("content", ["", "7", "[]", '{"x": {}}', '{"192.168.1.1": {"uuid": "x"}}'])
def test_makes_no_sense(tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture) -> None:
    """A file that somebody has spoiled is said once, and counts as empty."""
    path = tmp_path / "allocations.json"
    path.write_text(content)
    allocations = Allocations(path)
    for _ in range(2):
        assert allocations.read() == frozenset()
    said = [r.getMessage() for r in caplog.records if "cannot be read" in r.getMessage()]
    assert len(said) == 1


def test_state_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is where systemd says, or else in the usual place."""
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    assert state_directory() == Path("/var/lib/vm-onetoone-nat")
    monkeypatch.setenv("STATE_DIRECTORY", "/elsewhere")
    assert state_directory() == Path("/elsewhere")
