"""A long exchange with an echo server: stream.py tcp|udp ADDRESS PORT RATE LATE

Sends RATE numbered messages a second until standard input ends, then prints a JSON report.
An answer after more than LATE seconds is a late one.
"""

import json
import select
import socket
import struct
import sys
import time

# Offset of tcpi_total_retrans in struct tcp_info (linux/tcp.h): eight bytes, 23 u32 before it.
_TOTAL_RETRANS = 100
# After the last message, how long answers may still come, in seconds.
_GRACE = 2.0


class _Exchange:
    def __init__(self, protocol: str, address: str, port: int, rate: float) -> None:
        self._tcp = protocol == "tcp"
        kind = socket.SOCK_STREAM if self._tcp else socket.SOCK_DGRAM
        self._socket = socket.socket(socket.AF_INET, kind)
        self._socket.settimeout(10)
        self._socket.connect((address, port))
        if self._tcp:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setblocking(False)
        self._rate = rate
        self._pending = b""
        self._sent: list[float] = []
        self._delays: dict[int, float] = {}
        self._sources: set[str] = set()
        self._errors: set[str] = set()
        self._broken = False

    def run(self) -> None:
        started = time.monotonic()
        while not self._broken:
            pause = started + len(self._sent) / self._rate - time.monotonic()
            if pause <= 0:
                self._send()
                continue
            readable, _, _ = select.select([self._socket, sys.stdin], [], [], pause)
            if self._socket in readable:
                self._receive()
            if sys.stdin in readable:
                break
        last = time.monotonic()
        while not self._broken and len(self._delays) < len(self._sent):
            pause = last + _GRACE - time.monotonic()
            if pause <= 0 or not select.select([self._socket], [], [], pause)[0]:
                break
            self._receive()

    def report(self, late: float) -> dict[str, object]:
        return {
            "sent": len(self._sent),
            "answered": len(self._delays),
            "late": sum(delay > late for delay in self._delays.values()),
            "slowest": max(self._delays.values(), default=0.0),
            "retransmits": self._retransmits(),
            "broken": self._broken,
            "errors": sorted(self._errors),
            "sources": sorted(self._sources),
        }

    def _send(self) -> None:
        number = len(self._sent)
        self._sent.append(time.monotonic())
        try:
            self._socket.send(f"{number}\n".encode())
        except OSError as error:
            self._failed(str(error))

    def _receive(self) -> None:
        try:
            data = self._socket.recv(65536)
        except OSError as error:
            self._failed(str(error))
            return
        if self._tcp and not data:
            self._failed("closed by the other side")
        whole, _, self._pending = (self._pending + data).rpartition(b"\n")
        for line in whole.decode().splitlines():
            source, *_, number = line.split(" ")
            self._sources.add(source)
            self._delays.setdefault(int(number), time.monotonic() - self._sent[int(number)])

    def _failed(self, why: str) -> None:
        self._errors.add(why)
        self._broken = self._tcp

    def _retransmits(self) -> int:
        if not self._tcp:
            return 0
        info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
        value: int = struct.unpack_from("=I", info, _TOTAL_RETRANS)[0]
        return value


exchange = _Exchange(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
print("ready", flush=True)
exchange.run()
print(json.dumps(exchange.report(late=float(sys.argv[5]))), flush=True)
