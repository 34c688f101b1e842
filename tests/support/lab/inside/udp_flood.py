"""Many connections at once: udp_flood.py SOURCE DESTINATION PORT COUNT

Sends COUNT UDP datagrams to PORT of DESTINATION, each from another port of SOURCE; to the kernel
each is a connection of its own.
"""

import socket
import struct
import sys

source, destination = map(socket.inet_aton, sys.argv[1:3])
port, count = map(int, sys.argv[3:5])
with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
    for number in range(count):
        # The kernel fills in the checksum and the length of the IP header; UDP may have none.
        header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 0, 0, 0, 64, 17, 0, source, destination)
        datagram = struct.pack("!HHHH", 1024 + number % 64000, port, 8, 0)
        raw.sendto(header + datagram, (sys.argv[2], 0))
