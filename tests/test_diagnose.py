"""`diagnose`: each cause is provoked for real and named; a guest that is reached has none."""

import json
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any

import pytest
from lab import (
    DomainGuest,
    EchoServer,
    Host,
    IdleDomain,
    Lan,
    Namespace,
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
    LIBVIRT_BRIDGE,
    LIBVIRT_GATEWAY,
    UPLINK,
    external,
    internal,
    lan_host,
    mac_of,
)
from running import Daemon, mapping

PORT = 7000
DOMAIN = "web"
MAC = mac_of(internal(9))


def diagnose(daemon: Daemon, target: object) -> dict[str, Any]:
    """What `diagnose --json` says, whose exit code must fit it."""
    done = daemon.command("diagnose", "--json", str(target))
    assert done.stderr == ""
    found: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (0 if found["healthy"] else 1)
    assert (found["cause"] is None) == found["healthy"]
    return found


def cause(daemon: Daemon, target: object) -> str | None:
    """The cause that is named first; with it come a text and a remedy."""
    found = diagnose(daemon, target)
    if not found["healthy"]:
        assert found["text"] and found["remedy"]
        assert "{" not in found["remedy"]
    named: str | None = found["cause"]
    return named


@pytest.fixture(scope="module")
def guest(host: Host) -> Iterator[NamespaceGuest]:
    """Guest 1, that answers."""
    with NamespaceGuest(host, "one", internal(1)) as guest, EchoServer(guest, PORT):
        yield guest


@pytest.fixture
def healthy(guest: NamespaceGuest, daemon: Daemon) -> Iterator[Daemon]:
    """Mapping 1 is active; after the test nothing is wrong with it."""
    daemon.configure(mapping(1))
    daemon.start()
    daemon.wait_for(external(1), "active")
    yield daemon
    daemon.wait_for(external(1), "active")
    wait_for(lambda: cause(daemon, external(1)) is None, 20, "nothing is wrong")


@pytest.fixture
def domain(host: Host) -> Iterator[IdleDomain]:
    """A guest that runs, with one silent interface on `default`."""
    domain = IdleDomain(host, DOMAIN, interfaces=[(MAC, "default")])
    domain.define()
    domain.start()
    yield domain
    if domain.state() != "shut off":
        domain.destroy()
    domain.undefine()


def start(daemon: Daemon, *mappings: Mapping[str, object], state: str, **settings: str) -> None:
    """Start the daemon and wait until the first mapping is in that state."""
    daemon.configure(*mappings, **settings)
    daemon.start()
    wait_for(lambda: daemon.has_begun, 20, "the daemon has begun")
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
                wait_for(partial(icmp, asker, asked, timeout=1), 15, f"{asked} answers")
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

    def test_other_rules_that_do_no_harm(self, host: Host, healthy: Daemon) -> None:
        """Rules of others that other packets meet, or that depend on the port, are no cause."""
        rules = """
            table inet mine {
                set bad { type ipv4_addr; elements = { 192.168.122.9, 192.168.122.77 }; }
                chain before { type filter hook prerouting priority -300; tcp dport 25 drop; }
                chain through {
                    type filter hook forward priority 10; policy drop;
                    ct state invalid drop
                    ip daddr @bad drop
                    ip6 daddr ::1 drop
                    oifname "eth9" drop
                    iifname vmap { "eth8" : drop, "eth9" : goto rest }
                    tcp dport 22 accept
                    ct status dnat accept
                    ct state established,related accept
                    iifname "virbr*" accept
                }
                chain rest { drop; }
                chain after {
                    type nat hook postrouting priority 100
                    oifname "wlp0s20f3" masquerade
                }
            }
        """
        host.run("nft", "-f", "-", input=rules)
        try:
            assert cause(healthy, external(1)) is None
        finally:
            host.run("nft", "delete", "table", "inet", "mine")

    def test_for_a_person(self, healthy: Daemon) -> None:
        """On a pipe: a mark for each part of the path, plain, in 80 columns, and the outcome."""
        done = healthy.command("diagnose", str(external(1)))
        first, *lines = done.stdout.splitlines()
        assert first == f"network default ({external(1)}):"
        assert lines[-1] == "nothing is wrong, as far as this host can see"
        checks = [line for line in lines[1:-2] if not line.startswith(" ")]
        assert len(checks) == 19
        assert all(line.startswith("✓ ") for line in checks)
        assert max(map(len, lines)) <= 80
        assert "\033" not in done.stdout


class TestConfiguration:
    """What was written, and whether the daemon has it."""

    def test_fault_in_the_file(self, healthy: Daemon) -> None:
        """A file with a fault is the cause, with the fault's own words."""
        good = healthy.config.read_text()
        healthy.config.write_text(good + "nope = 1\n")
        found = diagnose(healthy, external(1))
        assert found["cause"] == "configuration"
        assert "mapping[0].nope" in found["text"]
        healthy.config.write_text(good)

    def test_no_mapping(self, healthy: Daemon) -> None:
        """A target that nobody has mapped is said to be one."""
        assert cause(healthy, "nobody") == "no-mapping"

    def test_refused_claim(self, host: Host, daemon: Daemon, domain: IdleDomain) -> None:
        """A guest whose metadata claims what it may not is told so."""
        claim = f"<mapping external='{external(9)}'/>"
        uri = "urn:vm-onetoone-nat:1"
        host.virsh("metadata", DOMAIN, "--uri", uri, "--key", "nat", "--set", claim)
        daemon.configure()
        daemon.start()
        wait_for(lambda: daemon.has_begun, 20, "the daemon has begun")
        assert cause(daemon, DOMAIN) == "claim-refused"

    def test_daemon_stopped(self, guest: NamespaceGuest, daemon: Daemon) -> None:
        """Without the daemon, that is the cause of all the rest."""
        daemon.configure(mapping(1))
        assert cause(daemon, external(1)) == "daemon-stopped"

    def test_daemon_silent(self, healthy: Daemon) -> None:
        """A daemon that is stopped in its tracks is told from one that does not run."""
        healthy.signal(signal.SIGSTOP)
        try:
            assert cause(healthy, external(1)) == "daemon-silent"
        finally:
            healthy.signal(signal.SIGCONT)

    def test_not_reloaded(self, healthy: Daemon) -> None:
        """A mapping that was written and not reloaded."""
        healthy.configure(mapping(1), mapping(4))
        assert cause(healthy, external(4)) == "not-reloaded"


class TestGuests:
    """libvirt's side."""

    def test_libvirt(self, host: Host, healthy: Daemon) -> None:
        """libvirt is down."""
        host.libvirtd.stop()
        try:
            assert cause(healthy, external(1)) == "libvirt"
        finally:
            host.libvirtd.start()
            wait_for(lambda: healthy.status()["libvirt"] == "connected", 30, "connected")

    def test_unknown_network(self, daemon: Daemon) -> None:
        """The mapping's network does not exist."""
        start(daemon, mapping(1, network="nowhere"), state="inactive")
        assert cause(daemon, external(1)) == "network-unknown"

    def test_inactive_network(self, host: Host, guest: NamespaceGuest, healthy: Daemon) -> None:
        """The network is not started."""
        host.stop_network()
        try:
            healthy.wait_for(external(1), "inactive")
            found = diagnose(healthy, external(1))
            assert found["cause"] == "network-inactive"
            assert "virsh net-start default" in found["remedy"]
        finally:
            host.start_network()
            guest.rejoin()

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
        with Voice(host, "voice", MAC) as voice:
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
            with Voice(daemon.host, "voice", MAC) as voice:
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

    def test_no_carrier(self, lan: Lan, host: Host, healthy: Daemon) -> None:
        """The cable is pulled."""
        lan.set_carrier(host.uplink_port, False)
        try:
            wait_for(lambda: "NO-CARRIER" in host.run("ip", "link", "show", UPLINK).stdout, 10, "")
            assert cause(healthy, external(1)) == "uplink-down"
        finally:
            lan.set_carrier(host.uplink_port, True)

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


class TestHost:
    """What the kernel was told, by us and by others."""

    def test_route_to_guest(self, host: Host, healthy: Daemon) -> None:
        """Another route takes the guest's packets elsewhere."""
        route = (f"{internal(1)}/32", "via", str(LAN_CLIENT.ip), "dev", UPLINK)
        host.run("ip", "route", "add", *route)
        try:
            assert cause(healthy, external(1)) == "route-to-guest"
        finally:
            host.run("ip", "route", "del", *route)

    def test_strict_reverse_path(self, lan: Lan, host: Host, healthy: Daemon) -> None:
        """The way back to the LAN is another interface, and the uplink's filter is strict."""
        port = lan.attach(host, "dock0")
        host.run("ip", "link", "set", "dock0", "up")
        host.sysctl(f"net.ipv4.conf.{UPLINK}.rp_filter", 1)
        host.run("ip", "route", "add", f"{LAN_CLIENT.ip}/32", "dev", "dock0")
        try:
            assert cause(healthy, external(1)) == "rp-filter"
        finally:
            host.sysctl(f"net.ipv4.conf.{UPLINK}.rp_filter", 0)
            lan.run("ip", "link", "delete", port)

    @pytest.mark.parametrize("name", [UPLINK, LIBVIRT_BRIDGE])
    def test_forwarding_of_an_interface(self, host: Host, healthy: Daemon, name: str) -> None:
        """Forwarding is off on one interface of the path, which is named."""
        host.sysctl(f"net.ipv4.conf.{name}.forwarding", 0)
        try:
            found = diagnose(healthy, external(1))
            assert found["cause"] == "forwarding"
            assert name in found["text"]
        finally:
            host.sysctl(f"net.ipv4.conf.{name}.forwarding", 1)

    def test_arp_ignored(self, host: Host, healthy: Daemon) -> None:
        """The uplink answers no ARP."""
        host.sysctl(f"net.ipv4.conf.{UPLINK}.arp_ignore", 8)
        try:
            assert cause(healthy, external(1)) == "arp-ignore"
        finally:
            host.sysctl(f"net.ipv4.conf.{UPLINK}.arp_ignore", 0)

    @pytest.mark.parametrize(
        ("chain", "rule"),
        [
            ("type filter hook forward priority 10; policy drop;", "policy drop"),
            (
                "type filter hook forward priority 10;",
                f"ip daddr {internal(1)} reject with icmp host-unreachable",
            ),
            ("type filter hook forward priority 10;", f'iifname "{LIBVIRT_BRIDGE}" drop'),
            ("type filter hook prerouting priority -300;", f"ip daddr {external(1)} drop"),
            ("type filter hook postrouting priority 0;", "ip saddr 192.168.0.0/16 drop"),
        ],
        ids=["policy", "to the guest", "from the guest", "before translation", "in the end"],
    )
    def test_other_firewall(self, host: Host, healthy: Daemon, chain: str, rule: str) -> None:
        """A rule of somebody that refuses the guest is named: table, chain, and its own words."""
        body = "" if rule == "policy drop" else rule
        rules = f"table inet mine {{\n chain theirs {{\n {chain}\n {body}\n }}\n}}\n"
        host.run("nft", "-f", "-", input=rules)
        try:
            found = diagnose(healthy, external(1))
            assert found["cause"] == "firewall"
            assert "chain inet mine theirs" in found["text"]
            assert rule in found["text"]
        finally:
            host.run("nft", "delete", "table", "inet", "mine")

    def test_other_firewall_by_jumps(self, host: Host, healthy: Daemon) -> None:
        """The rule is found behind jumps, maps and sets."""
        rules = f"""
            table ip mine {{
                set guests {{ type ipv4_addr; flags interval; elements = {{ 192.168.122.0/24 }}; }}
                chain refuse {{ counter reject; }}
                chain check {{ ip daddr @guests goto refuse; }}
                chain theirs {{
                    type filter hook forward priority 10; policy accept;
                    iifname vmap {{ "{UPLINK}" : jump check, "eth9" : accept }}
                }}
            }}
        """
        host.run("nft", "-f", "-", input=rules)
        try:
            found = diagnose(healthy, external(1))
            assert found["cause"] == "firewall"
            assert "chain ip mine refuse" in found["text"]
        finally:
            host.run("nft", "delete", "table", "ip", "mine")

    def test_iptables_of_another_table(self, host: Host, healthy: Daemon) -> None:
        """A rule by iptables in a chain ahead of ours is named as well."""
        rule = ("FORWARD", "-d", str(internal(1)), "-j", "DROP")
        host.run("iptables", "-t", "mangle", "-A", *rule)
        try:
            found = diagnose(healthy, external(1))
            assert found["cause"] == "firewall"
            assert "chain ip mangle FORWARD" in found["text"]
        finally:
            host.run("iptables", "-t", "mangle", "-D", *rule)

    def test_other_nat(self, host: Host, healthy: Daemon) -> None:
        """Somebody's destination NAT comes before ours."""
        rules = f"""
            table ip mine {{
                chain theirs {{
                    type nat hook prerouting priority -150;
                    ip daddr {external(1)} dnat to 192.168.122.250
                }}
            }}
        """
        host.run("nft", "-f", "-", input=rules)
        try:
            found = diagnose(healthy, external(1))
            assert found["cause"] == "other-nat"
            assert "dnat to 192.168.122.250" in found["text"]
        finally:
            host.run("nft", "delete", "table", "ip", "mine")

    def test_flow_from_before(self, lan: Lan, host: Host, healthy: Daemon) -> None:
        """A flow that goes past the mapping, and would for as long as it lives."""
        there = ("-p", "udp", "-s", str(LAN_CLIENT.ip), "-d", str(external(1)))
        ports = ("--sport", "4000", "--dport", "4001")
        back = ("--reply-port-src", "4001", "--reply-port-dst", "4000")
        host.run("conntrack", "-I", *there, *ports, *back, "-t", "600")
        try:
            assert cause(healthy, external(1)) == "conntrack-stale"
        finally:
            host.run("conntrack", "-D", *there, check=False)


class TestAnswers:
    """The guest itself."""

    def test_silent(self, guest: NamespaceGuest, healthy: Daemon) -> None:
        """The guest is not there, as far as its bridge can tell."""
        guest.run("ip", "link", "set", "eth0", "arp", "off")
        try:
            assert cause(healthy, external(1)) == "guest-silent"
        finally:
            guest.run("ip", "link", "set", "eth0", "arp", "on")

    def test_two_have_the_address(self, host: Host, guest: NamespaceGuest, healthy: Daemon) -> None:
        """Another machine on the bridge has the guest's address too: both MACs are named."""
        with Voice(host, "thief", MAC) as thief:
            thief.run("ip", "address", "add", f"{internal(1)}/24", "dev", "eth0")
            found = diagnose(healthy, external(1))
            assert found["cause"] == "guest-twice"
            assert MAC in found["text"] and guest.mac in found["text"]

    def test_no_default_route(self, guest: NamespaceGuest, healthy: Daemon) -> None:
        """The guest has no default route: it answers its own subnet only."""
        guest.run("ip", "route", "del", "default")
        try:
            assert cause(healthy, external(1)) == "guest-gateway"
        finally:
            guest.run("ip", "route", "add", "default", "via", str(LIBVIRT_GATEWAY.ip))

    def test_own_firewall(self, guest: NamespaceGuest, healthy: Daemon) -> None:
        """The guest's own firewall drops everything."""
        with refusing(guest):
            assert cause(healthy, external(1)) == "guest-firewall"

    def test_port_answers_where_echo_does_not(self, guest: NamespaceGuest, daemon: Daemon) -> None:
        """A guest that answers no echo request but a port that is allowed is not ill."""
        start(daemon, mapping(1, allow=[f"tcp/{PORT}"]), state="active")
        with refusing(guest, "icmp type echo-request"):
            assert cause(daemon, external(1)) is None


@contextmanager
def refusing(guest: Namespace, what: str = "meta l4proto { tcp, udp, icmp }") -> Iterator[None]:
    """The guest drops that."""
    chain = "type filter hook input priority 0;"
    guest.run(
        "nft", "-f", "-", input=f"table ip own {{\n chain in {{\n {chain}\n {what} drop\n }}\n}}"
    )
    try:
        yield
    finally:
        guest.run("nft", "delete", "table", "ip", "own")


def test_needs_privileges(daemon: Daemon, tmp_path: Path) -> None:
    """Without privileges there is one line that says what to do."""
    daemon.configure(mapping(1))
    tmp_path.chmod(0o755)
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    command = daemon._command("diagnose", str(external(1)))
    done = daemon.host.run(*nobody, *command, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "vm-onetoone-nat: this needs CAP_NET_ADMIN: run it as root, with sudo\n"
