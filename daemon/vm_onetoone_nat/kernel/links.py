"""The host's network interfaces, in one dump (pyroute2)."""

import os

from pyroute2 import IPRoute

from vm_onetoone_nat.model.links import Link

_LOOPBACK, _POINTOPOINT, _NOARP, _UP, _LOWER_UP = 0x8, 0x10, 0x80, 0x1, 0x10000  # linux/if.h
_ETHERNET = 1  # linux/if_arp.h; also Wi-Fi


def links(netlink: IPRoute) -> dict[int, Link]:
    """Every interface by its index."""
    found = {}
    for message in netlink.get_links():
        name = message.get_attr("IFLA_IFNAME")
        if not name:
            # A message that pyroute2 could not parse.
            continue
        flags = message["flags"]
        is_port = hairpin = False
        info = message.get_attr("IFLA_LINKINFO")
        if info is not None and info.get_attr("IFLA_INFO_SLAVE_KIND") == "bridge":
            is_port = True
            data = info.get_attr("IFLA_INFO_SLAVE_DATA")
            hairpin = bool(data.get_attr("IFLA_BRPORT_MODE")) if data is not None else False
        found[message["index"]] = Link(
            index=message["index"],
            # Bytes if it is not UTF-8.
            name=os.fsdecode(name),
            mac=message.get_attr("IFLA_ADDRESS") or "",
            running=bool(flags & _UP and flags & _LOWER_UP),
            has_arp=message["ifi_type"] == _ETHERNET
            and not flags & (_LOOPBACK | _POINTOPOINT | _NOARP),
            kind=info.get_attr("IFLA_INFO_KIND") if info is not None else None,
            is_bridge_port=is_port,
            hairpin=hairpin,
            master=message.get_attr("IFLA_MASTER"),
        )
    return found
