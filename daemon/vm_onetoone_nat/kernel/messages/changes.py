"""Notifications of rtnetlink about links, addresses and routes, as triggers. Pure."""

import struct
from collections.abc import Iterator

from vm_onetoone_nat.kernel.messages.rtnetlink import attributes, notifications
from vm_onetoone_nat.model.family import unpacked
from vm_onetoone_nat.model.trigger import Kind, Trigger

NEW_LINK, DELETE_LINK = 16, 17
NEW_ADDRESS, DELETE_ADDRESS = 20, 21
NEW_ROUTE, DELETE_ROUTE = 24, 25
NEW_NETCONF = 80  # RTM_*

_LINK_SIZE, _ADDRESS_SIZE = 16, 8  # ifinfomsg, ifaddrmsg
_LINK_NAME, _WIRELESS = 3, 11  # IFLA_*
_LOCAL = 2  # IFA_LOCAL
_ROUTE = struct.Struct("=BBBBB")  # rtmsg: family, length of destination and source, TOS, table
_MAIN_TABLE = 254
_MOST_PID = 1 << 22
"""A port below it is the PID of the process; the kernel has 0, further sockets have others."""


def triggers(data: bytes, own_port: int) -> Iterator[Trigger]:
    """The triggers in one datagram. `own_port` changes our addresses, which triggers nothing."""
    for kind, port, start, end in notifications(data):
        if kind in (NEW_LINK, DELETE_LINK):
            yield from _link(data, start, end)
        elif kind in (NEW_ADDRESS, DELETE_ADDRESS) and port != own_port:
            yield _address(data, start, end, port, added=kind == NEW_ADDRESS)
        elif kind in (NEW_ROUTE, DELETE_ROUTE):
            _, destination, _, _, table = _ROUTE.unpack_from(data, start)
            if (destination, table) == (0, _MAIN_TABLE):
                yield Trigger(Kind.ROUTE, "route: default")
        elif kind == NEW_NETCONF:
            yield Trigger(Kind.FORWARDING, "forwarding")


def _link(data: bytes, start: int, end: int) -> Iterator[Trigger]:
    found = {k: data[at:to] for k, at, to in attributes(data, start + _LINK_SIZE, end)}
    # A Wi-Fi driver sends one with this attribute at each scan.
    if _WIRELESS not in found:
        name = found.get(_LINK_NAME, b"").rstrip(b"\0").decode(errors="backslashreplace")
        yield Trigger(Kind.LINK, f"link {name}")


def _address(data: bytes, start: int, end: int, port: int, *, added: bool) -> Trigger:
    found = {k: data[at:to] for k, at, to in attributes(data, start + _ADDRESS_SIZE, end)}
    address = unpacked(found[_LOCAL]) if _LOCAL in found else "of another kind"
    writer = f"process {port}" if 0 < port < _MOST_PID else None
    by = f" by {writer}" if writer is not None else ""
    return Trigger(Kind.ADDRESS, f"address {address} {'added' if added else 'removed'}{by}", writer)
