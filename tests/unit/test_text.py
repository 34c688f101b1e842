"""Files that root writes and reads in a directory of another user."""

import os
import socket
from pathlib import Path

import pytest
from vm_onetoone_nat.store import text
from vm_onetoone_nat.store.text import read_text, replace_text


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file elsewhere that the owner of the directory may not touch."""
    victim = tmp_path / "victim"
    victim.write_text("secret")
    return victim


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file, in a directory of its own."""
    (tmp_path / "run").mkdir()
    return tmp_path / "run" / "record.json"


@pytest.mark.parametrize("name", ["record.json", "record.new"])
def test_links_are_not_followed(path: Path, victim: Path, name: str) -> None:
    """A link at the file's name is replaced, and one at another name left: neither is followed.

    Before, the new file was written through a link with the suffix `.new`.
    """
    (path.parent / name).symlink_to(victim)
    replace_text(path, "new")
    assert victim.read_text() == "secret"
    assert not path.is_symlink()
    assert path.read_text() == "new"


def test_name_of_the_new_file(path: Path, monkeypatch: pytest.MonkeyPatch, victim: Path) -> None:
    """The new file has another name each time; if there is a file of that name, it is an error."""
    names: list[object] = []
    original = os.open

    def record(name: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        names.append(name)
        return original(name, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", record)
    for _ in range(2):
        replace_text(path, "new")
    assert len({name for name in names if name != path.parent}) == 2
    monkeypatch.undo()
    monkeypatch.setattr(text, "token_hex", lambda _: "guessed")
    (path.parent / ".record.json.guessed").symlink_to(victim)
    with pytest.raises(FileExistsError):
        replace_text(path, "newer")
    assert (victim.read_text(), path.read_text()) == ("secret", "new")


def test_nothing_is_left(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails leaves the old file alone, and no other."""
    replace_text(path, "old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        replace_text(path, "new")
    assert [*path.parent.iterdir()] == [path]
    assert path.read_text() == "old"


def test_the_directory_is_synchronized(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new name is on the disk when the call returns: first the file, then the directory."""
    synchronized = []
    original = os.fsync

    def fsync(descriptor: int) -> None:
        synchronized.append(Path(f"/proc/self/fd/{descriptor}").resolve())
        original(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    replace_text(path, "new")
    assert [each.parent for each in synchronized] == [path.parent, path.parent.parent]


@pytest.mark.parametrize("kind", ["link", "FIFO", "socket", "directory"])
def test_only_regular_files_are_read(path: Path, victim: Path, kind: str) -> None:
    """What is not a regular file is an error at once: a FIFO would block, and a link lead away."""
    with socket.socket(socket.AF_UNIX) as listener:
        match kind:
            case "link":
                path.symlink_to(victim)
            case "FIFO":
                os.mkfifo(path)
            case "socket":
                listener.bind(str(path))
            case "directory":
                path.mkdir()
        with pytest.raises(OSError):
            read_text(path)
