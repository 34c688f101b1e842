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
    tcp,
    udp,
    wait_for,
)
from lab.addresses import LAN_CLIENT, external, guest_name, internal
from matrix import PORT, Directions, Laptop
from running import Daemon


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


class TestDirections(Directions):
    """In the lab's host, with libvirt's iptables backend."""


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
            wait_for(lambda: not _reaches(laptop.lan, external(1), 7001), 60, "7001 is closed")
            for sender in (laptop.lan, laptop.host):
                assert _reaches(sender, external(1), PORT)
                assert _reaches(sender, external(1), 8050)
                assert tcp(sender, external(1), 7001) is Failure.REFUSED
                assert not icmp(sender, external(1), timeout=1)
            assert udp(laptop.lan, external(1), PORT) is Failure.REFUSED
            assert udp(guest, LAN_CLIENT.ip, PORT) == Answer(external(1), laptop.lan.name)

            daemon.configure({**own, "allowed_sources": ["192.168.1.0/25"], "allow": ["icmp"]})
            daemon.reload()
            wait_for(lambda: icmp(laptop.lan, external(1), timeout=1), 60, "icmp is open")
            assert not _reaches(laptop.lan, external(1), PORT)

            daemon.configure({**own, "allowed_sources": ["192.168.1.2/32", "10.0.0.0/8"]})
            daemon.reload()
            wait_for(lambda: not icmp(laptop.lan, external(1), timeout=1), 60, "icmp is closed")
            assert tcp(laptop.lan, external(1), PORT) is Failure.REFUSED

            daemon.configure({**own, "allowed_sources": [f"{LAN_CLIENT.ip}/32"]})
            daemon.reload()
            wait_for(lambda: icmp(laptop.lan, external(1), timeout=1), 60, "icmp is open")
            assert _reaches(laptop.lan, external(1), 7001)
    finally:
        daemon.config.write_text(before)
        daemon.reload()
        daemon.wait_for(external(2), "active")
