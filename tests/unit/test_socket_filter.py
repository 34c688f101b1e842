"""What the kernel keeps from the daemon, asked of the kernel itself, on sockets of another kind."""

import socket
import struct
from collections.abc import Callable

import pytest
from pyroute2.netlink import rtnl
from vm_onetoone_nat.kernel.socket_filter import (
    NEW_GENERATION,
    generations_only,
    nothing_of_our_own,
)

OURS, OTHERS = 0x1234ABCD, 4321


def arrives(attach: Callable[[socket.socket], None], message: bytes) -> bool:
    """Whether a message comes through the filter."""
    receiver, sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with receiver, sender:
        attach(receiver)
        receiver.setblocking(False)
        sender.send(message)
        try:
            return receiver.recv(1024) == message
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
        (rtnetlink(rtnl.RTM_NEWNEIGH, OURS, length=7), True),
    ],
)
def test_rtnetlink(message: bytes, expected: bool) -> None:
    """Our own addresses, and routes but for default ones, are no news; all else is."""
    assert arrives(lambda s: nothing_of_our_own(s, OURS), message) is expected


@pytest.mark.parametrize(
    ("kind", "expected"), [(NEW_GENERATION, True), (10 << 8 | 12, False), (10 << 8 | 0, False)]
)
def test_nftables(kind: int, expected: bool) -> None:
    """Of a transaction its generation alone comes through."""
    assert arrives(generations_only, rtnetlink(kind)) is expected
