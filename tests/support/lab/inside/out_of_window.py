"""A TCP connection to an echo server, with a segment in it that is outside the server's window:
out_of_window.py IFNAME ADDRESS PORT

The segment acknowledges what the connection expects next: a host without the connection answers it
with a reset that is valid. Prints whether the connection still works: "alive", or the error.
"""

import socket
import struct
import sys

_ETH_P_IP = 0x0800
_BEYOND = 100_000_000
_ACK = 0x10


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _numbers(packets: socket.socket, port: int) -> tuple[int, int]:
    """What follows the next data for this port: sequence number, and what it acknowledges."""
    while True:
        packet = packets.recv(65536)
        header = (packet[0] & 0x0F) * 4
        if packet[9] != socket.IPPROTO_TCP:
            continue
        _, destination, sequence, acknowledged = struct.unpack_from("!HHII", packet, header)
        (length,) = struct.unpack_from("!H", packet, 2)
        data = length - header - (packet[header + 12] >> 4) * 4
        if destination == port and data > 0:
            return sequence + data, acknowledged


ifname, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
with (
    socket.create_connection((address, port), 10) as connection,
    socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_IP)) as packets,
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw,
):
    packets.bind((ifname, _ETH_P_IP))
    packets.settimeout(10)
    own_address, own_port = connection.getsockname()
    connection.send(b"first\n")
    lines = connection.makefile()
    lines.readline()
    expected, sent = _numbers(packets, own_port)
    ends = socket.inet_aton(own_address) + socket.inet_aton(address)

    def segment(checksum: int) -> bytes:
        sequence = (sent + _BEYOND) & 0xFFFFFFFF
        numbers = sequence, expected & 0xFFFFFFFF
        return struct.pack("!HHIIBBHHH", own_port, port, *numbers, 5 << 4, _ACK, 512, checksum, 0)

    pseudo = ends + struct.pack("!BBH", 0, socket.IPPROTO_TCP, 20)
    raw.sendto(segment(_checksum(pseudo + segment(0))), (address, 0))
    try:
        for number in range(20):
            connection.send(f"{number}\n".encode())
            lines.readline()
    except OSError as error:
        print(error, flush=True)
    else:
        print("alive", flush=True)
