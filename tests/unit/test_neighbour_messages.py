"""Neighbour messages in bytes, of the neighbour table and of bridges."""

import socket
import struct
from ipaddress import IPv4Address

from nft_dump import answer, datagram
from pyroute2.netlink.rtnl import RTM_DELNEIGH, RTM_GETNEIGH, RTM_NEWNEIGH
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from vm_onetoone_nat.kernel.messages import neighbour
from vm_onetoone_nat.kernel.messages.neighbour import Entry
from vm_onetoone_nat.kernel.messages.rtnetlink import attribute, notifications

MAC = "52:54:00:a8:7a:65"
PACKED = bytes.fromhex(MAC.replace(":", ""))
REACHABLE = 0x02


def body(family: int, *attributes: tuple[int, bytes]) -> bytes:
    fixed = struct.pack("=B3xiHBB", family, 3, REACHABLE, 0, 0)
    return fixed + b"".join(attribute(kind, value) for kind, value in attributes)


def test_numbers() -> None:
    """The numbers are those of the kernel's headers."""
    numbers = (neighbour.NEW, neighbour.DELETE, neighbour.GET, neighbour.BRIDGE)
    assert numbers == (RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH, socket.AF_BRIDGE)


def test_entries() -> None:
    """Address, MAC and age are read where they are, in any order, and others are left."""
    times = struct.pack("=IIII", 250, 10, 900, 1)
    address = IPv4Address("192.168.122.101")
    found = answer(
        neighbour.NEW,
        body(socket.AF_INET, (3, times), (1, address.packed), (2, PACKED), (4, bytes(4))),
        body(socket.AF_INET, (1, address.packed)),
        body(socket.AF_BRIDGE, (2, PACKED), (9, bytes(4))),
        body(socket.AF_INET6, (1, bytes(16)), (2, PACKED)),
        body(socket.AF_INET, (2, bytes(20))),
    )
    assert list(neighbour.entries(found)) == [
        Entry(socket.AF_INET, 3, REACHABLE, address, MAC, 2.5),
        Entry(socket.AF_INET, 3, REACHABLE, address),
        Entry(socket.AF_BRIDGE, 3, REACHABLE, None, MAC),
        Entry(socket.AF_INET6, 3, REACHABLE, None, MAC),
        Entry(socket.AF_INET, 3, REACHABLE),
    ]


def test_lookups() -> None:
    """Each request asks one bridge for one MAC, without a VLAN or in one, and has its number."""
    data = neighbour.lookups([(7, MAC, None), (8, MAC, 1)])
    (first, second) = notifications(data)
    assert (first[0], second[0]) == (RTM_GETNEIGH, RTM_GETNEIGH)
    assert struct.unpack_from("=II", data, first[2] - 8) == (0, 0)
    assert struct.unpack_from("=II", data, second[2] - 8) == (1, 0)
    for message, master, vlan in ((first, 7, None), (second, 8, 1)):
        parsed = ndmsg(data[message[2] - 16 : message[3]])
        parsed.decode()
        assert (parsed["family"], parsed["ifindex"]) == (socket.AF_BRIDGE, 0)
        assert parsed.get_attr("NDA_LLADDR") == MAC
        assert parsed.get_attr("NDA_MASTER") == master
        assert parsed.get_attr("NDA_VLAN") == vlan


def test_notification() -> None:
    """A notification has the form of a listing, with its kind in the header."""
    data = datagram(neighbour.DELETE, body(socket.AF_BRIDGE, (2, PACKED)))
    ((kind, port, start, end),) = notifications(data)
    assert (kind, port) == (neighbour.DELETE, 0)
    assert neighbour.parse(data, start, end).mac == MAC
