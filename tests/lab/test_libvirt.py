"""A real libvirtd that is lost again and again, and one whose networks are lost alone."""

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import libvirt
import pytest
from lab import Host, IdleDomain, wait_for
from lab.addresses import UPLINK, external, internal, mac_of
from running import Daemon, mapping
from vm_onetoone_nat.errors import LibvirtUnavailable
from vm_onetoone_nat.model.trigger import Kind, Trigger
from vm_onetoone_nat.virt import connection as libvirt_connection
from vm_onetoone_nat.virt import source as libvirt_source
from vm_onetoone_nat.virt.source import LibvirtSource

LOST = Trigger(Kind.LIBVIRT, "libvirt lost")
LOSSES = 100
RESTARTS = 2


class Source:
    """The daemon's side of libvirt in this process, connected to the lab's libvirtd."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._triggers: list[Trigger] = []
        self._source = LibvirtSource(host.libvirt_uri, self._triggers.append)

    def __enter__(self) -> "Source":
        self._source.start()
        wait_for(self.is_connected, 60, "it is connected")
        self.begin = self.held()
        return self

    def __exit__(self, *_: object) -> None:
        self._source.stop()
        wait_for(lambda: self.held()[1] == 0, 60, "no client is left")

    def reconnect(self) -> None:
        """What a closed socket does, to the connection about networks."""
        self._source._networks._lost.set()

    @property
    def losses(self) -> int:
        """How many connections were lost."""
        return self._triggers.count(LOST)

    def is_connected(self) -> bool:
        """Whether all is read."""
        try:
            guests = self._source.observe()
        except LibvirtUnavailable:
            return False
        return guests.current and guests.networks_current

    def held(self) -> tuple[int, int]:
        """The descriptors of this process, and the clients of libvirtd."""
        admin = ("virt-admin", "-c", "libvirtd:///system", "server-clients-info", "libvirtd")
        lines = self._host.run(*admin).stdout.splitlines()
        (clients,) = (line.partition(":")[2] for line in lines if line.startswith("nclients  "))
        return len([*Path("/proc/self/fd").iterdir()]), int(clients)

    def lose(self, how: Callable[[], None]) -> None:
        """Cause a loss, and wait until all is connected again."""
        before = self.losses
        how()
        wait_for(lambda: self.losses > before and self.is_connected(), 60, "it is back", 0.002)

    def settle(self, what: str) -> None:
        """Wait until no more is open than at the begin; what is left open for good is an error."""
        try:
            wait_for(lambda: self.held() == self.begin, 30, "nothing is left open")
        except AssertionError as error:
            raise AssertionError(f"{what}: {self.begin} became {self.held()}") from error
        print(f"{what}: {self.begin[0]} descriptors and {self.begin[1]} clients, as before")


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts to connect follow each other without a pause."""
    monkeypatch.setattr(libvirt_connection, "_BACKOFF_SECONDS", (0.001,))
    monkeypatch.setattr(libvirt_connection, "_SETTLE_SECONDS", 0.001)


@pytest.fixture
def source(host: Host) -> Iterator[Source]:
    with Source(host) as source:
        assert source.begin[1] == 2
        yield source


class TestLosses:
    """The numbers of open descriptors and of libvirtd's clients stay what they were."""

    @pytest.mark.usefixtures("at_once")
    @pytest.mark.parametrize("part", ["domains", "networks"])
    def test_errors(self, source: Source, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """A connection is alive and answers with errors, as without virtnetworkd: it is replaced.

        Before, each of them stayed open: two descriptors, and a client of libvirtd.
        """

        def broken(*_: object) -> tuple[()]:
            raise LibvirtUnavailable("client socket is closed")

        def fail() -> None:
            with monkeypatch.context() as patched:
                patched.setattr(libvirt_source, f"read_{part}", broken)
                assert not source.is_connected()

        for _ in range(LOSSES):
            source.lose(fail)
        assert source.losses == LOSSES
        source.settle(f"{LOSSES} errors about {part}")

    @pytest.mark.usefixtures("at_once")
    def test_subscription_fails(self, source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each attempt to subscribe to networks' events fails, as without virtnetworkd."""
        attempts: list[object] = []

        def fail(*arguments: object) -> int:
            attempts.append(arguments[-1])
            raise libvirt.libvirtError("Failed to connect socket to virtnetworkd-sock")

        def lose() -> None:
            with monkeypatch.context() as patched:
                patched.setattr(libvirt.virConnect, "networkEventRegisterAny", fail)
                source.reconnect()
                wait_for(lambda: len(attempts) >= LOSSES, 60, "100 attempts")

        source.lose(lose)
        source.settle(f"{LOSSES} subscriptions that failed")

    @pytest.mark.usefixtures("at_once")
    @pytest.mark.parametrize("how", ["refused", "hangs"])
    def test_open(
        self, source: Source, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Attempts to connect are refused, or hang until libvirtd is killed."""
        attempts: list[str] = []
        original = libvirt.openReadOnly
        path = tmp_path / "libvirt-sock"

        def attempt(_uri: str) -> object:
            attempts.append(how)
            return original(f"qemu+unix:///system?socket={path}")

        def lose() -> None:
            with monkeypatch.context() as patched:
                patched.setattr(libvirt, "openReadOnly", attempt)
                source.reconnect()
                wait_for(lambda: len(attempts) >= LOSSES, 60, "100 attempts")

        with ExitStack() as stack:
            if how == "hangs":
                stack.enter_context(hanging(path))
            source.lose(lose)
        source.settle(f"{LOSSES} attempts to connect: {how}")

    def test_restarts(self, host: Host, source: Source) -> None:
        """libvirtd is stopped or killed, hangs for a moment, and is started again."""

        def kill() -> None:
            host.libvirtd.kill()
            host.libvirtd.start()

        def hang() -> None:
            host.libvirtd.signal(signal.SIGSTOP)
            source.reconnect()
            wait_for(lambda: not source.is_connected(), 60, "it is lost")
            host.libvirtd.signal(signal.SIGCONT)
            kill()

        losses = [host.libvirtd.restart, kill, hang] * RESTARTS
        for lose in losses:
            source.lose(lose)
        source.settle(f"{len(losses)} restarts of libvirtd")


@contextmanager
def hanging(path: Path) -> Iterator[None]:
    """A libvirtd that takes what clients send, answers nothing, and ends their connections."""

    def serve() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                with client, suppress(OSError):
                    client.recv(4096)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        yield
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


NETWORKS = Path("/run/lab/networks")
"""What the networks of the daemon's libvirt do: see tests/support/networks_away."""


@pytest.mark.parametrize("networks", ["fail", "hang"])
def test_destroyed_without_networks(host: Host, daemon: Daemon, networks: str) -> None:
    """While networks cannot be read, guests that end and start are followed all the same.

    So it is with modular daemons: virtqemud reports the guests, and virtnetworkd, which has the
    networks, is away or hangs. Debian's libvirt is one daemon, so the daemon's own calls about
    networks are made to fail or to hang.
    """
    word = host.path(NETWORKS)
    word.write_text("work\n")
    domain = IdleDomain(host, "followed", interfaces=[(mac_of(internal(1)), "default")])
    daemon.configure(mapping(1, domain="followed"))
    with domain.running():
        away = Path(__file__).parents[1] / "support" / "networks_away"
        daemon.start(env={"PYTHONPATH": str(away), "NETWORKS": str(NETWORKS)})
        daemon.wait_for(external(1), "active")
        word.write_text(f"{networks}\n")
        domain.destroy()
        daemon.wait_for(external(1), "inactive")
        assert str(external(1)) not in host.run("ip", "address", "show", "dev", UPLINK).stdout
        assert daemon.status()["libvirt"] == "disconnected"
        domain.start()
        daemon.wait_for(external(1), "active")
        word.write_text("work\n")
        wait_for(lambda: daemon.status()["libvirt"] == "connected", 60, "networks are read again")
