"""Packets that NAT leaves alone: nothing of a mapping reaches the host, or the LAN untranslated.

Connection tracking calls a packet invalid if it belongs to no connection and begins none. Invalid
packets are not translated.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from lab import EchoServer, Host, Lan, NamespaceGuest, Stream, wait_for
from lab.addresses import LAN_BRIDGE, LAN_CLIENT, external, internal
from lab.traffic import Sources, survives_a_stray_segment
from running import Daemon

PORT = 7000
STRICT = "net.netfilter.nf_conntrack_tcp_loose"
"""With 0, a segment in the middle of a connection begins none."""


@pytest.fixture(scope="module", params=[0, 1], ids=["br_netfilter=0", "br_netfilter=1"])
def guest(request: pytest.FixtureRequest, host: Host) -> Iterator[NamespaceGuest]:
    host.bridge_netfilter(bool(request.param))
    with NamespaceGuest(host, "guest", internal(1)) as guest, EchoServer(guest, PORT):
        yield guest


@pytest.fixture
def strict(host: Host) -> Iterator[None]:
    host.sysctl(STRICT, 0)
    yield
    host.sysctl(STRICT, 1)


def dropped(daemon: Daemon, side: str) -> int:
    (found,) = daemon.status()["mappings"]
    figures: dict[str, Any] = found[side]
    return int(figures["dropped"])


def end_tracking(host: Host, *selection: str) -> None:
    host.run("conntrack", "-D", "-p", "tcp", *selection)


def test_segment_outside_the_window(lan: Lan, host: Host, running: Daemon) -> None:
    """A connection goes on after a segment that connection tracking calls invalid.

    The host answered it in the guest's place, with a reset.
    """
    assert survives_a_stray_segment(lan, external(1), PORT) == "alive"
    # The counters of `status` are a second old at most.
    wait_for(lambda: dropped(running, "inbound") > 0, 60, "the segment is counted")
    assert (dropped(running, "inbound"), dropped(running, "outbound")) == (1, 0)


@pytest.mark.usefixtures("strict")
def test_connection_that_is_no_longer_tracked(
    lan: Lan, host: Host, running: Daemon, guest: NamespaceGuest
) -> None:
    """Segments of a connection without its entry reach neither the host nor the guest.

    The host answered them with a reset, which ended the connection.
    """
    with Stream(lan, external(1), PORT, guest) as stream:
        wait_for(lambda: "ESTABLISHED" in host.run("conntrack", "-L").stdout, 60, "the entry")
        end_tracking(host, "--orig-dst", str(external(1)))
        wait_for(lambda: stream.broken or dropped(running, "inbound") >= 3, 60, "segments")
        assert not stream.broken
    assert dropped(running, "inbound") >= 3


@pytest.mark.usefixtures("strict")
def test_guest_whose_connection_is_no_longer_tracked(
    lan: Lan, host: Host, running: Daemon, guest: NamespaceGuest
) -> None:
    """A guest's segments that cannot be translated do not leave through the uplink.

    They left with the guest's own address.
    """
    with (
        EchoServer(lan, PORT),
        Sources(lan, LAN_BRIDGE) as sources,
        Stream(guest, LAN_CLIENT.ip, PORT, lan) as stream,
    ):
        wait_for(lambda: external(1) in sources.seen(), 60, "the guest's external address")
        end_tracking(host, "--orig-src", str(internal(1)))
        wait_for(
            lambda: internal(1) in sources.seen() or dropped(running, "outbound") >= 3,
            60,
            "segments",
        )
        assert internal(1) not in sources.seen()
        assert not stream.broken
    assert dropped(running, "outbound") >= 3
