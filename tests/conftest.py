"""The laptop on its LAN, made once for each test module, and the daemon on it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Host, Lan
from running import Daemon


@pytest.fixture(scope="module")
def lan() -> Iterator[Lan]:
    with Lan() as lan:
        yield lan


@pytest.fixture(scope="module")
def host(lan: Lan) -> Iterator[Host]:
    with Host(lan) as host:
        host.start_libvirt()
        yield host


@pytest.fixture
def daemon(host: Host, tmp_path: Path) -> Iterator[Daemon]:
    """Not started, without a configuration; whatever it left in the kernel goes in the end."""
    daemon = Daemon(host, tmp_path)
    yield daemon
    if daemon.process is not None and daemon.process.poll() is None:
        daemon.stop()
    done = daemon.command("cleanup")
    assert done.returncode == 0, done.stderr
