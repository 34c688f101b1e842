"""The thread for ARP: what one packet, or one socket, that is of no use costs."""

import os
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from vm_onetoone_nat.decide.acd import ArpPacket
from vm_onetoone_nat.internal_errors import OCCURRED
from vm_onetoone_nat.kernel import arp as module
from vm_onetoone_nat.kernel.arp import Arp, Detection, parse_packet, request
from vm_onetoone_nat.model.links import Link

LINK = Link(7, "eth0", mac="52:54:00:00:00:07")
WANTED = IPv4Address("192.168.1.101")
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
