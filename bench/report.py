"""The table and the plot of a run."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from . import control, crowd, tracking
from .datapath import MEASURES
from .figures import Figure, Figures

_MOST = 1000
_COUNTS = (10, 100, 250, 1000, 4000)
_GROWTH = (
    (control.INSTALL, "hook"),
    (control.INSTALL, "limit"),
    (control.INSTALL, "this"),
    (control.RELOAD, "this"),
    (control.CHANGE, "this"),
    (control.PASS, "this"),
    (control.START, "this"),
    (control.MEMORY, "this"),
)


_BEGIN, _END = "<!-- of the last run -->\n", "<!-- end -->\n"


def write(figures: Figures, plot: Path, document: Path) -> None:
    """Print the tables, put them in their place in the document, and draw the plot."""
    tables = (_targets(figures), _growth(figures), _load(figures))
    text = "\n".join(_lines(table) for table in tables)
    print(text)
    before, _, rest = document.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    document.write_text(f"{before}{_BEGIN}{_machine()}\n\n{text}{_END}{after}")
    _plot(figures, plot)


def _lines(table: Iterator[str]) -> str:
    return "\n".join(table) + "\n"


def _machine() -> str:
    """The machine, in words."""
    cpu = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE)
    release = re.search(r'^PRETTY_NAME="(.*)"', Path("/etc/os-release").read_text(), re.MULTILINE)
    assert cpu and memory and release
    kernel = ".".join(re.findall(r"\d+", os.uname().release)[:2])
    load = os.getloadavg()[2]
    return (
        f"A virtual machine with {os.cpu_count()} processors of {cpu[1]} and "
        f"{int(memory[1]) / 2**20:.0f} GiB, {release[1]}, Linux {kernel}; a load of {load:.1f} in "
        "the quarter of an hour until its end, the bench's own included."
    )


def _targets(figures: Figures) -> Iterator[str]:
    """The rows that have a target."""
    yield from _head("measure", "to reach", "measured", "reached")

    def row(what: str, goal: str, measured: str, reached: bool) -> str:
        return _row(what, goal, measured, "yes" if reached else "**no**")

    def at(measure: str, side: str = "this", count: int = _MOST) -> Figure | None:
        return figures.find(measure, side, count)

    for count, faster in ((250, 50), (_MOST, 60)):
        hook, limit, this = (at(control.INSTALL, s, count) for s in ("hook", "limit", "this"))
        if hook and limit and this:
            to_hook, to_limit = hook.median / this.median, this.median / limit.median
            yield row(
                f"first install of {count:,}",
                f"{faster} times faster than the hook, at most twice the limit",
                f"{_spread(this)}: {to_hook:.0f} times faster, {to_limit:.2f} times the limit",
                to_hook >= faster and to_limit <= 2,
            )
    if change := at(control.CHANGE):
        high = change.percentile(99)
        yield row(
            f"one of {_MOST:,} starts or stops, event to rule and address",
            "median 50 ms, 99th 100 ms; one mapping written",
            f"{_spread(change)}, 99th {high:.0f} ms of {len(change.values)}; one mapping each",
            change.median <= 50 and high <= 100,
        )
    limits: tuple[tuple[str, str, str, str, float], ...] = (
        ("the same, a real domain", control.CHANGE_REAL, "this", "50 ms", 50),
        (f"converged pass at {_MOST:,}", control.PASS, "this", "50 ms, no write", 50),
        ("after the last of 1,000 events in 1 s", control.BURST, "this", "1 s", 1),
        ("passes for them", control.PASSES, "this", "10", 10),
        (f"resident memory at {_MOST:,}", control.MEMORY, "this", "60 MB", 60),
        (f"start to READY at {_MOST:,}, adopting", control.START, "this", "1.0 s", 1),
    )
    for what, measure, side, goal, most in limits:
        if figure := at(measure, side):
            yield row(what, goal, _spread(figure), figure.median <= most)
    yield from _tracking(figures, row)
    yield from _crowd(figures, row)
    for measure, _ in MEASURES.values():
        alone, plain = at(measure, "this, first", 1), at(measure, "plain", 1)
        for which in ("first", "last"):
            this, hook = at(measure, f"this, {which}"), at(measure, f"hook, {which}")
            if this and hook and alone and plain:
                to_one, to_hook = this.median / alone.median, this.median / hook.median
                yield row(
                    f"{measure}, {which} of {_MOST:,}",
                    "0.97 of 1 mapping, 1.5 of the hook",
                    f"{to_one:.2f} of 1 mapping, {to_hook:.2f} of the hook, "
                    f"{this.median / plain.median:.2f} of plain",
                    to_one >= 0.97 and to_hook >= 1.5,
                )


def _tracking(figures: Figures, row: Callable[[str, str, str, bool], str]) -> Iterator[str]:
    """Connection tracking: beside so many entries of others', and on an empty table."""
    found = {figure.measure: figure for figure in figures.all if figure.side in ("this", "limit")}
    for measure, more, unit in ((tracking.REMOVAL, 100, "ms"), (tracking.START, 0.1, "s")):
        this, empty = found.get(measure), figures.find(measure, "empty table", 0)
        if this and empty:
            yield row(
                f"connection tracking, {this.count:,} unrelated entries: {measure}",
                f"at most {more} {unit} more than on an empty table",
                f"{_spread(this)}; {_spread(empty)} on an empty table",
                this.median <= empty.median + more,
            )
    gone, listed, deleted = map(found.get, (tracking.GONE, tracking.LIST, tracking.DELETE))
    if gone and listed and deleted:
        yield row(
            f"connection tracking, {gone.count:,} unrelated entries: {gone.measure}",
            "1 s",
            f"{_spread(gone)}; conntrack(8) lists them in {listed.median:.3g} s, and deletes "
            f"them in {deleted.median:.3g} s",
            gone.median <= 1,
        )


def _crowd(figures: Figures, row: Callable[[str, str, str, bool], str]) -> Iterator[str]:
    """Beside what other programs have, and on an empty host."""
    others = "beside 100,000 changing elements and 60,000 MACs"
    repaired, empty = (
        figures.find(crowd.REPAIR, side, crowd.COUNT) for side in (crowd.CROWDED, crowd.EMPTY)
    )
    if repaired and empty:
        yield row(
            f"an address repaired, {others}",
            "1.5 times that on an empty host",
            f"{_spread(repaired)}, there {_spread(empty)}",
            repaired.median <= 1.5 * empty.median,
        )
    if busy := figures.find(crowd.BUSY, crowd.CROWDED, crowd.COUNT):
        yield row(f"one processor, {others}", "2 %", _spread(busy), busy.median <= 2)


def _growth(figures: Figures) -> Iterator[str]:
    """Medians by the number of mappings."""
    yield from _head("median", "side", *(f"{count:,}" for count in _COUNTS))
    for measure, side in _GROWTH:
        found = [figures.find(measure, side, count) for count in _COUNTS]
        unit = next((each.unit for each in found if each), "")
        cells = (f"{each.median:.3g}" if each else "" for each in found)
        yield _row(f"{measure}, {unit}", side, *cells)
    if detecting := figures.find(control.DETECTING, "this", _MOST):
        yield _row(f"{control.DETECTING}, s", "this", "", "", "", f"{detecting.median:.3g}", "")


def _load(figures: Figures) -> Iterator[str]:
    """Each side's figures of the datapath."""
    yield from _head("through", "mappings", *(measure for measure, _ in MEASURES.values()))
    sides = dict.fromkeys(
        (f.side, f.count) for f in figures.all if f.measure in {m for m, _ in MEASURES.values()}
    )
    for side, count in sides:
        found = (figures.find(measure, side, count) for measure, _ in MEASURES.values())
        yield _row(side, f"{count:,}", *(_spread(each) if each else "" for each in found))


def _spread(figure: Figure) -> str:
    def shown(value: float) -> str:
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

    low, high = min(figure.values), max(figure.values)
    return f"{shown(figure.median)} {figure.unit} ({shown(low)} to {shown(high)})".replace(
        "  ", " "
    )


def _head(*cells: str) -> tuple[str, str]:
    return _row(*cells), _row(*("---" for _ in cells))


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _plot(figures: Figures, path: Path) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    # The same figures give the same file.
    mpl.rcParams["svg.hashsalt"] = "bench"
    from matplotlib import pyplot as plt

    _, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5))

    def line(axes: object, measure: str, side: str, label: str, scale: float = 1.0) -> None:
        found = [f for f in map(_finder(figures, measure, side), _COUNTS) if f]
        axes.plot(  # type: ignore[attr-defined]
            [f.count for f in found], [f.median * scale for f in found], "o-", label=label
        )

    for side in ("hook", "this", "limit"):
        line(left, control.INSTALL, side, side)
    line(right, control.START, "this", "start until ready")
    line(right, control.PASS, "this", "converged pass", 1e-3)
    line(right, control.CHANGE, "this", "single change", 1e-3)
    for axes, title in ((left, "first install"), (right, "the daemon with so many")):
        axes.set(xscale="log", yscale="log", xlabel="mappings", ylabel="seconds", title=title)
        axes.grid(True, which="both", alpha=0.3)
        axes.legend()
    plt.tight_layout()
    plt.savefig(path, metadata={"Date": None})


def _finder(figures: Figures, measure: str, side: str) -> Callable[[int], Figure | None]:
    return lambda count: figures.find(measure, side, count)
