"""The thread for ARP: what one packet, or one socket, that is of no use costs."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from vm_onetoone_nat.decide.acd import ArpPacket
from vm_onetoone_nat.internal_errors import OCCURRED
from vm_onetoone_nat.kernel import arp as module
from vm_onetoone_nat.kernel.arp import Arp, Detection, parse_packet, request
from vm_onetoone_nat.kernel.socket_filter import Filter, arp_about
from vm_onetoone_nat.model.links import Link

LINK = Link(7, "eth0", mac="52:54:00:00:00:07")
WANTED, HELD = IPv4Address("192.168.1.101"), IPv4Address("192.168.1.102")
OTHER = "52:54:00:00:00:99"


@pytest.fixture
def arp(tmp_path: Path) -> Iterator[Arp]:
    """Not started."""
    arp = Arp(lambda _: None, tmp_path / "record")
    yield arp
    arp._close()
    os.close(arp._wake)


class Packets:
    """A socket that has received these."""

    def __init__(self, *packets: bytes) -> None:
        self._left = list(packets)
        self.filters: list[bytes] = []

    def setsockopt(self, _level: int, _option: int, value: bytes | int) -> None:
        if isinstance(value, bytes):
            self.filters.append(value)

    def bind(self, _: object) -> None: ...
    def close(self) -> None: ...

    def recv(self, _: int) -> bytes:
        if not self._left:
            raise BlockingIOError
        return self._left.pop(0)


@pytest.mark.internal_errors
def test_packet_that_cannot_be_handled(arp: Arp, monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs itself, and those after it are handled: the conflict is seen."""

    def parse(data: bytes) -> ArpPacket | None:
        if data == b"odd":
            raise ValueError
        return parse_packet(data)

    packets = Packets(b"odd", b"odd", request(OTHER, WANTED, WANTED))
    monkeypatch.setattr(socket, "socket", lambda *_: packets)
    monkeypatch.setattr(module, "parse_packet", parse)
    arp.update(LINK, {WANTED}, set(), {LINK.mac})
    arp._receive(packets)  # type: ignore[arg-type]
    assert [each.address for each in arp.observe(LINK).unavailable] == [WANTED]
    assert OCCURRED.counts["arp"] == OCCURRED.total == 2


def test_order(arp: Arp, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits is handled in the order in which it came, also over several turns."""
    waiting = [request(OTHER, IPv4Address(number), WANTED) for number in range(1, 151)]
    packets, parsed = Packets(*waiting), []

    def parse(data: bytes) -> None:
        parsed.append(data)

    monkeypatch.setattr(module, "parse_packet", parse)
    turns = [arp._receive(packets) for _ in range(3)]  # type: ignore[arg-type]
    assert turns == [True, True, False]
    assert parsed == waiting


class Over(BaseException):
    """The end of the thread."""


class Flood(Packets):
    """A socket on which packets wait at any time, with the first of `packets` in their midst."""

    def __init__(self, *packets: bytes) -> None:
        super().__init__(*packets)
        self.received = 0
        self.sent: list[bytes] = []
        self.over = threading.Event()
        self._always = os.eventfd(1)

    def fileno(self) -> int:
        return self._always

    def recv(self, size: int) -> bytes:
        if self.over.is_set():
            raise Over
        self.received += 1
        return super().recv(size) if self.received % 100 == 0 and self._left else UNRELATED

    def sendto(self, packet: bytes, _address: object) -> None:
        self.sent.append(packet)

    def close(self) -> None:
        os.close(self._always)


UNRELATED = request(OTHER, IPv4Address("192.168.1.9"), IPv4Address("192.168.1.10"))


def test_flood(arp: Arp, monkeypatch: pytest.MonkeyPatch) -> None:
    """While packets come faster than they are received, passes go on and addresses are probed.

    The conflict in their midst is seen. Before, a pass waited for the end of the flood.
    """
    flood, free = Flood(request(OTHER, HELD, HELD)), threading.Event()
    monkeypatch.setattr(socket, "socket", lambda *_: flood)

    def passes() -> None:
        while not flood.over.is_set():
            arp.update(LINK, {WANTED}, {HELD}, {LINK.mac})
            if not arp.observe(LINK).unavailable:
                free.set()
                return

    def run() -> None:
        with suppress(Over):
            arp._run()

    arp.update(LINK, {WANTED}, {HELD}, {LINK.mac})
    threads = [threading.Thread(target=each) for each in (run, passes)]
    for thread in threads:
        thread.start()
    try:
        assert free.wait(30)
    finally:
        flood.over.set()
        for thread in threads:
            thread.join(30)
    probe = request(LINK.mac, IPv4Address(0), WANTED)
    assert flood.sent.count(probe) == 3
    assert request(LINK.mac, HELD, HELD) in flood.sent
    assert flood.received > 100


def test_filter(arp: Arp, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's filter follows the range of addresses, and the socket."""
    sockets: list[Packets] = []

    def opened(*_: object) -> Packets:
        sockets.append(Packets())
        return sockets[-1]

    ranges: list[tuple[int, int]] = []

    def about(first: int, last: int) -> Filter:
        ranges.append((first, last))
        return arp_about(first, last)

    monkeypatch.setattr(module, "arp_about", about)
    monkeypatch.setattr(socket, "socket", opened)
    for link, wanted in (
        (LINK, set()),
        (LINK, {WANTED}),
        (LINK, {WANTED}),
        (LINK, {WANTED + 7}),
        (replace(LINK, index=8), {WANTED + 7}),
    ):
        arp.update(link, wanted, {HELD} if wanted else set(), set())
    low, held = int(WANTED), int(HELD)
    assert ranges == [(low, held), (held, low + 7), (held, low + 7)]
    assert [len(each.filters) for each in sockets] == [2, 1]


def test_no_socket(arp: Arp, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no socket is to be had, nothing is probed yet, and the next pass tries again."""

    def none_left(*_: object) -> socket.socket:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(socket, "socket", none_left)
        arp.update(LINK, {WANTED}, set(), set())
        assert arp.observe(LINK) == Detection((), frozenset())
    monkeypatch.setattr(socket, "socket", lambda *_: Packets())
    arp.update(LINK, {WANTED}, set(), set())
    assert arp.observe(LINK).probed == frozenset({WANTED})
