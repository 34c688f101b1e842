"""What others do to the kernel and the LAN, and how soon the LAN reaches its guest again."""

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from ipaddress import IPv4Interface
from pathlib import Path
from signal import SIGCONT, SIGINT, SIGSTOP

import pytest
from faults import STORM, Site, fault
from lab import (
    Answer,
    EchoServer,
    Host,
    IdleDomain,
    Lan,
    NamespaceGuest,
    Process,
    Stream,
    tcp,
    wait_for,
)
from lab.addresses import (
    HOST,
    LAN_BRIDGE,
    LAN_BROADCAST,
    LAN_CLIENT,
    UPLINK,
    external,
    internal,
    lan_host,
)
from running import Daemon, mapping
from vm_onetoone_nat.decide.acd import ANNOUNCE_SECONDS, ANNOUNCEMENTS
from vm_onetoone_nat.kernel.links import links
from vm_onetoone_nat.kernel.netlink import ROUTE, Netlink
from vm_onetoone_nat.service.runner import TICK_SECONDS

PORT = 7000
EVENTS = 1000
DOCK = "enp0s31f6"
ADDRESS = f"{external(1)}/24"
MARK = ("-m", "mark", "--mark", "0x100000/0x100000", "-j", "ACCEPT")


@pytest.fixture(scope="module")
def guest(host: Host) -> Iterator[NamespaceGuest]:
    with NamespaceGuest(host, "guest", internal(1)) as guest, EchoServer(guest, PORT):
        yield guest


@pytest.fixture
def site(lan: Lan, guest: NamespaceGuest, daemon: Daemon) -> Site:
    return Site(lan, guest, daemon, PORT)


@pytest.fixture
def running(daemon: Daemon, guest: NamespaceGuest) -> Daemon:
    """The daemon with mapping 1, which lives with its network."""
    return start(daemon)


def start(daemon: Daemon, **settings: str) -> Daemon:
    daemon.configure(mapping(1), **settings)
    daemon.start()
    daemon.wait_for(external(1), "active")
    return daemon


def addresses(host: Host, ifname: str = UPLINK) -> list[str]:
    listed = host.run("ip", "-4", "-o", "address", "show", "dev", ifname, check=False).stdout
    return re.findall(r" inet (\S+)", listed)


def table(host: Host) -> str:
    return host.run("nft", "list", "table", "inet", "vm_onetoone_nat").stdout


def known(host: Host) -> list[str]:
    """The listing, but for the order of tables, counters, and who was heard of behind a port."""
    text = re.sub(r" counter| hairpin (on|off)", "", host.listing())
    return sorted(line for line in text.splitlines() if 'elements = { "lab' not in line)


def passes(daemon: Daemon) -> int:
    return daemon.log().count("DEBUG: pass")


class TestHandOnTheKernel:
    """Somebody, or some program, changes what the daemon wrote."""

    def by_command(self, site: Site, host: Host, daemon: Daemon, name: str, *commands: str) -> None:
        before = known(host)
        with fault(name, site, least=0.7) as traffic:
            for command in commands:
                host.run("sh", "-ec", command)
            traffic.settled()
        daemon.wait_until_converged()
        assert known(host) == before

    @pytest.mark.parametrize(
        ("name", "command"),
        [
            ("address removed by hand", f"ip address del {ADDRESS} dev {UPLINK}"),
            ("our table deleted", "nft delete table inet vm_onetoone_nat"),
            ("our table flushed of its rules", "nft flush table inet vm_onetoone_nat"),
            (
                "mapping deleted from our map",
                f"nft delete element inet vm_onetoone_nat external '{{ {external(1)} }}'",
            ),
            ("foreign rule deleted", f"iptables -D FORWARD {' '.join(MARK)}"),
            (
                "rejecting rule put before the foreign rule",
                "iptables -I FORWARD -j REJECT; iptables -D FORWARD -j REJECT",
            ),
            ("forwarding switched off", "sysctl -qw net.ipv4.ip_forward=0"),
            (
                "iptables-restore of rules saved before the daemon",
                "iptables-save -t filter | grep -v 0x100000 | iptables-restore",
            ),
            (
                "chain FORWARD flushed and its policy set to DROP, as Docker does",
                "iptables-save -t filter >/run/lab/saved; iptables -P FORWARD DROP; "
                "iptables -F FORWARD; sleep 0.5; iptables-restore </run/lab/saved",
            ),
        ],
    )
    def test_repaired(
        self, site: Site, host: Host, running: Daemon, name: str, command: str
    ) -> None:
        """What is removed is put back within a second, and everything is then as it was."""
        self.by_command(site, host, running, name, command)

    def test_ruleset_flushed(self, site: Site, lan: Lan, host: Host, running: Daemon) -> None:
        """After `nft flush ruleset` the translation is back; libvirt's rules are libvirt's."""
        with fault("nft flush ruleset", site, least=0.7):
            host.run("nft", "flush", "ruleset")
        running.wait_until_converged()
        host.libvirtd.restart()
        running.wait_until_converged()
        assert "REJECT" in host.run("iptables-save").stdout
        assert tcp(lan, external(1), PORT) == Answer(LAN_CLIENT.ip, "guest")

    def test_docker(self, site: Site, host: Host, running: Daemon) -> None:
        """Docker's policy and its chain at the head refuse nobody."""
        host.run("iptables", "-N", "DOCKER-USER")
        with fault("Docker's FORWARD policy and chains", site, least=0.7):
            host.run("iptables", "-P", "FORWARD", "DROP")
            host.run("iptables", "-I", "FORWARD", "-j", "DOCKER-USER")
        running.wait_until_converged()
        first, second = host.run("iptables", "-S", "FORWARD").stdout.splitlines()[1:3]
        assert (first, second) == (f"-A FORWARD {' '.join(MARK)}", "-A FORWARD -j DOCKER-USER")
        host.run("iptables", "-P", "FORWARD", "ACCEPT")
        host.run("iptables", "-D", "FORWARD", "-j", "DOCKER-USER")
        host.run("iptables", "-X", "DOCKER-USER")

    def test_foreign_address_is_left_alone(self, site: Site, host: Host, running: Daemon) -> None:
        """A secondary address of somebody else stays, and so does one that a mapping wants."""
        with fault("foreign secondary address added by hand", site, least=1):
            host.run("ip", "address", "add", "192.168.1.77/24", "dev", UPLINK)
        assert "192.168.1.77/24" in addresses(host)
        host.run("ip", "address", "add", f"{external(2)}/24", "dev", UPLINK)
        running.configure(mapping(1), mapping(2))
        running.reload()
        running.wait_for(external(2), "active")
        assert running.stop() == 0
        assert addresses(host) == [str(HOST), "192.168.1.77/24", f"{external(2)}/24"]
        for address in ("192.168.1.77/24", f"{external(2)}/24"):
            host.run("ip", "address", "del", address, "dev", UPLINK)

    def test_own_writes_make_no_pass(self, host: Host, running: Daemon) -> None:
        """What the daemon writes itself makes it look no second time."""
        wait_for(lambda: settled(running), 60, "it is quiet")
        before = passes(running)
        running.configure(mapping(1), *(mapping(n) for n in range(20, 60)))
        running.reload()
        running.wait_for(external(59), "active")
        wait_for(lambda: settled(running), 60, "it is quiet")
        # The reload, and what is found by ARP: the addresses become free in a few moments.
        assert passes(running) - before <= 6

    def test_fight(self, lan: Lan, host: Host, running: Daemon) -> None:
        """Against a program that undoes each repair the daemon backs off, and says so once."""
        rival = f"while sleep 0.05; do iptables -D FORWARD {' '.join(MARK)} 2>/dev/null; done"
        with host.popen("sh", "-c", rival) as process:
            try:
                wait_for(lambda: "undone again and again" in running.log(), 60, "it is said")
                written = running.log().count("+ accept of mark")
                time.sleep(3)
                assert running.log().count("+ accept of mark") == written
                running.wait_for(external(1), "error")
                reason = running.mapping(external(1))["reason"]
                assert reason.endswith("is not at the head of chain ip filter FORWARD")
            finally:
                process.kill()
        running.wait_for(external(1), "active")
        (line,) = (x for x in running.log().splitlines() if "again and again" in x)
        assert "accept in ip filter FORWARD is undone" in line
        assert "written by iptables (process " in line

    def test_legacy_tables_are_reported(self, host: Host, running: Daemon) -> None:
        """Rules of iptables-legacy, which nobody sees, are reported with what to do."""
        if not host.run("cat", "/proc/net/ip_tables_names").stdout:
            assert "iptables-legacy" not in running.log()
        host.run("iptables-legacy", "-t", "filter", "-S")
        running.reload()
        wait_for(lambda: "iptables-legacy, table filter may refuse" in running.log(), 60, "it")
        assert "'iptables-legacy -I FORWARD -m mark --mark 0x100000/0x100000" in running.log()

    def test_obstacle_is_reported(self, lan: Lan, host: Host, running: Daemon) -> None:
        """A firewall of the administrator's that drops is reported, and its remedy works."""
        chain = "{ type filter hook forward priority 0; policy drop; }"
        host.run("nft", f"add table inet mine; add chain inet mine mine {chain}")
        said = "chain inet mine mine may refuse guests"
        wait_for(lambda: said in running.log(), 60, "it is said")
        assert not isinstance(tcp(lan, external(1), PORT, timeout=1), Answer)
        (remedy,) = re.findall(r"may refuse guests: run '(nft [^']+)'", running.log())
        host.run(*remedy.split())
        assert tcp(lan, external(1), PORT) == Answer(LAN_CLIENT.ip, "guest")
        host.run("nft", "delete", "table", "inet", "mine")
        running.reload()
        wait_for(lambda: settled(running), 60, "it is quiet")
        assert running.log().count(said) == 1


def settled(daemon: Daemon) -> bool:
    """Whether no pass was made for half a second."""
    before = passes(daemon)
    time.sleep(0.5)
    return before > 0 and passes(daemon) == before


class TestUplink:
    """The uplink comes, goes, and becomes another."""

    @pytest.fixture(autouse=True)
    def as_before(self, host: Host, running: Daemon) -> Iterator[None]:
        yield
        host.run("ip", "link", "delete", DOCK, check=False)
        host.lease()

    def test_down_and_up(self, site: Site, host: Host, running: Daemon) -> None:
        """While the uplink is down the mapping stays; it works as soon as the uplink does."""
        with fault("uplink down and up", site, least=0.3) as traffic:
            host.run("ip", "link", "set", UPLINK, "down")
            time.sleep(0.5)
            assert running.mapping(external(1))["state"] == "active"
            host.run("ip", "link", "set", UPLINK, "up")
            host.run("ip", "route", "replace", "default", "via", str(LAN_CLIENT.ip), "dev", UPLINK)
            traffic.settled()

    def test_carrier(self, site: Site, lan: Lan, host: Host, running: Daemon) -> None:
        """Without a carrier for a while nothing changes; with it, the address is announced."""
        with fault("carrier lost and found", site, least=0.3) as traffic:
            lan.set_carrier(host.uplink_port, up=False)
            time.sleep(0.5)
            with announcements(lan) as heard:
                lan.set_carrier(host.uplink_port, up=True)
                traffic.settled()
                wait_for(lambda: len(heard()) >= 2, 60, "it is announced")

    def test_default_route_flaps(self, site: Site, host: Host, running: Daemon) -> None:
        """A default route that goes and comes back loses no packet."""
        with fault("default route lost and found", site, least=1):
            host.run("ip", "route", "del", "default")
            time.sleep(0.5)
            host.run("ip", "route", "add", "default", "via", str(LAN_CLIENT.ip), "dev", UPLINK)

    def test_new_lease(self, site: Site, host: Host, running: Daemon) -> None:
        """A DHCP client that drops all addresses and sets another one takes nothing for good."""
        name = "own address changed by DHCP"
        with fault(name, site, least=0.5, limit=2.0) as traffic:
            host.run("ip", "-4", "address", "flush", "dev", UPLINK)
            host.run(
                *("ip", "address", "add", "192.168.1.99/24", "brd", str(LAN_BROADCAST)),
                *("dev", UPLINK),
            )
            host.run("ip", "route", "replace", "default", "via", str(LAN_CLIENT.ip), "dev", UPLINK)
            traffic.settled()
        assert addresses(host) == ["192.168.1.99/24", ADDRESS]

    def test_renamed(self, site: Site, host: Host, running: Daemon) -> None:
        """A renamed uplink takes its addresses with it, and the rules follow."""
        with fault("uplink renamed", site, least=0.3) as traffic:
            host.run("ip", "link", "set", UPLINK, "down")
            host.run("ip", "link", "set", UPLINK, "name", "wlan7")
            host.run("ip", "link", "set", "wlan7", "up")
            host.run("ip", "route", "add", "default", "via", str(LAN_CLIENT.ip), "dev", "wlan7")
            traffic.settled()
        assert '"wlan7"' in table(host)
        assert addresses(host, "wlan7") == [str(HOST), ADDRESS]
        host.run("ip", "link", "set", "wlan7", "down")
        host.run("ip", "link", "set", "wlan7", "name", UPLINK)
        host.run("ip", "link", "set", UPLINK, "up")

    def test_replaced(self, site: Site, lan: Lan, host: Host, running: Daemon) -> None:
        """An uplink that is pulled and plugged in again, another interface of the same name."""
        limit = 2.0  # the new one is asked for the address first
        with fault("uplink replaced", site, least=0.2, limit=limit) as traffic:
            lan.run("ip", "link", "delete", host.uplink_port)
            running.wait_for(external(1), "error")
            host.uplink_port = lan.attach(host, UPLINK)
            host.lease()
            traffic.settled()
        assert addresses(host) == [str(HOST), ADDRESS]

    def test_docked(self, site: Site, lan: Lan, host: Host, running: Daemon) -> None:
        """From Wi-Fi to the dock on the same LAN and back, by the default route."""
        gateway = str(LAN_CLIENT.ip)
        host.run("ip", "route", "replace", "default", "via", gateway, "dev", UPLINK, "metric", "9")
        host.run("ip", "route", "del", "default", "metric", "0")
        lan.attach(host, DOCK, IPv4Interface("192.168.1.60/24"))
        with fault("uplink moves to the dock", site, limit=2.0):
            host.run("ip", "route", "add", "default", "via", gateway, "dev", DOCK, "metric", "1")
        assert ADDRESS in addresses(host, DOCK)
        assert ADDRESS not in addresses(host)
        with fault("uplink moves back to Wi-Fi", site, least=0.2, limit=2.0):
            host.run("ip", "link", "delete", DOCK)
        assert ADDRESS in addresses(host)

    def test_other_network(self, site: Site, host: Host, running: Daemon) -> None:
        """Elsewhere the address is in error; back at home it works without a hand."""
        name = "another network, and back"
        with fault(name, site, least=0.2, limit=2.0) as traffic:
            host.run("ip", "-4", "address", "flush", "dev", UPLINK)
            host.run("ip", "address", "add", "10.9.9.9/24", "brd", "+", "dev", UPLINK)
            host.run("ip", "route", "replace", "default", "via", "10.9.9.1", "dev", UPLINK)
            elsewhere = "outside the uplink's subnet"
            wait_for(lambda: elsewhere in running.mapping(external(1))["reason"], 60, "the reason")
            assert ADDRESS not in addresses(host)
            host.lease()
            traffic.settled()

    def test_suspend(self, site: Site, lan: Lan, host: Host, running: Daemon) -> None:
        """A suspend: nothing of the host runs, the LAN goes on, then the link comes up again."""
        with fault("suspend and resume", site, least=0.2) as traffic:
            lan.set_carrier(host.uplink_port, up=False)
            running.signal(SIGSTOP)
            host.run("ip", "address", "del", ADDRESS, "dev", UPLINK)
            time.sleep(1)
            lan.set_carrier(host.uplink_port, up=True)
            running.signal(SIGCONT)
            traffic.settled()


@contextmanager
def announcements(lan: Lan) -> Iterator[Callable[[], list[str]]]:
    """What is heard on the LAN about address 1 by gratuitous ARP, as tcpdump prints it."""
    capture = ("tcpdump", "-l", "-n", "-i", LAN_BRIDGE, "arp and ether broadcast")
    with Printing(lan, *capture) as process:
        own = re.compile(
            rf"Request who-has {external(1)} .*tell {external(1)},|Reply {external(1)} is-at"
        )
        yield lambda: [x for x in process.lines() if own.search(x)]


class Printing:
    """A program that prints lines, which are read while it runs."""

    def __init__(self, lan: Lan, *argv: str) -> None:
        self._path = lan.path("/tmp") / f"lab-{time.monotonic_ns()}"
        with self._path.open("w") as file:
            self._process: Process = lan.popen(*argv, stdout=file, stderr=file)
        wait_for(lambda: "listening on" in self._path.read_text(), 60, f"{argv[0]} listens")

    def __enter__(self) -> "Printing":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait(10)
        self._path.unlink()

    def lines(self) -> list[str]:
        return self._path.read_text().splitlines()


class TestConflict:
    """Another host on the LAN has the address."""

    def test_taken_before(
        self, site: Site, lan: Lan, host: Host, daemon: Daemon, guest: NamespaceGuest
    ) -> None:
        """An address in use is not taken and its owner not disturbed; others do not wait for it."""
        daemon.configure(mapping(1), mapping(2))
        with lan.host("squatter", IPv4Interface(ADDRESS), "02:00:00:00:00:66") as squatter:
            with (
                EchoServer(squatter, PORT),
                Stream(lan, external(1), PORT, squatter, rate=100) as stream,
            ):
                daemon.start()
                daemon.wait_for(external(1), "conflict")
                daemon.wait_for(external(2), "active")
                time.sleep(1.5)
                status = daemon.mapping(external(1))
                assert status["state"] == "conflict"
                assert status["reason"] == (
                    f"the host with MAC 02:00:00:00:00:66 on {UPLINK} has the address"
                )
                assert daemon.command("plan").returncode == 0
                assert ADDRESS not in addresses(host)
                report = stream.finish()
            assert report.whole, report
            assert "WARNING: 192.168.1.101" in daemon.log()
        name = "address of another host, released"
        with fault(name, site, limit=8.0, least=0.1):
            pass
        assert daemon.mapping(external(1))["state"] == "active"

    def test_taken_after(self, site: Site, lan: Lan, host: Host, running: Daemon) -> None:
        """One claim of another host is answered; if it insists, the address is given up to it."""
        client = IPv4Interface((lan_host(7).ip, 24))
        with lan.host("squatter", client, "02:00:00:00:00:66") as squatter:
            claim = ("arping", "-U", "-c", "1", "-w", "1", "-I", "eth0", str(external(1)))
            name = "address claimed by another host once"
            with fault(name, site, least=0.9):
                squatter.run("sysctl", "-qw", "net.ipv4.ip_nonlocal_bind=1")
                squatter.run(*claim, check=False)
            assert running.mapping(external(1))["state"] == "active"

            squatter.run("ip", "address", "add", ADDRESS, "dev", "eth0")
            with EchoServer(squatter, PORT):
                for _ in range(2):
                    squatter.run(*claim, check=False)
                running.wait_for(external(1), "conflict")
                assert ADDRESS not in addresses(host)
                assert tcp(lan, external(1), PORT) == Answer(LAN_CLIENT.ip, "squatter")
            name = "address given up to another host, released"
            with fault(name, site, limit=8.0, least=0.05) as traffic:
                squatter.run("ip", "address", "del", ADDRESS, "dev", "eth0")
                traffic.settled()

    def test_detection_off(self, lan: Lan, host: Host, daemon: Daemon) -> None:
        """Where detection is switched off, the address is taken at once whoever has it."""
        with lan.host("squatter", IPv4Interface(ADDRESS)):
            daemon.configure(mapping(1))
            text = daemon.config.read_text()
            daemon.config.write_text(
                text.replace("[settings]", "[settings]\nconflict_detection = false")
            )
            daemon.start()
            daemon.wait_for(external(1), "active")
            assert ADDRESS in addresses(host)

    def test_without_arp(self, host: Host, daemon: Daemon) -> None:
        """On a point-to-point uplink nobody is asked."""
        host.run("ip", "tuntap", "add", "mode", "tun", "dev", "wwan0")
        try:
            host.run("ip", "address", "add", "10.7.7.7/24", "dev", "wwan0")
            host.run("ip", "link", "set", "wwan0", "up")
            daemon.configure(mapping(1, external="10.7.7.101"), uplink="wwan0")
            daemon.start()
            wait_for(lambda: "10.7.7.101/24" in addresses(host, "wwan0"), 60, "it is there")
            wait_for(lambda: "10.7.7.101 (192" in daemon.log(), 60, "it is said")
            assert "pending" not in daemon.log()
        finally:
            host.run("ip", "link", "delete", "wwan0")

    def test_announced(self, lan: Lan, host: Host, daemon: Daemon, guest: NamespaceGuest) -> None:
        """A new address is announced by request and reply, three times: old knowledge gives way."""
        old = ("lladdr", "02:00:00:00:00:99", "dev", LAN_BRIDGE, "nud", "reachable")
        lan.run("ip", "neighbour", "replace", str(external(1)), *old)
        with announcements(lan) as heard:
            start(daemon)
            wait_for(lambda: isinstance(tcp(lan, external(1), PORT, timeout=1), Answer), 60, "it")
            wait_for(lambda: len(heard()) >= 6, 60, "three rounds")
            time.sleep(2.5)
            assert len([x for x in heard() if "Request" in x]) == 3
            assert len([x for x in heard() if "Reply" in x]) == 3

    def test_link_kinds(self) -> None:
        """This machine's loopback has no ARP."""
        with closing(Netlink(ROUTE, "rtnetlink")) as netlink:
            (loopback,) = (link for link in links(netlink).values() if link.name == "lo")
        assert not loopback.has_arp


class TestConnections:
    """What connection tracking remembers from before a mapping."""

    def test_flows_from_before(
        self, lan: Lan, host: Host, daemon: Daemon, guest: NamespaceGuest
    ) -> None:
        """UDP flows that began without the mapping go through it as soon as it is there."""
        mac = json.loads(host.run("ip", "-j", "link", "show", UPLINK).stdout)[0]["address"]
        entry = ("lladdr", mac, "dev", LAN_BRIDGE, "nud", "permanent")
        lan.run("ip", "neighbour", "replace", str(external(1)), *entry)
        try:
            with (
                EchoServer(lan, PORT),
                Stream(lan, external(1), PORT, guest, "udp", rate=50) as inbound,
                Stream(guest, LAN_CLIENT.ip, PORT, lan, "udp", rate=50) as outbound,
            ):
                wait_for(
                    lambda: f"dst={external(1)}" in host.run("conntrack", "-L").stdout, 60, "entry"
                )
                start(daemon)
                time.sleep(1)
                came, went = inbound.finish(), outbound.finish()
        finally:
            lan.run("ip", "neighbour", "del", str(external(1)), "dev", LAN_BRIDGE)
        assert came.lost > 0
        assert came.answered > 30, (came, daemon.log())
        assert set(went.sources) == {HOST.ip, external(1)}, went
        assert went.lost <= 2, went


class TestDaemon:
    """What happens to the daemon itself, and around it."""

    def test_libvirt_hangs(self, site: Site, host: Host, running: Daemon) -> None:
        """While libvirtd hangs, repairs are made as ever, and nothing is given up."""
        host.libvirtd.signal(SIGSTOP)
        try:
            with fault("libvirtd hangs", site, least=1):
                pass
            for name, command in (
                ("libvirtd hangs, address removed", f"ip address del {ADDRESS} dev {UPLINK}"),
                ("libvirtd hangs, table deleted", "nft delete table inet vm_onetoone_nat"),
            ):
                with fault(name, site, least=0.5, limit=1.6):
                    host.run("sh", "-c", command)
        finally:
            host.libvirtd.signal(SIGCONT)
        wait_for(lambda: running.status()["libvirt"] == "connected", 30, "libvirt answers")
        running.wait_for(external(1), "active")

    def test_configuration_removed(self, site: Site, host: Host, running: Daemon) -> None:
        """With its file gone a reload is refused, and what was running goes on."""
        text = running.config.read_text()
        name = "configuration removed under the daemon, and a reload"
        with fault(name, site, least=1):
            running.config.unlink()
            running.reload()
            wait_for(lambda: "not reloaded" in running.log(), 60, "the refusal")
        running.config.write_text(text)

    def test_notifications_overrun(self, site: Site, host: Host, running: Daemon) -> None:
        """Notifications that the kernel had to drop are made up for by a look at everything."""
        host.run("ip", "link", "add", "noise", "type", "bridge")
        flood = "".join(
            f"address {verb} 10.{n >> 8}.{n & 255}.1/32 dev noise\n"
            for verb in ("add", "del")
            for n in range(6000)
        )
        with fault("netlink overrun", site, least=0.1) as traffic:
            running.signal(SIGSTOP)
            host.run("ip", "-batch", "-", input=flood)
            host.run("ip", "address", "del", ADDRESS, "dev", UPLINK)
            running.signal(SIGCONT)
            traffic.settled()
        assert "notifications were lost" in running.log()
        host.run("ip", "link", "delete", "noise")

    def test_a_thousand_events(self, site: Site, host: Host, running: Daemon) -> None:
        """A thousand changes of the kernel in a second are answered by few passes."""
        wait_for(lambda: settled(running), 60, "it is quiet")
        before = passes(running)
        batch = "".join(
            f"add table ip noise{n}\n" if n % 2 == 0 else f"delete table ip noise{n - 1}\n"
            for n in range(1000)
        )
        program = 'i=0; while read -r a; do echo "$a"; i=$((i + 1)); done'
        name = "1,000 changes of the ruleset in a second"
        with fault(name, site, least=0.8, limit=STORM) as traffic:
            begin = time.monotonic()
            host.run("sh", "-c", f"{program} | nft -i >/dev/null", input=batch)
            host.run("nft", "delete", "table", "inet", "vm_onetoone_nat")
            traffic.settled()
        print(f"1,000 transactions in {time.monotonic() - begin:.1f} s")
        assert passes(running) - before <= 5 * (time.monotonic() - begin) + 5

    def test_a_thousand_libvirt_events(self, site: Site, host: Host, running: Daemon) -> None:
        """Networks that are defined and undefined as fast as libvirtd can are no hindrance."""
        wait_for(lambda: settled(running), 60, "it is quiet")
        before = passes(running)
        definition = host.path("/run/lab/storm.xml")
        definition.write_text("<network><name>storm</name></network>")
        batch = "net-define /run/lab/storm.xml\nnet-undefine storm\n" * (EVENTS // 2)
        with fault("1,000 libvirt events", site, least=0.8, limit=STORM) as traffic:
            begin = time.monotonic()
            host.virsh(input=batch)
            took = time.monotonic() - begin
            host.run("nft", "delete", "table", "inet", "vm_onetoone_nat")
            traffic.settled()
        heard = running.log().count("network storm")
        print(f"{EVENTS:,} events in {took:.1f} s")
        assert heard > 0
        assert passes(running) - before <= 8 * (time.monotonic() - begin) + 5

    def test_disk_full(self, site: Site, host: Host, daemon: Daemon, guest: NamespaceGuest) -> None:
        """Where not a byte can be written, the daemon does everything but record it."""
        runtime = "/run/vm-onetoone-nat"
        host.run("mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", runtime)
        try:
            host.run("sh", "-c", f"cat /dev/zero >{runtime}/full 2>/dev/null", check=False)
            start(daemon)
            with fault("disk full, address removed", site, least=0.7):
                host.run("ip", "address", "del", ADDRESS, "dev", UPLINK)
            assert daemon.stop() == 0
            assert addresses(host) == [str(HOST)]
        finally:
            host.run("umount", "-l", runtime)

    def test_killed_between_any_two_operations(
        self,
        site: Site,
        lan: Lan,
        host: Host,
        daemon: Daemon,
        guest: NamespaceGuest,
        at_length: bool,
    ) -> None:
        """SIGKILL at any message to the kernel: the next start makes all of it right."""
        before = known(host)
        daemon.configure(mapping(1), mapping(2))
        daemon.start()
        for n in (1, 2):
            daemon.wait_for(external(n), "active")
        converged = known(host)
        daemon.stop()
        assert known(host) == before
        killed = 0
        for count in range(1, 1000, 1 if at_length else 25):
            inject = f"inject=sendto,sendmsg:signal=KILL:when={count}"
            daemon.start("strace", "-f", "-qq", "-o", "/dev/null", "-e", inject)
            wait_for(
                lambda: daemon.ended or f"{external(2)}/24" in addresses(host),
                30,
                "it is killed, or has written all",
            )
            survived = not daemon.ended
            if survived:
                # Unless it is killed in this moment: then there is none to be found.
                kill = ("pkill", "-KILL", "-n", "-f", "vm_onetoone_nat.*run")
                survived = host.run(*kill, check=False).returncode == 0
                wait_for(lambda: daemon.ended, 60, "it is killed")
            daemon.start()
            for n in (1, 2):
                daemon.wait_for(external(n), "active")
            daemon.wait_until_converged()
            assert known(host) == converged
            assert tcp(lan, external(1), PORT) == Answer(LAN_CLIENT.ip, "guest")
            assert daemon.stop() == 0, daemon.log()
            assert known(host) == before
            if survived:
                break
            killed += 1
        print(f"killed at {killed} of its messages to the kernel")
        daemon.start()
        daemon.wait_for(external(1), "active")
        name = "SIGKILL in the middle of a pass, and a start"
        # The start of a process included, which is a matter of the machine and what else it does.
        with fault(name, site, least=0.3, limit=3.0) as traffic:
            daemon.kill()
            host.run("nft", "delete", "table", "inet", "vm_onetoone_nat")
            inject = f"inject=sendto,sendmsg:signal=KILL:when={count // 2}"
            daemon.start("strace", "-f", "-qq", "-o", "/dev/null", "-e", inject)
            wait_for(lambda: daemon.ended, 60, "it is killed")
            daemon.start()
            traffic.settled()
        assert survived
        assert killed >= 3

    def test_idle(self, host: Host, running: Daemon) -> None:
        """Nothing polls: between two ticks only the pings of libvirtd are answered."""
        time.sleep(ANNOUNCEMENTS * ANNOUNCE_SECONDS)
        wait_for(lambda: settled(running), 60, "it is quiet")
        pid = host.run("pgrep", "-n", "-f", "vm_onetoone_nat.*run").stdout.strip()
        trace = host.path("/run/lab/trace")
        before = running.log()
        strace = ("strace", "-f", "-ttt", "-qq", "-o", "/run/lab/trace", "-p", pid)
        with host.popen(*strace) as process:
            wait_for(lambda: trace.exists() and trace.read_text(), 60, "strace is attached")
            time.sleep(TICK_SECONDS + 1.5)
            process.send_signal(SIGINT)
            process.wait(10)
        lines = [line.split(None, 2) for line in trace.read_text().splitlines()]
        # At first every call that is under way is made again, because of strace.
        begin = float(lines[0][1]) + 0.3
        lines = [line for line in lines if float(line[1]) > begin and "detached" not in line[2]]
        (pinged,) = {thread for thread, _, call in lines if "keep" in call}
        by_thread = Counter(
            "main" if thread == pid else "libvirt" if thread == pinged else "another"
            for thread, _, _ in lines
        )
        by_call = Counter(
            (("libvirt" if thread == pinged else "daemon"), re.split(r"[( ]", call)[0])
            for thread, _, call in lines
            if not call.startswith("<...")
        )
        print(by_thread, *sorted(by_call.items()), sep="\n")
        assert running.log().removeprefix(before) == ""
        # The others sleep until a notification wakes them, and no clock does.
        others = [call for thread, _, call in lines if thread not in (pid, pinged)]
        assert {re.split(r"[( ]", call.removeprefix("<... "))[0] for call in others} <= {
            *("epoll_wait", "recvfrom", "getpid", "poll", "mprotect", "mmap", "munmap")
        }
        # An event loop that was woken asks once more, without waiting.
        waited = [call for call in others if not call.endswith(", 0) = 0")]
        assert not any(call.endswith("= 0") or "imeout" in call for call in waited)
        ticks = [float(at) for thread, at, call in lines if thread == pid and "openat" in call]
        assert len(ticks) in (1, 2)
        assert all(
            any(abs(float(at) - tick) < 0.1 for tick in ticks)
            for thread, at, _ in lines
            if thread == pid
        )

    def test_clock_jumps(
        self, site: Site, host: Host, daemon: Daemon, guest: NamespaceGuest
    ) -> None:
        """A clock that jumps by years, there and back, changes nothing and stops no repair."""
        clock = host.path("/run/lab/clock")
        clock.write_text("+0d\n")
        (library,) = Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")
        daemon.configure(mapping(1))
        daemon.start(
            env={
                "LD_PRELOAD": str(library),
                "FAKETIME_TIMESTAMP_FILE": "/run/lab/clock",
                "FAKETIME_NO_CACHE": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            }
        )
        daemon.wait_for(external(1), "active")
        for jump in ("+3650d", "-3650d"):
            clock.write_text(f"{jump}\n")
            with fault(f"clock jumps to {jump}", site, least=0.7):
                host.run("ip", "address", "del", ADDRESS, "dev", UPLINK)
        assert daemon.stop() == 0

    def test_reboot_storm(
        self, site: Site, host: Host, daemon: Daemon, guest: NamespaceGuest
    ) -> None:
        """A guest that is destroyed and started again and again is right in the end."""
        domain = IdleDomain(host, "stormy")
        domain.define()
        daemon.configure(mapping(1, domain="stormy"))
        daemon.start()
        try:
            domain.start()
            daemon.wait_for(external(1), "active")
            name = "reboot storm: 10 times destroyed and started"
            with fault(name, site, limit=3.0, least=0.1) as traffic:
                for _ in range(10):
                    domain.destroy()
                    domain.start()
                traffic.settled()
            assert "again and again" not in daemon.log()
            daemon.wait_until_converged()
        finally:
            domain.destroy()
            domain.undefine()
        daemon.wait_for(external(1), "inactive")

    def test_guest_killed(
        self, site: Site, host: Host, daemon: Daemon, guest: NamespaceGuest
    ) -> None:
        """A guest whose process is killed loses its address at once, and gets it back."""
        domain = IdleDomain(host, "victim")
        domain.define()
        daemon.configure(mapping(1, domain="victim"))
        daemon.start()
        try:
            domain.start()
            daemon.wait_for(external(1), "active")
            name = "guest killed, and started again"
            with fault(name, site, limit=2.0, least=0.1) as traffic:
                domain.kill()
                daemon.wait_for(external(1), "inactive")
                domain.start()
                traffic.settled()
        finally:
            domain.destroy()
            domain.undefine()

    def test_network_restarted(
        self, site: Site, host: Host, running: Daemon, guest: NamespaceGuest
    ) -> None:
        """A network that is destroyed and started takes the mapping with it, and brings it back."""
        name = "network destroyed and started"
        with fault(name, site, limit=2.0, least=0.05) as traffic:
            host.stop_network()
            running.wait_for(external(1), "inactive")
            host.start_network()
            guest.rejoin()
            traffic.settled()

    @pytest.mark.parametrize("how", ["killed", "restarted"])
    def test_libvirtd(self, site: Site, host: Host, running: Daemon, how: str) -> None:
        """libvirtd may end and come back as it likes: no packet is lost."""
        with fault(f"libvirtd {how}", site, least=1):
            if how == "killed":
                host.libvirtd.kill()
            else:
                host.libvirtd.stop()
            host.libvirtd.start()
            wait_for(lambda: running.log().count("connected to libvirt at") == 2, 30, "reconnected")
