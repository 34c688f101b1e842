"""`diagnose` on a laptop on which all is well, and then one thing is not: it is named."""

import signal
from collections.abc import Iterator

import pytest
from diagnosing import PORT, cause, diagnose, refusing, table
from lab import (
    EchoServer,
    Host,
    Lan,
    NamespaceGuest,
    Voice,
    wait_for,
)
from lab.addresses import (
    LAN_CLIENT,
    LIBVIRT_BRIDGE,
    LIBVIRT_GATEWAY,
    UPLINK,
    external,
    internal,
    mac_of,
)
from running import Daemon, mapping

MAC = mac_of(internal(9))


@pytest.fixture(scope="module")
def guest(host: Host) -> Iterator[NamespaceGuest]:
    """Guest 1, that answers."""
    with NamespaceGuest(host, "one", internal(1)) as guest, EchoServer(guest, PORT):
        yield guest


@pytest.fixture(scope="module")
def running(
    host: Host, guest: NamespaceGuest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Daemon]:
    """The daemon, with mapping 1."""
    daemon = Daemon(host, tmp_path_factory.mktemp("daemon"))
    daemon.configure(mapping(1))
    daemon.start()
    yield daemon
    assert daemon.stop() == 0, daemon.log()


@pytest.fixture
def healthy(running: Daemon) -> Iterator[Daemon]:
    """Mapping 1 is active; after the test nothing is wrong with it."""
    running.wait_for(external(1), "active")
    yield running
    running.wait_for(external(1), "active")
    wait_for(lambda: cause(running, external(1)) is None, 60, "nothing is wrong")


class TestHealthy:
    """No false alarm, whatever the guest and its peers do."""

    def test_other_rules_that_do_no_harm(self, host: Host, healthy: Daemon) -> None:
        """Rules of others that other packets meet, or that depend on the port, are no cause."""
        rules = """
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
        """
        with table(host, "inet mine", rules):
            assert cause(healthy, external(1)) is None

    def test_for_a_person(self, healthy: Daemon) -> None:
        """On a pipe: a mark for each part of the path, plain, in 80 columns, and the outcome."""
        done = healthy.command("diagnose", "net:default")
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


class TestUplink:
    """The LAN's side."""

    def test_no_carrier(self, lan: Lan, host: Host, healthy: Daemon) -> None:
        """The cable is pulled."""
        lan.set_carrier(host.uplink_port, False)
        try:
            wait_for(lambda: "NO-CARRIER" in host.run("ip", "link", "show", UPLINK).stdout, 60, "")
            assert cause(healthy, external(1)) == "uplink-down"
        finally:
            lan.set_carrier(host.uplink_port, True)


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
        rules = f"chain theirs {{\n {chain}\n {body}\n }}"
        with table(host, "inet mine", rules):
            found = diagnose(healthy, external(1))
            assert found["cause"] == "firewall"
            assert "chain inet mine theirs" in found["text"]
            assert rule in found["text"]

    def test_other_firewall_by_jumps(self, host: Host, healthy: Daemon) -> None:
        """The rule is found behind jumps, maps and sets."""
        rules = f"""
            set guests {{ type ipv4_addr; flags interval; elements = {{ 192.168.122.0/24 }}; }}
            chain refuse {{ counter reject; }}
            chain check {{ ip daddr @guests goto refuse; }}
            chain theirs {{
                type filter hook forward priority 10; policy accept;
                iifname vmap {{ "{UPLINK}" : jump check, "eth9" : accept }}
            }}
        """
        with table(host, "ip mine", rules):
            found = diagnose(healthy, external(1))
            assert found["cause"] == "firewall"
            assert "chain ip mine refuse" in found["text"]

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
            chain theirs {{
                type nat hook prerouting priority -150;
                ip daddr {external(1)} dnat to 192.168.122.250
            }}
        """
        with table(host, "ip mine", rules):
            found = diagnose(healthy, external(1))
            assert found["cause"] == "other-nat"
            assert "dnat to 192.168.122.250" in found["text"]

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
