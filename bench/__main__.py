"""Measures everything, prints it, and updates the figures and the plot in docs/performance.md."""

import argparse
import shutil
import time
from pathlib import Path

from . import control, crowd, datapath, report, tracking
from .figures import Figures

_RESULTS = Path("build/bench.json")


def main() -> None:
    """Run everything, or, with --report, write the table and plot of the last run again."""
    parser = argparse.ArgumentParser(prog="bench/run.sh", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small numbers, to check that it runs")
    parser.add_argument("--report", action="store_true", help="from the last run's figures")
    arguments = parser.parse_args()
    if arguments.report:
        figures = Figures.read(_RESULTS)
    else:
        began = time.monotonic()
        figures = Figures()
        _measure(figures, quick=arguments.quick)
        figures.write(_RESULTS)
        print(f"measured in {time.monotonic() - began:.0f} s; raw figures in {_RESULTS}")
    document = Path("docs/performance.md")
    if arguments.quick:
        document = Path(shutil.copy(document, "build"))
    report.write(figures, document.with_suffix(".svg"), document)


def _measure(figures: Figures, *, quick: bool) -> None:
    sizes = (10, 100) if quick else (10, 100, 1000, 4000)
    most = 100 if quick else 1000
    rounds = 2 if quick else 3
    control.install(figures, tuple(sorted({*sizes, *(() if quick else (250,))})), rounds)
    control.detection(figures, most, rounds)
    for count in sizes:
        # A hundred values at 1,000, for a 99th percentile.
        control.changes(figures, count, rounds=4 if quick else 50 if count == most else 8)
    entries, own = (10_000, 1500) if quick else (100_000, 15_000)
    tracking.tracking(figures, entries, own, rounds)
    control.real_changes(figures, most, rounds=2 if quick else 5)
    crowd.crowd(figures)
    datapath.datapath(figures, most, rounds=2 if quick else 11)


if __name__ == "__main__":
    main()
