"""What is ours goes without a trace, what is not stays; and a converged daemon writes nothing."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import EchoServer, Host, Lan, NamespaceGuest, Stream, wait_for
from lab.addresses import HOST, UPLINK, external, internal
from monitor import writes
from running import Daemon, mapping

PORT = 7000
COUNT = 3


@pytest.fixture(scope="module")
def guest(host: Host) -> Iterator[NamespaceGuest]:
    """A guest that the host has heard of, with br_netfilter on, so that hairpin is needed."""
    host.bridge_netfilter(True)
    with NamespaceGuest(host, "one", internal(1)) as guest:
        guest.run("ping", "-c", "1", "-W", "5", "192.168.122.1")
        yield guest


@pytest.fixture
def before(host: Host, guest: NamespaceGuest) -> str:
    """The host's whole network state before the daemon; forwarding is on, thanks to libvirt."""
    assert host.sysctl("net.ipv4.ip_forward") == "1"
    assert guest.port in host.listing()
    return host.listing()


@pytest.fixture
def active(daemon: Daemon, before: str) -> Daemon:
    """The daemon with three active mappings, and a hairpin port."""
    daemon.configure(*(mapping(n) for n in range(1, COUNT + 1)))
    daemon.start()
    for n in range(1, COUNT + 1):
        daemon.wait_for(external(n), "active")
    wait_for(lambda: "hairpin on" in daemon.host.listing(), 60, "the hairpin flag")
    assert daemon.host.listing() != before
    return daemon


def test_stop_leaves_nothing(active: Daemon, before: str) -> None:
    """After SIGTERM the host is, byte for byte, as it was before the daemon."""
    assert active.stop() == 0
    assert active.host.listing() == before


def test_cleanup_after_a_crash(active: Daemon, before: str) -> None:
    """After SIGKILL everything is still there; `cleanup` leaves the host as it was before."""
    running = active.host.listing()
    active.kill()
    assert active.host.listing() == running
    done = active.command("cleanup")
    assert (done.returncode, done.stderr) == (0, "")
    assert active.host.listing() == before


def test_cleanup_stops_a_running_daemon(active: Daemon, before: str) -> None:
    """`cleanup` ends a daemon that runs, which would otherwise put everything back."""
    done = active.command("cleanup")
    assert done.returncode == 0, done.stderr
    assert "stopped the daemon" in done.stdout
    assert active.process is not None and active.process.wait(10) == 0
    assert active.host.listing() == before


def test_cleanup_without_configuration(active: Daemon, before: str) -> None:
    """`cleanup` needs no configuration: what is ours is told by the kernel's own marks."""
    active.kill()
    active.config.unlink()
    assert active.command("cleanup").returncode == 0
    assert active.host.listing() == before


def test_second_daemon_is_refused(active: Daemon) -> None:
    """A second `run` says who is running already, changes nothing, and exits with 1."""
    running = active.host.listing()
    done = active.command("run")
    assert done.returncode == 1
    assert "another vm-onetoone-nat is running (process " in done.stderr
    assert active.host.listing() == running


def test_restart_adopts(lan: Lan, active: Daemon, guest: NamespaceGuest, tmp_path: Path) -> None:
    """After SIGKILL a new daemon adopts what it finds: not one write, not one packet lost."""
    host = active.host
    active.wait_until_converged()
    with EchoServer(guest, PORT), Stream(lan, external(1), PORT, guest, rate=200) as stream:
        active.kill()
        with writes(host, tmp_path) as heard:
            active.start()
            wait_for(lambda: active.log().count("is active") >= 2 * COUNT, 60, "adopted")
            active.wait_until_converged()
        report = stream.finish()
    assert heard == []
    assert report.whole, report


def test_converged_passes_write_nothing(active: Daemon, tmp_path: Path) -> None:
    """Passes over a converged kernel, for whatever trigger, send no nftables or address message."""
    active.wait_until_converged()
    with writes(active.host, tmp_path) as heard:
        for reloads in (1, 2, 3):
            active.reload()
            wait_for(lambda: active.log().count("configuration reloaded") >= reloads, 60, "a pass")  # noqa: B023
        assert active.command("status").returncode == 0
        assert active.command("plan").returncode == 0
    assert heard == []


def test_one_mapping_is_a_difference(active: Daemon, tmp_path: Path) -> None:
    """A mapping more adds one address and its elements; the table is not written again."""
    active.wait_until_converged()
    with writes(active.host, tmp_path) as heard:
        active.configure(*(mapping(n) for n in range(1, COUNT + 2)))
        active.reload()
        active.wait_for(external(COUNT + 1), "active")
    assert [line for line in heard if "add chain" in line or "delete" in line.lower()] == []
    assert sum("add element" in line for line in heard) == 6
    assert sum(f"inet {external(COUNT + 1)}/24" in line for line in heard) == 1
    assert sum("inet " in line and "element" not in line for line in heard) == 1


def test_table_of_a_crash_is_corrected(active: Daemon) -> None:
    """A table of our name that was left wrong is put right, not doubled."""
    host = active.host
    right = host.listing()
    active.kill()
    host.run("nft", "add element inet vm_onetoone_nat external { 192.168.1.9 : 192.168.122.9 }")
    host.run("nft", "add chain inet vm_onetoone_nat stray { type filter hook input priority 0; }")
    host.run("nft", "flush chain inet vm_onetoone_nat forward")
    host.run("nft", "insert rule ip filter FORWARD meta mark and 0x100000 == 0x100000 accept")
    assert active.command("plan").returncode == 2
    active.start()
    wait_for(lambda: host.listing() == right, 60, "the same as before the crash")


@pytest.mark.parametrize("prefix", [24, 32])
def test_earlier_address_is_used_and_stays(
    lan: Lan, daemon: Daemon, guest: NamespaceGuest, prefix: int
) -> None:
    """An address that somebody else had added serves its mapping, and is there after the end."""
    host = daemon.host
    host.run("ip", "address", "add", f"{external(1)}/{prefix}", "dev", UPLINK)
    try:
        before = host.listing()
        daemon.configure(mapping(1), mapping(2))
        daemon.start()
        daemon.wait_for(external(1), "active")
        listed = json.loads(host.run("ip", "-j", "-4", "address", "show", "dev", UPLINK).stdout)
        found = [a for a in listed[0]["addr_info"] if a["local"] == str(external(1))]
        assert [a["prefixlen"] for a in found] == [prefix]
        with EchoServer(guest, PORT), Stream(lan, external(1), PORT, guest, rate=50) as stream:
            assert stream.finish().whole
        assert daemon.stop() == 0
        assert host.listing() == before
    finally:
        host.run("ip", "address", "del", f"{external(1)}/{prefix}", "dev", UPLINK)


def test_addresses_are_as_promised(active: Daemon) -> None:
    """Ours are secondary, global, noprefixroute, with the uplink's prefix and broadcast."""
    listed = json.loads(active.host.run("ip", "-j", "-4", "address", "show", "dev", UPLINK).stdout)
    ours = {a["local"]: a for a in listed[0]["addr_info"] if a["local"] != str(HOST.ip)}
    assert set(ours) == {str(external(n)) for n in range(1, COUNT + 1)}
    for address in ours.values():
        assert (address["prefixlen"], address["broadcast"]) == (24, "192.168.1.255")
        assert (address["scope"], address.get("secondary")) == ("global", True)
        assert address.get("noprefixroute") is True


def test_changed_mark_moves(active: Daemon) -> None:
    """Another `fwmark` replaces the old one everywhere; the old accept is not left behind."""
    active.configure(*(mapping(n) for n in range(1, COUNT + 1)), fwmark="0x00200000")
    active.reload()
    wait_for(lambda: "0x200000/0x200000" in active.host.run("iptables-save").stdout, 60, "the mark")
    active.wait_until_converged()
    assert "0x100000" not in active.host.run("iptables-save").stdout
    assert "0x00100000" not in active.host.run("nft", "list", "ruleset").stdout


def test_bad_reload_changes_nothing(active: Daemon) -> None:
    """A file with a fault is refused with its place and remedy, and what ran goes on."""
    running = active.host.listing()
    active.configure(mapping(1), mapping(2, external="192.168.1.101"))
    active.reload()
    wait_for(lambda: "not reloaded" in active.log(), 60, "the refusal")
    assert f"{active.config}: mapping[1].external: '192.168.1.101' is already" in active.log()
    assert active.host.listing() == running
    active.configure(mapping(1, external=str(HOST.ip)))
    active.reload()
    wait_for(lambda: active.log().count("not reloaded") == 2, 60, "the second refusal")
    assert "is this host's own address on wlp0s20f3" in active.log()
    assert active.host.listing() == running


def test_interrupt_is_a_stop(active: Daemon, before: str) -> None:
    """Ctrl-C at a terminal ends like SIGTERM."""
    assert active.process is not None
    active.process.send_signal(signal.SIGINT)
    assert active.process.wait(30) == 0
    assert active.host.listing() == before
