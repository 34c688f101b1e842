"""What libraries raise about the kernel, and what odd objects of the kernel cost."""

import struct
from collections.abc import Callable
from contextlib import closing
from ipaddress import IPv4Address
from socket import AF_INET

import pytest
from vm_onetoone_nat.errors import KernelError
from vm_onetoone_nat.kernel.bridge import Bridge
from vm_onetoone_nat.kernel.classify import kernel_errors
from vm_onetoone_nat.kernel.libnftables import Libnftables
from vm_onetoone_nat.kernel.messages.ifaddr import listed_addresses
from vm_onetoone_nat.kernel.messages.neighbour import Entry
from vm_onetoone_nat.kernel.messages.routes import default_routes
from vm_onetoone_nat.kernel.messages.rtnetlink import Answer, attributes, parse_answer
from vm_onetoone_nat.model.links import Link


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(105, "No buffer space available"), "asked: No buffer space available"),
        (OSError("closed"), "asked: closed"),
        (TimeoutError(), "asked: TimeoutError()"),
        (struct.error("short"), "asked: short"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "odd"), "asked: 'utf-8' codec can't decode"),
    ],
    ids=lambda each: type(each).__name__,
)
def test_classified(error: Exception, text: str) -> None:
    """It is a KernelError that begins with what was asked."""
    with pytest.raises(KernelError) as caught, kernel_errors("asked"):
        raise error
    assert str(caught.value).startswith(text)
    assert caught.value.__cause__ is error


def test_fault_of_the_program_is_none() -> None:
    """What only a fault of the program raises is not taken for one of the kernel."""
    with pytest.raises(TypeError), kernel_errors("asked"):
        raise TypeError("x")


def test_odd_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A neighbour without an address, a MAC, or times costs no other."""
    links_of_host = {1: Link(1, "virbr0", kind="bridge")}
    one, two = (IPv4Address(f"192.168.122.{n}") for n in (3, 4))
    odd = [
        Entry(AF_INET, 1, 0x02, mac="52:54:00:00:00:01", age=1.0),
        Entry(AF_INET, 1, 0x02, address=one, age=1.0),
        Entry(AF_INET, 1, 0x02, address=one, mac="52:54:00:00:00:03"),
        Entry(AF_INET, 1, 0x02, address=two, mac="52:54:00:00:00:04", age=1.0),
        Entry(AF_INET, 7, 0x02),
    ]
    monkeypatch.setattr("vm_onetoone_nat.kernel.bridge.neighbours", lambda _: odd)
    with closing(Bridge()) as bridge:
        found = bridge.neighbours(links_of_host)
    assert [(each.address, each.age) for each in found] == [(one, 0.0), (two, 1.0)]


MULTIPATH = struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 254, 0, 0, 0, 0) + struct.pack("=HH8x", 12, 9)
"""A default route whose hop has no length."""


@pytest.mark.parametrize(
    "read",
    [
        lambda: parse_answer(bytes(20)),
        lambda: parse_answer(b"abc"),
        lambda: list(attributes(bytes(8), 0, 8)),
        lambda: list(listed_addresses(Answer(bytes(12), [(0, 12)], {}, interrupted=False))),
        lambda: list(
            default_routes(Answer(MULTIPATH, [(0, len(MULTIPATH))], {}, interrupted=False))
        ),
    ],
)
def test_length_of_nothing(read: Callable[[], object]) -> None:
    """A length that is too short is an error, not a loop without an end."""
    with pytest.raises(struct.error):
        read()


class Library:
    """libnftables with an answer of its own."""

    def __init__(self, answer: tuple[int, str, str] | Exception) -> None:
        self._answer = answer

    def cmd(self, _: str) -> tuple[int, str, str]:
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer

    def __getattr__(self, _: str) -> Callable[[bool], None]:
        return lambda _: None


@pytest.mark.parametrize(
    "answer",
    [
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "a comment"),
        (1, "", "Error: no"),
    ],
    ids=["no UTF-8", "refused"],
)
def test_answer_of_libnftables(
    answer: tuple[int, str, str] | Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it prints that cannot be read is a KernelError, and so is a refusal."""
    monkeypatch.setattr("nftables.Nftables", lambda: Library(answer))
    with pytest.raises(KernelError):
        Libnftables().run("list ruleset", text=True)
