"""Which transactions of nftables trigger a pass, and when a pass has observed one already."""

import struct

import pytest
from nft_dump import datagram
from vm_onetoone_nat.kernel.messages import nftables
from vm_onetoone_nat.kernel.messages.nft_commits import Commits
from vm_onetoone_nat.kernel.messages.nftables import number, text
from vm_onetoone_nat.model.nat_table import TABLE
from vm_onetoone_nat.model.trigger import Kind, is_news

OURS = 0x1234ABCD
RULE, SET, ELEMENT, OBJECT = (nftables.NEW_TABLE | kind for kind in (6, 9, 12, 18))


def about(kind: int, table: str) -> bytes:
    """A message about something in a table."""
    return datagram(kind, nftables.header("inet") + text(1, table) + text(2, "name"))


def end(generation: int, port: int = 4711) -> bytes:
    """The end of a transaction that was sent by that netlink port."""
    body = number(1, generation) + number(2, 4711) + text(3, "nft")
    data = datagram(nftables.NEW_GENERATION, nftables.header() + body)
    return data[:12] + struct.pack("=I", port) + data[16:]


@pytest.mark.parametrize(
    ("messages", "concerns_us"),
    [
        ([], False),
        ([about(ELEMENT, "other")], False),
        ([about(ELEMENT, "other") * 40, about(SET, "other"), about(OBJECT, "other")], False),
        ([about(ELEMENT, f"{TABLE}_2")], False),
        ([about(ELEMENT, "vm_o")], False),
        ([about(ELEMENT, TABLE)], True),
        ([about(SET, TABLE)], True),
        ([about(RULE, "other")], True),
        ([about(RULE, "other"), about(ELEMENT, "other")], True),
        ([about(ELEMENT, "other") * 70 + about(RULE, "other")], True),
        ([about(ELEMENT, "other") * 70, about(ELEMENT, "other") + about(ELEMENT, TABLE)], True),
        ([about(nftables.NEW_TABLE | 99, "other")], True),
    ],
)
def test_transaction(messages: list[bytes], concerns_us: bool) -> None:
    """Of other programs' sets nothing concerns us; all else does, wherever it stands."""
    commits = Commits(OURS)
    assert [commits.read(data) for data in messages] == [None] * len(messages)
    trigger = commits.read(end(7))
    assert (trigger is not None) is concerns_us
    assert commits.generation == (7 if concerns_us else 0)
    if trigger is not None:
        assert (trigger.kind, trigger.writer) == (Kind.NFTABLES, "nft (process 4711)")


def test_our_own_transaction() -> None:
    """A transaction of ours names no writer: it is nobody's fault."""
    commits = Commits(OURS)
    commits.read(about(RULE, TABLE))
    trigger = commits.read(end(5, OURS))
    assert trigger is not None and trigger.writer is None
    assert commits.generation == 5


def test_each_transaction_is_its_own() -> None:
    """What concerned us in one transaction says nothing about the next one."""
    commits = Commits(OURS)
    commits.read(about(RULE, "other"))
    assert commits.read(end(3)) is not None
    commits.read(about(ELEMENT, "other"))
    assert commits.read(end(4)) is None
    assert commits.generation == 3


@pytest.mark.parametrize(("observed", "news"), [(6, True), (7, False), (9, False)])
def test_pass_before_the_notification(observed: int, news: bool) -> None:
    """A pass that began with that generation or a later one has seen the transaction.

    It may have begun with a later one, of a transaction that concerned nobody.
    """
    commits = Commits(OURS)
    commits.read(about(RULE, "other"))
    trigger = commits.read(end(7))
    commits.read(about(ELEMENT, "other"))
    commits.read(end(8))
    assert trigger is not None
    assert is_news({trigger}, commits.generation, observed) is news
