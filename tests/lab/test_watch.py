"""Notifications that must not be missed among those that are dropped, and what others receive."""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from lab import EchoServer, Host, Namespace, NamespaceGuest, wait_for
from lab.addresses import LIBVIRT_GATEWAY, external, internal
from running import Daemon, mapping

PORT = 7000
ACCEPT = "-A FORWARD -m mark --mark 0x100000/0x100000 -j ACCEPT"
ELEMENTS = ", ".join(f"10.0.{n >> 8}.{n & 255}" for n in range(300))


@pytest.fixture(scope="module")
def guest(host: Host) -> Iterator[NamespaceGuest]:
    host.bridge_netfilter(True)
    with NamespaceGuest(host, "guest", internal(1)) as guest, EchoServer(guest, PORT):
        yield guest


@pytest.fixture
def blocklist(host: Host) -> Iterator[str]:
    """A set of another program."""
    host.run("nft", "add table ip blocklist; add set ip blocklist s { type ipv4_addr; }")
    yield "ip blocklist s"
    host.run("nft", "delete table ip blocklist")


def test_rule_behind_elements(host: Host, running: Daemon, blocklist: str) -> None:
    """A rule that refuses guests is noticed behind hundreds of elements in one transaction."""
    refuse = "insert rule ip filter FORWARD counter drop"
    host.run("nft", f"add element {blocklist} {{ {ELEMENTS} }}; {refuse}")

    def repaired() -> bool:
        rules = host.run("iptables", "-S", "FORWARD").stdout.splitlines()[1:]
        return rules[:2] == [ACCEPT, "-A FORWARD -j DROP"]

    wait_for(repaired, 30, "the accept is at the head again")
    host.run("iptables", "-D", "FORWARD", "-j", "DROP")


def test_our_elements_behind_others(host: Host, running: Daemon, blocklist: str) -> None:
    """So is a change of our own elements."""
    ours = f"delete element inet vm_onetoone_nat external {{ {external(1)} }}"
    host.run("nft", f"add element {blocklist} {{ {ELEMENTS} }}; {ours}")

    def repaired() -> bool:
        listed = host.run("nft", "list", "map", "inet", "vm_onetoone_nat", "external").stdout
        return str(external(1)) in listed

    wait_for(repaired, 30, "the element is there again")


def test_others_receive_all(
    host: Host, daemon: Daemon, guest: NamespaceGuest, tmp_path: Path
) -> None:
    """A program that listens too receives each notification whole.

    The kernel delivers one datagram to all; a filter that shortens it shortens it for all that
    began to listen before.
    """
    printed = tmp_path / "monitor"
    rule = "add rule ip whole c ip saddr 203.0.113.1 drop"

    def hears(command: str, line: str) -> bool:
        host.run("nft", command)
        return line in printed.read_text().splitlines()

    with ExitStack() as stack:
        file = stack.enter_context(printed.open("w"))
        monitor = host.popen("stdbuf", "-oL", "nft", "monitor", stdout=file)
        stack.callback(monitor.wait, 30)
        stack.callback(monitor.kill)
        begin = "add table ip begin"
        wait_for(partial(hears, f"{begin}; delete table ip begin", begin), 30, "it listens")
        daemon.configure(mapping(1))
        daemon.start()
        daemon.wait_for(external(1), "active")
        whole = f"add table ip whole; add chain ip whole c; {rule}; delete table ip whole"
        wait_for(partial(hears, whole, rule), 30, "the monitor prints the rule")


def hairpins(host: Namespace, *ports: str) -> list[bool]:
    listed = (host.run("bridge", "-d", "link", "show", "dev", port).stdout for port in ports)
    return ["hairpin on" in text for text in listed]


def test_guest_moves_to_another_port(host: Host, running: Daemon, guest: NamespaceGuest) -> None:
    """With br_netfilter, the hairpin flag follows the guest's MAC to another port of the bridge."""
    with NamespaceGuest(host, "twin", internal(2), mac=guest.mac) as twin:
        ports = (guest.port, twin.port)
        for speaker in (guest, twin, guest):
            expected = [port == speaker.port for port in ports]
            wait_for(partial(follows, speaker, ports, expected), 30, f"it follows {speaker.name}")


def follows(speaker: NamespaceGuest, ports: tuple[str, str], expected: list[bool]) -> bool:
    """Whether the flags are as expected after a packet; the other may have sent one of its own."""
    speaker.run("ping", "-nqc1", "-W1", str(LIBVIRT_GATEWAY.ip), check=False)
    return hairpins(speaker.host, *ports) == expected
