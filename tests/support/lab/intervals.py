"""Sets of intervals of time, as sorted pairs (begin, end) in seconds that do not overlap."""

from collections.abc import Iterable

Intervals = tuple[tuple[float, float], ...]


def union(*sets: Iterable[tuple[float, float]]) -> Intervals:
    """All time that lies in any of them."""
    merged: list[tuple[float, float]] = []
    for begin, end in sorted(each for one in sets for each in one):
        if merged and begin <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        elif begin < end:
            merged.append((begin, end))
    return tuple(merged)


def overlap(intervals: Intervals, begin: float, end: float) -> float:
    """How many seconds of [begin, end] lie in them."""
    return sum(max(0.0, min(e, end) - max(b, begin)) for b, e in intervals)


def touches(intervals: Intervals, begin: float, end: float) -> bool:
    """Whether any part of them lies in [begin, end]."""
    return any(b <= end and e >= begin for b, e in intervals)
