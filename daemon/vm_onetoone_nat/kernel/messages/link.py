"""Link messages of rtnetlink: interfaces, and the hairpin flag of bridge ports. Pure.

linux/if_link.h. Loading pyroute2 takes a third of the daemon's start, and 16 MB.
"""

import struct
from collections.abc import Iterator, Mapping

from vm_onetoone_nat.kernel.messages import rtnetlink
from vm_onetoone_nat.kernel.messages.rtnetlink import Answer, attribute, attributes
from vm_onetoone_nat.model.links import Link

_GET, _SET = 18, 19  # RTM_*LINK
_BRIDGE = 7  # AF_BRIDGE

# ifinfomsg: family, type, index, flags, change
_MESSAGE = struct.Struct("=BxHiII")
_NUMBER = struct.Struct("=I")
_ADDRESS, _NAME, _MASTER, _PORT, _INFO, _WANTED = 1, 3, 10, 12, 18, 29  # IFLA_*
_KIND, _PORT_KIND, _PORT_DATA = 1, 4, 5  # IFLA_INFO_*
_HAIRPIN = 4  # IFLA_BRPORT_MODE
_WITHOUT_STATISTICS = 8  # RTEXT_FILTER_SKIP_STATS
_NESTED, _TYPE = 0x8000, 0x3FFF  # NLA_F_NESTED, NLA_TYPE_MASK
_ETHERNET = 1  # linux/if_arp.h; also Wi-Fi
_LOOPBACK, _POINTOPOINT, _NOARP, _UP, _LOWER_UP = 0x8, 0x10, 0x80, 0x1, 0x10000  # linux/if.h


def listing() -> bytes:
    """The request for all interfaces."""
    wanted = attribute(_WANTED, _NUMBER.pack(_WITHOUT_STATISTICS))
    return rtnetlink.listing(_GET, _MESSAGE.pack(0, 0, 0, 0, 0) + wanted)


def links(answer: Answer) -> Iterator[Link]:
    """The interfaces in one datagram of a dump. Raises struct.error."""
    data = answer.data
    for start, end in answer.messages:
        _, kind, index, flags, _ = _MESSAGE.unpack_from(data, start)
        found = _read(data, start + _MESSAGE.size, end)
        info = _read(found.get(_INFO, b""))
        is_port = _text(info.get(_PORT_KIND)) == "bridge"
        port = _read(info.get(_PORT_DATA, b"")) if is_port else {}
        master = found.get(_MASTER)
        yield Link(
            index=index,
            name=_text(found.get(_NAME)) or "",
            mac=found.get(_ADDRESS, b"").hex(":"),
            running=bool(flags & _UP and flags & _LOWER_UP),
            has_arp=kind == _ETHERNET and not flags & (_LOOPBACK | _POINTOPOINT | _NOARP),
            kind=_text(info.get(_KIND)),
            is_bridge_port=is_port,
            hairpin=any(port.get(_HAIRPIN, b"")),
            master=_NUMBER.unpack(master)[0] if master is not None else None,
        )


def set_hairpin(index: int, on: bool) -> bytes:
    """The request to set or clear the hairpin flag of a bridge port, which is answered."""
    flag = attribute(_HAIRPIN, bytes([on]))
    body = _MESSAGE.pack(_BRIDGE, 0, index, 0, 0) + attribute(_PORT | _NESTED, flag)
    return rtnetlink.changes(_SET, 0, [body])


def _read(data: bytes, offset: int = 0, end: int | None = None) -> Mapping[int, bytes]:
    until = len(data) if end is None else end
    return {kind & _TYPE: data[at:to] for kind, at, to in attributes(data, offset, until)}


def _text(value: bytes | None) -> str | None:
    """A name, which is of any bytes."""
    return value.rstrip(b"\0").decode(errors="surrogateescape") if value is not None else None
