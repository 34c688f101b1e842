"""A long exchange with an echo server, and a control beside it:
stream.py tcp|udp|flows RATE ADDRESS CONTROL_ADDRESS PORT

Sends RATE numbered messages a second to ADDRESS, and with each the same to CONTROL_ADDRESS, until
standard input ends; then prints a JSON report: when each pair was sent, and for either side the
seconds until each answer. A TCP connection that ends before is a line "broken". By "flows" each
message is sent by UDP from a port of its own, and is a connection of its own to the kernel.
"""

import json
import select
import socket
import struct
import sys
import time
from typing import Protocol

# Offsets in struct tcp_info (linux/tcp.h) of tcpi_total_retrans and tcpi_dsack_dups.
_TOTAL_RETRANS, _DSACK_DUPS = 100, 216
# From asm-generic/socket.h: like SO_RCVBUF, beyond net.core.rmem_max.
_SO_RCVBUFFORCE = 33
_BUFFER = 8 << 20
# After the last message answers may come for so many seconds; longer while the control lacks some.
_GRACE = {"tcp": 2.0, "udp": 0.5, "flows": 0.5}
_LONGEST_GRACE = 20.0
# A sender that was kept waiting for longer leaves out what it has missed, instead of a burst.
_CATCH_UP = 0.1
# A flow is closed when nobody will answer it any more.
_FLOW_SECONDS = 5.0
# Of the control so many messages are on their way at most: a machine that is too busy for the rate
# gets fewer messages instead of later and later answers, of which nothing could be learned.
_WINDOW = 40
_PAUSE = 0.005


class Side(Protocol):
    """One of the two exchanges; sockets register themselves in `sockets`.

    `newest` is the latest message that was answered, -1 before the first.
    """

    delays: dict[int, float]
    newest: int

    def send(self, number: int, now: float) -> None: ...
    def receive(self, descriptor: int, now: float) -> None: ...
    def report(self, sent: int) -> dict[str, object]: ...


class Sockets:
    """All sockets that answers come in by."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._owners: dict[int, Side] = {}

    def add(self, descriptor: int, owner: Side) -> None:
        self._owners[descriptor] = owner
        self._poll.register(descriptor, select.POLLIN)

    def remove(self, descriptor: int) -> None:
        if self._owners.pop(descriptor, None) is not None:
            self._poll.unregister(descriptor)

    def watch_input(self) -> None:
        self._poll.register(sys.stdin, select.POLLIN)

    def wait(self, seconds: float) -> bool:
        """Receive what comes within that time; whether standard input has ended."""
        ended = False
        for descriptor, _ in self._poll.poll(max(0.0, seconds) * 1000):
            if descriptor == sys.stdin.fileno():
                self._poll.unregister(descriptor)
                ended = True
            elif descriptor in self._owners:
                self._owners[descriptor].receive(descriptor, time.monotonic())
        return ended


def _side(
    delays: dict[int, float], sent: int, sources: set[str], **more: object
) -> dict[str, object]:
    return {
        "delays": [delays.get(number) for number in range(sent)],
        "sources": sorted(sources),
        "retransmits": [],
        "broken": False,
        "errors": [],
        **more,
    }


class Flows:
    """A socket for each message."""

    def __init__(self, sockets: Sockets, address: str, port: int) -> None:
        self._sockets = sockets
        self._peer = (address, port)
        self._open: dict[int, tuple[int, float, socket.socket]] = {}
        self.delays: dict[int, float] = {}
        self.newest = -1
        self._sources: set[str] = set()

    def send(self, number: int, now: float) -> None:
        for oldest in list(self._open)[:2]:
            if self._open[oldest][1] < now - _FLOW_SECONDS:
                self._close(oldest)
        flow = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        flow.setblocking(False)
        self._open[flow.fileno()] = (number, now, flow)
        self._sockets.add(flow.fileno(), self)
        try:
            flow.connect(self._peer)
            flow.send(f"{number}\n".encode())
        except OSError:
            self._close(flow.fileno())

    def receive(self, descriptor: int, now: float) -> None:
        number, sent, flow = self._open[descriptor]
        try:
            answer = flow.recv(1024).decode()
        except OSError:
            # A rejection: this one is lost.
            pass
        else:
            self._sources.add(answer.split(" ", 1)[0])
            self.delays[number] = now - sent
            self.newest = max(self.newest, number)
        self._close(descriptor)

    def report(self, sent: int) -> dict[str, object]:
        return _side(self.delays, sent, self._sources)

    def _close(self, descriptor: int) -> None:
        self._sockets.remove(descriptor)
        self._open.pop(descriptor)[2].close()


class Connection:
    """One socket for all messages."""

    def __init__(self, sockets: Sockets, address: str, port: int, tcp: bool) -> None:
        self._sockets = sockets
        self._tcp = tcp
        self._socket = socket.socket(
            socket.AF_INET, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM
        )
        self._socket.settimeout(30)
        self._socket.connect((address, port))
        if tcp:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        else:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        self._socket.setblocking(False)
        sockets.add(self._socket.fileno(), self)
        self._pending = b""
        self._sent: dict[int, float] = {}
        self.delays: dict[int, float] = {}
        self.newest = -1
        self._sources: set[str] = set()
        self._errors: set[str] = set()
        self._resent: list[float] = []
        self._counted = 0, 0
        self._broken = False

    def send(self, number: int, now: float) -> None:
        if self._broken:
            return
        self._count_retransmits(now)
        self._sent[number] = now
        try:
            self._socket.send(f"{number}\n".encode())
        except OSError as error:
            self._failed(str(error))

    def receive(self, descriptor: int, now: float) -> None:
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
            self.delays.setdefault(int(number), now - self._sent[int(number)])
            self.newest = max(self.newest, int(number))

    def report(self, sent: int) -> dict[str, object]:
        if not self._broken:
            self._count_retransmits(time.monotonic())
        return _side(
            self.delays,
            sent,
            self._sources,
            retransmits=self._resent,
            broken=self._broken,
            errors=sorted(self._errors),
        )

    def _count_retransmits(self, now: float) -> None:
        if self._tcp:
            info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 224)
            (total,), (twice,) = (
                struct.unpack_from("=I", info, offset) for offset in (_TOTAL_RETRANS, _DSACK_DUPS)
            )
            before, twice_before = self._counted
            self._counted = total, twice
            self._resent += [now] * (total - before)
            # Of one the receiver says that it has both: it was sent again too soon (RFC 2883).
            needless = min(twice - twice_before, len(self._resent))
            del self._resent[len(self._resent) - needless :]

    def _failed(self, why: str) -> None:
        self._errors.add(why)
        if self._tcp:
            self._broken = True
            self._sockets.remove(self._socket.fileno())
            print("broken", flush=True)


def _exchange(sockets: Sockets, sides: tuple[Side, Side], rate: float) -> list[float]:
    """Send until standard input ends; when each pair was sent. The second side is the control."""
    sent: list[float] = []
    control = sides[1]
    sockets.watch_input()
    due = time.monotonic()
    while not sockets.wait(due - time.monotonic()):
        now = time.monotonic()
        if now < due:
            continue
        full = len(sent) - 1 - control.newest >= _WINDOW
        if full and now - sent[-1] < _CATCH_UP:
            due = now + _PAUSE
        else:
            for side in sides:
                side.send(len(sent), now)
            sent.append(now)
            due = max(due + 1 / rate, now - _CATCH_UP)
    return sent


def _wait_for_answers(
    sockets: Sockets, measured: Side, control: Side, sent: int, grace: float
) -> None:
    last = time.monotonic()
    while len(measured.delays) < sent or len(control.delays) < sent:
        complete = len(control.delays) == sent
        pause = last + (grace if complete else _LONGEST_GRACE) - time.monotonic()
        if pause <= 0:
            break
        sockets.wait(min(pause, 0.05))


def main() -> None:
    protocol, rate, address, control_address, port = sys.argv[1:]
    sockets = Sockets()

    def side(address: str) -> Side:
        if protocol == "flows":
            return Flows(sockets, address, int(port))
        return Connection(sockets, address, int(port), protocol == "tcp")

    # The control first, so that what is in its way is not taken for the product's doing.
    control = side(control_address)
    measured = side(address)
    print("ready", flush=True)
    sent = _exchange(sockets, (measured, control), float(rate))
    ended = time.monotonic()
    _wait_for_answers(sockets, measured, control, len(sent), _GRACE[protocol])
    report = {
        "sent_at": sent,
        "ended": ended,
        "measured": measured.report(len(sent)),
        "control": control.report(len(sent)),
    }
    print(json.dumps(report), flush=True)


main()
