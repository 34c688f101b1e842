"""The socket that `status` asks."""

import socket
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
from reports import entry, report
from vm_onetoone_nat.report.report import report_to_json
from vm_onetoone_nat.service import status_socket
from vm_onetoone_nat.service.status_socket import NotRunning, Silent, StatusSocket, ask, socket_path

SOCKET = Path("/run/vm-onetoone-nat/status.sock")
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534")
STOPPED = "the daemon is not running: this is what the kernel has now"
SILENT = "the daemon does not answer: this is what the kernel has now"


def test_answer(tmp_path: Path) -> None:
    """Whoever asks gets the whole answer of that moment, however large, and many at once do."""
    answers = iter(range(1000))
    status = StatusSocket(
        socket_path(tmp_path), lambda: b"%d %s" % (next(answers), b"x" * 5_000_000)
    )
    status.start()
    got: list[str] = []
    threads = [
        threading.Thread(target=lambda: got.append(ask(socket_path(tmp_path)))) for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {int(each.split()[0]) for each in got} == set(range(20))
    assert {len(each.split()[1]) for each in got} == {5_000_000}
    status.stop()
    with pytest.raises(NotRunning):
        ask(socket_path(tmp_path))


def test_link_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link that takes the socket's place before its mode is set is not followed."""
    victim, path = tmp_path / "victim", socket_path(tmp_path)
    victim.touch(0o600)

    def replaced(*_: object) -> None:
        path.symlink_to(victim)

    monkeypatch.setattr(status_socket, "_Server", replaced)
    with pytest.raises(OSError, match="symbolic links"):
        StatusSocket(path, lambda: b"").start()
    assert victim.stat().st_mode & 0o777 == 0o600


def test_client_that_never_reads(tmp_path: Path) -> None:
    """Clients that take nothing of what they asked for keep nobody else waiting."""
    told = "x" * 5_000_000
    status = StatusSocket(socket_path(tmp_path), told.encode)
    status.start()
    with ExitStack() as stack:
        for _ in range(50):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(str(socket_path(tmp_path)))
        assert ask(socket_path(tmp_path)) == told
    status.stop()


def test_daemon_that_accepts_nobody(tmp_path: Path) -> None:
    """A daemon that hangs is told from none, also when others wait for it already."""
    path = socket_path(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as other:
        listener.bind(str(path))
        listener.listen(0)
        other.connect(str(path))
        with pytest.raises(Silent) as silent:
            ask(path)
    assert not isinstance(silent.value, NotRunning)


@pytest.mark.internal_errors
def test_answer_that_fails(tmp_path: Path) -> None:
    """Where the daemon cannot answer it says nothing, and answers the next one."""
    answers = [report_to_json(report(entry(1))).encode()]
    status = StatusSocket(socket_path(tmp_path), answers.pop)
    status.start()
    assert ask(socket_path(tmp_path))
    with pytest.raises(Silent):
        ask(socket_path(tmp_path))
    answers.append(b"again")
    assert ask(socket_path(tmp_path)) == "again"
    status.stop()
