"""Default routes, out of the kernel's own messages."""

from ipaddress import IPv4Address

from vm_onetoone_nat.kernel.messages.routes import default_routes
from vm_onetoone_nat.kernel.messages.rtnetlink import parse_answer
from vm_onetoone_nat.model.links import DefaultRoute, Hop

GATEWAY, OTHER = IPv4Address("192.168.1.1"), IPv4Address("192.168.1.2")

HEADER = "1800 0200 07000000 00000000"
PLAIN = bytes.fromhex(
    f"34000000 {HEADER} 02 00 00 00 fe 10 00 01 00000000"  # RTM_NEWROUTE, table main
    "0800 0600 58020000  0800 0500 c0a80101  0800 0400 03000000"  # priority, gateway, interface
)
SUBNET = bytes.fromhex(
    f"2c000000 {HEADER} 02 18 00 00 fe 02 fd 01 00000000 0800 0100 c0a80100  0800 0400 03000000"
)
MULTIPATH = bytes.fromhex(
    f"40000000 {HEADER} 02 00 00 00 fe 03 00 01 00000000"
    "2400 0900  1000 00 00 03000000 0800 0500 c0a80101  1000 00 00 04000000 0800 0500 c0a80102"
)
UNREACHABLE = bytes.fromhex(f"1c000000 {HEADER} 02 00 00 00 fe 03 00 07 00000000")


def test_default_route() -> None:
    """A default route has its priority, interface and router; other routes are none."""
    answer = parse_answer(SUBNET + PLAIN)
    assert tuple(default_routes(answer)) == (DefaultRoute(600, (Hop(3, GATEWAY),)),)


def test_multipath_route() -> None:
    """A multipath route has each of its hops."""
    hops = Hop(3, GATEWAY), Hop(4, OTHER)
    assert tuple(default_routes(parse_answer(MULTIPATH))) == (DefaultRoute(0, hops),)


def test_route_that_leads_nowhere() -> None:
    """An unreachable default route has no hop."""
    assert tuple(default_routes(parse_answer(UNREACHABLE))) == (DefaultRoute(0, ()),)
