"""What became of a stream's messages, judged beside the control that was sent with each.

Pure. The measured exchange passes the product's rules, the control goes between the same two
processes by a wire of its own. A loaded machine delays both, the product only the first: where the
control did not run, nothing is known, and nothing is held against the product.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Address
from typing import Any, Self

from .intervals import Intervals, overlap, touches, union

LATE = 0.2
"""An answer after more seconds is late: the kernel's shortest retransmission (TCP_RTO_MIN)."""

STALL = 0.1
"""For so many seconds the control may be silent. Half of LATE, so that a delay which the machine
causes is known as such before it counts, and a third of the shortest outage that is to be found."""

_BESIDE = 0.02
_RETRANSMISSION = 0.1


@dataclass(frozen=True)
class Exchange:
    """One side of a stream: for each message the seconds until its answer, None if none came.

    For TCP `retransmits` has the monotonic time at which each retransmission of the sender was
    noticed, by the next message at the latest, without those that the receiver had no need of.
    """

    delays: tuple[float | None, ...]
    retransmits: tuple[float, ...]
    broken: bool
    errors: tuple[str, ...]
    sources: tuple[IPv4Address, ...]

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Self:
        """From the JSON that inside/stream.py prints."""
        return cls(
            delays=tuple(raw["delays"]),
            retransmits=tuple(raw["retransmits"]),
            broken=raw["broken"],
            errors=tuple(raw["errors"]),
            sources=tuple(IPv4Address(source) for source in raw["sources"]),
        )


@dataclass(frozen=True)
class StreamReport:
    """`sent_at` has when each pair of messages was sent, on the monotonic clock, in seconds."""

    sent_at: tuple[float, ...]
    ended: float
    measured: Exchange
    control: Exchange

    def __repr__(self) -> str:
        slowest, control = (
            max((delay for delay in side.delays if delay is not None), default=0.0)
            for side in (self.measured, self.control)
        )
        return (
            f"StreamReport(sent={self.sent}, answered={self.answered}, lost={self.lost}, "
            f"late={self.late}, retransmits={self.retransmits}, broken={self.measured.broken}, "
            f"errors={self.errors}, sources={self.sources}, slowest={slowest:.3f}; "
            f"control: slowest={control:.3f}, retransmits={len(self.control.retransmits)}, "
            f"ran {self.ran:.2f} of {self.ended - self.sent_at[0]:.2f} s)"
        )

    @property
    def sent(self) -> int:
        """How many messages were sent."""
        return len(self.sent_at)

    @property
    def answered(self) -> int:
        """How many of them were answered."""
        return sum(delay is not None for delay in self.measured.delays)

    @property
    def broken(self) -> bool:
        """Whether the connection ended before the stream did."""
        return self.measured.broken

    @property
    def errors(self) -> tuple[str, ...]:
        """What the sender's socket reported."""
        return self.measured.errors

    @property
    def sources(self) -> tuple[IPv4Address, ...]:
        """The sources that the echo server saw."""
        return self.measured.sources

    @cached_property
    def stalls(self) -> Intervals:
        """When the control did not run: not sent, or not answered within STALL.

        Of one that was never answered, no more is known than of one that was late.
        """
        ends = (*self.sent_at[1:], self.ended)
        idle = ((b, e) for b, e in zip(self.sent_at, ends, strict=True) if e - b > STALL)
        slow = (
            (at, at + (LATE if delay is None else delay))
            for at, delay in zip(self.sent_at, self.control.delays, strict=True)
            if delay is None or delay > STALL
        )
        resent = ((at - LATE, at) for at in self.control.retransmits)
        return union(idle, slow, resent)

    @property
    def ran(self) -> float:
        """For how many seconds the control ran, and so anything is known."""
        begin = self.sent_at[0]
        return self.ended - begin - overlap(self.stalls, begin, self.ended)

    @property
    def lost(self) -> int:
        """Messages that were never answered while the control was."""
        return len(self.lost_at)

    @property
    def last_lost(self) -> float | None:
        """When the last of them was sent."""
        return max(self.lost_at, default=None)

    @property
    def late(self) -> int:
        """Messages whose answer was late while the control's came."""
        return sum(
            delay is not None and delay > LATE and not touches(self.stalls, at, at + LATE)
            for at, delay in zip(self.sent_at, self.measured.delays, strict=True)
        )

    @property
    def retransmits(self) -> int:
        """Retransmissions of the sender while the control needed none."""
        return sum(
            not touches(self.stalls, at - LATE - _RETRANSMISSION, at)
            for at in self.measured.retransmits
        )

    @property
    def whole(self) -> bool:
        """Nothing was lost, late or sent again by our doing, and the connection holds."""
        return not (self.lost or self.late or self.retransmits or self.broken or self.errors)

    @cached_property
    def lost_at(self) -> tuple[float, ...]:
        """When each message that counts as lost was sent."""
        return tuple(
            at
            for at, delay in zip(self.sent_at, self.measured.delays, strict=True)
            if delay is None and not touches(self.stalls, at - _BESIDE, at + _BESIDE)
        )
