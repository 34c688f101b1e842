"""Flushes in slices, over a fake of the kernel's table: random passes, flows, slices and failures.

What is right is decided by a second opinion: what the kernel would do with a packet now.
"""

import errno
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import inf
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from lab.addresses import HOST, external, internal, lan_host
from tracking import TCP, UDP, Direction, Entry, FakeTracking
from vm_onetoone_nat.decide.flushes import Flushes
from vm_onetoone_nat.decide.host_writes import FlushBypassing, FlushTranslated
from vm_onetoone_nat.errors import KernelError
from vm_onetoone_nat.kernel import conntrack
from vm_onetoone_nat.kernel.conntrack import Flusher, track
from vm_onetoone_nat.model.nat_table import Translation
from vm_onetoone_nat.model.traffic import Tracked

NUMBERS = st.integers(1, 4)
HOSTS = frozenset({HOST.ip})
Live = dict[Any, Any]
"""Internal addresses by external ones."""


@contextmanager
def faked(table: FakeTracking) -> Iterator[None]:
    """The daemon has this table, and a clock on which each look at it is a second."""
    seconds = itertools.count()
    with (
        patch.object(conntrack, "_socket", table.connect),
        patch.object(conntrack, "thread_time", lambda: next(seconds)),
    ):
        yield


def translated(packet: Direction, live: Live) -> Entry:
    """The entry that a first packet makes with these translations."""
    externals = {i: e for e, i in live.items()}
    receiver = live.get(packet.destination, packet.destination)
    sender = packet.source
    guests = {internal(n) for n in range(1, 5)}
    if sender in guests and receiver not in guests:
        sender = externals.get(sender, HOST.ip)
    elif sender in guests and receiver != packet.destination:
        sender = externals.get(sender, sender)
    return Entry(packet, Direction(receiver, sender, packet.protocol, packet.ports[::-1]))


class Flushing(RuleBasedStateMachine):
    """Translations come and go, flows begin, slices are done, and some fail."""

    def __init__(self) -> None:
        super().__init__()
        self.table = FakeTracking(in_datagram=2)
        self.live: Live = {}
        self.begun = 0
        self.restart()

    def restart(self) -> None:
        """The process is another one: it flushes what bypasses the translations that there are."""
        self.flushes = Flushes()
        self.flusher = Flusher(self.flushes)
        self.flushes.add(self.bypassing(self.live))

    @staticmethod
    def bypassing(live: Live) -> list[FlushBypassing]:
        pairs = itertools.starmap(Translation, live.items())
        return [FlushBypassing(pair, host_sources=HOSTS) for pair in pairs]

    @rule(
        externals=st.permutations([1, 2, 3, 4]), count=st.integers(0, 4), slices=st.integers(0, 4)
    )
    def translations_change(self, externals: list[int], count: int, slices: int) -> None:
        """A pass: translations, a part of the flushes, then addresses."""
        before = self.live
        numbers = zip(externals[:count], range(1, 5), strict=False)
        self.live = {external(e): internal(i) for e, i in numbers}
        gone = before.items() - self.live.items()
        new = dict(self.live.items() - before.items())
        writes = [FlushTranslated(Translation(*pair)) for pair in gone]
        self.flushes.forget(Translation(*pair) for pair in {*gone, *new.items()})
        self.flushes.add([*writes, *self.bypassing(new)])
        assert self.flushes.flushed == {Translation(*pair) for pair in self.live.items()}
        self.work(slices)
        for address in new:
            # It was on its way, and its entry is made only now.
            late = Direction(lan_host(1).ip, address, UDP, self.ports())
            self.table.add(translated(late, {}))
        self.flushes.again(Translation(*pair) for pair in new.items())

    @rule(sender=NUMBERS, receiver=NUMBERS, way=st.integers(0, 3), tcp=st.booleans())
    def flow_begins(self, sender: int, receiver: int, way: int, tcp: bool) -> None:
        """Between the LAN, the host and guests, as the translations are now."""
        source, destination = (
            (lan_host(sender).ip, external(receiver)),
            (internal(sender), lan_host(receiver).ip),
            (HOST.ip, external(receiver)),
            (lan_host(sender).ip, HOST.ip),
        )[way]
        protocol = TCP if tcp else UDP
        packet = Direction(source, destination, protocol, self.ports())
        self.table.add(translated(packet, self.live))

    @rule(sender=NUMBERS, receiver=NUMBERS)
    def guest_reaches_guest(self, sender: int, receiver: int) -> None:
        """By its external address, from a guest that has one too."""
        if external(receiver) in self.live and internal(sender) in self.live.values():
            packet = Direction(internal(sender), external(receiver), UDP, self.ports())
            self.table.add(translated(packet, self.live))

    @rule(steps=st.integers(1, 6))
    def slice_is_done(self, steps: int) -> None:
        self.work(steps)

    @rule(number=st.sampled_from([errno.ENOBUFS, errno.ENOMEM]))
    def kernel_fails(self, number: int) -> None:
        self.table.fail = OSError(number, os.strerror(number))

    @precondition(lambda self: self.table.entries)
    @rule(data=st.data())
    def entry_cannot_be_deleted(self, data: st.DataObject) -> None:
        """For a time: until all is done."""
        entries = sorted(self.table.entries.items())
        self.table.refused.add(data.draw(st.sampled_from(entries))[1])

    @rule()
    def daemon_stops_and_starts(self) -> None:
        """What is left is done before it ends."""
        self.finish()
        self.restart()

    @rule()
    def all_is_done(self) -> None:
        self.finish()
        for entry in self.table.entries.values():
            assert self.is_right(entry) or self.may_stay(entry), entry

    @invariant()
    def nothing_that_is_right_is_deleted(self) -> None:
        assert not [entry for entry in self.table.deleted if self.is_right(entry)]
        self.table.deleted.clear()

    def work(self, seconds: float) -> None:
        """Steps of the work: half as many as seconds, since each looks at the clock."""
        with faked(self.table), suppress(KernelError):
            self.flusher.work(seconds)

    def finish(self) -> None:
        self.table.fail = None
        self.table.refused.clear()
        # The round that runs may have failed already.
        self.work(inf)
        with faked(self.table):
            assert not self.flusher.work(inf)
        assert not self.flushes.left

    def is_right(self, entry: Entry) -> bool:
        return entry == translated(entry.original, self.live)

    def may_stay(self, entry: Entry) -> bool:
        """The TCP connections of a guest from before its translation, as the host's own."""
        own = entry.reply.destination == HOST.ip and entry.original.protocol == TCP
        # From when the guest had one: without a translation its flows are not ours to end.
        return own and entry.original.source in self.live.values()

    def ports(self) -> tuple[int, int]:
        self.begun += 1
        return self.begun, 53


TestFlushing = Flushing.TestCase
TestFlushing.settings = settings(stateful_step_count=40, report_multiple_bugs=False)


def table_of_a_guest(count: int) -> FakeTracking:
    """Flows to the first guest, and as many to the second."""
    live = {external(n): internal(n) for n in (1, 2)}
    packets = (
        Direction(lan_host(3).ip, external(n), UDP, (port, 53))
        for port in range(1, count + 1)
        for n in (1, 2)
    )
    return FakeTracking((translated(packet, live) for packet in packets), in_datagram=5)


ONE = Translation(external(1), internal(1))


@pytest.mark.parametrize(("count", "listings"), [(0, 0), (19, 1), (20, 2)])
def test_flush(monkeypatch: pytest.MonkeyPatch, count: int, listings: int) -> None:
    """All entries of the guest are gone, and no other: by one listing, or by one for each address.

    That depends on the number of entries, of which half are the guest's. Without an entry nothing
    is listed.
    """
    monkeypatch.setattr(conntrack, "_PER_LISTING", 20)
    table, flushes = table_of_a_guest(count), Flushes()
    flushes.add([FlushTranslated(ONE)])
    with faked(table):
        assert not Flusher(flushes).work(inf)
    assert len(table.deleted) == len(table.entries) == count
    assert all(entry.original.destination == external(1) for entry in table.deleted)
    assert table.requests.count(0x101) == listings


def test_many_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many translations need one listing, however many entries there are."""
    monkeypatch.setattr(conntrack, "_PER_LISTING", 1)
    table, flushes = table_of_a_guest(40), Flushes()
    flushes.add(FlushTranslated(Translation(external(n), internal(n))) for n in range(1, 20))
    with faked(table):
        assert not Flusher(flushes).work(inf)
    assert not table.entries
    assert table.requests.count(0x101) == 1


def test_slices() -> None:
    """A slice ends before a step that would end too late; the next one goes on from there."""
    table, flushes = table_of_a_guest(40), Flushes()
    flusher = Flusher(flushes)
    flushes.add([FlushTranslated(ONE)])
    with faked(table):
        slices = [flusher.work(3) for _ in range(100)]
    # 80 entries, five in each datagram, and the end.
    assert slices.index(False) == 17
    assert table.requests.count(0x101) == 1
    assert len(table.entries) == 40


def test_failure_is_repeated() -> None:
    """A round that fails is begun again by the next slice, and nothing is lost."""
    table, flushes = table_of_a_guest(40), Flushes()
    flusher = Flusher(flushes)
    flushes.add([FlushTranslated(ONE)])
    with faked(table):
        assert flusher.work(5)
        table.fail = OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
        with pytest.raises(KernelError, match="connection tracking: No buffer space available"):
            flusher.work(5)
        assert flushes.left
        assert not flusher.work(inf)
    assert len(table.deleted) == 40


def test_entry_that_cannot_be_deleted() -> None:
    """It stops no other deletion, is an error at the end of the round, and is tried again."""
    table, flushes = table_of_a_guest(40), Flushes()
    flusher = Flusher(flushes)
    flushes.add([FlushTranslated(ONE)])
    first, *_ = (e for e in table.entries.values() if e.original.destination == external(1))
    table.refused.add(first)
    with faked(table):
        with pytest.raises(KernelError, match="connection tracking: Device or resource busy"):
            flusher.work(inf)
        assert table.deleted and len(table.deleted) == 39
        table.refused.clear()
        assert not flusher.work(inf)
    assert table.deleted[-1] == first


def test_entry_that_is_gone() -> None:
    """An entry that ends by itself between listing and deletion is not an error."""
    table, flushes = table_of_a_guest(3), Flushes()
    flushes.add([FlushTranslated(ONE)])
    delete = table.delete
    with faked(table), patch.object(table, "delete", lambda e, n: delete(e, n) or errno.ENOENT):
        assert not Flusher(flushes).work(inf)


def test_tracked() -> None:
    """Entries of a translation are counted, each once, and those that bypass it."""
    table = table_of_a_guest(20)
    elsewhere = Direction(lan_host(4).ip, external(1), UDP, (7, 7))
    table.add(translated(elsewhere, {}))
    itself = Direction(internal(1), external(1), UDP, (8, 8))
    table.add(translated(itself, {external(1): internal(1)}))
    with faked(table):
        assert track(ONE, [HOST.ip]) == Tracked(22, 1)
    with faked(table):
        table.fail = OSError(errno.EPERM, os.strerror(errno.EPERM))
        with pytest.raises(KernelError, match="not permitted"):
            track(ONE, [HOST.ip])
