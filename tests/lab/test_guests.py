"""Guests as they come: addresses that are found, asked for by the guest, or given from a pool."""

import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from ipaddress import IPv4Address, IPv4Interface
from itertools import count

import pytest
from faults import in_the_way
from lab import (
    Answer,
    CommandError,
    DomainGuest,
    EchoServer,
    Host,
    IdleDomain,
    Lan,
    Voice,
    tcp,
    udp,
    wait_for,
)
from lab.addresses import (
    HOST,
    LAN_CLIENT,
    LIBVIRT_GATEWAY,
    UPLINK,
    external,
    internal,
    mac_of,
)
from lab.run_queue import RunQueue
from running import Daemon
from vm_onetoone_nat.config.metadata import NAMESPACE

PORT = 7000
NUMBERS = count(20)
MACS = {n: mac_of(internal(n)) for n in range(1, 6)}
SECOND = """
<network>
  <name>second</name>
  <forward mode="nat"/>
  <bridge name="virbr1" stp="off"/>
  <ip address="192.168.123.1" prefix="24"/>
</network>
"""
SECOND_GATEWAY = IPv4Address("192.168.123.1")
SOON = 1.0
"""Within so many seconds after its first packet or lease a guest is active."""


@pytest.fixture
def domain(host: Host) -> Iterator[IdleDomain]:
    # Another in each test: leases outlive their guests.
    with running_domain(host, next(NUMBERS)) as domain:
        yield domain


def running_domain(host: Host, n: int) -> AbstractContextManager[IdleDomain]:
    """A guest with one silent interface on `default`, which runs."""
    return IdleDomain(host, f"guest{n}", interfaces=[(mac_of(internal(n)), "default")]).running()


@contextmanager
def reservation(host: Host, domain: IdleDomain, address: IPv4Address) -> Iterator[None]:
    """The network `default` keeps an address for a guest."""

    def update(verb: str) -> None:
        entry = f"<host mac='{domain.macs[0]}' ip='{address}'/>"
        where = ("--live", "--config")
        host.virsh("net-update", "default", verb, "ip-dhcp-host", "--xml", entry, *where)

    update("add")
    try:
        yield
    finally:
        update("delete")


@pytest.fixture
def voice(host: Host, domain: IdleDomain) -> Iterator[Voice]:
    mac, tap = domain.macs[0], domain.tap()
    with Voice(host, "voice", mac, tap=tap) as voice, EchoServer(voice, PORT):
        yield voice


def kernel(host: Host) -> str:
    """All rules, and the addresses of the uplink."""
    rules = host.run("nft", "--stateless", "list", "ruleset").stdout
    return rules + host.run("ip", "-4", "-br", "address", "show", "dev", UPLINK).stdout


def find(daemon: Daemon, domain: str) -> dict[str, str]:
    """What `status` says of the only mapping of a guest."""
    (found,) = (m for m in daemon.status()["mappings"] if m["domain"] == domain)
    return dict(found)


def wait_until(daemon: Daemon, domain: str, timeout: float = 60, **expected: object) -> None:
    """Wait until `status` says that of a guest."""

    def says() -> bool:
        found = [m for m in daemon.status()["mappings"] if m["domain"] == domain]
        return any(expected.items() <= m.items() for m in found)

    try:
        wait_for(says, timeout, f"{domain} is {expected}")
    except AssertionError as error:
        raise AssertionError(f"{error}\n{daemon.status()}\n{daemon.log()}") from error


def seconds_until_translated(host: Host, internal: IPv4Address) -> float:
    """How long it takes from now until the kernel translates to that address.

    Only time counts in which the daemon did not wait for a processor.
    """

    def translates() -> bool:
        listing = ("nft", "list", "map", "inet", "vm_onetoone_nat", "external")
        return f": {internal} " in host.run(*listing, check=False).stdout.replace(",", " ")

    with RunQueue(lambda: in_the_way(host)) as waiting:
        begin = time.monotonic()
        wait_for(translates, 60, f"{internal} is translated", interval=0.02)
        end = time.monotonic()
    return waiting.undisturbed(begin, end)


class TestDiscovery:
    """The guest's own address, which nobody has written down."""

    @pytest.fixture
    def found(self, daemon: Daemon, domain: IdleDomain) -> Daemon:
        """The daemon, with a guest that has said nothing yet."""
        daemon.configure({"external": str(external(1)), "domain": domain.name})
        daemon.start()
        daemon.wait_for(external(1), "pending")
        status = find(daemon, domain.name)
        assert status["internal"] is None
        assert status["source"] is None
        assert "is not known yet" in status["reason"]
        return daemon

    def test_lease(
        self, lan: Lan, host: Host, found: Daemon, domain: IdleDomain, voice: Voice
    ) -> None:
        """A guest that gets a lease is active within a second, and reached."""
        # Once the external address is known to be free, it is a matter of the lease alone.
        leased = voice.dhcp()
        took = seconds_until_translated(host, leased)
        print(f"active {took:.2f} s after its lease")
        wait_until(found, domain.name, state="active", internal=str(leased), source="lease")
        assert tcp(lan, external(1), PORT) == Answer(LAN_CLIENT.ip, voice.name)
        with EchoServer(lan, PORT):
            assert udp(voice, LAN_CLIENT.ip, PORT) == Answer(external(1), lan.name)
        assert took < SOON + 0.6, "the time to ask the LAN for the address included"

    def test_reservation(self, host: Host, found: Daemon, domain: IdleDomain) -> None:
        """A reservation is enough: the guest need not have said anything."""
        with reservation(host, domain, internal(1)):
            # libvirt tells nobody of such a change: the guest's start does.
            domain.destroy()
            domain.start()
            wait_until(
                found, domain.name, state="active", internal=str(internal(1)), source="reservation"
            )

    def test_neighbour(
        self, lan: Lan, host: Host, found: Daemon, domain: IdleDomain, voice: Voice
    ) -> None:
        """A guest with an address of its own choice is known by its first packet."""
        voice.static(IPv4Interface((internal(7), 24)), LIBVIRT_GATEWAY.ip)
        voice.speak(LIBVIRT_GATEWAY.ip)
        took = seconds_until_translated(host, internal(7))
        print(f"active {took:.2f} s after its first packet")
        wait_until(
            found, domain.name, state="active", internal=str(internal(7)), source="neighbour"
        )
        assert tcp(lan, external(1), PORT) == Answer(LAN_CLIENT.ip, voice.name)
        assert took < SOON + 0.6

    def test_other_lease(
        self, lan: Lan, host: Host, found: Daemon, domain: IdleDomain, voice: Voice
    ) -> None:
        """A guest that gets another lease takes its mapping with it."""
        first = voice.dhcp()
        wait_until(found, domain.name, state="active", internal=str(first))
        with reservation(host, domain, internal(9)):
            assert voice.dhcp() == internal(9)
            took = seconds_until_translated(host, internal(9))
            print(f"moved {took:.2f} s after its new lease")
            wait_until(found, domain.name, state="active", internal=str(internal(9)))
            assert tcp(lan, external(1), PORT) == Answer(LAN_CLIENT.ip, voice.name)
            assert took < SOON

    def test_agent(self, lan: Lan, host: Host, daemon: Daemon) -> None:
        """Where the guest's agent may be asked, its word counts before what the bridge has seen."""
        guest = DomainGuest(host, "talking", internal(15))
        guest.define()
        daemon.config.write_text(
            "[settings]\nguest_agent = true\n"
            f'[[mapping]]\nexternal = "{external(1)}"\ndomain = "talking"\n'
        )
        daemon.start()
        guest.start()
        try:
            wait_until(
                daemon, "talking", 60, state="active", source="agent", internal=str(internal(15))
            )
            assert "192.168.122.115 by agent, talking) is active" in daemon.log()
        finally:
            guest.destroy()
            guest.undefine()

    def test_moves_by_itself(
        self, lan: Lan, host: Host, found: Daemon, domain: IdleDomain, voice: Voice
    ) -> None:
        """A guest that takes another address is asked at the old one, and followed if silent."""
        for n in (7, 8):
            voice.static(IPv4Interface((internal(n), 24)), LIBVIRT_GATEWAY.ip)
            voice.speak(LIBVIRT_GATEWAY.ip)
            # The kernel takes some seconds, and three questions, to give up an old neighbour.
            took = seconds_until_translated(host, internal(n))
        print(f"moved {took:.2f} s after its first packet from the new address")
        wait_until(found, domain.name, internal=str(internal(8)), source="neighbour")
        assert tcp(lan, external(1), PORT) == Answer(LAN_CLIENT.ip, voice.name)

    def test_stays_known(self, host: Host, found: Daemon, domain: IdleDomain, voice: Voice) -> None:
        """A guest that runs and has gone silent keeps its address, one that stopped does not."""
        voice.static(IPv4Interface((internal(7), 24)), LIBVIRT_GATEWAY.ip)
        voice.speak(LIBVIRT_GATEWAY.ip)
        seconds_until_translated(host, internal(7))
        host.run("ip", "neighbour", "flush", "dev", "virbr0")
        found.reload()
        wait_until(found, domain.name, state="active", source="kept", internal=str(internal(7)))
        domain.destroy()
        wait_until(found, domain.name, state="inactive", internal=None)


class TestInterfaces:
    """Guests with more than one interface."""

    def test_two(self, lan: Lan, host: Host, daemon: Daemon) -> None:
        """Each interface has its own external address, chosen by network or by MAC."""
        host.path("/run/lab/second.xml").write_text(SECOND)
        host.virsh("net-define", "/run/lab/second.xml")
        host.virsh("net-start", "second")
        nics = [(MACS[1], "default"), (MACS[2], "default"), (MACS[3], "second")]
        domain = IdleDomain(host, "several", interfaces=nics)
        domain.define()
        domain.start()
        places = {
            1: (internal(1), LIBVIRT_GATEWAY.ip),
            2: (internal(2), LIBVIRT_GATEWAY.ip),
            3: (IPv4Address("192.168.123.3"), SECOND_GATEWAY),
        }
        daemon.configure(
            {"external": str(external(1)), "domain": "several"},
            {"external": str(external(2)), "domain": "several", "mac": MACS[2].upper()},
            {"external": str(external(3)), "domain": "several", "network": "second"},
        )
        daemon.start()
        try:
            for n, (address, gateway) in places.items():
                daemon.wait_for(external(n), "pending")
                with Voice(host, f"voice{n}", MACS[n], tap=domain.tap(MACS[n])) as voice:
                    voice.static(IPv4Interface((address, 24)), gateway)
                    voice.speak(gateway)
                    daemon.wait_for(external(n), "active")
                    assert daemon.mapping(external(n))["internal"] == str(address)
                    with EchoServer(voice, PORT):
                        expected = Answer(LAN_CLIENT.ip, voice.name)
                        assert tcp(lan, external(n), PORT) == expected
        finally:
            domain.destroy()
            domain.undefine()
            host.virsh("net-destroy", "second")
            host.virsh("net-undefine", "second")


HOSTILE = [
    ('<mapping external="10.1.2.3"/>', "settings.metadata_external allows 192.168.1.0/24"),
    (f'<mapping external="{LAN_CLIENT.ip}"/>', "is the router of the LAN"),
    (f'<mapping external="{HOST.ip}"/>', "is the host's own address"),
    (f'<mapping external="{external(5)}"/>', "the configuration gives to another guest"),
    (
        f'<mapping external="{external(2)}" internal="{internal(5)}"/>',
        "is the address of another guest",
    ),
    (
        f'<mapping external="{external(2)}" internal="{LIBVIRT_GATEWAY.ip}"/>',
        "is the gateway of network",
    ),
    ('<mapping external="nonsense"/>', "write an IPv4 address"),
    ('<mapping domain="other" external="192.168.1.102"/>', "is for itself alone"),
    ("<anything/>", "unknown element <anything>"),
    (f'<mapping external="{"9" * 100_000}"/>', "external has 100,000 characters"),
    (
        "<mappings>" + '<mapping external="192.168.1.102"/>' * 500 + "</mappings>",
        "500 mappings; write 32 at most",
    ),
]
"""Elements that whoever edits a guest may write, and what is said of each."""


class TestMetadata:
    """What is said of a guest in libvirt itself."""

    PREFIXES = "metadata_external = ['192.168.1.0/24']"

    @pytest.fixture
    def claiming(self, daemon: Daemon, domain: IdleDomain) -> Daemon:
        """The daemon with no mapping at all, and guests that may claim addresses of the LAN."""
        daemon.config.write_text(f"[settings]\n{self.PREFIXES}\n")
        daemon.start()
        wait_for(lambda: "connected to libvirt" in daemon.log(), 60, "it is connected")
        return daemon

    def set(self, domain: IdleDomain, element: str, *options: str) -> None:
        arguments = ("--uri", NAMESPACE, "--key", "nat", "--set", element)
        domain.host.virsh("metadata", domain.name, *arguments, *options)

    def remove(self, domain: IdleDomain, *options: str) -> None:
        domain.host.virsh("metadata", domain.name, "--uri", NAMESPACE, "--remove", *options)

    def test_while_it_runs(
        self, lan: Lan, claiming: Daemon, domain: IdleDomain, voice: Voice
    ) -> None:
        """Set, changed and removed: each takes effect at once."""
        voice.dhcp()
        mapping = f'<mapping external="{external(1)}"/>'
        self.set(domain, mapping)
        wait_until(claiming, domain.name, state="active", origin="metadata")
        assert tcp(lan, external(1), PORT) == Answer(LAN_CLIENT.ip, voice.name)
        self.set(domain, f'<mapping external="{external(2)}" allow="icmp tcp/{PORT}"/>')
        wait_until(claiming, domain.name, state="active", external=str(external(2)))
        assert tcp(lan, external(2), PORT) == Answer(LAN_CLIENT.ip, voice.name)
        assert not isinstance(tcp(lan, external(1), PORT, timeout=1), Answer)
        self.remove(domain)
        wait_for(lambda: claiming.status()["mappings"] == [], 60, "it is gone")
        claiming.wait_until_converged()

    def test_persistent(self, claiming: Daemon, domain: IdleDomain, voice: Voice) -> None:
        """Persistent metadata counts from the next start on."""
        voice.dhcp()
        self.set(domain, f'<mapping external="{external(1)}"/>', "--config")
        assert claiming.status()["mappings"] == []
        domain.destroy()
        wait_until(claiming, domain.name, state="inactive")
        domain.start()
        wait_until(claiming, domain.name, state="active")

    def test_hostile(self, host: Host, daemon: Daemon, domain: IdleDomain) -> None:
        """It is an error of that guest, and nothing else changes."""
        daemon.config.write_text(
            f"[settings]\n{self.PREFIXES}\n"
            f'[[mapping]]\nexternal = "{external(5)}"\ninternal = "{internal(5)}"\n'
        )
        daemon.start()
        daemon.wait_for(external(5), "active")
        daemon.wait_until_converged()
        before = kernel(host)

        def said() -> str:
            found = [m for m in daemon.status()["mappings"] if m["domain"] == domain.name]
            return found[0]["reason"] if found and found[0]["state"] == "error" else ""

        for element, reason in HOSTILE:
            self.set(domain, element)
            wait_for(lambda: reason in said(), 60, f"{element[:80]} is refused: {reason}")  # noqa: B023
            assert daemon.mapping(external(5))["state"] == "active"
            assert kernel(host) == before, element[:80]
        daemon.wait_until_converged()

    def test_entities(self, claiming: Daemon, domain: IdleDomain) -> None:
        """An entity of a document type of one's own does not get past libvirt."""
        element = f'<!DOCTYPE m [<!ENTITY a "{external(1)}">]><mapping external="&a;"/>'
        with pytest.raises(CommandError, match="failed to create a new XML namespace"):
            self.set(domain, element)
        assert claiming.status()["mappings"] == []


class TestPool:
    """Guests that nobody has said anything of."""

    def test_squatter(self, lan: Lan, host: Host, daemon: Daemon) -> None:
        """Three addresses, four guests and another host that has one of them."""
        daemon.config.write_text(
            f'[[pool]]\nnetwork = "default"\nexternal = ["{external(50)}-{external(52)}"]\n'
        )
        record = host.path("/var/lib/vm-onetoone-nat/allocations.json")
        squatter = IPv4Interface((external(51), 24))
        voices = {}
        with lan.host("squatter", squatter, "02:00:00:00:00:66"), ExitStack() as running:
            daemon.start()
            for n in range(1, 5):
                domain = running.enter_context(running_domain(host, n))
                voice = Voice(host, f"voice{n}", MACS[n], tap=domain.tap())
                voices[n] = running.enter_context(voice)
                voices[n].static(IPv4Interface((internal(n), 24)), LIBVIRT_GATEWAY.ip)
                voices[n].speak(LIBVIRT_GATEWAY.ip)
                if n < 3:
                    wait_until(daemon, f"guest{n}", state="active", origin="pool")
            assert find(daemon, "guest1")["external"] == str(external(50))
            assert find(daemon, "guest2")["external"] == str(external(52))
            # Only that of the other host is left.
            wait_until(daemon, "guest3", state="conflict", external=str(external(51)))
            assert "02:00:00:00:00:66" in find(daemon, "guest3")["reason"]
            wait_until(daemon, "guest4", state="error", external=None)
            assert "are in use; write more of them" in find(daemon, "guest4")["reason"]
            running.enter_context(EchoServer(voices[2], PORT))
            expected = Answer(LAN_CLIENT.ip, voices[2].name)
            assert tcp(lan, external(52), PORT) == expected
            assert record.parent.stat().st_mode & 0o077 == 0
            assert set(json.loads(record.read_text())) == {str(external(n)) for n in (50, 51, 52)}
            # The same after a restart, whoever comes first then.
            assert daemon.stop() == 0
            host.virsh("destroy", "guest1")
            daemon.start()
            wait_until(daemon, "guest2", state="active", external=str(external(52)))
            assert tcp(lan, external(52), PORT) == expected
            host.virsh("start", "guest1")
            voices[1].behind(host.virsh("domiflist", "guest1").split()[0])
            voices[1].speak(LIBVIRT_GATEWAY.ip)
            wait_until(daemon, "guest1", state="active", external=str(external(50)))
