"""What becomes of a mapping as its guest, its network and libvirt come and go: real events."""

from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest
from lab import (
    Answer,
    DomainGuest,
    EchoServer,
    Failure,
    Host,
    IdleDomain,
    Lan,
    NamespaceGuest,
    Recorder,
    Stream,
    icmp,
    tcp,
    wait_for,
)
from lab.addresses import LAN_CLIENT, UPLINK, external, guest_name, internal
from lab.hypervisor import Hypervisor
from running import Daemon, mapping

PORT = 7000


def holds(host: Hypervisor, address: IPv4Address) -> bool:
    """Whether the uplink has the address."""
    listed = host.run("ip", "-4", "-o", "address", "show", "dev", UPLINK).stdout
    return f" {address}/" in listed


def connections(host: Hypervisor, n: int) -> int:
    """How many tracked connections mapping n has translated, in either direction."""
    pairs = [
        ("--orig-dst", external(n), "--reply-src", internal(n)),
        ("--orig-src", internal(n), "--reply-dst", external(n)),
    ]
    listed = [host.run("conntrack", "-L", *map(str, pair), check=False).stdout for pair in pairs]
    return sum(len(text.splitlines()) for text in listed)


@pytest.fixture
def guest(host: Host) -> Iterator[DomainGuest]:
    guest = DomainGuest(host, guest_name(1), internal(1))
    guest.define()
    yield guest
    if guest.state() != "shut off":
        guest.destroy()
    guest.undefine()


@pytest.fixture
def running(daemon: Daemon, guest: DomainGuest) -> Daemon:
    daemon.configure(mapping(1, domain=guest.name))
    daemon.start()
    return daemon


@pytest.fixture
def domain(host: Host) -> Iterator[IdleDomain]:
    domain = IdleDomain(host, "idle")
    yield domain
    if "idle" in host.virsh("list", "--name"):
        domain.destroy()
    if "idle" in host.virsh("list", "--all", "--name"):
        domain.undefine()


class TestRealDomain:
    """One booting domain through everything that can happen to a guest."""

    def test_boot_and_shutdown(self, lan: Lan, running: Daemon, guest: DomainGuest) -> None:
        """Started, it is reached and is seen by its address; shut down, the address is gone."""
        running.wait_for(external(1), "inactive")
        assert not holds(guest.host, external(1))
        guest.start()
        running.wait_for(external(1), "active")
        guest.wait_until_up()
        page = lan.run("curl", "-sf", "-m", "5", f"http://{external(1)}/").stdout
        assert page.strip() == guest.name
        with Recorder(lan) as recorder:
            assert recorder.next_from(guest.name).source == external(1)
        guest.shutdown()
        guest.wait_for_state("shut off")
        running.wait_for(external(1), "inactive")
        assert not holds(guest.host, external(1))
        wait_for(lambda: connections(guest.host, 1) == 0, 60, "its connections are gone")

    def test_reboot_suspend_resume_destroy(
        self, lan: Lan, running: Daemon, guest: DomainGuest
    ) -> None:
        """A reboot and a suspension keep the address; after a destroy it is silent at once."""
        guest.start()
        guest.wait_until_up()
        running.wait_for(external(1), "active")
        assert icmp(lan, external(1))

        guest.suspend()
        guest.wait_for_state("paused")
        assert running.mapping(external(1))["state"] == "active"
        assert holds(guest.host, external(1))
        guest.resume()
        guest.wait_for_state("running")
        assert icmp(lan, external(1), timeout=5)

        guest.reboot()
        wait_for(lambda: guest.page(timeout=1) is None, 60, "the guest goes down")
        guest.wait_until_up()
        running.wait_for(external(1), "active")
        assert icmp(lan, external(1), timeout=5)

        guest.destroy()
        running.wait_for(external(1), "inactive")
        assert running.mapping(external(1))["reason"] == f"domain '{guest.name}' is not running"
        assert not holds(guest.host, external(1))
        assert not icmp(lan, external(1), timeout=1)
        wait_for(lambda: connections(guest.host, 1) == 0, 60, "its connections are gone")


class TestIdleDomain:
    """Events of a domain that has no network, with a namespace in its place on the bridge."""

    def test_unknown_domain_is_picked_up(self, daemon: Daemon, domain: IdleDomain) -> None:
        """A domain that libvirt does not know is inactive with that reason, until it is defined."""
        daemon.configure(mapping(2, domain="idle"))
        daemon.start()
        daemon.wait_for(external(2), "inactive")
        assert daemon.mapping(external(2))["reason"] == "libvirt has no domain 'idle'"
        domain.define()
        domain.start()
        daemon.wait_for(external(2), "active")
        domain.destroy()
        daemon.wait_for(external(2), "inactive")

    def test_by_uuid(self, daemon: Daemon, domain: IdleDomain) -> None:
        """A mapping may name its domain by UUID."""
        domain.define()
        daemon.configure(mapping(2, domain=domain.uuid()))
        daemon.start()
        domain.start()
        daemon.wait_for(external(2), "active")

    def test_paused_at_start_is_taken_when_resumed(
        self, host: Host, daemon: Daemon, domain: IdleDomain
    ) -> None:
        """A guest that is paused before it ever ran, as one that migrates in, has no address."""
        domain.define()
        daemon.configure(mapping(2, domain="idle"))
        daemon.start()
        host.virsh("start", "--paused", "idle")
        wait_for(lambda: "is paused" in daemon.mapping(external(2))["reason"], 60, "paused")
        assert daemon.mapping(external(2))["state"] == "inactive"
        domain.resume()
        daemon.wait_for(external(2), "active")

    def test_kill_ends_connections(
        self, lan: Lan, host: Host, daemon: Daemon, domain: IdleDomain
    ) -> None:
        """When a guest's process is killed its address, elements and connections go together."""
        domain.define()
        domain.start()
        daemon.configure(mapping(2, domain="idle"), mapping(3))
        with NamespaceGuest(host, "behind", internal(2)) as guest, EchoServer(guest, PORT):
            daemon.start()
            daemon.wait_for(external(2), "active")
            with Stream(lan, external(2), PORT, guest) as stream:
                wait_for(lambda: connections(host, 2) == 1, 60, "a tracked connection")
                outgoing = guest.run("ping", "-c", "1", str(LAN_CLIENT.ip))
                assert outgoing.returncode == 0
                host.run("kill", "-KILL", host.path("/run/libvirt/qemu/idle.pid").read_text())
                daemon.wait_for(external(2), "inactive")
                wait_for(lambda: connections(host, 2) == 0, 60, "they are gone")
                table = host.run("nft", "list", "table", "inet", "vm_onetoone_nat").stdout
                assert str(external(2)) not in table and str(internal(2)) not in table
                assert not holds(host, external(2))
                assert stream.finish().answered > 0
        assert daemon.mapping(external(3))["state"] == "active"


class TestNetwork:
    """Mappings without a domain live as long as their network."""

    def test_restarts_leave_no_duplicates(self, lan: Lan, host: Host, daemon: Daemon) -> None:
        """Three times destroyed and started, there is one rule, element and address of each."""
        daemon.configure(mapping(4))
        with (
            NamespaceGuest(host, "plain", internal(4), wait=False) as guest,
            EchoServer(guest, PORT),
        ):
            daemon.start()
            daemon.wait_for(external(4), "active")
            guest.wait_until_forwarding()
            for _ in range(3):
                host.stop_network()
                daemon.wait_for(external(4), "inactive")
                assert daemon.mapping(external(4))["reason"] == "network 'default' is not active"
                assert not holds(host, external(4))
                host.start_network()
                guest.rejoin(wait=False)
                daemon.wait_for(external(4), "active")
            daemon.wait_until_converged()
            guest.wait_until_forwarding()
            rules = host.run("iptables-save").stdout
            assert rules.count("0x100000/0x100000") == 1
            chain = host.run("iptables", "-S", "FORWARD").stdout.splitlines()
            assert "0x100000/0x100000" in chain[1]
            table = host.run("nft", "-s", "list", "table", "inet", "vm_onetoone_nat").stdout
            assert table.count(f"{external(4)} counter : {internal(4)}") == 1
            assert table.count(f"{internal(4)} counter : {external(4)}") == 1
            listed = host.run("ip", "-o", "address", "show").stdout
            assert listed.count(f" {external(4)}/") == 1
            assert tcp(lan, external(4), PORT) == Answer(LAN_CLIENT.ip, "plain")

    def test_unknown_network_is_picked_up(self, host: Host, daemon: Daemon) -> None:
        """A network that libvirt does not know is inactive with that reason, until it is there."""
        network = "<network><name>second</name><bridge name='virbr7'/><forward mode='nat'/>"
        network += "<ip address='192.168.140.1' netmask='255.255.255.0'/></network>"
        own = {"external": str(external(5)), "internal": "192.168.140.5", "network": "second"}
        daemon.configure(own)
        daemon.start()
        daemon.wait_for(external(5), "inactive")
        assert daemon.mapping(external(5))["reason"] == "libvirt has no network 'second'"
        host.path("/run/lab/second.xml").write_text(network)
        host.virsh("net-create", "/run/lab/second.xml")
        try:
            daemon.wait_for(external(5), "active")
        finally:
            host.virsh("net-destroy", "second")
        daemon.wait_for(external(5), "inactive")


class TestLibvirt:
    """libvirt's own comings and goings."""

    @pytest.mark.parametrize("how", ["restart", "crash"])
    def test_restart_loses_nothing(self, lan: Lan, host: Host, daemon: Daemon, how: str) -> None:
        """An established connection loses no packet while libvirtd restarts or crashes."""
        daemon.configure(mapping(6))
        with NamespaceGuest(host, "steady", internal(6)) as guest, EchoServer(guest, PORT):
            daemon.start()
            daemon.wait_for(external(6), "active")
            with Stream(lan, external(6), PORT, guest, rate=200) as stream:
                if how == "restart":
                    host.libvirtd.stop()
                else:
                    host.libvirtd.kill()
                wait_for(lambda: "lost libvirt" in daemon.log(), 60, "the loss is said")
                wait_for(
                    lambda: daemon.status()["libvirt"] == "disconnected", 60, "so is the state"
                )
                assert daemon.mapping(external(6))["state"] == "active"
                host.libvirtd.start()
                wait_for(
                    lambda: daemon.log().count("connected to libvirt at") == 2, 30, "reconnected"
                )
                daemon.wait_until_converged()
                report = stream.finish()
            assert report.whole, report
            assert report.sent > 100
            assert daemon.log().count("lost libvirt at") == 1

    def test_events_after_a_restart(self, host: Host, daemon: Daemon) -> None:
        """Events are heard on the new connection as they were on the old one."""
        domain = IdleDomain(host, "after")
        domain.define()
        daemon.configure(mapping(6, domain="after"))
        daemon.start()
        wait_for(lambda: "connected to libvirt" in daemon.log(), 60, "connected")
        host.libvirtd.restart()
        wait_for(lambda: daemon.log().count("connected to libvirt at") >= 2, 30, "reconnected")
        domain.start()
        try:
            daemon.wait_for(external(6), "active")
        finally:
            domain.destroy()
            domain.undefine()
        daemon.wait_for(external(6), "inactive")

    def test_not_up_yet(self, host: Host, daemon: Daemon) -> None:
        """Started before libvirt, the daemon says once that it waits, and goes on when it is up."""
        daemon.configure(mapping(6))
        host.libvirtd.stop()
        try:
            daemon.start()
            wait_for(lambda: "waiting for libvirt" in daemon.log(), 60, "it says that it waits")
            assert daemon.status()["libvirt"] == "disconnected"
            assert daemon.mapping(external(6))["state"] == "inactive"
            wait_for(lambda: "libvirt lost" not in daemon.log(), 60, "nothing was lost")
        finally:
            host.libvirtd.start()
        daemon.wait_for(external(6), "active")
        assert daemon.log().count("waiting for libvirt at") == 1


def test_silent_address_is_nobodys(lan: Lan, host: Host, daemon: Daemon) -> None:
    """When a mapping ends, the LAN reaches nobody by its address: least of all the host."""
    daemon.configure(mapping(7))
    with EchoServer(host, PORT):
        daemon.start()
        daemon.wait_for(external(7), "active")
        daemon.configure()
        daemon.reload()
        wait_for(lambda: not holds(host, external(7)), 60, "the address goes")
        assert not isinstance(tcp(lan, external(7), PORT, timeout=2), Answer)
        assert tcp(lan, external(7), PORT, timeout=2) in (Failure.UNREACHABLE, Failure.SILENT)
