"""What a missing table does to TCP connections, where it has no owner, as on Debian 12.

Without our table packets for an external address reach the host itself. A server of the host shows
that: it has the port of the guest's.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from signal import SIGCONT, SIGSTOP

import pytest
from lab import Answer, EchoServer, Host, Lan, Namespace, NamespaceGuest, Stream, tcp, wait_for
from lab.addresses import LAN_CLIENT, UPLINK, external, internal
from running import Daemon

PORT = 7000
TABLE = "inet vm_onetoone_nat"
ACKNOWLEDGED = 0.5
"""After more seconds all acknowledgements have been sent: TCP_DELACK_MAX is 0.2 s."""

FROM_GUEST = Answer(LAN_CLIENT.ip, "guest")


@pytest.fixture(scope="module")
def guest(host: Host) -> Iterator[NamespaceGuest]:
    with (
        NamespaceGuest(host, "guest", internal(1)) as guest,
        EchoServer(guest, PORT),
        EchoServer(host, PORT),
    ):
        yield guest


def has_address(host: Host) -> bool:
    listed = host.run("ip", "-4", "-o", "address", "show", "dev", UPLINK).stdout
    return f"{external(1)}/" in listed


def has_table(host: Host) -> bool:
    return TABLE in host.run("nft", "list", "tables").stdout


@contextmanager
def stopped(daemon: Daemon) -> Iterator[None]:
    """The daemon does nothing meanwhile."""
    daemon.signal(SIGSTOP)
    try:
        yield
    finally:
        daemon.signal(SIGCONT)


def test_segment_before_the_repair(
    lan: Lan, host: Host, running: Daemon, guest: NamespaceGuest
) -> None:
    """A segment to the guest that arrives before the repair ends its connection."""
    with Stream(lan, external(1), PORT, guest) as stream:
        with stopped(running):
            host.run("nft", "flush", "ruleset")
            wait_for(lambda: stream.broken, 60, "the host's reset")
        report = stream.finish()
    assert report.errors == ("[Errno 104] Connection reset by peer",)
    running.wait_until_converged()


def test_no_segment_before_the_repair(
    lan: Lan, host: Host, running: Daemon, guest: NamespaceGuest
) -> None:
    """A connection that is idle until the repair goes on."""
    with Stream(lan, external(1), PORT, guest) as stream:
        stream.process.send_signal(SIGSTOP)
        wait_for(lambda: idle(guest) > ACKNOWLEDGED, 60, "nothing is under way")
        host.run("nft", "flush", "ruleset")
        running.wait_until_converged()
        stream.process.send_signal(SIGCONT)
        report = stream.finish()
    assert not report.broken
    assert report.answered == report.sent


def idle(server: Namespace) -> float:
    """The seconds since the last segment of its connections."""
    listed = server.run("ss", "-Htin", "sport", "=", f":{PORT}").stdout
    return min(map(int, re.findall(r"last(?:snd|rcv|ack):(\d+)", listed))) / 1000


def test_table_that_is_flushed_again_and_again(
    lan: Lan, host: Host, running: Daemon, guest: NamespaceGuest
) -> None:
    """While repairs are held back the address is gone: nobody reaches the host in its place.

    It stayed, and the host's own server answered.
    """
    assert tcp(lan, external(1), PORT) == FROM_GUEST
    with host.popen("sh", "-c", "while sleep 0.1; do nft flush ruleset; done") as flushing:
        try:
            wait_for(lambda: "undone again and again" in running.log(), 60, "a fight")
            wait_for(lambda: not has_table(host) and not has_address(host), 60, "no address")
            assert not isinstance(tcp(lan, external(1), PORT, timeout=1), Answer)
        finally:
            flushing.kill()
    running.wait_for(external(1), "active")
    wait_for(lambda: tcp(lan, external(1), PORT) == FROM_GUEST, 60, "the guest answers")


def test_table_of_another_process(
    lan: Lan, host: Host, running: Daemon, guest: NamespaceGuest
) -> None:
    """While another process has our table the address is gone, and who it is has been logged."""
    assert tcp(lan, external(1), PORT) == FROM_GUEST
    with host.popen("nft", "-i", stdin=-1) as other:
        assert other.stdin is not None
        other.stdin.write(f"delete table {TABLE}; add table {TABLE} {{ flags owner; }}\n")
        other.stdin.flush()
        wait_for(lambda: not has_address(host), 60, "the address is deleted")
        assert has_table(host)
        assert not isinstance(tcp(lan, external(1), PORT, timeout=1), Answer)
        running.wait_for(external(1), "error")
        reason = running.mapping(external(1))["reason"]
        assert f"table {TABLE} belongs to another process, netlink port " in reason
        assert running.log().count("belongs to another process") > 0
        other.stdin.close()
        other.wait(10)
    running.wait_for(external(1), "active")
    wait_for(lambda: tcp(lan, external(1), PORT) == FROM_GUEST, 60, "the guest answers")
