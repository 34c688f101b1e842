"""What the host routes for the LAN, to other interfaces than the guests' bridge."""

import re
from collections.abc import Iterator
from ipaddress import IPv4Interface
from pathlib import Path

import pytest
from lab import Answer, EchoServer, Host, Lan, Namespace, NamespaceGuest, tcp
from lab.addresses import HOST, LAN_CLIENT, UPLINK, external, internal
from lab.traffic import Failure
from running import Daemon, mapping

PORT = 7000
BEHAVIOUR = Path(__file__).parents[2] / "docs" / "behaviour.md"
VPN, PEER = IPv4Interface("10.8.0.1/24"), IPv4Interface("10.8.0.2/24")


@pytest.fixture
def vpn(host: Host) -> Iterator[Namespace]:
    """A network behind another interface of the host, which knows the way back to the LAN."""
    with Namespace("vpn") as vpn, EchoServer(vpn, PORT):
        host.wire("tun0", vpn, "eth0", address=PEER)
        host.run("ip", "address", "add", str(VPN), "dev", "tun0")
        vpn.run("ip", "route", "add", "default", "via", str(VPN.ip))
        yield vpn
        host.run("ip", "link", "delete", "tun0")


@pytest.fixture
def guest(host: Host, daemon: Daemon) -> Iterator[NamespaceGuest]:
    """A guest that is active."""
    with NamespaceGuest(host, "guest", internal(1)) as guest, EchoServer(guest, PORT):
        daemon.configure(mapping(1))
        daemon.start()
        daemon.wait_for(external(1), "active")
        yield guest


@pytest.fixture
def client(lan: Lan) -> Iterator[Namespace]:
    """A client on the LAN that takes the host for its router to the VPN."""
    with EchoServer(lan, PORT):
        lan.run("ip", "route", "add", str(VPN.network), "via", str(HOST.ip))
        yield lan
        lan.run("ip", "route", "del", str(VPN.network))


def test_the_offered_table(
    host: Host, daemon: Daemon, client: Namespace, vpn: Namespace, guest: NamespaceGuest
) -> None:
    """With the table of docs/behaviour.md the LAN reaches guests, and nothing behind the VPN.

    Without it the LAN reaches the VPN, as through any host that forwards. The host's and the
    guests' own connections into the VPN and to the LAN stay, and `diagnose` finds no fault.
    """
    assert tcp(client, PEER.ip, PORT) == Answer(LAN_CLIENT.ip, "vpn")
    (table,) = re.findall(r"^table inet \w+ \{.*?^\}", BEHAVIOUR.read_text(), re.M | re.S)
    assert f'"{UPLINK}"' in table
    host.run("nft", "-f", "-", input=table)
    try:
        assert tcp(client, PEER.ip, PORT, timeout=1) is Failure.SILENT
        assert tcp(client, external(1), PORT) == Answer(LAN_CLIENT.ip, "guest")
        assert tcp(guest, LAN_CLIENT.ip, PORT) == Answer(external(1), "lan")
        assert tcp(guest, PEER.ip, PORT) == Answer(VPN.ip, "vpn")
        assert tcp(host, PEER.ip, PORT) == Answer(VPN.ip, "vpn")
        assert tcp(host, external(1), PORT) == Answer(HOST.ip, "guest")
        assert daemon.command("plan").returncode == 0
        found = daemon.command("diagnose", str(external(1)))
        assert found.returncode == 0, found.stdout
    finally:
        host.run("nft", "delete", "table", "inet", "lan_reaches_guests_only")


@pytest.mark.parametrize("name", [UPLINK, "tun0"])
def test_no_sysctl_does_it(
    host: Host, client: Namespace, vpn: Namespace, guest: NamespaceGuest, name: str
) -> None:
    """Forwarding that is off on the uplink stops mappings, and on tun0 the guests' way there."""
    host.sysctl(f"net.ipv4.conf.{name}.forwarding", 0)
    try:
        reached = tcp(client, external(1), PORT, timeout=1)
        sent = tcp(guest, PEER.ip, PORT, timeout=1)
        assert (reached if name == UPLINK else sent) is Failure.SILENT
    finally:
        host.sysctl(f"net.ipv4.conf.{name}.forwarding", 1)


def test_not_before_a_mapping_is_active(host: Host, daemon: Daemon) -> None:
    """Forwarding that is off stays off while no mapping is active, and after an installation."""
    host.sysctl("net.ipv4.ip_forward", 0)
    try:
        daemon.configure(mapping(1, domain="none"))
        daemon.start()
        daemon.wait_for(external(1), "inactive")
        daemon.wait_until_converged()
        assert host.sysctl("net.ipv4.ip_forward") == "0"
        assert "was off" not in daemon.log()
    finally:
        host.sysctl("net.ipv4.ip_forward", 1)
