"""Link messages in bytes."""

import socket
import struct

from nft_dump import answer
from pyroute2.netlink import rtnl
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from vm_onetoone_nat.kernel.messages import link
from vm_onetoone_nat.kernel.messages.rtnetlink import attribute, notifications
from vm_onetoone_nat.model.links import Link

UP = 0x1 | 0x10000
ETHERNET, TUNNEL = 1, 0xFFFE


def body(index: int, *attributes: bytes, flags: int = UP, kind: int = ETHERNET) -> bytes:
    return struct.pack("=BxHiII", 0, kind, index, flags, 0) + b"".join(attributes)


def info(*attributes: tuple[int, bytes]) -> bytes:
    return attribute(18 | 0x8000, b"".join(attribute(*each) for each in attributes))


def name(text: bytes) -> bytes:
    return attribute(3, text + b"\0")


def test_links() -> None:
    """What is known of each interface; a name of any bytes is kept, other attributes are left."""
    mac = bytes.fromhex("525400a87a65")
    hairpin, other = attribute(4, b"\1"), attribute(5, b"\1")
    found = answer(
        rtnl.RTM_NEWLINK,
        body(1, name(b"eth0"), attribute(1, mac), attribute(4, struct.pack("=I", 1500))),
        body(2, name(b"virbr0"), info((1, b"bridge\0")), flags=0x1),
        body(3, name(b"vnet0"), attribute(10, struct.pack("=I", 2)), info((1, b"tun\0"))),
        body(4, info((4, b"bridge\0"), (5, other + hairpin)), name(b"vnet1")),
        body(5, info((4, b"bond\0"), (5, hairpin)), name(b"\xff\xfe")),
        body(6, name(b"tun0"), attribute(1, b""), kind=TUNNEL),
        body(7, name(b"ppp0"), flags=UP | 0x10),
        body(8),
    )
    assert list(link.links(found)) == [
        Link(1, "eth0", mac="52:54:00:a8:7a:65"),
        Link(2, "virbr0", running=False, kind="bridge"),
        Link(3, "vnet0", kind="tun", master=2),
        Link(4, "vnet1", is_bridge_port=True, hairpin=True),
        Link(5, "\udcff\udcfe"),
        Link(6, "tun0", has_arp=False),
        Link(7, "ppp0", has_arp=False),
        Link(8, ""),
    ]


def test_set_hairpin() -> None:
    """The request is the one that pyroute2 reads back."""
    for on in (False, True):
        ((kind, _, start, end),) = notifications(link.set_hairpin(7, on))
        assert kind == rtnl.RTM_SETLINK
        data = link.set_hairpin(7, on)
        parsed = ifinfmsg(data[start - 16 : end])
        parsed.decode()
        assert (parsed["family"], parsed["index"]) == (socket.AF_BRIDGE, 7)
        assert parsed.get_nested("IFLA_PROTINFO", "IFLA_BRPORT_MODE") == on
