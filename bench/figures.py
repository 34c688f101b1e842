"""Measured values, and statistics of them."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from statistics import median


@dataclass(frozen=True)
class Figure:
    """The values of one measure for one side, at one number of mappings."""

    measure: str
    side: str
    count: int
    unit: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median."""
        return median(self.values)

    def percentile(self, part: int) -> float:
        """The smallest value that this many per cent of the values do not exceed."""
        return sorted(self.values)[ceil(len(self.values) * part / 100) - 1]

    def __str__(self) -> str:
        low, high = min(self.values), max(self.values)
        raw = " ".join(f"{value:.4g}" for value in self.values)
        return (
            f"{self.measure}, {self.side}, {self.count:,} mappings: min {low:.4g}, "
            f"median {self.median:.4g}, max {high:.4g} {self.unit}; raw: {raw}"
        )


class Figures:
    """All figures of a run; each is printed when it is added."""

    def __init__(self, figures: Iterable[Figure] = ()) -> None:
        self.all = list(figures)

    def add(
        self, measure: str, side: str, count: int, unit: str, values: Iterable[float]
    ) -> Figure:
        """Add and print a figure."""
        figure = Figure(measure, side, count, unit, tuple(values))
        self.all.append(figure)
        print(figure, flush=True)
        return figure

    def find(self, measure: str, side: str, count: int) -> Figure | None:
        """The figure, or None if it was not measured."""
        return next(
            (
                figure
                for figure in self.all
                if (figure.measure, figure.side, figure.count) == (measure, side, count)
            ),
            None,
        )

    def write(self, path: Path) -> None:
        """Write them as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([asdict(figure) for figure in self.all], indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> "Figures":
        """Read what `write` wrote."""
        entries = json.loads(path.read_text())
        return cls(Figure(**{**each, "values": tuple(each["values"])}) for each in entries)
