"""Names that are not UTF-8, on every way by which text leaves the program."""

import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from vm_onetoone_nat.events import Event
from vm_onetoone_nat.journal import _JournalHandler, entry
from vm_onetoone_nat.service.notify import Notify

NAME = os.fsdecode(b"x\xffy")
"""As the name of a process or of a chain is kept."""

SHOWN = r"x\udcffy"


def test_journal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An entry has its MESSAGE_ID, its fields and its message, with escapes for odd bytes.

    systemd-python raised UnicodeEncodeError: the entry was lost.
    """
    sent: list[str] = []

    def sendv(*fields: str | bytes) -> None:
        """As the real one, which encodes each text."""
        sent.extend(f if isinstance(f, str) else f.decode() for f in fields)
        for field in sent:
            field.encode()

    monkeypatch.setattr("systemd.journal.sendv", sendv)
    log = logging.Logger("vm_onetoone_nat.test")
    log.addHandler(_JournalHandler())
    log.warning("undone (%s)", NAME, extra=entry(Event.FIGHT, reason=NAME, domain="el7-é"))
    assert {
        f"MESSAGE=undone ({SHOWN})",
        f"MESSAGE_ID={Event.FIGHT.value.hex}",
        f"VMNAT_REASON={SHOWN}",
        "VMNAT_DOMAIN=el7-é",
    } <= set(sent)
    assert capsys.readouterr().err == ""


def test_notify(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The service manager gets the status, with escapes for odd bytes."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        Notify().status(f"refused by {NAME}")
        assert manager.recv(1000).decode() == f"STATUS=refused by {SHOWN}"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_output_of_a_command(tmp_path: Path, encoding: str) -> None:
    """A command prints a name that the encoding of its output does not have, and succeeds."""
    path = tmp_path / NAME
    path.write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "vm_onetoone_nat", "--config", path, "check"],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": f"{encoding}:strict"},
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert f"{SHOWN}: 0 mappings".encode() in done.stdout
