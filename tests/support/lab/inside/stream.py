"""A long exchange with an echo server: stream.py tcp|udp|flows ADDRESS PORT RATE LATE

Sends RATE numbered messages a second until standard input ends, then prints a JSON report. By
"flows" each is sent by UDP from a port of its own, and is a connection of its own to the kernel.
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
# After the last message, how long answers may still come, in seconds; by UDP none is sent again.
_GRACE = {"tcp": 2.0, "udp": 0.5, "flows": 0.5}


def report(
    sent: list[float], delays: dict[int, float], late: float, **more: object
) -> dict[str, object]:
    """The report; `delays` has the answered messages by number."""
    unanswered = [at for n, at in enumerate(sent) if n not in delays]
    return {
        "sent": len(sent),
        "answered": len(delays),
        "late": sum(delay > late for delay in delays.values()),
        "slowest": max(delays.values(), default=0.0),
        "last_lost": unanswered[-1] if unanswered else None,
        **more,
    }


class _Flows:
    """A socket for each message, open until it is answered or nobody will answer any more."""

    def __init__(self, address: str, port: int, rate: float) -> None:
        self._peer = (address, port)
        self._rate = rate
        self._poll = select.poll()
        self._poll.register(sys.stdin, select.POLLIN)
        self._open: dict[int, tuple[int, socket.socket]] = {}
        self._sent: list[float] = []
        self._delays: dict[int, float] = {}
        self._sources: set[str] = set()

    def run(self) -> None:
        started = time.monotonic()
        ended = False
        while not ended:
            pause = started + len(self._sent) / self._rate - time.monotonic()
            if pause <= 0:
                self._send()
            else:
                ended = self._receive(pause)
        self._poll.unregister(sys.stdin)
        until = time.monotonic() + _GRACE["flows"]
        while self._open and (pause := until - time.monotonic()) > 0:
            self._receive(pause)

    def report(self, late: float) -> dict[str, object]:
        return report(
            self._sent,
            self._delays,
            late,
            retransmits=0,
            broken=False,
            errors=[],
            sources=sorted(self._sources),
        )

    def _send(self) -> None:
        number, now = len(self._sent), time.monotonic()
        self._sent.append(now)
        for oldest in list(self._open)[:2]:
            if self._sent[self._open[oldest][0]] < now - 2:
                self._close(oldest)
        flow = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        flow.setblocking(False)
        self._open[flow.fileno()] = (number, flow)
        self._poll.register(flow, select.POLLIN)
        try:
            flow.connect(self._peer)
            flow.send(f"{number}\n".encode())
        except OSError:
            self._close(flow.fileno())

    def _receive(self, pause: float) -> bool:
        """Whether standard input has ended."""
        for descriptor, _ in self._poll.poll(pause * 1000):
            if descriptor == sys.stdin.fileno():
                return True
            number, flow = self._open[descriptor]
            try:
                answer = flow.recv(1024).decode()
            except OSError:
                # A rejection: this one is lost.
                pass
            else:
                self._sources.add(answer.split(" ", 1)[0])
                self._delays[number] = time.monotonic() - self._sent[number]
            self._close(descriptor)
        return False

    def _close(self, descriptor: int) -> None:
        self._poll.unregister(descriptor)
        self._open.pop(descriptor)[1].close()


class _Exchange:
    def __init__(self, protocol: str, address: str, port: int, rate: float) -> None:
        self._grace = _GRACE[protocol]
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
            pause = last + self._grace - time.monotonic()
            if pause <= 0 or not select.select([self._socket], [], [], pause)[0]:
                break
            self._receive()

    def report(self, late: float) -> dict[str, object]:
        return report(
            self._sent,
            self._delays,
            late,
            retransmits=self._retransmits(),
            broken=self._broken,
            errors=sorted(self._errors),
            sources=sorted(self._sources),
        )

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


where = (sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
exchange = _Flows(*where) if sys.argv[1] == "flows" else _Exchange(sys.argv[1], *where)
print("ready", flush=True)
exchange.run()
print(json.dumps(exchange.report(late=float(sys.argv[5]))), flush=True)
