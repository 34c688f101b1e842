"""From whom a guest's own address is known, and whom to believe."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface

import pytest
from fakes import default_network, laptop
from lab.addresses import LIBVIRT_BRIDGE, LIBVIRT_GATEWAY, external, internal
from vm_onetoone_nat.decide.locate import doubtful, located, why_unknown
from vm_onetoone_nat.model.configuration import Configuration
from vm_onetoone_nat.model.guests import Domain, DomainState, Guests, Interface, Network
from vm_onetoone_nat.model.host import Neighbour, Observed
from vm_onetoone_nat.model.mapping import AddressSource, Mapping
from vm_onetoone_nat.model.nat_table import EXTERNAL, Table, element

MAC, SECOND_MAC, OTHER_MAC = "52:54:00:00:00:01", "52:54:00:00:00:02", "52:54:00:00:00:99"
MAPPING = Mapping(external(1), "default", domain="guest")
UUID = "00000000-0000-4000-8000-000000000001"
BARE = laptop().observe(Configuration())


def guests(*interfaces: Interface, network: Network | None = None) -> Guests:
    nics = interfaces or (Interface(MAC, "default"),)
    networks = (default_network() if network is None else network,)
    return Guests((Domain("guest", UUID, DomainState.RUNNING, nics),), networks)


def network(**known: tuple[tuple[str, IPv4Address], ...]) -> Network:
    return replace(default_network(), **known)  # type: ignore[arg-type]


def heard(address: IPv4Address, mac: str = MAC, **more: object) -> Neighbour:
    return replace(Neighbour(LIBVIRT_BRIDGE, address, mac), **more)  # type: ignore[arg-type]


def observed(*neighbours: Neighbour, translated: IPv4Address | None = None) -> Observed:
    elements = frozenset(
        {element(EXTERNAL, (str(external(1)),), str(translated))} if translated is not None else ()
    )
    return replace(BARE, neighbours=neighbours, table=Table(True, elements))


def found(guests: Guests, observed: Observed, mapping: Mapping = MAPPING) -> tuple[object, object]:
    mapping = located(mapping, guests, observed)
    return mapping.internal, mapping.source


def test_what_cannot_be_read() -> None:
    """The reason names a reservation, lease or network that cannot be read; only for its guests."""
    odd = replace(default_network(), unreadable=((MAC, "its lease cannot be read: 'x'"),))
    reason, _ = why_unknown(MAPPING, guests(network=odd))
    assert reason == f"network 'default', {MAC}: its lease cannot be read: 'x'"
    reason, _ = why_unknown(MAPPING, guests(Interface(OTHER_MAC, "default"), network=odd))
    assert "is not known yet" in reason
    unread = replace(default_network(), fault="its definition cannot be read")
    reason, _ = why_unknown(MAPPING, guests(network=unread))
    assert reason == "network 'default': its definition cannot be read"


def test_order() -> None:
    """Reservation, lease, agent, neighbour, kept: the first that has one tells."""
    agent = Interface(MAC, "default", addresses=(internal(3),))
    reserved, leased = ((MAC, internal(1)),), ((MAC, internal(2)),)
    seen = observed(heard(internal(4)), translated=internal(5))
    every = network(reservations=reserved, leases=leased)
    assert found(guests(agent, network=every), seen) == (internal(1), AddressSource.RESERVATION)
    unreserved = network(leases=leased)
    assert found(guests(agent, network=unreserved), seen) == (internal(2), AddressSource.LEASE)
    assert found(guests(agent), seen) == (internal(3), AddressSource.AGENT)
    assert found(guests(), seen) == (internal(4), AddressSource.NEIGHBOUR)
    assert found(guests(), observed(translated=internal(5))) == (internal(5), AddressSource.KEPT)
    assert found(guests(), observed()) == (None, None)


def test_nothing_is_kept_of_a_guest_that_is_off() -> None:
    """What the kernel still has of a guest that has stopped is not its address any more."""
    (running,) = guests().domains
    stopped = replace(guests(), domains=(replace(running, state=DomainState.OFF),))
    assert found(stopped, observed(translated=internal(5))) == (None, None)


def test_written_address_is_not_looked_for() -> None:
    """What is written counts, whatever is known otherwise."""
    written = replace(MAPPING, internal=internal(9), source=AddressSource.CONFIGURATION)
    reserved = network(reservations=((MAC, internal(1)),))
    assert located(written, guests(network=reserved), observed(heard(internal(4)))) == written


def test_latest_lease() -> None:
    """Of several leases of one MAC the first in the list, which is the latest, counts."""
    leases = network(leases=((MAC, internal(2)), (MAC, internal(3)), (OTHER_MAC, internal(4))))
    assert found(guests(network=leases), observed()) == (internal(2), AddressSource.LEASE)


@pytest.mark.parametrize(
    "neighbour",
    [
        heard(IPv4Address("169.254.3.4")),
        heard(IPv4Address("192.168.1.7")),
        heard(LIBVIRT_GATEWAY.ip),
        heard(IPv4Address("192.168.122.255")),
        heard(internal(4), ifname="virbr9"),
        heard(internal(4), OTHER_MAC),
        heard(internal(7)),
    ],
    ids=["link-local", "LAN", "gateway", "broadcast", "bridge", "MAC", "leased to another"],
)
def test_address_that_is_not_its_own(neighbour: Neighbour) -> None:
    """A guest may say what it wants: what cannot be its address, or is another's, is not taken."""
    leased = network(leases=((OTHER_MAC, internal(7)),))
    assert found(guests(network=leased), observed(neighbour)) == (None, None)


def test_neighbour_in_use_stays() -> None:
    """A guest with two addresses keeps the one in use; without one, the one heard last counts."""
    old, new = heard(internal(4), age=50.0, fresh=False), heard(internal(5), age=1.0)
    both = (old, new)
    assert found(guests(), observed(*both))[0] == internal(5)
    assert found(guests(), observed(*both, translated=internal(4)))[0] == internal(4)
    assert found(guests(), observed(new, translated=internal(4)))[0] == internal(5)


def test_doubt() -> None:
    """An address in use that was not confirmed, while its guest shows another, is asked for."""
    old, new = heard(internal(4), age=50.0, fresh=False), heard(internal(5), age=1.0)
    seen = observed(old, new, translated=internal(4))
    mapping = located(MAPPING, guests(), seen)
    assert doubtful([mapping], seen) == (old,)
    assert doubtful([mapping], observed(replace(old, fresh=True), new)) == ()
    assert doubtful([mapping], observed(old, heard(internal(6), OTHER_MAC))) == ()
    written = replace(mapping, source=AddressSource.CONFIGURATION)
    assert doubtful([written], seen) == ()


def test_interfaces() -> None:
    """The interface is that on the mapping's network, or the one with its MAC."""
    second = Network("second", True, "virbr1", (IPv4Interface("192.168.123.1/24"),))
    nics = (
        Interface(OTHER_MAC, "second"),
        Interface(MAC, "default"),
        Interface(SECOND_MAC, bridge=LIBVIRT_BRIDGE),
    )
    several = guests(*nics)
    several = replace(several, networks=(*several.networks, second))
    seen = observed(
        heard(internal(1)),
        heard(internal(2), SECOND_MAC),
        heard(IPv4Address("192.168.123.5"), OTHER_MAC, ifname="virbr1"),
    )
    assert found(several, seen)[0] == internal(1)
    assert found(several, seen, replace(MAPPING, mac=SECOND_MAC))[0] == internal(2)
    assert found(several, seen, replace(MAPPING, network="second"))[0] == IPv4Address(
        "192.168.123.5"
    )
    assert found(several, seen, replace(MAPPING, mac=OTHER_MAC)) == (None, None)


def test_why_unknown() -> None:
    """The reason says what is missing."""
    none = Guests(
        (Domain("guest", UUID, DomainState.RUNNING, (Interface(MAC, "other"),)),),
        (default_network(),),
    )
    unreadable = replace(none.domains[0], interfaces=(), fault="its definition cannot be read: x")
    cases = {
        "domain 'guest' has no interface on network 'default'": (MAPPING, none),
        f"domain 'guest' has no interface {MAC} on network 'default'": (
            replace(MAPPING, mac=MAC),
            none,
        ),
        "domain 'guest': its definition cannot be read: x": (
            MAPPING,
            replace(none, domains=(unreadable,)),
        ),
        "write 'internal', or write 'domain' to have the guest's address found": (
            replace(MAPPING, domain=None),
            none,
        ),
        "the guest's address on network 'default' is not known yet: it has no reservation and no "
        "lease, and has sent no packet": (MAPPING, guests()),
        "libvirt cannot be reached, so it is not known which address the guest has": (
            MAPPING,
            None,
        ),
    }
    for reason, (mapping, known) in cases.items():
        assert why_unknown(mapping, known)[0] == reason
