"""Which interface is the uplink, and what is known about it."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest
from fakes import observed_on, own_address
from lab.addresses import HOST, LAN_CLIENT, LIBVIRT_BRIDGE, LIBVIRT_GATEWAY, UPLINK, external
from vm_onetoone_nat.decide import uplink as decide_uplink
from vm_onetoone_nat.decide.uplink import carrier, choose, host_sources, shown
from vm_onetoone_nat.model.configuration import Configuration
from vm_onetoone_nat.model.host import Address, Uplink
from vm_onetoone_nat.model.links import DefaultRoute, Hop, Link
from vm_onetoone_nat.model.mapping import Mapping

ETHERNET = Link(2, "eth0")
WIRELESS = Link(3, UPLINK)
LINKS = (ETHERNET, WIRELESS, Link(4, LIBVIRT_BRIDGE, kind="bridge"))
ROUTER = LAN_CLIENT.ip
OTHER_ROUTER = IPv4Address("192.168.1.2")
HOST_ADDRESS = Address(UPLINK, HOST, primary=True)
BRIDGE_ADDRESS = Address(LIBVIRT_BRIDGE, LIBVIRT_GATEWAY, primary=True)
OURS = own_address(external(1))


def route(priority: int, *indices: int, gateway: IPv4Address = ROUTER) -> DefaultRoute:
    return DefaultRoute(priority, tuple(Hop(index, gateway) for index in indices))


@pytest.mark.parametrize(
    ("configured", "routes", "addresses", "name"),
    [
        (None, (route(600, 3),), (), UPLINK),
        (None, (route(600, 3), route(100, 2)), (), "eth0"),
        # The kernel prefers neither of two routes with one priority.
        (None, (route(100, 3), route(100, 2)), (), "eth0"),
        (None, (route(100, 3, 2),), (), UPLINK),
        # An unreachable default route has no hop.
        (None, (DefaultRoute(0, ()), route(600, 3)), (), UPLINK),
        (None, (DefaultRoute(0, ()),), (OURS,), UPLINK),
        # The interface disappeared after its routes were listed.
        (None, (route(100, 9), route(600, 3)), (OURS,), None),
        (None, (), (HOST_ADDRESS, OURS), UPLINK),
        (None, (), (HOST_ADDRESS,), None),
        ("eth0", (route(600, 3),), (OURS,), "eth0"),
        ("eth0", (), (), "eth0"),
        ("usb0", (route(600, 3),), (OURS,), None),
    ],
)
def test_choose(
    configured: str | None,
    routes: tuple[DefaultRoute, ...],
    addresses: tuple[Address, ...],
    name: str | None,
) -> None:
    """The configured interface, that of the best default route, or the one with our addresses."""
    uplink = choose(Configuration(uplink=configured), LINKS, routes, addresses)
    assert (uplink.name if uplink is not None else None) == name


def test_no_interface() -> None:
    """A host without interfaces has no uplink."""
    assert choose(Configuration(), (), (), ()) is None
    assert choose(Configuration(uplink=UPLINK), (), (), ()) is None


def test_value() -> None:
    """The uplink has what is on it, and nothing of another interface."""
    point_to_point = Address(UPLINK, IPv4Interface("10.0.0.7/32"))
    second = Address(UPLINK, IPv4Interface("192.168.0.9/16"))
    on_it = (HOST_ADDRESS, OURS, point_to_point, second)
    routes = (route(600, 3), route(700, 2, gateway=OTHER_ROUTER))
    uplink = choose(Configuration(), LINKS, routes, (BRIDGE_ADDRESS, *on_it))
    assert uplink == Uplink(WIRELESS, on_it, frozenset({ROUTER, OTHER_ROUTER}))
    assert uplink.held_ips == {external(1)}
    assert uplink.host_ips == {HOST.ip, point_to_point.interface.ip, second.interface.ip}
    assert uplink.ips == uplink.host_ips | uplink.held_ips
    assert uplink.subnets == (HOST.network, IPv4Network("192.168.0.0/16"))


def test_subnet_of() -> None:
    """The first subnet in the kernel's order, also where a later one contains the address too."""
    second = Address(UPLINK, IPv4Interface("192.168.0.9/16"))
    uplink = Uplink(WIRELESS, (HOST_ADDRESS, second))
    assert uplink.subnet_of(external(1)) == HOST.network
    assert uplink.subnet_of(IPv4Address("192.168.7.7")) == second.interface.network
    assert uplink.subnet_of(IPv4Address("10.0.0.1")) is None


def test_carrier() -> None:
    """The only uplink carries each external address, and without one nothing does."""
    mapping = Mapping(external(1), "default")
    observed = observed_on(UPLINK, HOST_ADDRESS)
    assert carrier(mapping, observed) is observed.uplink
    assert observed.uplink is not None
    assert carrier(mapping, replace(observed, uplink=None)) is None


def test_host_sources() -> None:
    """Guests without a mapping leave with the host's own addresses on the uplink, no other."""
    observed = observed_on(UPLINK, HOST_ADDRESS, OURS, BRIDGE_ADDRESS)
    assert host_sources(observed) == {HOST.ip}
    assert host_sources(replace(observed, uplink=None)) == frozenset()


def test_shown() -> None:
    """People see the name, and an empty one without an uplink."""
    observed = observed_on(UPLINK, HOST_ADDRESS)
    assert shown(observed) == UPLINK
    assert shown(replace(observed, uplink=None)) == ""


def test_own_address() -> None:
    """The host's own: the first address of the uplink, and each one elsewhere that is not ours."""
    secondary = Address(UPLINK, IPv4Interface((external(2), 24)))
    elsewhere = Address("eth0", IPv4Interface((external(3), 24)))
    observed = observed_on(UPLINK, HOST_ADDRESS, OURS, secondary, elsewhere)
    assert observed.uplink is not None
    found = {
        address: decide_uplink.own_address(address, observed.uplink, observed)
        for address in (HOST.ip, external(1), external(2), external(3), external(4))
    }
    assert found == {
        HOST.ip: HOST_ADDRESS,
        external(1): None,
        external(2): None,
        external(3): elsewhere,
        external(4): None,
    }
