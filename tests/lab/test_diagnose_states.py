"""`diagnose` on laptops that are set up in some way: what is wrong is named, and nothing else."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from ipaddress import IPv4Interface
from pathlib import Path

import pytest
from diagnosing import PORT, cause, diagnose, refusing
from lab import (
    DomainGuest,
    EchoServer,
    Host,
    IdleDomain,
    Lan,
    NamespaceGuest,
    Voice,
    icmp,
    tcp,
    udp,
    wait_for,
)
from lab.addresses import (
    HOST,
    LAN_CLIENT,
    UPLINK,
    external,
    internal,
    lan_host,
    mac_of,
)
from running import Daemon, mapping

DOMAIN = "web"
MAC = mac_of(internal(9))


@pytest.fixture(scope="module")
def guest(host: Host) -> Iterator[NamespaceGuest]:
    """Guest 1, that answers."""
    with NamespaceGuest(host, "one", internal(1)) as guest, EchoServer(guest, PORT):
        yield guest


@pytest.fixture
def domain(host: Host) -> Iterator[IdleDomain]:
    """A guest that runs, with one silent interface on `default`."""
    with IdleDomain(host, DOMAIN, interfaces=[(MAC, "default")]).running() as domain:
        yield domain


def start(daemon: Daemon, *mappings: Mapping[str, object], state: str, **settings: str) -> None:
    """Start the daemon and wait until the first mapping is in that state."""
    daemon.configure(*mappings, **settings)
    daemon.start()
    wait_for(lambda: daemon.has_begun, 60, "the daemon has begun")
    wait_for(lambda: daemon.status()["mappings"][0]["state"] == state, 20, state)


class TestHealthy:
    """No false alarm, whatever the guest and its peers do."""

    @pytest.mark.parametrize("filtered", [False, True], ids=["br_netfilter=0", "br_netfilter=1"])
    def test_whole_matrix(
        self, lan: Lan, host: Host, guest: NamespaceGuest, daemon: Daemon, filtered: bool
    ) -> None:
        """After every direction by every protocol, nothing is wrong with either guest."""
        host.bridge_netfilter(filtered)
        with (
            NamespaceGuest(host, "two", internal(2)) as other,
            EchoServer(other, PORT),
            EchoServer(lan, PORT),
            EchoServer(host, PORT),
        ):
            start(daemon, mapping(1), mapping(2), state="active")
            daemon.wait_for(external(2), "active")
            for asker, asked in (
                *((lan, external(1)), (lan, external(2)), (host, external(1)), (host, internal(1))),
                *((guest, LAN_CLIENT.ip), (guest, external(2)), (guest, internal(2))),
                *((guest, HOST.ip), (guest, external(1)), (other, external(1))),
            ):
                wait_for(partial(icmp, asker, asked, timeout=1), 60, f"{asked} answers")
                for protocol in (tcp, udp):
                    protocol(asker, asked, PORT)
            for target in (external(1), internal(2)):
                found = diagnose(daemon, target)
                assert found["healthy"], found
        host.bridge_netfilter(False)

    def test_real_guest(self, host: Host, daemon: Daemon) -> None:
        """A real guest is found by its name, its UUID and its addresses, and nothing is wrong."""
        domain = DomainGuest(host, "real", internal(3))
        domain.define()
        domain.start()
        try:
            domain.wait_until_up()
            start(daemon, mapping(3, domain="real"), state="active")
            for target in ("real", domain.uuid(), external(3), internal(3)):
                found = diagnose(daemon, target)
                assert found["healthy"], found
                verdicts = {c["verdict"] for c in found["mappings"][0]["checks"]}
                assert verdicts == {"ok"}
        finally:
            domain.destroy()
            domain.undefine()

    def test_restricted(self, guest: NamespaceGuest, daemon: Daemon) -> None:
        """A guest that few may reach is not ill."""
        start(daemon, mapping(1, allow=["tcp/22"], allowed_sources=["10.0.0.0/8"]), state="active")
        assert cause(daemon, external(1)) is None


class TestConfiguration:
    """What was written, and whether the daemon has it."""

    def test_refused_claim(self, host: Host, daemon: Daemon, domain: IdleDomain) -> None:
        """A guest whose metadata claims what it may not is told so."""
        claim = f"<mapping external='{external(9)}'/>"
        uri = "urn:vm-onetoone-nat:1"
        host.virsh("metadata", DOMAIN, "--uri", uri, "--key", "nat", "--set", claim)
        daemon.configure()
        daemon.start()
        wait_for(lambda: daemon.has_begun, 60, "the daemon has begun")
        assert cause(daemon, DOMAIN) == "claim-refused"

    def test_daemon_stopped(self, guest: NamespaceGuest, daemon: Daemon) -> None:
        """Without the daemon, that is the cause of all the rest."""
        daemon.configure(mapping(1))
        assert cause(daemon, external(1)) == "daemon-stopped"


class TestGuests:
    """libvirt's side."""

    def test_unknown_network(self, daemon: Daemon) -> None:
        """The mapping's network does not exist."""
        start(daemon, mapping(1, network="nowhere"), state="inactive")
        assert cause(daemon, external(1)) == "network-unknown"

    def test_unknown_guest(self, daemon: Daemon) -> None:
        """libvirt has no such guest."""
        start(daemon, mapping(1, domain="nobody"), state="inactive")
        assert cause(daemon, external(1)) == "guest-unknown"

    def test_guest_off(self, daemon: Daemon, domain: IdleDomain) -> None:
        """The guest does not run."""
        domain.destroy()
        start(daemon, mapping(9, domain=DOMAIN), state="inactive")
        found = diagnose(daemon, DOMAIN)
        assert (found["cause"], found["remedy"]) == ("guest-off", f"virsh start {DOMAIN}")

    def test_guest_paused(self, daemon: Daemon, domain: IdleDomain) -> None:
        """The guest is paused."""
        domain.suspend()
        start(daemon, mapping(9, domain=DOMAIN), state="inactive")
        assert cause(daemon, DOMAIN) == "guest-paused"

    def test_no_interface(self, daemon: Daemon, domain: IdleDomain) -> None:
        """The guest has no interface with the MAC that the mapping names."""
        own = {"external": str(external(9)), "domain": DOMAIN, "mac": mac_of(internal(8))}
        start(daemon, own, state="pending")
        assert cause(daemon, DOMAIN) == "no-interface"

    def test_link_down(self, host: Host, daemon: Daemon, domain: IdleDomain) -> None:
        """The guest's cable is pulled, in libvirt."""
        start(daemon, mapping(9, domain=DOMAIN), state="active")
        host.virsh("domif-setlink", DOMAIN, MAC, "down")
        assert cause(daemon, DOMAIN) == "link-down"

    def test_network_started_again(
        self, host: Host, guest: NamespaceGuest, daemon: Daemon, domain: IdleDomain
    ) -> None:
        """After its network was stopped and started, a guest is no longer on the bridge."""
        start(daemon, mapping(9, domain=DOMAIN), state="active")
        tap = domain.tap()
        host.stop_network()
        host.start_network()
        guest.rejoin()
        daemon.wait_for(external(9), "active")
        found = diagnose(daemon, DOMAIN)
        assert found["cause"] == "off-bridge"
        assert found["text"].startswith(tap)
        host.libvirtd.restart()
        wait_for(lambda: cause(daemon, DOMAIN) != "off-bridge", 60, "libvirt has put it back")

    def test_paused_while_active(self, daemon: Daemon, domain: IdleDomain) -> None:
        """A guest that is paused keeps its address, and that it is paused is what is wrong."""
        start(daemon, mapping(9, domain=DOMAIN), state="active")
        domain.suspend()
        assert cause(daemon, DOMAIN) == "guest-paused"

    def test_address_unknown(self, daemon: Daemon, domain: IdleDomain) -> None:
        """Nothing tells of the guest's address."""
        start(daemon, {"external": str(external(9)), "domain": DOMAIN}, state="pending")
        assert cause(daemon, DOMAIN) == "address-unknown"

    @pytest.mark.parametrize(
        ("address", "expected"),
        [
            ("192.168.122.1", "address-is-gateway"),
            ("192.168.77.5", "address-outside-network"),
        ],
    )
    def test_bad_address(self, daemon: Daemon, address: str, expected: str) -> None:
        """The internal address is none that a guest of the network can have."""
        start(daemon, {"external": str(external(1)), "internal": address}, state="error")
        assert cause(daemon, external(1)) == expected

    def test_guest_has_another_address(
        self, host: Host, daemon: Daemon, domain: IdleDomain
    ) -> None:
        """The guest has another address than was written down."""
        with Voice(host, "voice", MAC, tap=domain.tap()) as voice:
            address = voice.dhcp()
            start(daemon, mapping(9, domain=DOMAIN), state="active")
            found = diagnose(daemon, DOMAIN)
            assert found["cause"] == "address-differs"
            assert str(address) in found["text"]

    def test_one_address_for_two(self, daemon: Daemon, guest: NamespaceGuest) -> None:
        """Two mappings come to the same guest's address."""
        both = IdleDomain(daemon.host, "both", interfaces=[(MAC, "default")])
        both.define()
        both.start()
        try:
            with Voice(daemon.host, "voice", MAC, tap=both.tap()) as voice:
                voice.dhcp()
                one, two = ({"external": str(external(n)), "domain": "both"} for n in (8, 9))
                start(daemon, one, two, state="active")
                daemon.wait_for(external(9), "error")
                assert cause(daemon, external(9)) == "address-of-another"
        finally:
            both.destroy()
            both.undefine()


class TestUplink:
    """The LAN's side."""

    def test_no_uplink(self, daemon: Daemon) -> None:
        """The configured interface does not exist."""
        start(daemon, mapping(1), state="error", uplink="usb0")
        assert cause(daemon, external(1)) == "no-uplink"

    @pytest.mark.parametrize(
        ("address", "expected"),
        [
            ("10.99.0.5", "external-outside-subnet"),
            (str(LAN_CLIENT.ip), "external-is-router"),
        ],
    )
    def test_bad_external(self, daemon: Daemon, address: str, expected: str) -> None:
        """The external address is none that a guest can have on this LAN."""
        start(daemon, {"external": address, "internal": str(internal(1))}, state="error")
        assert cause(daemon, address) == expected

    def test_external_among_guests(self, daemon: Daemon, domain: IdleDomain) -> None:
        """The external address lies in the guests' own subnet."""
        start(daemon, {"external": "192.168.122.200", "domain": DOMAIN}, state="error")
        assert cause(daemon, DOMAIN) == "external-in-guests-subnet"

    def test_conflict(self, lan: Lan, guest: NamespaceGuest, daemon: Daemon) -> None:
        """Another host of the LAN has the address: its MAC is named."""
        squatter = IPv4Interface((external(1), 24))
        with lan.host("squatter", squatter, mac_of(external(1))):
            start(daemon, mapping(1), state="conflict")
            found = diagnose(daemon, external(1))
            assert found["cause"] == "conflict"
            assert mac_of(external(1)) in found["text"]

    def test_conflict_that_is_not_looked_for(
        self, lan: Lan, guest: NamespaceGuest, daemon: Daemon
    ) -> None:
        """Also where the daemon was told not to look, the other host is found."""
        with lan.host("squatter", IPv4Interface((external(1), 24)), mac_of(external(1))):
            text = "[settings]\nconflict_detection = false\n[[mapping]]\n"
            text += f'external = "{external(1)}"\ninternal = "{internal(1)}"\n'
            daemon.config.write_text(text)
            daemon.start()
            daemon.wait_for(external(1), "active")
            assert cause(daemon, external(1)) == "conflict"

    def test_client_isolation(
        self, lan: Lan, host: Host, guest: NamespaceGuest, daemon: Daemon
    ) -> None:
        """On Wi-Fi, a router that answers and other hosts that do not look like isolation."""
        with lan.host("other", lan_host(1)) as other:
            start(daemon, mapping(1), state="active")
            assert icmp(host, lan_host(1).ip, timeout=2)
            with wireless(host):
                assert cause(daemon, external(1)) is None
                other.run("ip", "link", "set", "eth0", "arp", "off")
                host.run("ip", "neigh", "flush", "dev", UPLINK)
                assert not icmp(host, lan_host(1).ip, timeout=2)
                assert cause(daemon, external(1)) == "client-isolation"


class TestAnswers:
    """The guest itself."""

    def test_port_answers_where_echo_does_not(self, guest: NamespaceGuest, daemon: Daemon) -> None:
        """A guest that answers no echo request but a port that is allowed is not ill."""
        start(daemon, mapping(1, allow=[f"tcp/{PORT}"]), state="active")
        with refusing(guest, "icmp type echo-request"):
            assert cause(daemon, external(1)) is None


@contextmanager
def wireless(host: Host) -> Iterator[None]:
    """The uplink looks like Wi-Fi to programs."""
    folder = host.run("readlink", "-f", f"/sys/class/net/{UPLINK}").stdout.strip()
    host.run("mount", "-t", "tmpfs", "tmpfs", folder)
    try:
        host.run("mkdir", f"{folder}/phy80211")
        yield
    finally:
        host.run("umount", folder)


def test_needs_privileges(daemon: Daemon, tmp_path: Path) -> None:
    """Without privileges there is one line that says what to do."""
    daemon.configure(mapping(1))
    tmp_path.chmod(0o755)
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    command = daemon._command("diagnose", str(external(1)))
    done = daemon.host.run(*nobody, *command, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "vm-onetoone-nat: this needs CAP_NET_ADMIN: run it as root, with sudo\n"
