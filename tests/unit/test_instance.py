"""The lock, who holds it, and the process that `cleanup` ends."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from lab import wait_for
from vm_onetoone_nat.errors import VmNatError
from vm_onetoone_nat.service import instance as module
from vm_onetoone_nat.service.instance import Instance

_HOLDER = """
import sys, time
from pathlib import Path
from vm_onetoone_nat.service.instance import Instance
Instance(Path(sys.argv[1])).acquire()
print("locked", flush=True)
time.sleep(600)
"""


@contextmanager
def process(*command: str) -> Iterator[subprocess.Popen[str]]:
    """A process that prints a line when it is ready, and that is killed in the end."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None and started.stdout.readline()
        try:
            yield started
        finally:
            started.kill()


def daemon(runtime: Path) -> AbstractContextManager[subprocess.Popen[str]]:
    """A process that holds the lock."""
    return process(sys.executable, "-c", _HOLDER, str(runtime))


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[str]]:
    """A process that has nothing to do with the lock."""
    with process("sh", "-c", "echo ready; exec sleep 600") as started:
        yield started


def test_one_at_a_time(tmp_path: Path) -> None:
    """While one process holds the lock another cannot take it, and learns which has it."""
    with daemon(tmp_path) as holder:
        instance = Instance(tmp_path)
        with pytest.raises(VmNatError, match=rf"is running \(process {holder.pid}\)"):
            instance.acquire()
        holder.kill()
        holder.wait()
        instance.acquire()


def test_waits(tmp_path: Path) -> None:
    """With `wait`, the lock is taken as soon as its holder has ended."""
    waited = []
    with daemon(tmp_path) as holder:

        def wait(pid: int) -> None:
            waited.append(pid)
            if len(waited) == 3:
                holder.kill()
                holder.wait()

        Instance(tmp_path).acquire(wait)
        assert waited == [holder.pid] * 3


def test_stops_the_holder(tmp_path: Path) -> None:
    """`cleanup` ends the process that holds the lock, and has the lock then."""
    with daemon(tmp_path) as holder:
        instance = Instance(tmp_path)
        assert instance.stop_other() == holder.pid
        assert holder.wait(60) == -15
        assert instance.try_acquire()


def test_nobody_is_running(tmp_path: Path, bystander: subprocess.Popen[str]) -> None:
    """A number in the file is no reason to end a process."""
    (tmp_path / "lock").write_text(f"{bystander.pid}\n")
    assert Instance(tmp_path).stop_other() is None
    assert bystander.poll() is None


def test_a_number_in_the_file_is_not_believed(
    tmp_path: Path, bystander: subprocess.Popen[str]
) -> None:
    """Who may write the lock file cannot have root end any process by its number.

    Before, the number was signalled while anybody held the lock.
    """
    with daemon(tmp_path) as holder:
        (tmp_path / "lock").write_text(f"{bystander.pid}\n")
        assert Instance(tmp_path).stop_other() == holder.pid
        assert holder.wait(60) == -15
    assert bystander.poll() is None


def test_an_ended_holder(
    tmp_path: Path, bystander: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that has got the number of one that has just ended is not signalled."""
    instance = Instance(tmp_path)
    holders = iter([bystander.pid, None])
    tries = iter([False, True])
    monkeypatch.setattr(instance, "_holder", lambda: next(holders))
    monkeypatch.setattr(instance, "try_acquire", lambda: next(tries))
    assert instance.stop_other() == bystander.pid
    assert bystander.poll() is None


def test_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that does not end is an error that says so."""
    monkeypatch.setattr(module, "_STOP_SECONDS", 0.1)
    stubborn = "import signal; signal.signal(15, signal.SIG_IGN)" + _HOLDER
    with (
        process(sys.executable, "-c", stubborn, str(tmp_path)) as holder,
        pytest.raises(VmNatError, match=f"process {holder.pid} does not end"),
    ):
        Instance(tmp_path).stop_other()


@pytest.mark.parametrize("kind", ["link", "dangling link", "FIFO", "directory"])
def test_only_a_regular_file(tmp_path: Path, kind: str) -> None:
    """A link at the lock's name is not followed, and nothing else is taken for it."""
    runtime, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    runtime.mkdir()
    lock = runtime / "lock"
    match kind:
        case "link":
            elsewhere.write_text("untouched")
            lock.symlink_to(elsewhere)
        case "dangling link":
            lock.symlink_to(elsewhere)
        case "FIFO":
            os.mkfifo(lock)
        case "directory":
            lock.mkdir()
    with pytest.raises(VmNatError, match="lock: "):
        Instance(runtime)
    assert not elsewhere.exists() or elsewhere.read_text() == "untouched"


def test_mode(tmp_path: Path) -> None:
    """Only its owner can open the file: whoever can read it can lock it."""
    Instance(tmp_path)
    assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o600


def test_another_kind_of_lock(tmp_path: Path) -> None:
    """A lock without a process that could be named is an error, and nobody is signalled."""
    instance = Instance(tmp_path)
    with (tmp_path / "lock").open("r+") as file:
        # An open file description lock has no process ID (fcntl(2)).
        set_lock = 37  # F_OFD_SETLK of <fcntl.h>
        fcntl.fcntl(
            file, set_lock, module._FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0) + bytes(4)
        )
        with pytest.raises(VmNatError, match="cannot be seen from here"):
            instance.stop_other()
    wait_for(instance.try_acquire, 60, "it is free")
