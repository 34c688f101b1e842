"""The host's network interfaces, in one dump (pyroute2)."""

from dataclasses import dataclass

from pyroute2 import IPRoute

_LOOPBACK, _POINTOPOINT, _NOARP, _UP, _LOWER_UP = 0x8, 0x10, 0x80, 0x1, 0x10000  # linux/if.h
_ETHERNET = 1  # linux/if_arp.h; also Wi-Fi


@dataclass(frozen=True, slots=True)
class Link:
    """One interface. `running`: up, with a carrier. `has_arp`: it resolves neighbours by ARP.

    `master` is the index of the bridge or other device of which it is a port.
    """

    index: int
    name: str
    mac: str
    running: bool
    has_arp: bool
    is_bridge: bool
    is_bridge_port: bool
    hairpin: bool
    master: int | None = None


def links(netlink: IPRoute) -> dict[int, Link]:
    """Every interface by its index."""
    found = {}
    for message in netlink.get_links():
        flags = message["flags"]
        is_port = hairpin = False
        info = message.get_attr("IFLA_LINKINFO")
        if info is not None and info.get_attr("IFLA_INFO_SLAVE_KIND") == "bridge":
            is_port = True
            data = info.get_attr("IFLA_INFO_SLAVE_DATA")
            hairpin = bool(data.get_attr("IFLA_BRPORT_MODE")) if data is not None else False
        found[message["index"]] = Link(
            index=message["index"],
            name=message.get_attr("IFLA_IFNAME"),
            mac=message.get_attr("IFLA_ADDRESS") or "",
            running=bool(flags & _UP and flags & _LOWER_UP),
            has_arp=message["ifi_type"] == _ETHERNET
            and not flags & (_LOOPBACK | _POINTOPOINT | _NOARP),
            is_bridge=info is not None and info.get_attr("IFLA_INFO_KIND") == "bridge",
            is_bridge_port=is_port,
            hairpin=hairpin,
            master=message.get_attr("IFLA_MASTER"),
        )
    return found
