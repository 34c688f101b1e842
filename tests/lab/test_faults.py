"""What is wrong on the host, and what the daemon makes of it."""

import json
import sys

import pytest
from lab import Answer, EchoServer, Host, Lan, NamespaceGuest, tcp, wait_for
from lab.addresses import HOST, LAN_CLIENT, LIBVIRT_BRIDGE, UPLINK, external, internal
from running import Daemon, mapping

PORT = 7000
FORWARDING = "net.ipv4.ip_forward"


def reason(daemon: Daemon, n: int) -> str:
    """The reason that `status` gives for mapping n."""
    return daemon.mapping(external(n))["reason"]


def uplink_addresses(host: Host) -> list[tuple[str, bool]]:
    """The uplink's addresses in the kernel's order, each with whether it is secondary."""
    (link,) = json.loads(host.run("ip", "-j", "-4", "address", "show", "dev", UPLINK).stdout)
    return [(a["local"], a.get("secondary", False)) for a in link["addr_info"]]


def test_uplink_appears(lan: Lan, host: Host, daemon: Daemon) -> None:
    """Without its uplink a mapping is in error and says so; it is active once that appears."""
    daemon.configure(mapping(1), uplink="usb0")
    daemon.start()
    daemon.wait_for(external(1), "error")
    assert reason(daemon, 1) == "there is no uplink: interface 'usb0' does not exist"
    port = lan.attach(host, "usb0")
    try:
        wait_for(lambda: "has no IPv4 address" in reason(daemon, 1), 60, "it is seen")
        host.run("ip", "address", "add", "192.168.1.60/24", "brd", "+", "dev", "usb0")
        daemon.wait_for(external(1), "active")
        assert f"{external(1)}/24" in host.run("ip", "address", "show", "dev", "usb0").stdout
    finally:
        lan.run("ip", "link", "delete", port)
    daemon.wait_for(external(1), "error")


def test_default_route_appears(host: Host, daemon: Daemon) -> None:
    """With uplink "auto" and no default route a mapping is in error, until there is a route."""
    host.run("ip", "route", "del", "default")
    daemon.configure(mapping(1))
    daemon.start()
    daemon.wait_for(external(1), "error")
    assert reason(daemon, 1) == "there is no uplink: the host has no IPv4 default route"
    assert daemon.status()["uplink"] == ""
    host.lease()
    daemon.wait_for(external(1), "active")
    assert daemon.status()["uplink"] == UPLINK


def test_uplink_moves_to_another_subnet(host: Host, daemon: Daemon) -> None:
    """External addresses outside the uplink's subnet are in error, and come back with it."""
    daemon.configure(mapping(1))
    daemon.start()
    daemon.wait_for(external(1), "active")
    host.run("ip", "address", "flush", "dev", UPLINK)
    host.run("ip", "address", "add", "10.9.9.100/24", "brd", "+", "dev", UPLINK)
    host.run("ip", "route", "replace", "default", "via", "10.9.9.1", "dev", UPLINK)
    wait_for(lambda: "outside the uplink's subnet 10.9.9.0/24" in reason(daemon, 1), 60, "error")
    assert str(external(1)) not in host.run("ip", "address", "show").stdout
    host.lease()
    daemon.wait_for(external(1), "active")


def test_odd_names(lan: Lan, host: Host, daemon: Daemon) -> None:
    """Interfaces whose names are no text, quotes or braces, one of them a port of a guest's bridge,
    are in nobody's way.
    """
    names = ("\udcff\udcfe", 'a"b', "{c}", "d'$e", "f*")
    with NamespaceGuest(host, "beside", internal(1)) as guest, EchoServer(guest, PORT):
        daemon.configure(mapping(1))
        daemon.start()
        daemon.wait_for(external(1), "active")
        try:
            for n, name in enumerate(names):
                host.run("ip", "link", "add", name, "type", "veth", "peer", "name", f"odd{n}")
                host.run("ip", "link", "set", name, "up")
                host.run("ip", "address", "add", f"10.77.{n}.1/24", "dev", name)
                host.run("ip", "link", "set", f"odd{n}", "up", "master", LIBVIRT_BRIDGE)
                host.run(
                    *("ip", "neigh", "add", f"10.77.{n}.2", "lladdr", "52:54:00:77:00:02"),
                    *("dev", name),
                )
            host.run("ip", "link", "set", names[0], "master", LIBVIRT_BRIDGE)
            host.run("ip", "address", "del", f"{external(1)}/24", "dev", UPLINK)
            daemon.wait_until_converged()
            assert daemon.mapping(external(1))["state"] == "active"
            assert tcp(lan, external(1), PORT) == Answer(LAN_CLIENT.ip, "beside")
        finally:
            for name in names:
                host.run("ip", "link", "del", name, check=False)


@pytest.mark.parametrize("promote", [0, 1])
def test_host_address_returns(host: Host, daemon: Daemon, promote: int) -> None:
    """The host's address, removed and put back, is the primary one again; ours stay beside it."""
    setting = f"net.ipv4.conf.{UPLINK}.promote_secondaries"
    host.sysctl(setting, promote)
    daemon.configure(mapping(1), mapping(2))
    daemon.start()
    for n in (1, 2):
        daemon.wait_for(external(n), "active")
    host.run("ip", "address", "del", str(HOST), "dev", UPLINK)
    for n in (1, 2):
        daemon.wait_for(external(n), "error")
    host.lease()

    expected = [(str(HOST.ip), False), (str(external(1)), True), (str(external(2)), True)]
    wait_for(
        lambda: sorted(uplink_addresses(host)) == expected, 60, "the host's address is primary"
    )
    assert host.sysctl(setting) == str(promote)
    assert daemon.stop() == 0
    assert uplink_addresses(host) == [(str(HOST.ip), False)]


@pytest.mark.parametrize("promote", [0, 1])
def test_host_address_is_behind_ours(host: Host, daemon: Daemon, promote: int) -> None:
    """Where ours became the primary address of its subnet, removing it takes no other with it."""
    setting = f"net.ipv4.conf.{UPLINK}.promote_secondaries"
    daemon.configure(mapping(1))
    daemon.start()
    daemon.wait_for(external(1), "active")
    daemon.kill()
    host.sysctl(setting, 1)
    host.run("ip", "address", "del", str(HOST), "dev", UPLINK)
    host.run("ip", "address", "add", str(HOST), "brd", "+", "dev", UPLINK)
    assert uplink_addresses(host) == [(str(external(1)), False), (str(HOST.ip), True)]
    host.sysctl(setting, promote)
    assert daemon.command("cleanup").returncode == 0
    assert uplink_addresses(host) == [(str(HOST.ip), False)]
    assert host.sysctl(setting) == str(promote)
    host.lease()


def test_ip_forward_is_turned_on(lan: Lan, host: Host, daemon: Daemon) -> None:
    """Forwarding that is off is turned on for the host, and that is said once."""
    daemon.configure(mapping(1))
    with NamespaceGuest(host, "forwarded", internal(1)) as guest, EchoServer(guest, PORT):
        host.sysctl(FORWARDING, 0)
        daemon.start()
        daemon.wait_for(external(1), "active")
        assert tcp(lan, external(1), PORT) == Answer(LAN_CLIENT.ip, "forwarded")
    assert host.sysctl(FORWARDING) == "1"
    assert daemon.log().count("net.ipv4.ip_forward was off: turned on") == 1


def test_ip_forward_cannot_be_turned_on(host: Host, daemon: Daemon) -> None:
    """Where the setting cannot be written, that is an error that names the remedy."""
    daemon.configure(mapping(1))
    host.sysctl(FORWARDING, 0)
    read_only = "mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys"
    run = f"{sys.executable} -m vm_onetoone_nat --config {daemon.config} run"
    with daemon.log_path.open("a") as log:
        daemon.process = host.popen(
            "unshare", "--mount", "sh", "-c", f"{read_only} && exec {run}", stderr=log
        )
    try:
        wait_for(lambda: "sysctl -w net.ipv4.ip_forward=1" in daemon.log(), 60, "the remedy")
        daemon.wait_for(external(1), "error")
        assert reason(daemon, 1) == "net.ipv4.ip_forward is off"
        assert "turned on for" not in daemon.log()
    finally:
        host.sysctl(FORWARDING, 1)


def test_foreign_table_of_our_name(host: Host, daemon: Daemon) -> None:
    """A refused transaction leaves nothing half done, is said once, and is tried again."""
    owner = host.popen("nft", "-i", stdin=-1)
    assert owner.stdin is not None
    with owner:
        owner.stdin.write("add table inet vm_onetoone_nat { flags owner; }\n")
        owner.stdin.flush()
        wait_for(lambda: "vm_onetoone_nat" in host.run("nft", "list", "tables").stdout, 60, "it")
        addresses = host.run("ip", "-4", "address", "show", "dev", UPLINK).stdout.count("inet ")
        daemon.configure(mapping(1), mapping(2))
        daemon.start()
        wait_for(lambda: "nftables refused a transaction" in daemon.log(), 60, "the refusal")
        refusal = f"mapping {external(1)}: nftables refused"
        wait_for(lambda: refusal in daemon.log(), 60, "the refusal of the mapping")
        wait_for(lambda: "pass: retry" in daemon.log(), 60, "another attempt")
        assert daemon.log().count(refusal) == 1
        assert f"{external(1)} ({internal(1)}, network default) is error" in daemon.log()
        found = host.run("ip", "-4", "address", "show", "dev", UPLINK).stdout.count("inet ")
        assert found == addresses
        assert "0x100000" not in host.run("iptables", "-S", "FORWARD").stdout
        owner.stdin.close()
        owner.wait(10)
    for n in (1, 2):
        daemon.wait_for(external(n), "active")


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"internal": "192.168.122.1"}, "is the gateway of network 'default'"),
        ({"internal": "192.168.50.9"}, "is no host address of network 'default'"),
        ({"external": "192.168.122.200/25"}, "the subnet of libvirt network 'default'"),
        ({"external": "192.168.77.9"}, "outside the uplink's subnet 192.168.1.0/24"),
        ({"external": str(HOST.ip)}, "is the host's own address on wlp0s20f3"),
    ],
)
def test_mapping_that_cannot_work(daemon: Daemon, keys: dict[str, str], expected: str) -> None:
    """One mapping that cannot work is in error with its reason; the other one works."""
    daemon.configure({**mapping(1), **keys}, mapping(2))
    daemon.start()
    daemon.wait_for(external(2), "active")
    bad = next(m for m in daemon.status()["mappings"] if m["external"] != str(external(2)))
    assert bad["state"] == "error"
    assert expected in bad["reason"]


def test_unknown_internal_is_pending(daemon: Daemon) -> None:
    """A mapping without `internal` is pending, with the reason; `plan` has nothing for it."""
    daemon.configure({"external": str(external(1))})
    daemon.start()
    daemon.wait_for(external(1), "pending")
    assert "write 'internal'" in reason(daemon, 1)
    daemon.wait_until_converged()


def test_check_knows_the_host(daemon: Daemon) -> None:
    """`check` refuses the host's own address and libvirt's subnet, on the host where they are."""
    daemon.configure(mapping(1, external=str(HOST.ip)), mapping(2, external="192.168.122.200/26"))
    done = daemon.command("check")
    assert done.returncode == 78
    assert "'192.168.1.100' is this host's own address on wlp0s20f3" in done.stderr
    assert (
        "mapping[1].external: '192.168.122.200' lies in the libvirt network's subnet" in done.stderr
    )


def test_plan_changes_nothing(host: Host, daemon: Daemon) -> None:
    """`plan` lists what a pass would write, exits with 2, and writes nothing."""
    before = host.listing()
    daemon.configure(mapping(1))
    done = daemon.command("plan")
    assert done.returncode == 2
    assert f"+ address {external(1)}/24 on {UPLINK}" in done.stdout.splitlines()
    assert host.listing() == before
    daemon.start()
    daemon.wait_for(external(1), "active")
    daemon.wait_until_converged()
