"""Notifications of rtnetlink in bytes: which of them trigger a pass, and with which words."""

import socket
import struct
from ipaddress import IPv4Address

import pytest
from pyroute2.netlink import rtnl
from vm_onetoone_nat.kernel.messages import changes
from vm_onetoone_nat.kernel.messages.changes import triggers
from vm_onetoone_nat.kernel.messages.rtnetlink import attribute
from vm_onetoone_nat.model.trigger import Kind, Trigger

OURS, OTHERS, FURTHER = 0x1234ABCD, 4321, 0xFFFF0001


def message(kind: int, body: bytes, port: int = 0) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, port) + body


def link(kind: int, *attributes: tuple[int, bytes]) -> bytes:
    fixed = struct.pack("=BxHiII", socket.AF_UNSPEC, 1, 7, 0, 0)
    return message(kind, fixed + b"".join(attribute(*each) for each in attributes))


def address(kind: int, port: int, *attributes: tuple[int, bytes]) -> bytes:
    fixed = struct.pack("=BBBBI", socket.AF_INET, 24, 0, 0, 7)
    return message(kind, fixed + b"".join(attribute(*each) for each in attributes), port)


def route(kind: int, length: int, table: int = 254) -> bytes:
    return message(kind, struct.pack("=BBBBBBBBI", 2, length, 0, 0, table, 0, 0, 1, 0))


NAME, WIRELESS, LOCAL = (3, b"wlan0\0"), (11, bytes(4)), (2, IPv4Address("192.168.1.101").packed)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (link(rtnl.RTM_NEWLINK, NAME), Trigger(Kind.LINK, "link wlan0")),
        (link(rtnl.RTM_DELLINK, NAME), Trigger(Kind.LINK, "link wlan0")),
        (link(rtnl.RTM_NEWLINK, NAME, WIRELESS), None),
        (
            address(rtnl.RTM_NEWADDR, OTHERS, LOCAL),
            Trigger(Kind.ADDRESS, "address 192.168.1.101 added by process 4321", "process 4321"),
        ),
        (
            address(rtnl.RTM_DELADDR, FURTHER, LOCAL),
            Trigger(Kind.ADDRESS, "address 192.168.1.101 removed"),
        ),
        (address(rtnl.RTM_NEWADDR, 0), Trigger(Kind.ADDRESS, "address of another kind added")),
        (address(rtnl.RTM_NEWADDR, OURS, LOCAL), None),
        (route(rtnl.RTM_NEWROUTE, 0), Trigger(Kind.ROUTE, "route: default")),
        (route(rtnl.RTM_DELROUTE, 0), Trigger(Kind.ROUTE, "route: default")),
        (route(rtnl.RTM_NEWROUTE, 0, table=52), None),
        (route(rtnl.RTM_NEWROUTE, 24), None),
        (message(rtnl.RTM_NEWNETCONF, bytes(8)), Trigger(Kind.FORWARDING, "forwarding")),
        (message(rtnl.RTM_NEWRULE, bytes(12)), None),
    ],
)
def test_trigger(data: bytes, expected: Trigger | None) -> None:
    """A change by another process triggers a pass, with the process if its port is a PID."""
    assert list(triggers(data, OURS)) == ([expected] if expected is not None else [])


def test_numbers() -> None:
    """The numbers are those of the kernel's headers."""
    for name in ("LINK", "ADDRESS", "ROUTE"):
        short = name.replace("ADDRESS", "ADDR")
        assert getattr(changes, f"NEW_{name}") == getattr(rtnl, f"RTM_NEW{short}")
        assert getattr(changes, f"DELETE_{name}") == getattr(rtnl, f"RTM_DEL{short}")
    assert changes.NEW_NETCONF == rtnl.RTM_NEWNETCONF
