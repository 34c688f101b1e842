"""Entries of connection tracking, in the namespace in which it runs.

- `connections.py others COUNT`: makes so many entries, of nobody's.
- `connections.py guest COUNT EXTERNAL INTERNAL`: makes so many entries of LAN hosts to EXTERNAL,
  which is translated to INTERNAL.
- `connections.py watch [FEWER IFNAME ADDRESS/LENGTH]`: prints "ready", and a line of JSON when its
  input ends: `addresses`, the notifications about addresses as [time, "added" or "removed",
  address], and `counts`, the number of entries whenever it differs, as [time, number]. Times are
  monotonic. ADDRESS is deleted as soon as there are FEWER entries less than at the beginning; if
  FEWER is 0, half a second after another address was deleted.
"""

import json
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tracking import UDP, Direction, Entry, many, send, udp_flow

_COUNT = Path("/proc/sys/net/netfilter/nf_conntrack_count")
_HEADER = struct.Struct("=IHHII")
_KINDS = {20: "added", 21: "removed"}
_LATER_SECONDS = 0.5


def others(count: str) -> None:
    """Make entries of nobody's."""
    send(many(udp_flow(ip_address("10.0.0.1"), ip_address("198.51.100.1")), int(count)))


def guest(count: str, external: str, internal: str) -> None:
    """Make entries of a guest."""
    first, there, back = (ip_address(a) for a in ("172.16.0.1", external, internal))
    request, answer = Direction(first, there, UDP, (53, 53)), Direction(back, first, UDP, (53, 53))
    send(many(Entry(request, answer), int(count)))


def watch(fewer: str = "0", *target: str) -> None:
    """Record until the input ends."""
    addresses: list[tuple[float, str, str]] = []
    counts = [(time.monotonic(), int(_COUNT.read_text()))]
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        netlink.bind((0, 0x10))
        print("ready", flush=True)
        while sys.stdin not in select.select([netlink, sys.stdin], [], [], 0.002)[0]:
            addresses += _notified(netlink)
            count, now = int(_COUNT.read_text()), time.monotonic()
            if count != counts[-1][1]:
                counts.append((now, count))
            fallen = counts[0][1] - count >= int(fewer) > 0
            later = int(fewer) == 0 and addresses and now > addresses[0][0] + _LATER_SECONDS
            if target and (fallen or later):
                ifname, address = target
                subprocess.run(["ip", "address", "delete", address, "dev", ifname], check=True)
                target = ()
    print(json.dumps({"addresses": addresses, "counts": counts}), flush=True)


def _notified(netlink: socket.socket) -> Iterator[tuple[float, str, str]]:
    """The notifications that have come."""
    while True:
        try:
            data = netlink.recv(1 << 16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        length, kind, *_ = _HEADER.unpack_from(data)
        offset = _HEADER.size + 8
        while offset < length:
            size, attribute = struct.unpack_from("=HH", data, offset)
            if attribute == 2 and kind in _KINDS:  # IFA_LOCAL
                address = socket.inet_ntoa(data[offset + 4 : offset + 8])
                yield time.monotonic(), _KINDS[kind], address
            offset += size + 3 & ~3


if __name__ == "__main__":
    commands = {"others": others, "guest": guest, "watch": watch}
    commands[sys.argv[1]](*sys.argv[2:])  # type: ignore[operator]
