"""The lab itself: what every other lab test takes for granted."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import lab
import pytest
from lab import (
    Answer,
    DomainGuest,
    EchoServer,
    Failure,
    Host,
    IdleDomain,
    Lan,
    Namespace,
    NamespaceGuest,
    Recorder,
    Stream,
    icmp,
    icmp_source,
    tcp,
    udp,
    wait_for,
)
from lab.addresses import HOST, LAN_CLIENT, guest_name, internal, lan_host


@pytest.fixture(scope="module")
def guest(host: Host) -> Iterator[NamespaceGuest]:
    with NamespaceGuest(host, guest_name(9), internal(9)) as guest:
        yield guest


def test_lan_reaches_the_host(lan: Lan, host: Host) -> None:
    """The LAN client reaches the host's uplink, and the host sees the client's own address."""
    assert icmp(lan, HOST.ip)
    assert icmp_source(lan, HOST.ip, host) == LAN_CLIENT.ip


def test_nobody_answers_for_a_free_address(lan: Lan) -> None:
    """Traffic to an address that nobody has is reported as such, not as a refusal."""
    assert not icmp(lan, lan_host(9).ip, timeout=1)
    assert tcp(lan, lan_host(9).ip, 22, timeout=5) is Failure.UNREACHABLE


def test_libvirt_network_is_active(host: Host) -> None:
    """libvirtd answers and its default network is up, with libvirt's own rules."""
    assert "active" in host.virsh("net-list").split()
    assert "LIBVIRT_FWI" in host.listing()


def test_libvirt_network_survives_restart_and_crash(host: Host) -> None:
    """A restart and a crash of libvirtd leave network and rules as they were, byte for byte."""
    before = host.listing()
    host.libvirtd.restart()
    assert host.listing() == before
    host.libvirtd.kill()
    host.libvirtd.start()
    assert host.listing() == before


def test_guest_leaves_masqueraded(lan: Lan, guest: NamespaceGuest) -> None:
    """Without the daemon a guest reaches the LAN with the host's address, in all protocols."""
    with EchoServer(lan, 7):
        expected = Answer(HOST.ip, "lan")
        assert tcp(guest, LAN_CLIENT.ip, 7) == expected
        assert udp(guest, LAN_CLIENT.ip, 7) == expected
    assert icmp_source(guest, LAN_CLIENT.ip, lan) == HOST.ip


def test_host_reaches_guest_but_the_lan_does_not(
    lan: Lan, host: Host, guest: NamespaceGuest
) -> None:
    """Without the daemon the LAN is refused by libvirt's rules where it routes to the guest."""
    with EchoServer(guest, 7), lan.host("other", lan_host(0)) as other:
        answer = tcp(host, guest.address, 7)
        assert isinstance(answer, Answer)
        assert answer.name == guest.name
        other.run("ip", "route", "add", f"{guest.address}/32", "via", str(HOST.ip))
        assert tcp(other, guest.address, 7) is Failure.REFUSED
        assert udp(other, guest.address, 7) is Failure.REFUSED
        assert icmp_source(other, guest.address, guest, timeout=1) is None


def test_stream_sees_a_gap(lan: Lan, host: Host, guest: NamespaceGuest) -> None:
    """A stream is whole when nothing happens, and not when the uplink loses its carrier."""
    with EchoServer(lan, 7):
        with (
            Stream(guest, LAN_CLIENT.ip, 7, lan) as quiet,
            Stream(guest, LAN_CLIENT.ip, 7, lan, "udp") as quiet_udp,
        ):
            # The condition is the host's work, not a time: some hundred milliseconds of it.
            host.listing()
            host.virsh("net-dumpxml", "default")
            for report in (quiet.finish(), quiet_udp.finish()):
                assert report.whole, report
                assert report.sent > 1
                assert report.sources == (HOST.ip,)
        with Stream(guest, LAN_CLIENT.ip, 7, lan, "udp") as torn:
            lan.set_carrier(host.uplink_port, up=False)
            host.listing()
            lan.set_carrier(host.uplink_port, up=True)
            host.lease()
            wait_for(lambda: icmp(guest, LAN_CLIENT.ip, timeout=1), 60, "the LAN is back")
            assert torn.finish().lost > 0


def test_echo_server_is_there_at_once(lan: Lan, host: Host) -> None:
    """What a new echo server is asked first, by either protocol, it answers."""
    for port in range(7100, 7110):
        with EchoServer(host, port):
            for ask in (tcp, udp) if port % 2 else (udp, tcp):
                assert ask(lan, HOST.ip, port) == Answer(LAN_CLIENT.ip, "host")


def test_idle_domain_has_a_lifecycle(host: Host) -> None:
    """A domain that idles in its BIOS starts, pauses, goes on and ends."""
    idle = IdleDomain(host, "idle")
    idle.define()
    idle.start()
    assert idle.state() == "running"
    idle.suspend()
    assert idle.state() == "paused"
    idle.resume()
    assert idle.state() == "running"
    idle.destroy()
    assert idle.state() == "shut off"
    idle.undefine()


def test_domain_guest(lan: Lan, host: Host) -> None:
    """A real domain boots, serves its page, calls the LAN, reboots and shuts down by ACPI."""
    domain = DomainGuest(host, guest_name(1), internal(1))
    domain.define()
    with Recorder(lan) as recorder:
        domain.start()
        domain.wait_until_up()
        assert domain.page("/cgi-bin/peer") == f"192.168.122.1 {domain.name}"
        assert tcp(host, domain.address, 7) == Answer(IPv4Address("0.0.0.0"), domain.name)
        assert recorder.next_from(domain.name).source == HOST.ip
        domain.suspend()
        assert domain.page(timeout=1) is None
        domain.resume()
        domain.wait_until_up()
        domain.reboot()
        wait_for(lambda: domain.page(timeout=0.5) is None, 60, "the domain goes down")
        domain.wait_until_up()
    domain.shutdown()
    domain.wait_for_state("shut off")
    domain.undefine()


def test_close_leaves_nothing() -> None:
    """After close, also with a daemon that forked twice, no process or mount is left."""
    mounts = Path("/proc/self/mountinfo").read_text()
    with Lan("lan2") as lan, Host(lan, "host2") as host:
        host.start_libvirt()
        inside = host.processes()
        assert any("dnsmasq" in command for command in inside.values())
    assert not [pid for pid in inside if _alive(pid)]
    assert Path("/proc/self/mountinfo").read_text() == mounts


def test_nothing_of_the_machine() -> None:
    """A product that this machine has, with whatever it left there, is not seen in the lab."""
    machine = (
        "for top in etc var/lib; do"
        "  mkdir /mnt/$top-up /mnt/$top-work -p && mount -t overlay"
        "    -o lowerdir=/$top,upperdir=/mnt/$top-up,workdir=/mnt/$top-work overlay /$top &&"
        "  mkdir -p -m 0700 /$top/vm-onetoone-nat && touch /$top/vm-onetoone-nat/left || exit 1; "
        "done; "
        'exec "$@"'
    )
    script = (
        "import os, sys; sys.path.insert(0, sys.argv[1])\n"
        "from lab import Host, Lan\n"
        "assert os.path.exists('/var/lib/vm-onetoone-nat/left')\n"
        "with Lan() as lan, Host(lan) as host:\n"
        "    for top in ('etc', 'var/lib'):\n"
        "        print(host.path(f'/{top}/vm-onetoone-nat').exists())\n"
    )
    unshare = ("unshare", "--mount", "--propagation", "private")
    support = str(Path(lab.__file__).parents[1])
    done = subprocess.run(
        [
            *(*unshare, "sh", "-ec", f"mount -t tmpfs tmpfs /mnt; {machine}", "sh"),
            *(sys.executable, "-c", script, support),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("False\nFalse\n", "")


def test_orphan_is_reaped() -> None:
    """A process whose parent has gone does not stay as a zombie that looks alive."""
    with Namespace("orphans") as namespace:
        namespace.run("sh", "-c", "sleep 0.2 & exit 0")
        wait_for(lambda: not namespace.processes(), 60, "the orphan is gone")


def test_signal_reaches_the_program() -> None:
    """A signal goes to the program inside, and how it ended comes back."""
    with Namespace("signals") as namespace:
        trap = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.1; done"
        with namespace.popen("sh", "-c", trap, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            process.terminate()
            assert process.wait(10) == 7


def test_killed_lab_leaves_nothing() -> None:
    """SIGKILL to the process that made a lab ends everything inside."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from lab import Host, Lan\n"
        "host = Host(Lan()); host.start_libvirt()\n"
        "print(host.pid, *host.processes(), flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(Path(lab.__file__).parents[1])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as maker:
        assert maker.stdout is not None
        inside = [int(pid) for pid in maker.stdout.readline().split()]
        assert len(inside) > 3
        os.kill(maker.pid, signal.SIGKILL)
        wait_for(
            lambda: not [pid for pid in inside if _alive(pid)], 30, "processes of a killed lab end"
        )


def _alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
