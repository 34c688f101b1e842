"""Real firewalls of other programs beside the installed service, on either backend of libvirt."""

import re
from collections.abc import Iterator
from ipaddress import IPv4Interface

import pytest
from faults import STORM, Site, fault
from installed import PORT
from lab import (
    Answer,
    EchoServer,
    Lan,
    Machine,
    Namespace,
    NamespaceGuest,
    NetworkOf,
    Stream,
    tcp,
    udp,
    wait_for,
)
from lab.addresses import LAN_CLIENT, external, guest_name, internal
from lab.root import FIREWALLS
from matrix import Directions, Laptop
from running import Service, mapping
from vm_onetoone_nat.events import Event

ACCEPT = "meta mark & 0x00100000 == 0x00100000 accept"


@pytest.fixture(scope="module")
def installed(machine: Machine) -> None:
    """firewalld and ufw are installed, and do not run."""
    machine.systemctl("mask", "firewalld.service", "ufw.service")
    machine.run("sh", "-c", f"dpkg -i {FIREWALLS}/*.deb", timeout=300)
    machine.systemctl("unmask", "firewalld.service", "ufw.service")
    machine.systemctl("disable", "--now", "firewalld.service", "ufw.service", check=False)


@pytest.fixture
def firewalls(machine: Machine, installed: None) -> Iterator[None]:
    """Both are there to be started; in the end neither runs, whatever the test came to."""
    yield
    machine.run("ufw", "--force", "disable")
    machine.systemctl("stop", "firewalld.service")
    machine.systemctl("restart", "libvirtd.service")


@pytest.fixture
def site(machine: Machine, guest: NamespaceGuest, service: Service) -> Site:
    return Site(machine.lan, guest, service, PORT)


@pytest.fixture
def steady(service: Service, guest: NamespaceGuest) -> Service:
    """The service with a guest that answers."""
    assert tcp(service.host.lan, external(1), PORT) == Answer(LAN_CLIENT.ip, guest.name)
    return service


def reaches(lan: Lan, guest: NamespaceGuest) -> bool:
    """Whether guest 1 is reached from the LAN, and reaches the LAN from its own address."""
    came = tcp(lan, external(1), PORT)
    with EchoServer(lan, PORT):
        went = udp(guest, LAN_CLIENT.ip, PORT)
    return came == Answer(LAN_CLIENT.ip, guest.name) and went == Answer(external(1), lan.name)


def first_rules(machine: Machine) -> list[str]:
    """The first rule of each foreign chain that refuses guests."""
    found = []
    for chain in ("ip filter FORWARD", "ip libvirt_network forward"):
        listed = machine.run("nft", "-s", "list", "chain", *chain.split(), check=False).stdout
        rules = re.sub(r"(?s)^.*?policy \w+;\n|[}\n\t]+$", "", listed).strip()
        if rules:
            found.append(rules.splitlines()[0].strip().replace(" counter", ""))
    return found


@pytest.fixture(scope="class", params=[0, 1], ids=["br_netfilter=0", "br_netfilter=1"])
def laptop(request: pytest.FixtureRequest, machine: Machine) -> Iterator[Laptop]:
    machine.bridge_netfilter(bool(request.param))
    service = Service(machine)
    service.configure(mapping(1), mapping(2))
    service.systemctl("start")
    host = NetworkOf(machine)
    with (
        NamespaceGuest(machine, guest_name(1), internal(1), wait=False) as one,
        NamespaceGuest(machine, guest_name(2), internal(2), wait=False) as two,
        EchoServer(one, PORT),
        EchoServer(two, PORT),
        EchoServer(machine.lan, PORT),
        EchoServer(host, PORT),
    ):
        for guest in (one, two):
            guest.wait_until_forwarding()
        for n in (1, 2):
            service.wait_for(external(n), "active")
        yield Laptop(machine.lan, host, [one, two], service)
    service.systemctl("stop")
    machine.bridge_netfilter(True)


class TestDirections(Directions):
    """The matrix of directions, with libvirt's backend of the release: iptables, or nftables."""


def test_backend(machine: Machine, steady: Service, guest: NamespaceGuest) -> None:
    """The one foreign rule is at the head of the chain, also after restarts of all of libvirt."""
    backend = {"bookworm": "iptables", "trixie": "nftables"}[suite(machine)]
    table = machine.run("nft", "list", "tables").stdout
    assert ("table ip libvirt_network" in table) == (backend == "nftables")
    before = first_rules(machine)
    assert before
    assert all(rule == ACCEPT for rule in before)
    machine.systemctl("restart", "libvirtd.service")
    steady.wait_until_converged()
    assert first_rules(machine) == before
    machine.virsh("net-destroy", "default")
    steady.wait_for(external(1), "inactive")
    machine.virsh("net-start", "default")
    guest.rejoin()
    steady.wait_for(external(1), "active")
    steady.wait_until_converged()
    assert first_rules(machine) == before
    ruleset = machine.run("nft", "-s", "list", "ruleset").stdout.replace(" counter", "")
    assert ruleset.count(ACCEPT) == len(before)
    assert reaches(machine.lan, guest)


def guest_address() -> IPv4Interface:
    return IPv4Interface("192.168.145.9/24")


def suite(machine: Machine) -> str:
    return machine.run("sh", "-c", ". /etc/os-release; echo $VERSION_CODENAME").stdout.strip()


def test_docker(
    site: Site, machine: Machine, lan: Lan, steady: Service, guest: NamespaceGuest
) -> None:
    """Docker's policy beside libvirt's rules, whichever tables those are in."""
    with fault(f"Docker's policy, Debian {suite(machine)}", site, least=0.7):
        machine.run("iptables", "-N", "DOCKER-USER")
        machine.run("iptables", "-P", "FORWARD", "DROP")
        machine.run("iptables", "-I", "FORWARD", "-j", "DOCKER-USER")
    assert reaches(lan, guest)
    assert set(first_rules(machine)) == {ACCEPT}
    machine.run("iptables", "-P", "FORWARD", "ACCEPT")
    machine.run("iptables", "-D", "FORWARD", "-j", "DOCKER-USER")
    machine.run("iptables", "-X", "DOCKER-USER")


def test_nftables_restarted(
    site: Site, machine: Machine, lan: Lan, steady: Service, guest: NamespaceGuest
) -> None:
    """`systemctl restart nftables` flushes everybody's rules: ours are back."""
    name = f"systemctl restart nftables, Debian {suite(machine)}"
    with fault(name, site, least=0.7):
        machine.systemctl("restart", "nftables.service")
    assert reaches(lan, guest)
    machine.systemctl("stop", "nftables.service")
    machine.systemctl("restart", "libvirtd.service")
    steady.wait_until_converged()


@pytest.mark.parametrize("machine", ["trixie"], indirect=True)
def test_ruleset_flushed(
    site: Site, machine: Machine, lan: Lan, steady: Service, guest: NamespaceGuest
) -> None:
    """Where tables have owners nobody else's flush touches ours: not one packet is lost, nor late.

    Elsewhere a TCP connection may end: see test_flushed of the lab.
    """
    table = ("nft", "-a", "list", "table", "inet", "vm_onetoone_nat")
    before = machine.run(*table).stdout.splitlines()[0]
    with Stream(lan, external(1), PORT, guest, rate=200) as connection:
        with fault("nft flush ruleset, Debian trixie", site, least=1):
            for _ in range(10):
                machine.run("nft", "flush", "ruleset")
        with fault("systemctl restart nftables, ten times, Debian trixie", site, least=1):
            for _ in range(10):
                machine.systemctl("restart", "nftables.service")
                machine.systemctl("reset-failed", "nftables.service")
        report = connection.finish()
    print(report)
    assert report.whole, report
    assert machine.run(*table).stdout.splitlines()[0] == before
    assert "flags owner,persist" in machine.run(*table).stdout
    machine.systemctl("stop", "nftables.service")
    machine.systemctl("restart", "libvirtd.service")
    steady.wait_until_converged()
    assert reaches(lan, guest)


def test_ufw(
    site: Site, machine: Machine, lan: Lan, steady: Service, guest: NamespaceGuest, firewalls: None
) -> None:
    """ufw, which refuses to forward, and its reload."""
    name = f"ufw enabled and reloaded, Debian {suite(machine)}"
    with fault(name, site, least=0.5) as traffic:
        machine.run("ufw", "--force", "enable")
        machine.run("ufw", "reload")
        traffic.settled()
    assert "policy drop" in machine.run("nft", "list", "chain", "ip", "filter", "FORWARD").stdout
    assert reaches(lan, guest)


def test_firewalld(
    site: Site, machine: Machine, lan: Lan, steady: Service, guest: NamespaceGuest, firewalls: None
) -> None:
    """firewalld as it is installed, its reload, and what it can be told to refuse."""
    release = suite(machine)
    name = f"firewalld started, Debian {release}"
    with fault(name, site, least=0.3, limit=STORM, others_go_on=True) as traffic:
        machine.systemctl("start", "firewalld.service")
        traffic.settled()
    assert reaches(lan, guest)
    name = f"firewall-cmd --reload, Debian {release}"
    with fault(name, site, least=0.3, limit=STORM, others_go_on=True) as traffic:
        machine.run("firewall-cmd", "--reload")
        traffic.settled()
    assert reaches(lan, guest)
    said = steady.journal(f"MESSAGE_ID={Event.FIREWALL_REFUSES.value.hex}")
    assert [entry["MESSAGE"] for entry in said if "firewalld" in entry["MESSAGE"]] == []
    configuration = machine.path("/etc/firewalld/firewalld.conf")
    text = configuration.read_text()
    if "StrictForwardPorts" in text:
        configuration.write_text(text.replace("StrictForwardPorts=no", "StrictForwardPorts=yes"))
        machine.systemctl("restart", "firewalld.service")
        wait_for(lambda: "may refuse guests" in steady.log(), 60, "it is said")
        assert "set StrictForwardPorts=no in firewalld.conf" in steady.log()
        assert not isinstance(tcp(lan, external(1), PORT, timeout=1), Answer)
        configuration.write_text(text)
        machine.systemctl("restart", "firewalld.service")
        assert reaches(lan, guest)


def test_open_network(machine: Machine, lan: Lan, service: Service) -> None:
    """A network that libvirt puts no rules up for needs no rule of ours either."""
    network = "<network><name>free</name><bridge name='virbr9'/><forward mode='open'/>"
    network += "<ip address='192.168.145.1' netmask='255.255.255.0'/></network>"
    machine.virsh("net-create", "/proc/self/fd/0", input=network)
    try:
        with Namespace("freeguest") as guest:
            address = guest_address()
            machine.wire("labfree", guest, "eth0", address=address, port_of="virbr9")
            guest.run("ip", "route", "add", "default", "via", "192.168.145.1")
            own = {"external": str(external(9)), "internal": str(address.ip), "network": "free"}
            service.configure(own)
            service.systemctl("reload")
            service.wait_for(external(9), "active")
            with EchoServer(guest, PORT), EchoServer(lan, PORT):
                wait_for(
                    lambda: tcp(lan, external(9), PORT) == Answer(LAN_CLIENT.ip, guest.name),
                    20,
                    "the guest answers",
                )
                assert udp(guest, LAN_CLIENT.ip, PORT) == Answer(external(9), lan.name)
    finally:
        machine.virsh("net-destroy", "free")
    service.wait_for(external(9), "inactive")
