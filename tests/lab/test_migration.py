"""A guest that moves from one host to another, by libvirt's own live migration."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import IPv4Interface
from pathlib import Path
from subprocess import DEVNULL

import pytest
from faults import in_the_way
from lab import (
    Answer,
    CommandError,
    EchoServer,
    Host,
    IdleDomain,
    Lan,
    Stream,
    Voice,
    tcp,
    wait_for,
)
from lab.addresses import (
    HOST,
    LAN_BRIDGE,
    LAN_CLIENT,
    LIBVIRT_GATEWAY,
    UPLINK,
    external,
    internal,
    lan_host,
    mac_of,
)
from lab.run_queue import RunQueue
from lab.traffic import ArpAsker
from running import Daemon, mapping

PORT = 7000
ADDRESSES = {"one": HOST, "two": lan_host(9)}


class Site:
    """A host with its daemon, and what speaks for the guest while it is there."""

    def __init__(self, host: Host, daemon: Daemon, voice: Voice, mac: str) -> None:
        self.host, self.daemon, self.voice, self.mac = host, daemon, voice, mac


@pytest.fixture
def sites(lan: Lan, tmp_path: Path) -> Iterator[dict[str, Site]]:
    """Two hosts on one LAN with the same configuration; their networks have the same subnet."""
    with ExitStack() as stack:
        found = {}
        for name, address in ADDRESSES.items():
            host = stack.enter_context(Host(lan, name, address))
            host.start_libvirt()
            voice = stack.enter_context(Voice(host, f"at-{name}", mac_of(internal(1))))
            voice.static(IPv4Interface((internal(1), 24)), LIBVIRT_GATEWAY.ip)
            stack.enter_context(EchoServer(voice, PORT))
            (tmp_path / name).mkdir()
            daemon = Daemon(host, tmp_path / name)
            daemon.configure(mapping(1, domain="moving"))
            daemon.start()
            stack.callback(daemon.stop)
            (link,) = json.loads(host.run("ip", "-j", "link", "show", UPLINK).stdout)
            found[name] = Site(host, daemon, voice, link["address"])
        yield found


@pytest.fixture
def moving(sites: dict[str, Site]) -> IdleDomain:
    domain = IdleDomain(sites["one"].host, "moving", interfaces=[(mac_of(internal(1)), "default")])
    domain.define()
    domain.start()
    sites["one"].daemon.wait_for(external(1), "active")
    sites["two"].daemon.wait_for(external(1), "inactive")
    return domain


def test_live_migration(lan: Lan, sites: dict[str, Site], moving: IdleDomain) -> None:
    """The address is where the guest runs: never at both, announced at once, there and back."""
    assert tcp(lan, external(1), PORT) == Answer(LAN_CLIENT.ip, "at-one")
    for here, there in (("one", "two"), ("two", "one")):
        with (
            RunQueue(lambda: [pid for s in sites.values() for pid in in_the_way(s.host)]) as queue,
            ArpAsker(lan, LAN_BRIDGE, external(1), rate=200) as asker,
            Stream(lan, external(1), PORT, sites[there].voice, "flows", rate=200) as stream,
        ):
            # The emulator tells the bridge that the guest is behind its port: the voice insists.
            insisting = ("ping", "-q", "-i", "0.02", str(LIBVIRT_GATEWAY.ip))
            with sites[there].voice.popen(*insisting, stdout=DEVNULL) as ping:
                sites[here].host.migrate("moving", sites[there].host)
                sites[there].daemon.wait_for(external(1), "active")
                ping.terminate()
            # The client's kernel may just now give up to ask for the address.
            expected = Answer(LAN_CLIENT.ip, f"at-{there}")
            wait_for(lambda: tcp(lan, external(1), PORT) == expected, 60, f"it answers {there}")  # noqa: B023
            questions = asker.finish()
            report = stream.finish()
        # That it was never at both, the answers tell; the report follows the pass.
        sites[here].daemon.wait_for(external(1), "inactive")
        assert all(len(set(macs)) <= 1 for _, macs in questions)
        answers = [(at, macs[0]) for at, macs in questions if macs]
        assert [mac for _, mac in answers] == sorted(
            (mac for _, mac in answers), key=lambda mac: mac == sites[there].mac
        ), "once the new host has answered, the old one does not"
        left = max(at for at, mac in answers if mac == sites[here].mac)
        arrived = min(at for at, mac in answers if mac == sites[there].mac)
        print(
            f"{here} to {there}: nobody answered ARP for {arrived - left:.2f} s; "
            f"{report.answered:,} of {report.sent:,} messages answered, {report.lost / 200:.2f} s"
        )
        assert arrived > left
        assert queue.undisturbed(left, arrived) < 3
        for site in sites.values():
            site.daemon.wait_until_converged()


def test_migration_that_fails(lan: Lan, sites: dict[str, Site], moving: IdleDomain) -> None:
    """A guest that comes to no other host stays reachable where it is."""
    sites["two"].host.stop_network()
    with Stream(lan, external(1), PORT, sites["one"].voice, rate=100) as stream:
        with pytest.raises(CommandError, match="migration of moving"):
            sites["one"].host.migrate("moving", sites["two"].host)
        sites["one"].daemon.wait_until_converged()
        report = stream.finish()
    assert report.whole, report
    assert sites["one"].daemon.mapping(external(1))["state"] == "active"
    assert moving.state() == "running"
