"""What a listener does when the kernel has dropped notifications."""

import errno
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from vm_onetoone_nat.internal_errors import OCCURRED, Work
from vm_onetoone_nat.kernel import listener
from vm_onetoone_nat.kernel.listener import Listener, Source
from vm_onetoone_nat.kernel.netlink import ROUTE
from vm_onetoone_nat.kernel.socket_filter import nothing_of_our_own

LOST = OSError(errno.ENOBUFS, "No buffer space available")


class Over(BaseException):
    """The end of what the socket has."""


@dataclass
class Socket:
    """What the kernel has sent, in order; an error is raised, None is "nothing waits"."""

    waiting: list[bytes | Exception | None]

    def recv(self, _size: int, flags: int = 0) -> bytes:
        if not self.waiting:
            raise Over
        first = self.waiting.pop(0)
        if first is None:
            assert flags == socket.MSG_DONTWAIT
            raise BlockingIOError
        if isinstance(first, Exception):
            raise first
        return first


@dataclass
class Time:
    """A clock that goes on only while somebody sleeps, or is told to."""

    now: float = 1000.0
    slept: list[float] = field(default_factory=list)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    time = Time()
    monkeypatch.setattr(listener, "time", time)
    return time


@dataclass
class Heard:
    """What the listener called, in order: a datagram, or "lost"."""

    time: Time
    calls: list[bytes | str] = field(default_factory=list)
    rest: float = 0.0
    failures: int = 0
    """So many of the next reports of a loss fail."""

    def received(self, data: bytes) -> None:
        if data == b"garbage":
            raise ValueError("garbage")
        self.calls.append(data)

    def lost(self) -> None:
        if self.failures:
            self.failures -= 1
            raise RuntimeError("the report")
        self.calls.append("lost")
        self.time.now += self.rest


def made(heard: Heard, *waiting: bytes | Exception | None) -> Listener:
    source = Source(Work.RTNETLINK, ROUTE, 0)
    found = Listener(source, nothing_of_our_own(0), heard.received, heard.lost)
    found._socket.close()
    found._socket = Socket(list(waiting))  # type: ignore[assignment]
    return found


def run(heard: Heard, *waiting: bytes | Exception | None) -> None:
    found = made(heard, *waiting)
    with pytest.raises(Over):
        found._run()


@pytest.fixture
def heard(time: Time) -> Iterator[Heard]:
    yield Heard(time)


def test_lost_after_what_waits(heard: Heard) -> None:
    """A loss is reported when nothing waits any more, and what comes later is received."""
    run(heard, b"1", LOST, b"2", LOST, b"3", None, b"4")
    assert heard.calls == [b"1", "lost", b"4"]


@pytest.mark.internal_errors
def test_garbage(heard: Heard) -> None:
    """A datagram that cannot be read may have been anything: it counts as lost."""
    run(heard, b"garbage", b"2", None, b"3")
    assert heard.calls == ["lost", b"3"]
    assert OCCURRED.counts["rtnetlink"] == OCCURRED.total == 1


def test_report_that_fails(heard: Heard) -> None:
    """A loss whose report fails, which ends the thread, is reported when the thread runs again."""
    heard.failures = 2
    found = made(heard, LOST, None, None, None, b"4")
    for _ in range(2):
        with pytest.raises(RuntimeError):
            found._run()
    with pytest.raises(Over):
        found._run()
    assert heard.calls == ["lost", b"4"]


def test_socket_that_fails(heard: Heard) -> None:
    """What nobody expects of the socket ends the thread, which then reports a loss."""
    found = made(heard, b"1", MemoryError(), None, b"2")
    with pytest.raises(MemoryError):
        found._run()
    with pytest.raises(Over):
        found._run()
    assert heard.calls == [b"1", "lost", b"2"]


def test_pauses_grow(heard: Heard) -> None:
    """The first loss is reported at once; others that follow have a longer and longer pause."""
    run(heard, *7 * (LOST, b"x", None))
    assert heard.time.slept == [0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 4.0]
    assert heard.calls == ["lost"] * 7


def test_calm(heard: Heard) -> None:
    """After a while without a loss the next one is reported at once again."""
    heard.rest = 11.0
    run(heard, *3 * (LOST, None))
    assert heard.time.slept == [0.0, 0.0, 0.0]
