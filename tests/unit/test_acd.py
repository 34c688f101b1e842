"""Address conflict detection: packets in, packets out, with a clock that is a number."""

from ipaddress import IPv4Address
from itertools import pairwise
from math import inf

import pytest
from lab.addresses import external
from vm_onetoone_nat.decide.acd import (
    ANNOUNCE_SECONDS,
    ANNOUNCEMENTS,
    DEFEND_SECONDS,
    PROBE_SECONDS,
    PROBES,
    Announcement,
    ArpPacket,
    Detector,
    Message,
    Probe,
)
from vm_onetoone_nat.model.host import Unavailable

OURS, THEIRS = "02:00:00:00:00:01", "02:00:00:00:00:02"
ONE, TWO = external(1), external(2)
NONE: frozenset[IPv4Address] = frozenset()
PROBING = Unavailable(ONE)
JITTER = 0.01
TAKEN = Unavailable(ONE, THEIRS)


class Lan:
    """A detector and its time."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.detector = Detector(lambda: JITTER)

    def update(self, wanted: set[IPv4Address], held: set[IPv4Address] | None = None) -> None:
        self.detector.update(self.now, wanted, held or set(), {OURS})

    def hears(self, sender: IPv4Address, target: IPv4Address, mac: str = THEIRS) -> list[Message]:
        return list(self.detector.received(self.now, ArpPacket(mac, sender, target)))

    def unavailable(self, address: IPv4Address) -> Unavailable | None:
        macs = self.detector.unavailable()
        return Unavailable(address, macs[address]) if address in macs else None

    def passes(self, seconds: float) -> list[tuple[float, Message]]:
        """What is sent in that time, each with the seconds since its begin."""
        begin, sent = self.now, []
        while (deadline := self.detector.deadline()) <= begin + seconds:
            self.now = max(self.now, deadline)
            sent += [(self.now - begin, message) for message in self.detector.due(self.now)]
        self.now = begin + seconds
        return sent


@pytest.fixture
def lan() -> Lan:
    return Lan()


@pytest.fixture
def held(lan: Lan) -> Lan:
    """One address, found free, held and announced."""
    lan.update({ONE})
    lan.passes(PROBES * PROBE_SECONDS + 0.1)
    lan.update({ONE}, {ONE})
    lan.passes(ANNOUNCEMENTS * ANNOUNCE_SECONDS)
    return lan


def test_unknown_address_is_not_free(lan: Lan) -> None:
    """An address that was never probed is not among those known, and nothing is sent."""
    assert ONE not in lan.detector.addresses
    assert lan.detector.deadline() == inf


def test_free_address(lan: Lan) -> None:
    """Three probes without an answer make an address free, within a second, and then silence."""
    lan.update({ONE})
    sent = lan.passes(PROBE_SECONDS * (PROBES - 1) + 0.1)
    assert [message for _, message in sent] == [Probe(ONE)] * PROBES
    assert sent[0][0] == pytest.approx(JITTER)
    assert lan.unavailable(ONE) == PROBING
    assert lan.passes(PROBE_SECONDS) == []
    assert lan.unavailable(ONE) is None
    assert lan.now - 1000.0 < 1.0
    assert lan.detector.deadline() == inf


@pytest.mark.parametrize(
    ("sender", "target"),
    [(ONE, TWO), (ONE, ONE), (IPv4Address(0), ONE)],
    ids=["in use", "announced", "probed by another"],
)
def test_taken_address(lan: Lan, sender: IPv4Address, target: IPv4Address) -> None:
    """Whoever uses, announces or probes an address that is being probed has it."""
    lan.update({ONE, TWO})
    lan.passes(PROBE_SECONDS)
    assert lan.hears(sender, target) == []
    assert lan.unavailable(ONE) == TAKEN
    lan.passes(PROBE_SECONDS * PROBES)
    assert lan.unavailable(ONE) == TAKEN
    assert lan.unavailable(TWO) is None


def test_own_packets_are_no_conflict(lan: Lan) -> None:
    """What an interface of this host says, by whatever way it comes back, is no other host."""
    lan.update({ONE})
    lan.hears(ONE, TWO, OURS)
    lan.hears(IPv4Address(0), ONE, OURS)
    lan.passes(1.0)
    assert lan.unavailable(ONE) is None


def test_question_is_no_claim(lan: Lan) -> None:
    """Who asks for an address does not have it."""
    lan.update({ONE})
    lan.hears(TWO, ONE)
    lan.passes(1.0)
    assert lan.unavailable(ONE) is None


def test_taken_address_is_tried_again(lan: Lan) -> None:
    """A taken address is asked for again soon, then every five seconds, at last each minute."""
    lan.update({ONE})
    times = []
    for _ in range(14):
        begin = lan.now
        while Probe(ONE) not in (message for _, message in lan.passes(0.05)):
            assert lan.now < begin + 100
        times.append(lan.now)
        lan.hears(ONE, ONE)
        assert lan.unavailable(ONE) == TAKEN
    gaps = [after - before for before, after in pairwise(times)]
    assert gaps == pytest.approx([1, 2, *[5] * 8, 60, 60, 60], abs=0.2)


def test_released_address(lan: Lan) -> None:
    """An address that nobody answers for any more is free; until then it stays the other's."""
    lan.update({ONE})
    lan.passes(0.1)
    lan.hears(ONE, ONE)
    lan.passes(1.0 + PROBE_SECONDS)
    assert lan.unavailable(ONE) == TAKEN
    lan.passes(PROBE_SECONDS * PROBES)
    assert lan.unavailable(ONE) is None


def test_announced_when_held(lan: Lan) -> None:
    """An address is announced in three rounds when it is held, and is not probed then."""
    lan.update({ONE}, {ONE})
    sent = lan.passes(20)
    assert [message for _, message in sent] == [Announcement(ONE)] * ANNOUNCEMENTS
    assert [at for at, _ in sent] == pytest.approx([0, ANNOUNCE_SECONDS, 2 * ANNOUNCE_SECONDS])
    lan.update({ONE}, {ONE})
    assert lan.passes(20) == []


def test_defence(held: Lan) -> None:
    """One conflict is answered by an announcement, and the address is kept."""
    assert held.hears(ONE, TWO) == [Announcement(ONE)]
    assert held.unavailable(ONE) is None
    held.passes(DEFEND_SECONDS + 1)
    assert held.hears(ONE, TWO) == [Announcement(ONE)]
    assert held.unavailable(ONE) is None


def test_giving_up(held: Lan) -> None:
    """A second conflict soon after means that the other insists: the address is the other's."""
    held.hears(ONE, TWO)
    held.passes(1.0)
    assert held.hears(ONE, TWO) == []
    assert held.unavailable(ONE) == TAKEN


def test_others_probe_is_answered_by_the_kernel(held: Lan) -> None:
    """Another host that probes for an address that is held does not have it."""
    assert held.hears(IPv4Address(0), ONE) == []
    assert held.hears(IPv4Address(0), ONE) == []
    assert held.unavailable(ONE) is None


def test_link_comes_up(held: Lan) -> None:
    """On a network of which nothing is known, what is held is probed and announced at once."""
    held.detector.link_is_up(held.now)
    sent = {message for _, message in held.passes(0.1)}
    assert sent == {Probe(ONE), Announcement(ONE)}
    assert held.unavailable(ONE) is None
    assert held.hears(ONE, TWO) == []
    assert held.unavailable(ONE) == TAKEN


def test_not_wanted_any_more(lan: Lan) -> None:
    """An address that is no longer wanted is dropped, and probed again when it is wanted again."""
    lan.update({ONE})
    lan.passes(1.0)
    lan.update(set())
    assert lan.detector.deadline() == inf
    assert ONE not in lan.detector.addresses
    assert lan.hears(ONE, ONE) == []


def test_removed_by_hand(held: Lan) -> None:
    """An address that was held and is still wanted is free: it is put back without a question."""
    held.update({ONE}, set())
    assert held.unavailable(ONE) is None
    held.update({ONE}, {ONE})
    assert Announcement(ONE) in [message for _, message in held.passes(0.1)]
