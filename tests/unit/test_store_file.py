"""The store's file: its text, its place, and what is done with one that is no use."""

from pathlib import Path

import pytest
from lab.addresses import external
from vm_onetoone_nat.errors import StoreError
from vm_onetoone_nat.model.mapping import Origin
from vm_onetoone_nat.model.store import Allocation, Stored
from vm_onetoone_nat.store.file import FileStore, state_directory

ONE = Allocation(external(1), "00000000-0000-4000-8000-000000000001", "default", Origin.POOL)
TWO = Allocation(external(2), "00000000-0000-4000-8000-000000000002", "lab", Origin.METADATA)

TEXT = """{
 "192.168.1.101": {
  "uuid": "00000000-0000-4000-8000-000000000001",
  "network": "default",
  "origin": "pool"
 },
 "192.168.1.102": {
  "uuid": "00000000-0000-4000-8000-000000000002",
  "network": "lab",
  "origin": "metadata"
 }
}"""


def test_text(tmp_path: Path) -> None:
    """The file has this text, and nothing else is left beside it; only its owner may look."""
    directory = tmp_path / "state"
    FileStore(directory).record(frozenset({TWO, ONE}))
    assert [file.name for file in directory.iterdir()] == ["allocations.json"]
    assert (directory / "allocations.json").read_text() == TEXT
    assert directory.stat().st_mode & 0o077 == 0


def test_error_says_what_is_lost(tmp_path: Path) -> None:
    """The error of a file that cannot be written has its path and what to expect."""
    directory = tmp_path / "file"
    directory.write_text("not a folder")
    with pytest.raises(StoreError, match=r"cannot be written: .*: until it is written, a restart"):
        FileStore(directory).record(frozenset({ONE}))


@pytest.mark.parametrize("content", ["", "7", "[]", '{"x": {}}', '{"192.168.1.1": {"uuid": "x"}}'])
def test_unreadable(tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture) -> None:
    """A file that another program has changed is logged once, and counts as empty."""
    (tmp_path / "allocations.json").write_text(content)
    store = FileStore(tmp_path)
    for _ in range(2):
        assert store.observe() == Stored()
    logged = [r.getMessage() for r in caplog.records if "cannot be read" in r.getMessage()]
    assert len(logged) == 1
    store.record(frozenset({ONE}))
    assert store.observe() == Stored(frozenset({ONE}))


def test_state_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory is systemd's, or else the default."""
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    assert state_directory() == Path("/var/lib/vm-onetoone-nat")
    monkeypatch.setenv("STATE_DIRECTORY", "/elsewhere")
    assert state_directory() == Path("/elsewhere")
