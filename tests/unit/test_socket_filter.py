"""What the kernel keeps from the daemon, asked of the kernel itself, on sockets of another kind."""

import socket
import struct
from ipaddress import IPv4Address

import pytest
from nft_dump import datagram
from pyroute2.netlink import rtnl
from vm_onetoone_nat.kernel.arp import request
from vm_onetoone_nat.kernel.messages import nftables
from vm_onetoone_nat.kernel.messages.nftables import nest, number, text
from vm_onetoone_nat.kernel.messages.rtnetlink import attribute
from vm_onetoone_nat.kernel.socket_filter import (
    Filter,
    arp_about,
    attach,
    bridges_only_for,
    no_foreign_sets,
    nothing_of_our_own,
)
from vm_onetoone_nat.model.nat_table import TABLE

OURS, OTHERS = 0x1234ABCD, 4321


def arrives(filter_: Filter, message: bytes) -> bool:
    """Whether a datagram comes through the filter, whole."""
    receiver, sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with receiver, sender:
        attach(receiver, filter_)
        receiver.setblocking(False)
        sender.send(message)
        try:
            return receiver.recv(1 << 16) == message
        except BlockingIOError:
            return False


def rtnetlink(kind: int, port: int = 0, length: int = 0) -> bytes:
    """A header, and an rtmsg to a destination of that prefix length."""
    return struct.pack("=IHHIIBBBBBBBBI", 28, kind, 0, 0, port, 2, length, 0, 0, 254, 0, 0, 1, 0)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (rtnetlink(rtnl.RTM_NEWADDR, OURS), False),
        (rtnetlink(rtnl.RTM_DELADDR, OURS), False),
        (rtnetlink(rtnl.RTM_NEWADDR, OTHERS), True),
        (rtnetlink(rtnl.RTM_DELADDR), True),
        (rtnetlink(rtnl.RTM_NEWROUTE), True),
        (rtnetlink(rtnl.RTM_DELROUTE), True),
        (rtnetlink(rtnl.RTM_NEWROUTE, length=32), False),
        (rtnetlink(rtnl.RTM_DELROUTE, length=24), False),
        (rtnetlink(rtnl.RTM_NEWLINK, OURS), True),
        (rtnetlink(rtnl.RTM_NEWNETCONF, OURS, length=7), True),
    ],
)
def test_rtnetlink(message: bytes, expected: bool) -> None:
    """Our own addresses, and routes but for default ones, are no news; all else is."""
    assert arrives(nothing_of_our_own(OURS), message) is expected


GUEST, OTHER_GUEST = "52:54:00:00:00:01", "0a:00:00:00:00:07"
FORGED = ("0a:00:00:00:00:01", "52:54:00:00:00:07", "52:54:00:01:01:90")
MANY = [f"52:54:00:01:{n >> 8:02x}:{n & 255:02x}" for n in range(398)]


def neighbour(kind: int, mac: str, family: int = socket.AF_BRIDGE) -> bytes:
    """A neighbour's notification; that of a bridge begins with the MAC."""
    body = struct.pack("=B3xiHBB", family, 3, 2, 0, 0)
    return datagram(kind, body + attribute(2, bytes.fromhex(mac.replace(":", ""))))


@pytest.mark.parametrize(
    ("macs", "message", "expected"),
    [
        ([], neighbour(rtnl.RTM_NEWNEIGH, GUEST), False),
        ([GUEST], neighbour(rtnl.RTM_NEWNEIGH, GUEST), True),
        *(
            ([*MANY, GUEST, OTHER_GUEST], neighbour(rtnl.RTM_NEWNEIGH, mac), True)
            for mac in (GUEST, OTHER_GUEST, MANY[0], MANY[100], MANY[-1])
        ),
        ([GUEST], neighbour(rtnl.RTM_DELNEIGH, GUEST), False),
        *(
            ([*MANY, GUEST, OTHER_GUEST], neighbour(rtnl.RTM_NEWNEIGH, mac), False)
            for mac in FORGED
        ),
        ([*MANY, *FORGED], neighbour(rtnl.RTM_NEWNEIGH, GUEST), True),
        ([], neighbour(rtnl.RTM_NEWNEIGH, GUEST, socket.AF_INET), True),
        ([], neighbour(rtnl.RTM_DELNEIGH, GUEST, socket.AF_INET), True),
    ],
)
def test_neighbours(macs: list[str], message: bytes, expected: bool) -> None:
    """Of bridges' entries only those of the given MACs come through, but all of hosts."""
    assert arrives(bridges_only_for(macs), message) is expected


FIRST, LAST = IPv4Address("192.168.1.101"), IPv4Address("192.168.1.120")
NONE = IPv4Address(0)


@pytest.mark.parametrize(
    ("sender", "target", "expected"),
    [
        (FIRST, LAST + 1, True),
        (LAST, LAST, True),
        (FIRST - 1, FIRST, False),
        (LAST + 1, LAST, False),
        (NONE, FIRST, True),
        (NONE, LAST, True),
        (NONE, FIRST - 1, False),
        (NONE, LAST + 1, False),
        (IPv4Address("255.255.255.255"), FIRST, False),
    ],
)
def test_arp(sender: IPv4Address, target: IPv4Address, expected: bool) -> None:
    """Packets of a sender within the range come through, and probes for an address within it."""
    assert arrives(arp_about(int(FIRST), int(LAST)), request(GUEST, sender, target)) is expected


def test_arp_about_all() -> None:
    """The range may be one address, or all."""
    packet = request(GUEST, FIRST, FIRST)
    assert arrives(arp_about(int(FIRST), int(FIRST)), packet)
    assert arrives(arp_about(0, 0xFFFFFFFF), packet)


def of_table(kind: int, table: str, size: int = 0) -> bytes:
    """A message about something in a table, longer by so many bytes."""
    body = nftables.header("inet") + text(1, table) + text(2, "name")
    return datagram(nftables.NEW_TABLE | kind, body + nest(3, bytes(size)))


NEW_GENERATION = datagram(nftables.NEW_GENERATION, nftables.header() + number(1, 7))
RULE = of_table(6, "other", 300)
SETS = [9, 11, 12, 14, 18, 20, 22, 24]


@pytest.mark.parametrize("kind", range(34))
def test_one_of_nftables(kind: int) -> None:
    """A message about a set, an element or an object of another table is dropped, no other."""
    assert arrives(no_foreign_sets(), of_table(kind, TABLE))
    dropped = nftables.NEW_TABLE | kind in nftables.OF_SETS
    assert arrives(no_foreign_sets(), of_table(kind, "other")) is not dropped
    assert dropped or kind not in SETS


@pytest.mark.parametrize("size", [0, 60, 240, 252, 256, 300, 1000])
@pytest.mark.parametrize("before", [1, 2, 10, 30])
def test_several_of_nftables(size: int, before: int) -> None:
    """A datagram is dropped if no message in it is about anything else, wherever that is."""
    sets = b"".join(of_table(SETS[n % len(SETS)], "other", size) for n in range(before))
    assert not arrives(no_foreign_sets(), sets)
    for news in (RULE, of_table(12, TABLE, 4)):
        assert arrives(no_foreign_sets(), sets + news)
        assert arrives(no_foreign_sets(), sets + news + sets)
        assert arrives(no_foreign_sets(), news + sets)


def test_more_messages_than_are_examined() -> None:
    """A datagram of more messages than the filter examines comes through."""
    assert arrives(no_foreign_sets(), 67 * of_table(12, "t"))
    assert arrives(no_foreign_sets(), NEW_GENERATION)
