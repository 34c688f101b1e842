"""Prints the source of each IPv4 packet that arrives at an interface: sources.py IFNAME

Each source once, a line for each.
"""

import socket
import sys

_ETH_P_IP = 0x0800
_OUTGOING = 4  # PACKET_OUTGOING

with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_IP)) as packets:
    packets.bind((sys.argv[1], _ETH_P_IP))
    print("ready", flush=True)
    seen = set()
    while True:
        packet, sender = packets.recvfrom(65536)
        source = socket.inet_ntoa(packet[12:16])
        if sender[2] != _OUTGOING and source not in seen:
            seen.add(source)
            print(source, flush=True)
