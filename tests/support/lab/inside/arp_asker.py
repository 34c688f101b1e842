"""Who answers ARP for an address, asked all the time: arp_asker.py INTERFACE ADDRESS RATE

Asks by broadcast from the interface's own address until its input ends. Then prints a JSON list
with, for each question, [when it was asked, on the monotonic clock, [the MACs that answered]].
"""

import fcntl
import json
import select
import socket
import struct
import sys
import time

_ETH_P_ARP, _SIOCGIFADDR = 0x0806, 0x8915
_ARP = struct.Struct("!HHBBH6s4s6s4s")
_BROADCAST = b"\xff" * 6


def _own_address(packets: socket.socket, ifname: str) -> bytes:
    answer = fcntl.ioctl(packets, _SIOCGIFADDR, struct.pack("256s", ifname.encode()))
    return answer[20:24]


def _ask(ifname: str, address: bytes, rate: float) -> list[tuple[float, list[str]]]:
    asked: list[tuple[float, list[str]]] = []
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ARP)) as packets:
        packets.bind((ifname, _ETH_P_ARP))
        mac = packets.getsockname()[4]
        own = _own_address(packets, ifname)
        question = _ARP.pack(1, 0x0800, 6, 4, 1, mac, own, bytes(6), address)
        print("ready", flush=True)
        begin = time.monotonic()
        while True:
            pause = begin + len(asked) / rate - time.monotonic()
            if pause <= 0:
                packets.sendto(question, (ifname, _ETH_P_ARP, 0, 0, _BROADCAST))
                asked.append((time.monotonic(), []))
                continue
            readable, _, _ = select.select([packets, sys.stdin], [], [], pause)
            if packets in readable:
                fields = _ARP.unpack_from(packets.recv(128))
                # An announcement is no answer: it goes to itself.
                if fields[4] == 2 and fields[6] == address != fields[8] and asked:
                    asked[-1][1].append(fields[5].hex(":"))
            if sys.stdin in readable:
                return asked


print(json.dumps(_ask(sys.argv[1], socket.inet_aton(sys.argv[2]), float(sys.argv[3]))), flush=True)
