"""Who reaches whom, and from which address: the whole matrix of directions, by real packets."""

from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from lab import (
    Answer,
    EchoServer,
    Failure,
    Host,
    Lan,
    Namespace,
    NamespaceGuest,
    icmp,
    icmp_source,
    tcp,
    udp,
    wait_for,
)
from lab.addresses import HOST, LAN_CLIENT, external, guest_name, internal
from running import Daemon

PORT = 7000
ASK = {"tcp": tcp, "udp": udp}


class Laptop:
    """Everybody who takes part, each with an echo server, and the daemon running."""

    def __init__(self, lan: Lan, host: Host, guests: list[NamespaceGuest], daemon: Daemon) -> None:
        self.lan, self.host, self.guests, self.daemon = lan, host, guests, daemon


@pytest.fixture(scope="module", params=[0, 1], ids=["br_netfilter=0", "br_netfilter=1"])
def laptop(
    request: pytest.FixtureRequest, lan: Lan, host: Host, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Laptop]:
    host.bridge_netfilter(bool(request.param))
    directory: Path = tmp_path_factory.mktemp("daemon")
    with ExitStack() as stack:
        guests = [
            stack.enter_context(NamespaceGuest(host, guest_name(n), internal(n), wait=False))
            for n in (1, 2)
        ]
        for guest in guests:
            guest.wait_until_forwarding()
        for namespace in (lan, host, *guests):
            stack.enter_context(EchoServer(namespace, PORT))
        daemon = Daemon(host, directory)
        daemon.configure(
            *({"external": str(external(n)), "internal": str(internal(n))} for n in (1, 2))
        )
        daemon.start()
        for n in (1, 2):
            daemon.wait_for(external(n), "active")
        yield Laptop(lan, host, guests, daemon)
        assert daemon.stop() == 0, daemon.log()


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_lan_reaches_guest(laptop: Laptop, protocol: str) -> None:
    """The LAN reaches a guest by its external address, and the guest sees the LAN's own."""
    for n, guest in enumerate(laptop.guests, start=1):
        answer = ASK[protocol](laptop.lan, external(n), PORT)
        assert answer == Answer(LAN_CLIENT.ip, guest.name)


def test_lan_pings_guest(laptop: Laptop) -> None:
    """An echo request of the LAN arrives at the guest with its source untouched."""
    assert icmp_source(laptop.lan, external(1), laptop.guests[0]) == LAN_CLIENT.ip


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_guest_reaches_lan(laptop: Laptop, protocol: str) -> None:
    """Each guest's own connections arrive on the LAN from its external address."""
    for n, guest in enumerate(laptop.guests, start=1):
        answer = ASK[protocol](guest, LAN_CLIENT.ip, PORT)
        assert answer == Answer(external(n), laptop.lan.name)


def test_guest_pings_lan(laptop: Laptop) -> None:
    """A guest's echo request arrives on the LAN from its external address."""
    assert icmp_source(laptop.guests[1], LAN_CLIENT.ip, laptop.lan) == external(2)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_host_reaches_guest(laptop: Laptop, protocol: str) -> None:
    """The host reaches a guest by its external address, with its own LAN address."""
    answer = ASK[protocol](laptop.host, external(1), PORT)
    assert answer == Answer(HOST.ip, laptop.guests[0].name)


def test_host_pings_guest(laptop: Laptop) -> None:
    """The host's echo request by the external address arrives at the guest."""
    assert icmp_source(laptop.host, external(1), laptop.guests[0]) == HOST.ip


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_guest_reaches_other_guest(laptop: Laptop, protocol: str) -> None:
    """One guest reaches another by its external address, and is seen with its own external one."""
    one, other = laptop.guests
    assert ASK[protocol](one, external(2), PORT) == Answer(external(1), other.name)


def test_guest_pings_other_guest(laptop: Laptop) -> None:
    """An echo request from guest to guest by external address carries external addresses."""
    assert icmp_source(laptop.guests[0], external(2), laptop.guests[1]) == external(1)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_guest_reaches_itself(laptop: Laptop, protocol: str) -> None:
    """A guest reaches itself by its own external address."""
    guest = laptop.guests[0]
    # Where bridged frames pass the IP hooks, the guest has to be heard of once before.
    wait_for(lambda: icmp(guest, external(1), timeout=1), 15, "an answer from itself")
    assert ASK[protocol](guest, external(1), PORT) == Answer(external(1), guest.name)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_guest_reaches_other_guest_inside(laptop: Laptop, protocol: str) -> None:
    """Inside the bridge guests see each other's internal addresses."""
    one, other = laptop.guests
    assert ASK[protocol](one, internal(2), PORT) == Answer(internal(1), other.name)


def test_guest_pings_other_guest_inside(laptop: Laptop) -> None:
    """An echo request inside the bridge keeps its source."""
    assert icmp_source(laptop.guests[0], internal(2), laptop.guests[1]) == internal(1)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_guest_reaches_host(laptop: Laptop, protocol: str) -> None:
    """A guest reaches its host by the host's LAN address."""
    answer = ASK[protocol](laptop.guests[0], HOST.ip, PORT)
    assert answer == Answer(internal(1), laptop.host.name)


def test_internal_address_is_not_exposed(laptop: Laptop) -> None:
    """A LAN host that routes to the internal address is rejected, as libvirt alone would do."""
    route = ("ip", "route", "replace", f"{internal(1)}/32", "via", str(HOST.ip))
    laptop.lan.run(*route)
    try:
        assert tcp(laptop.lan, internal(1), PORT) is Failure.REFUSED
    finally:
        laptop.lan.run("ip", "route", "del", f"{internal(1)}/32")


def test_foreign_rule_reads_back(laptop: Laptop) -> None:
    """`iptables` lists, saves and restores the one rule of ours that is in its table."""
    rule = "-A FORWARD -m mark --mark 0x100000/0x100000 -j ACCEPT"
    for command in (["iptables", "-S", "FORWARD"], ["iptables-save", "-t", "filter"]):
        listing = laptop.host.run(*command).stdout.splitlines()
        assert listing.count(rule) == 1
        assert next(line for line in listing if line.startswith("-A FORWARD")) == rule
    assert "incompatible" not in laptop.host.run("iptables-save").stderr


def _reaches(sender: Namespace, destination: IPv4Address, port: int) -> bool:
    return isinstance(tcp(sender, destination, port), Answer)


def test_allow_and_allowed_sources(laptop: Laptop) -> None:
    """A restricted guest is reached by what is admitted, and the rest is refused, not dropped."""
    daemon, (guest, _) = laptop.daemon, laptop.guests
    before = daemon.config.read_text()
    own = {"external": str(external(1)), "internal": str(internal(1))}
    try:
        with EchoServer(guest, 7001, 8050):
            daemon.configure({**own, "allow": ["tcp/7000", "tcp/8000-8100"]})
            daemon.reload()
            wait_for(lambda: not _reaches(laptop.lan, external(1), 7001), 10, "7001 is closed")
            for sender in (laptop.lan, laptop.host):
                assert _reaches(sender, external(1), PORT)
                assert _reaches(sender, external(1), 8050)
                assert tcp(sender, external(1), 7001) is Failure.REFUSED
                assert not icmp(sender, external(1), timeout=1)
            assert udp(laptop.lan, external(1), PORT) is Failure.REFUSED
            assert udp(guest, LAN_CLIENT.ip, PORT) == Answer(external(1), laptop.lan.name)

            daemon.configure({**own, "allowed_sources": ["192.168.1.0/25"], "allow": ["icmp"]})
            daemon.reload()
            wait_for(lambda: icmp(laptop.lan, external(1), timeout=1), 10, "icmp is open")
            assert not _reaches(laptop.lan, external(1), PORT)

            daemon.configure({**own, "allowed_sources": ["192.168.1.2/32", "10.0.0.0/8"]})
            daemon.reload()
            wait_for(lambda: not icmp(laptop.lan, external(1), timeout=1), 10, "icmp is closed")
            assert tcp(laptop.lan, external(1), PORT) is Failure.REFUSED

            daemon.configure({**own, "allowed_sources": [f"{LAN_CLIENT.ip}/32"]})
            daemon.reload()
            wait_for(lambda: icmp(laptop.lan, external(1), timeout=1), 10, "icmp is open")
            assert _reaches(laptop.lan, external(1), 7001)
    finally:
        daemon.config.write_text(before)
        daemon.reload()
        daemon.wait_for(external(2), "active")
