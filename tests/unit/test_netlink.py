"""Dumps and answers of the kernel, in several datagrams, interrupted, or with errors."""

import errno
import struct
from collections.abc import Iterator
from contextlib import closing

import pytest
from nft_dump import datagram
from vm_onetoone_nat.errors import KernelError
from vm_onetoone_nat.kernel import netlink as netlink_module
from vm_onetoone_nat.kernel.messages import rtnetlink
from vm_onetoone_nat.kernel.netlink import NETFILTER, ROUTE, Netlink, TooLarge

KIND = 77
INTERRUPTED = 0x10  # NLM_F_DUMP_INTR
ERROR, DONE = 2, 3


def done(error: int = 0) -> bytes:
    return datagram(DONE, struct.pack("=i", -error))


class Kernel:
    """Answers each request with the next datagrams, up to the end of a dump."""

    def __init__(self, *datagrams: bytes) -> None:
        self.datagrams = list(datagrams)
        self.asked = 0

    def send(self, _request: bytes) -> None:
        self.asked += 1

    def receive(self) -> rtnetlink.Answer:
        return rtnetlink.parse_answer(self.datagrams.pop(0))


@pytest.fixture
def netlink() -> Iterator[Netlink]:
    with closing(Netlink(ROUTE, "rtnetlink")) as netlink:
        yield netlink


def given(netlink: Netlink, monkeypatch: pytest.MonkeyPatch, *datagrams: bytes) -> Kernel:
    kernel = Kernel(*datagrams)
    monkeypatch.setattr(netlink, "send", kernel.send)
    monkeypatch.setattr(netlink, "receive", kernel.receive)
    return kernel


def bodies(answers: list[rtnetlink.Answer]) -> list[bytes]:
    return [answer.data[start:end] for answer in answers for start, end in answer.messages]


def test_dump(netlink: Netlink, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dump is complete with its last datagram."""
    given(netlink, monkeypatch, datagram(KIND, b"aaaa", b"bbbb"), datagram(KIND, b"cccc"), done())
    assert bodies(netlink.dump(b"")) == [b"aaaa", b"bbbb", b"cccc"]


def test_interrupted_dump(netlink: Netlink, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dump during which something changed is repeated, and nothing of it is kept."""
    interrupted = datagram(KIND, b"aaaa", flags=INTERRUPTED)
    whole = (datagram(KIND, b"bbbb"), done())
    kernel = given(netlink, monkeypatch, interrupted, done(), interrupted, done(), *whole)
    assert bodies(netlink.dump(b"")) == [b"bbbb"]
    assert kernel.asked == 3


def test_dump_that_is_always_interrupted(netlink: Netlink, monkeypatch: pytest.MonkeyPatch) -> None:
    """After some attempts it is a failure, of this pass."""
    interrupted = datagram(KIND, b"aaaa", flags=INTERRUPTED)
    given(netlink, monkeypatch, *100 * (interrupted, done()))
    with pytest.raises(KernelError, match="changes during each attempt"):
        netlink.dump(b"")


def test_dump_of_nftables_that_is_always_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of nftables the last attempt counts: another program's sets interrupt each of them."""
    attempts = [(datagram(KIND, body, flags=INTERRUPTED), done()) for body in (b"1111", b"2222")]
    with closing(Netlink(NETFILTER, "nftables")) as netlink:
        given(netlink, monkeypatch, *attempts[0], *attempts[0], *attempts[1], *attempts[0])
        assert bodies(netlink.dump(b"")) == [b"2222"]


def test_dump_that_is_too_large(netlink: Netlink, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more is read than asked for, and a dump of exactly so many bytes is read."""
    parts = (datagram(KIND, b"aaaa"), datagram(KIND, b"bbbb"), done())
    size = sum(map(len, parts))
    given(netlink, monkeypatch, *parts)
    assert bodies(netlink.dump(b"", size)) == [b"aaaa", b"bbbb"]
    kernel = given(netlink, monkeypatch, *parts)
    with pytest.raises(TooLarge):
        netlink.dump(b"", len(parts[0]))
    assert kernel.datagrams == [parts[2]]


def test_kernel_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that is not answered is a failure, after a while."""
    monkeypatch.setattr(netlink_module, "_TIMEOUT", struct.pack("@ll", 0, 10_000))
    with closing(Netlink(ROUTE, "rtnetlink")) as netlink:
        monkeypatch.setattr(netlink, "send", lambda _: None)
        with pytest.raises(KernelError, match="temporarily unavailable"):
            netlink.dump(b"")


@pytest.mark.parametrize(("error", "fails"), [(errno.ENOENT, False), (errno.EPERM, True)])
def test_error(netlink: Netlink, monkeypatch: pytest.MonkeyPatch, error: int, fails: bool) -> None:
    """What does not exist has an empty dump; any other error is one."""
    given(netlink, monkeypatch, done(error))
    if fails:
        with pytest.raises(KernelError, match="Operation not permitted"):
            netlink.dump(b"")
    else:
        assert bodies(netlink.dump(b"")) == []


def test_answers(netlink: Netlink, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of several requests has one answer, also one that fails."""
    missing = datagram(ERROR, struct.pack("=i", -errno.ENOENT))
    given(netlink, monkeypatch, datagram(KIND, b"aaaa"), missing, datagram(KIND, b"bbbb", b"cccc"))
    assert bodies(list(netlink.ask(b"", 4))) == [b"aaaa", b"bbbb", b"cccc"]
