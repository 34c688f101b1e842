"""The text output of `status`: a table that fits a terminal. Pure."""

import textwrap
from unicodedata import combining, east_asian_width

from vm_onetoone_nat.model.status import MappingState
from vm_onetoone_nat.model.traffic import Traffic
from vm_onetoone_nat.report.report import Entry, Report

WIDTH = 80

_COLOURS = {
    MappingState.ACTIVE: "32",
    MappingState.INACTIVE: "2",
    MappingState.PENDING: "33",
    MappingState.CONFLICT: "31",
    MappingState.ERROR: "31",
}
_SOURCES = {"configuration": "config", "reservation": "reserved", "neighbour": "seen"}
_HEADINGS = ("EXTERNAL", "STATE", "FOR", "GUEST", "INTERNAL", "BY", "CONN", "BYTES")
_GUEST = _HEADINGS.index("GUEST")
_STATE = _HEADINGS.index("STATE")
_FIGURES = {_HEADINGS.index(name) for name in ("FOR", "CONN", "BYTES")}
_NARROWEST = 8


def render_report(report: Report, width: int = WIDTH, *, colour: bool = False) -> list[str]:
    """The lines of the table, not wider than `width` if possible.

    Guests' names are shortened before the table becomes wider. A reason is below its mapping.
    """
    rows = [tuple(map(printable, _cells(entry))) for entry in report.entries]
    widths = [max(map(_columns, column)) for column in zip(_HEADINGS, *rows, strict=True)]
    gap = "  " if sum(widths) + 2 * (len(widths) - 1) <= width else " "
    excess = sum(widths) + len(gap) * (len(widths) - 1) - width
    if excess > 0:
        widths[_GUEST] = max(min(_NARROWEST, widths[_GUEST]), widths[_GUEST] - excess)
    lines = [_summary(report)]
    if dropped := sum(t.dropped for e in report.entries for t in (e.inbound, e.outbound) if t):
        lines.append(f"untranslated packets dropped: {amount(dropped)}")
    if rows:
        lines += ["", gap.join(_fit(_HEADINGS, widths)).rstrip()]
    for entry, row in zip(report.entries, rows, strict=True):
        cells = _fit(row, widths)
        if colour:
            cells[_STATE] = f"\033[{_COLOURS[entry.state]}m{cells[_STATE]}\033[0m"
        lines.append(gap.join(cells).rstrip())
        if entry.reason:
            lines += wrapped(" " * (widths[0] + len(gap)), entry.reason, width)
    return lines


def duration(seconds: float) -> str:
    """A time in at most two units and, up to 27 years, five characters: 5s, 3m, 2h05, 4d02."""
    whole = int(seconds)
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if minutes < 1:
        return f"{whole}s"
    if hours < 1:
        return f"{minutes}m"
    if days < 1:
        return f"{hours}h{minutes % 60:02}"
    return f"{days}d{hours % 24:02}" if days < 100 else f"{days}d"


def amount(number: int) -> str:
    """A number in at most five characters: 999, 1.2k, 35M."""
    if number < 1000:
        return str(number)
    scaled = float(number)
    for unit in "kMGTPE":
        scaled /= 1000
        if scaled < 9.95:
            return f"{scaled:.1f}{unit}"
        if scaled < 999.5:
            return f"{scaled:.0f}{unit}"
    return f"{scaled:.0f}E"


def _summary(report: Report) -> str:
    active, total = report.count(MappingState.ACTIVE), len(report.entries)
    parts = [
        f"{active} of {total} active",
        f"uplink {printable(report.uplink or 'missing')}",
        f"libvirt {'connected' if report.libvirt else 'disconnected'}",
    ]
    if report.daemon is not None:
        parts.append(f"daemon up {duration(report.daemon.seconds)}")
    return ", ".join(parts)


def _cells(entry: Entry) -> tuple[str, ...]:
    traffic = None
    if entry.inbound is not None and entry.outbound is not None:
        traffic = entry.inbound + entry.outbound
    return (
        entry.external or "-",
        entry.state.value,
        duration(entry.seconds) if entry.seconds is not None else "-",
        entry.domain or f"net:{entry.network}",
        entry.internal or "-",
        _SOURCES.get(entry.source, entry.source) if entry.source is not None else "-",
        *_figures(entry, traffic),
    )


def _figures(entry: Entry, traffic: Traffic | None) -> tuple[str, str]:
    if traffic is None or entry.state is not MappingState.ACTIVE:
        return "-", "-"
    return amount(traffic.connections), amount(traffic.bytes)


def _fit(cells: tuple[str, ...], widths: list[int]) -> list[str]:
    fitted = []
    for column, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        text = cell
        while _columns(text) > width:
            text = f"{text.removesuffix('…')[:-1]}…"
        blank = " " * (width - _columns(text))
        fitted.append(f"{blank}{text}" if column in _FIGURES else f"{text}{blank}")
    return fitted


def _columns(text: str) -> int:
    """The width in a terminal: Chinese, Japanese and Korean characters take two columns."""
    return sum(2 if east_asian_width(c) in "WF" else not combining(c) for c in text)


def printable(text: str) -> str:
    """Replace unprintable characters: names of guests may contain escape sequences."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def wrapped(heading: str, text: str, width: int) -> list[str]:
    """Wrap a text after a heading, aligned below its end; no word is broken."""
    return textwrap.wrap(
        printable(text),
        max(width, len(heading) + 20),
        initial_indent=heading,
        subsequent_indent=" " * len(heading),
        break_long_words=False,
        break_on_hyphens=False,
    )
