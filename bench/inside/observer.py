"""Inside the laptop: records libvirt's events and the kernel's notifications, with their times.

Each line of input is a command, and is answered by one line of JSON:

- `start NAME`, `stop NAME`: start or destroy the domain; answers null.
- `toggle SECONDS NAME…`: start or destroy each, one after another within that time; answers null.
- `take`: all events since the last `take`, as [time, what, detail]. Times are monotonic.
"""

import json
import socket
import struct
import sys
import threading
import time
from pathlib import Path

import libvirt

HEADER = struct.Struct("=IHHII")
SO_RCVBUFFORCE = 33
NETLINK_NETFILTER = 12
KINDS = {
    20: "address added",
    21: "address removed",
    10 << 8 | 12: "element added",
    10 << 8 | 14: "element removed",
    10 << 8 | 15: "generation",
}
DOMAIN = {
    libvirt.VIR_DOMAIN_EVENT_STARTED: "started",
    libvirt.VIR_DOMAIN_EVENT_STOPPED: "stopped",
}
NETWORK = {libvirt.VIR_NETWORK_EVENT_STARTED: "started"}


def main() -> None:
    seen: list[tuple[float, str, str]] = []
    for protocol, groups in ((socket.NETLINK_ROUTE, 0x10), (NETLINK_NETFILTER, 1 << 6)):
        netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        netlink.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        netlink.bind((0, groups))
        threading.Thread(target=listen, args=(netlink, seen), daemon=True).start()
    libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=run_loop, daemon=True).start()
    connection = libvirt.open(sys.argv[1])
    for definition in sys.argv[2:]:
        with Path(definition).open() as file:
            for xml in json.load(file):
                define(connection, xml)

    def on_domain(_c, domain, event, _detail, _opaque):  # type: ignore[no-untyped-def]
        seen.append((time.monotonic(), f"domain {DOMAIN.get(event, event)}", domain.name()))

    def on_network(_c, network, event, _detail, _opaque):  # type: ignore[no-untyped-def]
        seen.append((time.monotonic(), f"network {NETWORK.get(event, event)}", network.name()))

    connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, on_domain, None)
    connection.networkEventRegisterAny(
        None, libvirt.VIR_NETWORK_EVENT_ID_LIFECYCLE, on_network, None
    )
    answer(None)
    for line in sys.stdin:
        command, *arguments = line.split()
        if command == "take":
            count = len(seen)
            answer(seen[:count])
            del seen[:count]
            continue
        if command == "toggle":
            toggle(connection, float(arguments[0]), arguments[1:])
        else:
            domain = connection.lookupByName(arguments[0])
            (domain.create if command == "start" else domain.destroy)()
        answer(None)


def define(connection: libvirt.virConnect, xml: str) -> None:
    if "<network" in xml:
        connection.networkDefineXML(xml).create()
        return
    domain = connection.defineXML(xml)
    if connection.getType() == "TEST":
        domain.create()


def toggle(connection: libvirt.virConnect, seconds: float, names: list[str]) -> None:
    domains = [connection.lookupByName(name) for name in names]
    active = [domain.isActive() for domain in domains]
    began = time.monotonic()
    for number, (domain, on) in enumerate(zip(domains, active, strict=True)):
        (domain.destroy if on else domain.create)()
        time.sleep(max(0.0, began + (number + 1) * seconds / len(names) - time.monotonic()))


def listen(netlink: socket.socket, seen: list[tuple[float, str, str]]) -> None:
    while True:
        data = netlink.recv(1 << 20)
        now, offset = time.monotonic(), 0
        while offset < len(data):
            length, kind, _, _, sender = HEADER.unpack_from(data, offset)
            if (name := KINDS.get(kind)) is not None:
                seen.append((now, name, str(sender)))
            offset += length + 3 & ~3


def run_loop() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


def answer(value: object) -> None:
    print(json.dumps(value), flush=True)


main()
