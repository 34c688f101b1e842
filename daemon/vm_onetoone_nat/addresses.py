"""The host's IPv4 addresses and its uplink, through rtnetlink (pyroute2)."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from socket import AF_INET
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg

from vm_onetoone_nat.errors import KernelError
from vm_onetoone_nat.files import replace_text
from vm_onetoone_nat.links import Link, links
from vm_onetoone_nat.state import Address

PROTOCOL = 118
"""Our number in IFA_PROTO, the field that tells who added an address; the kernel's own end at 3."""

# pyroute2 0.7 knows the attributes up to IFA_FLAGS, the ninth, and sends no other.
ifaddrmsg.nla_map += (
    ("IFA_RT_PRIORITY", "uint32"),
    ("IFA_TARGET_NETNSID", "uint32"),
    ("IFA_PROTO", "uint8"),
)[len(ifaddrmsg.nla_map) - 9 :]

_NOPREFIXROUTE = 0x200  # IFA_F_NOPREFIXROUTE: the uplink's own route to the subnet is enough
_SCOPE_GLOBAL = 0
_MAIN_TABLE = 254


def host_addresses() -> tuple[Address, ...]:
    """All addresses of this host, for a process without privileges; none is taken for ours."""
    with IPRoute() as netlink:
        return Addresses(netlink, Path(os.devnull), protocol_kept=True).observe(links(netlink))


class Addresses:
    """Reads and writes addresses in the network namespace that it was made in.

    An address that we added carries our protocol number. A kernel before 5.18 drops that number
    silently: there, `record` names the addresses that are ours, written ahead of each.
    """

    def __init__(
        self, netlink: IPRoute, record: Path, *, protocol_kept: bool | None = None
    ) -> None:
        self._netlink = netlink
        self._record = record
        self._protocol_kept = (
            _kernel_release() >= (5, 18) if protocol_kept is None else protocol_kept
        )

    def observe(self, links: Mapping[int, Link]) -> tuple[Address, ...]:
        """All IPv4 addresses of these interfaces, in the kernel's order."""
        recorded = set() if self._protocol_kept else self._recorded()
        found: list[Address] = []
        with_primary: set[str] = set()
        for message in self._netlink.get_addr(family=AF_INET):
            link = links.get(message["index"])
            local = message.get_attr("IFA_LOCAL")
            if link is None or local is None:
                continue
            ifname = link.name
            interface = IPv4Interface((local, message["prefixlen"]))
            broadcast = message.get_attr("IFA_BROADCAST")
            owned = message.get_attr("IFA_PROTO") == PROTOCOL or (ifname, interface) in recorded
            found.append(
                Address(
                    ifname,
                    interface,
                    IPv4Address(broadcast) if broadcast is not None else None,
                    owned=owned,
                    primary=not owned and ifname not in with_primary,
                )
            )
            if not owned:
                with_primary.add(ifname)
        return tuple(found)

    def default_routes(self) -> tuple[Any, ...]:
        """The IPv4 default routes, for `routers` and `uplink`."""
        return tuple(self._netlink.get_default_routes(family=AF_INET, table=_MAIN_TABLE))

    @staticmethod
    def routers(routes: tuple[Any, ...]) -> frozenset[IPv4Address]:
        """The next hops of these routes."""
        hops = (h for route in routes for h in (route, *(route.get_attr("RTA_MULTIPATH") or ())))
        found = (hop.get_attr("RTA_GATEWAY") for hop in hops)
        return frozenset(IPv4Address(gateway) for gateway in found if gateway)

    @staticmethod
    def uplink(
        configured: str | None,
        links: Mapping[int, Link],
        addresses: tuple[Address, ...],
        routes: tuple[Any, ...],
    ) -> str | None:
        """The configured interface, or that of the best IPv4 default route; None without one.

        While there is no default route, the interface that has addresses of ours stays: a route
        that goes and comes, as when Wi-Fi roams, is no reason to break connections.
        """
        if configured is not None:
            return configured if any(link.name == configured for link in links.values()) else None
        outputs = [
            (route.get_attr("RTA_PRIORITY") or 0, index)
            for route in routes
            if (index := _output_interface(route)) is not None
        ]
        if outputs:
            link = links.get(min(outputs)[1])
            return None if link is None else link.name
        return next((a.ifname for a in addresses if a.owned), None)

    def add(self, address: Address) -> None:
        """Add one address as ours. Raises KernelError; one that is there already is no error."""
        if not self._protocol_kept:
            self._write_record(self._recorded() | {(address.ifname, address.interface)})
        self._change("add", address, proto=PROTOCOL, flags=_NOPREFIXROUTE, scope=_SCOPE_GLOBAL)

    def delete(self, address: Address) -> None:
        """Delete one address. Raises KernelError; one that is gone already is no error.

        Others in its subnet stay, also where it was the first of them.
        """
        with _promote_secondaries(address.ifname):
            self._change("del", address)
        if not self._protocol_kept:
            self._write_record(self._recorded() - {(address.ifname, address.interface)})

    def _change(self, command: str, address: Address, **more: int) -> None:
        arguments: dict[str, Any] = {
            "address": str(address.interface.ip),
            "prefixlen": address.interface.network.prefixlen,
            **more,
        }
        if address.broadcast is not None and command == "add":
            arguments["broadcast"] = str(address.broadcast)
        done = {"add": _EEXIST, "del": _EADDRNOTAVAIL}[command]
        try:
            (index,) = self._netlink.link_lookup(ifname=address.ifname) or (None,)
            if index is not None:
                self._netlink.addr(command, index=index, **arguments)
            elif command == "add":
                raise KernelError(f"interface {address.ifname} is gone")
        except NetlinkError as error:
            if error.code not in done:
                raise KernelError(
                    f"address {address} could not be {_PAST[command]}: {os.strerror(error.code)}"
                ) from error

    def _recorded(self) -> set[tuple[str, IPv4Interface]]:
        try:
            entries = json.loads(self._record.read_text())
        except FileNotFoundError:
            return set()
        except (OSError, ValueError) as error:
            raise KernelError(
                f"{self._record}: cannot be read: {error}",
                hint="remove the file, and by hand the addresses that the daemon had added",
            ) from error
        return {(ifname, IPv4Interface(interface)) for ifname, interface in entries}

    def _write_record(self, entries: set[tuple[str, IPv4Interface]]) -> None:
        text = json.dumps(sorted((ifname, str(interface)) for ifname, interface in entries))
        try:
            replace_text(self._record, text)
        except OSError as error:
            raise KernelError(f"{self._record}: cannot be written: {error}") from error


@contextmanager
def _promote_secondaries(ifname: str) -> Iterator[None]:
    """Without this setting the kernel deletes, with the primary address, all of the subnet.

    systemd sets it for good on the hosts that it runs; elsewhere it is set back.
    """
    setting = Path("/proc/sys/net/ipv4/conf", ifname, "promote_secondaries")
    try:
        off = setting.read_text().strip() == "0"
        if off:
            setting.write_text("1\n")
    except FileNotFoundError:
        off = False  # the interface is gone
    except OSError as error:
        raise KernelError(f"{setting}: cannot be set: {error.strerror}") from error
    try:
        yield
    finally:
        if off:
            with suppress(OSError):
                setting.write_text("0\n")


_EEXIST = frozenset({17})
_EADDRNOTAVAIL = frozenset({99, 19})  # the address, or its interface, went before us
_PAST = {"add": "added", "del": "deleted"}


def _kernel_release() -> tuple[int, int]:
    major, minor, *_ = os.uname().release.split(".")
    return int(major), int("".join(c for c in minor if c.isdigit()))


def _output_interface(route: Any) -> int | None:
    """The interface of a route, or of the first hop of a multipath route."""
    index: int | None = route.get_attr("RTA_OIF")
    if index is None and (hops := route.get_attr("RTA_MULTIPATH")):
        index = hops[0]["oif"]
    return index
