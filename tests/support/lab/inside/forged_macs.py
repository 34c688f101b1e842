"""Frames from forged MACs: forged_macs.py INTERFACE COUNT RATE

Sends one broadcast frame from each of COUNT MACs, RATE in a second at most.
"""

import socket
import sys
import time

_BROADCAST = b"\xff" * 6
_TYPE = b"\x88\xb5"  # for experiments (IEEE 802)
_AT_ONCE = 100


def _main(ifname: str, count: int, rate: float) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as frames:
        frames.bind((ifname, 0))
        begin = time.monotonic()
        for n in range(count):
            if n % _AT_ONCE == 0:
                time.sleep(max(0.0, begin + n / rate - time.monotonic()))
            frames.send(_BROADCAST + b"\x0a\x00" + n.to_bytes(4, "big") + _TYPE + bytes(46))


_main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
