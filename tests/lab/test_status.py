"""`status` of a daemon that runs, hangs, crashed or never was."""

import json
import os
import pty
import re
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from lab import Host, Process, wait_for
from lab.addresses import UPLINK, external, internal
from reports import CONTRACT
from running import Daemon, mapping
from vm_onetoone_nat.service.recent import SECONDS
from vm_onetoone_nat.service.status_socket import ask

SOCKET = Path("/run/vm-onetoone-nat/status.sock")
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534")
STOPPED = "the daemon is not running: this is what the kernel has now"
SILENT = "the daemon does not answer: this is what the kernel has now"


@pytest.fixture
def running(daemon: Daemon) -> Daemon:
    """With mapping 1 active, and mapping 2 of a guest that is not known."""
    daemon.configure(mapping(1), mapping(2, domain="unknown"))
    daemon.start()
    daemon.wait_for(external(1), "active")
    return daemon


def lines(daemon: Daemon) -> list[str]:
    """What `status` prints."""
    done = daemon.command("status")
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def told(daemon: Daemon) -> dict[str, Any]:
    """What `status --json` prints."""
    done = daemon.command("status", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def by(daemon: Daemon, *through: str) -> subprocess.CompletedProcess[str]:
    """`status --json` as another user."""
    return daemon.host.run(
        *through, sys.executable, "-m", "vm_onetoone_nat", "status", "--json", check=False
    )


def test_who_may_ask(running: Daemon) -> None:
    """The group of the daemon may ask, and nobody else, who is told how to get there."""
    mode = running.host.path(SOCKET).stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o660
    member = by(running, *NOBODY, "--groups=0")
    assert member.returncode == 0, member.stderr
    assert len(json.loads(member.stdout)["mappings"]) == 2
    refused = by(running, *NOBODY, "--clear-groups")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == (
        "vm-onetoone-nat: only root and members of the group vm-onetoone-nat may read the status: "
        "run it with sudo, or 'sudo adduser USER vm-onetoone-nat' and log in again\n"
    )


def check_shape(told: dict[str, Any]) -> None:
    """What other programs rely on is there, by these names."""
    assert told["uplink"] == UPLINK
    assert told["libvirt"] == "connected"
    assert [{name: each[name] for name in CONTRACT} for each in told["mappings"]] == [
        {
            "domain": None,
            "external": str(external(1)),
            "internal": str(internal(1)),
            "network": "default",
            "reason": "",
            "state": "active",
        },
        {
            "domain": "unknown",
            "external": str(external(2)),
            "internal": str(internal(2)),
            "network": "default",
            "reason": "libvirt has no domain 'unknown'",
            "state": "inactive",
        },
    ]


def test_with_and_without_a_daemon(running: Daemon) -> None:
    """Without the daemon, also when it hangs, the kernel is what is shown, and that is said."""
    first, *_ = lines(running)
    assert re.fullmatch(
        f"1 of 2 active, uplink {UPLINK}, libvirt connected, daemon up [0-9]+s", first
    )
    found = told(running)
    check_shape(found)
    assert found["daemon"]["pid"] > 0

    running.signal(signal.SIGSTOP)
    try:
        assert lines(running)[:2] == [
            SILENT,
            f"1 of 2 active, uplink {UPLINK}, libvirt connected",
        ]
        found = told(running)
        check_shape(found)
        assert found["daemon"] is None
    finally:
        running.signal(signal.SIGCONT)
    wait_for(lambda: "daemon up" in lines(running)[0], 60, "it answers again")

    running.kill()
    assert running.host.path(SOCKET).exists()
    assert lines(running)[0] == STOPPED
    check_shape(told(running))

    running.start()
    wait_for(lambda: "daemon up" in lines(running)[0], 60, "another daemon answers")
    assert stat.S_IMODE(running.host.path(SOCKET).stat().st_mode) == 0o660
    running.stop()
    assert not running.host.path(SOCKET).exists()
    assert lines(running)[0] == STOPPED
    assert {each["state"] for each in told(running)["mappings"]} == {"error", "inactive"}


def test_many_at_once(running: Daemon) -> None:
    """However many ask in a second, the daemon has the kernel list its table once for all of them.

    Before, it did so for each.
    """
    trace = running.host.path("/run/lab/trace")
    path = str(running.host.path(SOCKET))
    assert running.process is not None
    pid = running.host.run("pgrep", "-n", "-f", "vm_onetoone_nat.*run").stdout.strip()
    strace = ("strace", "-f", "-qq", "-yy", "-e", "trace=sendto,sendmsg", "-o", "/run/lab/trace")

    def listings(askers: int) -> int:
        """How many messages to nftables it takes to answer so many at once."""
        time.sleep(2 * SECONDS)
        trace.write_text("")
        with running.host.popen(*strace, "-p", pid) as process:
            wait_for(lambda: is_traced(pid, running), 60, "strace is attached")
            with ThreadPoolExecutor(askers) as pool:
                answers = [*pool.map(lambda _: ask(Path(path)), range(askers))]
            process.send_signal(signal.SIGINT)
            process.wait(60)
        assert all(len(json.loads(answer)["mappings"]) == 2 for answer in answers)
        return len(re.findall(r"NETLINK:\[NETFILTER", trace.read_text()))

    alone, together = listings(1), listings(30)
    print(f"messages to nftables for 1 asker: {alone}, for 30: {together}")
    assert 0 < together <= 2 * alone


def is_traced(pid: str, daemon: Daemon) -> bool:
    """Whether a process of the daemon's host has a tracer."""
    text = daemon.host.run("cat", f"/proc/{pid}/status").stdout
    return "TracerPid:\t0\n" not in text


def test_traffic_without_a_daemon(running: Daemon) -> None:
    """The counters are the kernel's, and told also when the daemon is not there."""
    running.kill()
    first, _ = told(running)["mappings"]
    assert first["inbound"] == {"connections": 0, "packets": 0, "bytes": 0, "dropped": 0}
    assert first["seconds"] is None


def test_disk_full(host: Host, daemon: Daemon) -> None:
    """A daemon that can make no socket starts, says so, and does all else."""
    folder = SOCKET.parent
    host.run("mount", "-t", "tmpfs", "-o", "nr_inodes=2,size=4k,mode=755", "tmpfs", str(folder))
    try:
        (host.path(folder) / "lock").touch()
        daemon.configure(mapping(1))
        daemon.start()
        wait_for(lambda: daemon.ended or daemon.has_begun, 60, "it has begun")
        # By the command, which looks by itself.
        wait_for(lambda: daemon.mapping(external(1))["state"] == "active", 60, "it is active")
        assert "the status socket cannot be created: [Errno 28] No space left" in daemon.log()
        assert daemon.stop() == 0
    finally:
        host.run("umount", str(folder))


class Terminal:
    """A command at a terminal of 100 columns in the lab's host."""

    def __init__(self, daemon: Daemon, *arguments: str, env: dict[str, str]) -> None:
        self._master, terminal = pty.openpty()
        command = (sys.executable, "-m", "vm_onetoone_nat", "--config", str(daemon.config))
        self.process: Process = daemon.host.popen(
            # The terminal is that of a session of its own, where Ctrl-C is its signal.
            *("setsid", "--ctty", "--wait", "sh", "-c", 'stty cols 100; exec "$@"', "sh"),
            *(*command, *arguments),
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env={"TERM": "xterm", **env},
        )
        os.close(terminal)
        self.text = ""

    def close(self) -> None:
        os.close(self._master)

    def read(self) -> str:
        """All that has been shown so far."""
        while select.select([self._master], [], [], 0)[0]:
            try:
                self.text += os.read(self._master, 65536).decode()
            except OSError:
                # The other end is closed.
                break
        return self.text

    def press(self, key: bytes) -> None:
        """Press a key."""
        os.write(self._master, key)


@contextmanager
def terminal(daemon: Daemon, *arguments: str, **env: str) -> Iterator[Terminal]:
    """A command at a terminal, until its end."""
    shown = Terminal(daemon, *arguments, env=env)
    try:
        yield shown
    finally:
        shown.process.terminate()
        shown.process.wait(30)
        shown.close()


@pytest.mark.parametrize(
    ("env", "coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
    ids=["terminal", "NO_COLOR", "NO_COLOR empty", "dumb"],
)
def test_colours(running: Daemon, env: dict[str, str], coloured: bool) -> None:
    """States have colours at a terminal that shows them, unless NO_COLOR is set; else none."""
    with terminal(running, "status", **env) as shown:
        assert shown.process.wait(30) == 0
        text = shown.read()
    assert ("\033[32mactive" in text) is coloured
    assert ("\033" in text) is coloured
    assert "\033" not in "\n".join(lines(running))


def test_watch(running: Daemon) -> None:
    """`status --watch` shows what becomes of mappings, and of the daemon, until Ctrl-C."""
    with terminal(running, "status", "--watch") as shown:
        wait_for(lambda: shown.read().count("\033[H\033[2J") >= 2, 30, "it is shown again")
        assert "1 of 2 active" in shown.text
        running.configure(mapping(1), mapping(3))
        running.reload()
        wait_for(lambda: "2 of 2 active" in shown.read(), 30, "the new mapping is shown")
        running.kill()
        wait_for(lambda: STOPPED in shown.read(), 30, "the daemon's end is shown")
        running.configure(mapping(1), external="nonsense")
        wait_for(lambda: "settings.external" in shown.read(), 30, "a bad configuration is shown")
        running.configure(mapping(1))
        before = len(shown.read())
        wait_for(lambda: "1 of 1 active" in shown.read()[before:], 30, "it goes on")
        shown.press(b"\x03")
        assert shown.process.wait(30) == 0
        assert "Traceback" not in shown.read()


def test_watch_into_a_file(running: Daemon, tmp_path: Path) -> None:
    """Where there is no terminal nothing is cleared, and documents follow one another."""
    path = tmp_path / "watched"
    with path.open("w") as file:
        process = running.host.popen(
            *(sys.executable, "-m", "vm_onetoone_nat", "--config", str(running.config)),
            *("status", "--json", "--watch"),
            stdout=file,
        )
        wait_for(lambda: path.read_text().count('"uplink"') >= 2, 30, "it is told again")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    assert "\033" not in path.read_text()
    document, _ = json.JSONDecoder().raw_decode(path.read_text())
    check_shape(document)
