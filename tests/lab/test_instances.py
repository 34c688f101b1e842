"""Two daemons on one host: by hand, as a service, and the service's clean-up."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from lab import Host, wait_for
from lab.addresses import UPLINK, external
from running import UNIT, Daemon, mapping

NOTIFY = "/run/lab/notify"


@pytest.fixture
def running(daemon: Daemon) -> Daemon:
    """A daemon by hand, with mapping 1 active."""
    daemon.configure(mapping(1))
    daemon.start()
    daemon.wait_for(external(1), "active")
    return daemon


@contextmanager
def service_manager(host: Host) -> Iterator[socket.socket]:
    """The socket that a daemon notifies."""
    path = host.path(NOTIFY)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(path))
        notified.settimeout(60)
        yield notified
    path.unlink()


def test_second_by_hand(host: Host, running: Daemon) -> None:
    """A second daemon by hand ends at once and says why; the first one goes on."""
    done = running.command("run")
    assert done.returncode == 1
    assert "another vm-onetoone-nat is running (process " in done.stderr
    assert running.mapping(external(1))["state"] == "active"


def test_a_service_waits(host: Host, running: Daemon, tmp_path: Path) -> None:
    """A service waits for the daemon by hand, says so once, and takes over when that ends.

    Before, it failed, and was started again each second without a limit.
    """
    second = Daemon(host, tmp_path / "second")
    second.log_path.parent.mkdir()
    second.config = running.config
    with service_manager(host) as notified:
        second.start(env={"NOTIFY_SOCKET": NOTIFY})
        try:
            for _ in range(3):
                message = notified.recv(4096).decode()
                assert message.startswith("EXTEND_TIMEOUT_USEC=10000000\n")
                assert "STATUS=Waiting for the daemon in process " in message
            assert second.log().count("waiting until it ends") == 1
            assert not second.ended
            assert running.stop() == 0
            while not notified.recv(4096).startswith(b"READY=1"):
                pass
            second.wait_for(external(1), "active")
        finally:
            second.stop()


@pytest.mark.parametrize("by_hand", [True, False])
def test_clean_up_of_a_service(host: Host, running: Daemon, by_hand: bool, tmp_path: Path) -> None:
    """A service that is stopped removes everything, but not what a daemon by hand has.

    Before, its clean-up ended that daemon.
    """
    systemctl = host.path("/run/lab/bin/systemctl")
    systemctl.parent.mkdir(exist_ok=True)
    systemctl.write_text(f"#!/bin/sh\necho '871 {UNIT} stop running'\n")
    systemctl.chmod(0o755)
    if not by_hand:
        running.kill()
    done = host.run(
        *("env", "PATH=/run/lab/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        *running._command("cleanup", "--unit", UNIT),
    )
    assert ("a daemon that was started by hand is running" in done.stdout) is by_hand
    listed = host.run("ip", "-4", "address", "show", "dev", UPLINK).stdout
    assert (str(external(1)) in listed) is by_hand
    assert running.ended is not by_hand
    wait_for(lambda: running.command("plan").returncode == (0 if by_hand else 2), 60, "the plan")
