"""Probes of guests and of the LAN: ARP, echo requests, TCP connections."""

import os
import select
import socket
import struct
import time
from collections.abc import Iterable

from vm_onetoone_nat.errors import KernelError
from vm_onetoone_nat.kernel.arp import ARP_PROTOCOL, BROADCAST, parse_packet, request
from vm_onetoone_nat.model.family import Family, IPAddress, family_of
from vm_onetoone_nat.model.links import Link

_TIMES = 3
_ICMP = struct.Struct("!BBHHH")


def who_has(
    link: Link, addresses: Iterable[IPAddress], sender: IPAddress, seconds: float = 0.6
) -> dict[IPAddress, frozenset[str]]:
    """Send ARP requests on a link; return the MACs that answered for each address in that time.

    With `sender` 0.0.0.0 they are probes, which do not change other hosts' ARP tables. Raises
    KernelError if the link cannot be used.
    """
    found: dict[IPAddress, set[str]] = {address: set() for address in addresses}
    if not found:
        return {}
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0) as packets:
        try:
            packets.bind((link.name, ARP_PROTOCOL))
            began = time.monotonic()
            for turn in range(_TIMES):
                for address in found:
                    packets.sendto(
                        request(link.mac, sender, address),
                        (link.name, ARP_PROTOCOL, 0, 0, BROADCAST),
                    )
                _collect(packets, found, began + seconds * (turn + 1) / _TIMES)
                if all(found.values()):
                    break
        except OSError as error:
            raise KernelError(f"ARP on {link.name}: {error.strerror}") from error
    return {address: frozenset(macs - {link.mac}) for address, macs in found.items()}


def _collect(packets: socket.socket, found: dict[IPAddress, set[str]], until: float) -> None:
    while (left := until - time.monotonic()) > 0 and select.select([packets], [], [], left)[0]:
        packet = parse_packet(packets.recv(128))
        if packet is not None and packet.sender in found:
            found[packet.sender].add(packet.mac)


def echoes(source: IPAddress, destination: IPAddress, seconds: float = 1.0) -> bool:
    """Whether an address answers an echo request from an address of this host."""
    family = family_of(destination)
    try:
        with socket.socket(family.number, socket.SOCK_RAW, family.icmp_number) as icmp:
            icmp.bind((str(source), 0))
            icmp.connect((str(destination), 0))
            ident, began = os.getpid() & 0xFFFF, time.monotonic()
            for turn in range(_TIMES):
                icmp.send(_echo(family, ident, turn))
                until = began + seconds * (turn + 1) / _TIMES
                while (left := until - time.monotonic()) > 0:
                    if not select.select([icmp], [], [], left)[0]:
                        break
                    if _is_reply(family, icmp.recv(2048), ident):
                        return True
    except OSError:
        # No route, or the source address has been deleted.
        return False
    return False


def connects(
    source: IPAddress, destination: IPAddress, ports: Iterable[int], seconds: float = 1.0
) -> bool:
    """Whether any of these TCP ports accepts or refuses: either is an answer of the guest."""
    for port in ports:
        with socket.socket(family_of(destination).number, socket.SOCK_STREAM) as stream:
            stream.settimeout(seconds)
            try:
                stream.bind((str(source), 0))
                stream.connect((str(destination), port))
                return True
            except ConnectionRefusedError:
                return True
            except OSError:
                continue
    return False


def _echo(family: Family, ident: int, sequence: int) -> bytes:
    packet = _ICMP.pack(family.echo_request, 0, 0, ident, sequence)
    total = sum(struct.unpack("!4H", packet))
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    return _ICMP.pack(family.echo_request, 0, checksum, ident, sequence)


def _is_reply(family: Family, packet: bytes, ident: int) -> bool:
    header = (packet[0] & 0x0F) * 4 if family.header_received else 0
    if len(packet) < header + _ICMP.size:
        return False
    kind, _, _, found, _ = _ICMP.unpack_from(packet, header)
    return (kind, found) == (family.echo_reply, ident)
