"""What is held against the product of a stream, and what is the machine's doing."""

from dataclasses import replace

import pytest
from lab.intervals import overlap, touches, union
from lab.stream_report import LATE, STALL, Exchange, StreamReport

RATE = 100
COUNT = 300
SIDE = Exchange((0.001,) * COUNT, (), broken=False, errors=(), sources=())
REPORT = StreamReport(tuple(n / RATE for n in range(COUNT)), COUNT / RATE, SIDE, SIDE)


def changed(side: Exchange, first: float, last: float, delay: float | None) -> Exchange:
    """The same, but for the answers to what was sent between two times."""
    return replace(
        side,
        delays=tuple(
            delay if first <= n / RATE < last else each for n, each in enumerate(side.delays)
        ),
    )


def test_quiet() -> None:
    """Where everything is answered at once, nothing is missing and all was seen."""
    assert REPORT.whole
    assert REPORT.ran == pytest.approx(COUNT / RATE)


@pytest.mark.parametrize("delay", [None, LATE + 0.01])
def test_outage(delay: float | None) -> None:
    """300 ms in which only the measured side got no answer, or a late one, are found."""
    report = replace(REPORT, measured=changed(SIDE, 1.0, 1.3, delay))
    assert not report.whole
    assert (report.lost, report.late) == ((30, 0) if delay is None else (0, 30))
    if delay is None:
        assert report.last_lost == pytest.approx(1.29)


def test_outage_beside_a_stall() -> None:
    """An outage that goes on after the machine's stall is found by what comes after it."""
    report = replace(
        REPORT,
        measured=changed(SIDE, 1.0, 1.5, None),
        control=changed(SIDE, 1.0, 1.2, STALL + 0.01),
    )
    assert 0 < report.lost < 30
    assert report.last_lost == pytest.approx(1.49)


@pytest.mark.parametrize("delay", [None, LATE + 0.1])
def test_stalled_machine(delay: float | None) -> None:
    """What both sides lost, or had late, is not the product's doing."""
    side = replace(changed(SIDE, 1.0, 1.3, delay), retransmits=(1.25,))
    report = replace(REPORT, measured=side, control=replace(side, retransmits=()))
    assert report.whole
    assert report.ran < 2.8


def test_one_control_lost() -> None:
    """A control that is lost hides what is beside it, and nothing that comes later."""
    control = changed(SIDE, 0.5, 0.51, None)
    report = replace(REPORT, measured=changed(SIDE, 1.0, 1.3, None), control=control)
    assert report.lost == 30
    assert report.ran > 2.7


def test_sender_that_did_not_run() -> None:
    """While the sender itself was kept from running nothing was seen, and nothing is held."""
    sent_at = tuple(at if at < 1 else at + 0.5 for at in REPORT.sent_at)
    side = replace(SIDE, retransmits=(1.5,))
    report = replace(REPORT, sent_at=sent_at, ended=3.5, measured=side)
    assert report.whole
    assert report.ran == pytest.approx(3.0, abs=0.02)


def test_retransmission() -> None:
    """A retransmission while the control needed none is found."""
    report = replace(REPORT, measured=replace(SIDE, retransmits=(1.25,)))
    assert (report.retransmits, report.whole) == (1, False)
    both = replace(report, control=replace(SIDE, retransmits=(1.2,)))
    assert both.whole


@pytest.mark.parametrize("change", [{"broken": True}, {"errors": ("Connection reset",)}])
def test_broken(change: dict[str, object]) -> None:
    """A connection that ended is not whole, whatever the machine did."""
    stalled = changed(SIDE, 0.0, 3.0, None)
    broken = replace(SIDE, **change)  # type: ignore[arg-type]
    assert not replace(REPORT, measured=broken, control=stalled).whole


def test_intervals() -> None:
    """Overlapping and touching intervals become one; empty ones are none."""
    found = union([(3, 4), (0, 1), (5, 5)], [(0.5, 2), (4, 6)])
    assert found == ((0, 2), (3, 6))
    assert overlap(found, 1, 4) == 2
    assert touches(found, 2.5, 3)
    assert not touches(found, 2.1, 2.9)
