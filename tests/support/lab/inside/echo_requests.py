"""Prints the sources of ICMP echo requests that arrive here: echo_requests.py PAYLOAD_HEX

Only requests whose payload contains PAYLOAD. Each line is "<source> <destination>".
"""

import socket
import sys

_ECHO_REQUEST = 8

payload = bytes.fromhex(sys.argv[1])
with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
    print("ready", flush=True)
    while True:
        packet = raw.recv(65536)
        header = (packet[0] & 0x0F) * 4
        if packet[header] == _ECHO_REQUEST and payload in packet:
            source, destination = (socket.inet_ntoa(packet[at : at + 4]) for at in (12, 16))
            print(source, destination, flush=True)
