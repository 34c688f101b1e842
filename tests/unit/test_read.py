"""What libvirt has of guests and networks: what cannot be read costs no more than itself."""

import threading
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface
from typing import Any

import libvirt
import pytest
from vm_onetoone_nat.errors import LibvirtUnavailable
from vm_onetoone_nat.internal_errors import OCCURRED
from vm_onetoone_nat.model.guests import DomainState, Guests
from vm_onetoone_nat.virt.agents import Agents
from vm_onetoone_nat.virt.read import Definitions, read_domains, read_networks
from vm_onetoone_nat.virt.xml import parse_domain, parse_network

MACS = [f"52:54:00:00:00:0{n}" for n in range(8)]
NIC = "<interface><mac address='52:54:00:00:00:01'/><source network='default'/></interface>"
WITH_AGENT = f"""<domain><devices>{NIC}<channel>
<target name='org.qemu.guest_agent.0' state='connected'/></channel></devices></domain>"""
NETWORK = """<network><bridge name='virbr0'/><ip address='192.168.122.1' prefix='24'>
<dhcp><host mac='52:54:00:00:00:01' ip='192.168.122.101'/></dhcp></ip></network>"""


def error(domain: int, code: int = 1) -> libvirt.libvirtError:
    """An error of libvirt's, from that part of it."""
    raised = libvirt.libvirtError("")
    raised.err = (code, domain, "it does not answer", 2, None, None, None, 0, 0)
    return raised


class FakeDomain:
    """A running guest of which anything may be raised instead of told."""

    def __init__(self, name: str, xml: str | Exception = "") -> None:
        self._name, self._xml = name, xml or f"<domain><devices>{NIC}</devices></domain>"

    def name(self) -> str:
        return self._name

    def UUIDString(self) -> str:  # noqa: N802
        return f"uuid of {self._name}"

    def ID(self) -> int:  # noqa: N802
        return 1

    def XMLDesc(self) -> str:  # noqa: N802
        if isinstance(self._xml, Exception):
            raise self._xml
        return self._xml


class FakeNetwork:
    """An active network."""

    def __init__(self, name: str, xml: str | Exception = NETWORK, leases: Any = ()) -> None:
        self._name, self._xml, self._leases = name, xml, leases
        self.active: int | Exception = 1

    def name(self) -> str:
        return self._name

    def isActive(self) -> int:  # noqa: N802
        if isinstance(self.active, Exception):
            raise self.active
        return self.active

    def XMLDesc(self) -> str:  # noqa: N802
        if isinstance(self._xml, Exception):
            raise self._xml
        return self._xml

    def DHCPLeases(self) -> list[dict[str, Any]]:  # noqa: N802
        if isinstance(self._leases, Exception):
            raise self._leases
        return list(self._leases)


class FakeConnection:
    """A connection with these."""

    def __init__(self, domains: list[FakeDomain], networks: list[FakeNetwork]) -> None:
        self._domains, self._networks = domains, networks

    def listAllDomains(self, _: int = 0) -> list[FakeDomain]:  # noqa: N802
        return self._domains

    def listAllNetworks(self) -> list[FakeNetwork]:  # noqa: N802
        return self._networks


def read(*objects: FakeDomain | FakeNetwork, definitions: Definitions | None = None) -> Guests:
    connection = FakeConnection(
        [each for each in objects if isinstance(each, FakeDomain)],
        [each for each in objects if isinstance(each, FakeNetwork)],
    )
    domains = read_domains(connection, definitions or Definitions(), None)
    return Guests(domains, read_networks(connection))


def lease(mac: str | None, address: str, kind: int = 0) -> dict[str, Any]:
    return {"mac": mac, "ipaddr": address, "type": kind, "expirytime": 1}


class TestDomain:
    """One guest among others."""

    @pytest.mark.parametrize(
        ("devices", "macs"),
        [
            ("<interface/>", []),
            ("<interface><mac/></interface>", []),
            ("<interface><mac type='static' check='no'/></interface>", []),
            ("<interface><mac address=''/></interface>", []),
            ("<interface><mac address='52:54:00:00:00:02'/></interface>", [MACS[2]]),
            (
                "<interface><mac address='52:54:00:00:00:02'/><mac address='x'/>"
                "<source/><source network='a'/><source bridge='b'/></interface>",
                [MACS[2]],
            ),
            (
                "<interface type='hostdev'><mac address='52:54:00:00:00:03'/></interface>",
                [MACS[3]],
            ),
        ],
    )
    def test_surprising_interface(self, devices: str, macs: list[str]) -> None:
        """An interface in whatever form is read as far as it goes, and those after it too.

        One whose MAC has no address made every guest unreadable.
        """
        definition = parse_domain(f"<domain><devices>{devices}{NIC}</devices></domain>")
        assert [nic.mac for nic in definition.interfaces] == [*macs, MACS[1]]
        assert definition.fault == ""

    @pytest.mark.parametrize("text", ["", "<domain>", "<domain>\ud800</domain>", "\0", "no XML"])
    def test_no_xml(self, text: str) -> None:
        """A definition that is no XML is a fault of that guest."""
        assert parse_domain(text).fault.startswith("its definition cannot be read: ")

    @pytest.mark.internal_errors
    def test_unexpected(self) -> None:
        """What nobody expects of one guest is its fault, and the others are read; it is read again
        the next time.
        """
        definitions = Definitions()
        odd = FakeDomain("odd", UnicodeDecodeError("utf-8", b"\xff", 0, 1, "odd"))
        guests = read(FakeDomain("a"), odd, FakeDomain("b"), definitions=definitions)
        assert [d.name for d in guests.domains] == ["a", "odd", "b"]
        assert [bool(d.fault) for d in guests.domains] == [False, True, False]
        assert {d.state for d in guests.domains} == {DomainState.RUNNING}
        assert OCCURRED.counts["domain"] == OCCURRED.total == 1
        guests = read(FakeDomain("odd"), definitions=definitions)
        assert guests.domains[0].fault == ""

    @pytest.mark.internal_errors
    @pytest.mark.parametrize("failure", [error(libvirt.VIR_FROM_QEMU), KeyError("x")])
    def test_last_one(self, failure: Exception, caplog: pytest.LogCaptureFixture) -> None:
        """While a definition cannot be read, what was read last stays in use, also after an event
        and after a new connection. It is logged once, and ends with the first read.
        """
        definitions = Definitions()
        (known,) = read(FakeDomain("a"), definitions=definitions).domains
        events: list[Callable[[], None]] = [
            lambda: definitions.changed(known.uuid),
            definitions.all_changed,
        ]
        for event in events:
            event()
            failing = read(FakeDomain("a", failure), definitions=definitions)
            assert failing.domains == (replace(known, unread=True),)
            assert failing.unread
        assert len([r for r in caplog.records if r.name.endswith("read")]) == 1
        guests = read(FakeDomain("a"), definitions=definitions)
        assert (guests.domains, guests.unread) == ((known,), False)

    def test_forgotten(self) -> None:
        """Of a guest that libvirt no longer has, nothing stays."""
        definitions = Definitions()
        read(FakeDomain("a"), definitions=definitions)
        read(FakeDomain("b"), definitions=definitions)
        (again,) = read(
            FakeDomain("a", error(libvirt.VIR_FROM_QEMU)), definitions=definitions
        ).domains
        assert (again.interfaces, again.unread) == ((), True)
        assert again.fault == "its definition cannot be read: it does not answer"

    @pytest.mark.internal_errors
    def test_unexpected_of_the_agents(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where its agent cannot be asked, a guest is listed, with all but what the agent knows."""

        def start(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", start)
        connection = FakeConnection([FakeDomain("a", WITH_AGENT), FakeDomain("b")], [])
        agents = Agents("test:///default", lambda: None)
        a, b = read_domains(connection, Definitions(), agents)
        assert (a.name, a.fault, a.interfaces) == ("a", "", b.interfaces)
        assert OCCURRED.counts["agent"] == OCCURRED.total == 1

    @pytest.mark.parametrize("part", ["name", "UUIDString"])
    def test_unexpected_of_the_list(self, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """An internal error about which guests there are leaves none of them out."""

        def fail() -> str:
            raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "odd")

        odd = FakeDomain("odd")
        monkeypatch.setattr(odd, part, fail)
        with pytest.raises(UnicodeDecodeError):
            read(FakeDomain("a"), odd)

    def test_error_about_one(self) -> None:
        """An error of libvirt's about one guest is its fault. It was one of the connection."""
        broken = FakeDomain("broken", error(libvirt.VIR_FROM_QEMU))
        guests = read(broken, FakeDomain("b"), FakeNetwork("default"))
        assert [d.fault for d in guests.domains] == [
            "its definition cannot be read: it does not answer",
            "",
        ]

    def test_error_of_the_connection(self) -> None:
        """An error of the connection is none of a guest: nothing is known then."""
        with pytest.raises(LibvirtUnavailable):
            read(FakeDomain("a", error(libvirt.VIR_FROM_RPC)), FakeDomain("b"))

    def test_undefined_meanwhile(self) -> None:
        """A guest that is gone since has no fault."""
        gone = FakeDomain("gone", error(libvirt.VIR_FROM_QEMU, libvirt.VIR_ERR_NO_DOMAIN))
        assert read(gone).domains[0].fault == ""


class TestNetwork:
    """One network among others."""

    @pytest.mark.parametrize("text", ["", "<network>", "\0", "<network>\ud800</network>"])
    def test_no_xml(self, text: str) -> None:
        """A definition that is no XML is a fault of that network; it ended the daemon."""
        guests = read(FakeDomain("a"), FakeNetwork("odd", text), FakeNetwork("default"))
        odd, default = guests.networks
        assert odd.fault.startswith("its definition cannot be read: ")
        assert (odd.active, odd.gateways) == (True, ())
        assert default.fault == ""
        assert default.gateways == (IPv4Interface("192.168.122.1/24"),)
        assert len(guests.domains) == 1

    @pytest.mark.parametrize(
        "subnet",
        [
            "<ip address='nonsense' prefix='24'/>",
            "<ip address='10.0.0.1' prefix='240'/>",
            "<ip address='10.0.0.1' netmask='255.0.255.0'/>",
            "<ip address='::1' prefix='64'/>",
        ],
    )
    def test_address(self, subnet: str) -> None:
        """An address that cannot be read is named, and the others are read."""
        found = parse_network(NETWORK.replace("<ip ", f"{subnet}<ip ", 1))
        assert found.fault.startswith("its address cannot be read: ")
        assert found.gateways == (IPv4Interface("192.168.122.1/24"),)
        assert found.bridge == "virbr0"

    def test_odd_parts(self) -> None:
        """What has no address or is of another family is passed over."""
        parts = "<ip/><ip family='ipx' address='1'/><ip family='ipv6' address='fe80::1'/>"
        found = parse_network(f"<network>{parts}<bridge/></network>")
        assert (found.bridge, found.gateways, found.fault) == (None, (), "")

    def test_reservation(self) -> None:
        """A reservation that cannot be read costs its guest only, who is told."""
        odd = "<host mac='52:54:00:00:00:0A' ip='x'/><host ip='1.2.3.4'/><host mac=''/><host/>"
        found = parse_network(NETWORK.replace("<dhcp>", f"<dhcp>{odd}"))
        assert found.reservations == ((MACS[1], IPv4Address("192.168.122.101")),)
        ((mac, why),) = found.unreadable
        assert mac == "52:54:00:00:00:0a"
        assert why.startswith("its reservation cannot be read: ")

    def test_lease(self) -> None:
        """A lease that cannot be read costs its guest only, who is told; it ended the daemon."""
        leases = [
            lease(MACS[2], "192.168.122.2"),
            lease(MACS[3], "192.168.122.300"),
            lease(None, "192.168.122.4"),
            lease(MACS[5], "fe80::5", kind=1),
        ]
        (network,) = read(FakeNetwork("default", leases=leases)).networks
        assert network.leases == ((MACS[2], IPv4Address("192.168.122.2")),)
        ((mac, why),) = network.unreadable
        assert mac == MACS[3]
        assert why.startswith("its lease cannot be read: ")

    def test_error_about_one(self, caplog: pytest.LogCaptureFixture) -> None:
        """An error of libvirt's about one network is its fault; the connection is not replaced."""
        broken, default = FakeNetwork("broken"), FakeNetwork("default")
        broken.active = error(libvirt.VIR_FROM_ACCESS)
        seen = read(broken, FakeNetwork("denied", error(libvirt.VIR_FROM_ACCESS)), default)
        fault = "its definition cannot be read: it does not answer"
        assert [n.fault for n in seen.networks] == [fault, fault, ""]
        assert [n.unread for n in seen.networks] == [True, True, False]
        assert seen.unread
        again = read_networks(FakeConnection([], [broken]), seen.networks)
        assert again == seen.networks[:1]
        assert len([r for r in caplog.records if r.name.endswith("read")]) == 2

    def test_error_of_the_connection(self) -> None:
        """An error of the connection is none of a network: nothing is known then."""
        with pytest.raises(LibvirtUnavailable):
            read(FakeNetwork("default", error(libvirt.VIR_FROM_RPC)))

    def test_last_one(self) -> None:
        """While a network cannot be read, what was read last stays, apart from whether it is
        active, if that is known.
        """
        (known,) = read(FakeNetwork("default")).networks
        failing = FakeNetwork("default", error(libvirt.VIR_FROM_NETWORK))
        connection = FakeConnection([], [failing])
        assert read_networks(connection, (known,)) == (replace(known, unread=True),)
        failing.active = error(libvirt.VIR_FROM_NETWORK)
        assert read_networks(connection, (known,)) == (replace(known, unread=True),)
        failing.active = 0
        assert read_networks(connection, (known,)) == (replace(known, active=False, unread=True),)
        connection = FakeConnection([], [FakeNetwork("default")])
        assert read_networks(connection, (known,)) == (known,)

    def test_leases_while_their_file_is_written(self) -> None:
        """Leases that libvirt cannot read now are none."""
        odd = FakeNetwork("default", leases=error(libvirt.VIR_FROM_NETWORK))
        (network,) = read(odd).networks
        assert (network.leases, network.fault) == ((), "")

    @pytest.mark.internal_errors
    def test_unexpected(self) -> None:
        """What nobody expects of a network's leases costs these, of its definition the network."""
        surprise = KeyError("x")
        leases, definition, default = read(
            FakeNetwork("leases", leases=surprise),
            FakeNetwork("definition", surprise),
            FakeNetwork("default"),
        ).networks
        assert (leases.gateways, leases.leases) == (default.gateways, ())
        assert definition.fault.startswith("its definition cannot be read: internal error")
        assert (default.fault, leases.fault) == ("", "")
        assert OCCURRED.counts["network"] == OCCURRED.total == 2
