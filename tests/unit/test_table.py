"""The table that `status` shows."""

from dataclasses import replace
from unicodedata import combining, east_asian_width

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab.addresses import external, guest_name
from reports import entry, report, reports
from vm_onetoone_nat.model.status import MappingState
from vm_onetoone_nat.model.traffic import Traffic
from vm_onetoone_nat.report.report import Entry, Report
from vm_onetoone_nat.report.table import WIDTH, amount, duration, printable, render_report

REASON = (
    "the host with MAC 52:54:00:aa:bb:cc has 192.168.1.103 too; give one of the two another "
    "address, and keep external addresses out of the DHCP server's range"
)


def shown(text: str) -> int:
    """The columns of a terminal that a text takes."""
    return sum(2 if east_asian_width(c) in "WF" else not combining(c) for c in text)


def test_table() -> None:
    """The laptop's guests fit a terminal of 80 columns, each in a line, with its reason below."""
    idle = replace(entry(2, MappingState.INACTIVE, "domain 'el7-x86_64-102' is not running"))
    assert render_report(report(entry(1), idle, entry(3, MappingState.CONFLICT, REASON))) == [
        "1 of 3 active, uplink wlp0s20f3, libvirt connected, daemon up 1d00",
        "untranslated packets dropped: 13",
        "",
        "EXTERNAL      STATE     FOR GUEST          INTERNAL        BY       CONN BYTES",
        "192.168.1.101 active   1d00 el7-x86_64-101 192.168.122.101 reserved  302  8.0M",
        "192.168.1.102 inactive 1d00 el7-x86_64-102 192.168.122.102 reserved    -     -",
        "              domain 'el7-x86_64-102' is not running",
        "192.168.1.103 conflict 1d00 el7-x86_64-103 192.168.122.103 reserved    -     -",
        "              the host with MAC 52:54:00:aa:bb:cc has 192.168.1.103 too; give",
        "              one of the two another address, and keep external addresses out of",
        "              the DHCP server's range",
    ]


def test_empty() -> None:
    """Without a mapping there is the summary alone; it says what is missing."""
    assert render_report(Report("", False, ())) == [
        "0 of 0 active, uplink missing, libvirt disconnected"
    ]


def test_without_a_guest() -> None:
    """A mapping of a network, of which nothing else is known, shows dashes."""
    bare = Entry(
        None, None, None, "default", MappingState.PENDING, "", origin="configuration", source=None
    )
    assert render_report(Report("", True, (bare,)))[3].split() == [
        *("-", "pending", "-", "net:default", "-", "-", "-", "-")
    ]


@pytest.mark.parametrize("width", [60, 80, 132])
def test_width(width: int) -> None:
    """Names are shortened only as far as the width demands, and reasons are wrapped."""
    long = replace(entry(1), domain="a-very-long-name-of-a-guest" * 4)
    wide = replace(entry(2), domain="日本語" * 30)
    lines = render_report(report(long, wide, entry(3, MappingState.ERROR, REASON)), width)
    assert max(map(shown, lines)) == max(width, 70)
    assert sum("…" in line for line in lines) == (3 if width < 80 else 2)
    assert " ".join(" ".join(lines[7:]).split()) == REASON
    short = render_report(report(entry(1)), 132)
    assert guest_name(1) in short[4]
    assert "  active  " in short[4], "two spaces between columns where there is room"


@given(reports, st.integers(40, 200))
def test_any_report(told: Report, width: int) -> None:
    """Whatever is in a report, no control character is in what is shown, and the columns align."""
    lines = render_report(told, width)
    assert all(line.isprintable() for line in lines)
    assert lines[0].startswith(f"{told.count(MappingState.ACTIVE)} of {len(told.entries)} active")


@pytest.mark.parametrize(
    "name", ["\033[2J", "\033]0;title\a", "a\nb", "a\rb", "a\tb", "\u202eb", "\x9b31m", "\x7f"]
)
def test_control_characters(name: str) -> None:
    """What a guest's name could do to a terminal is not in what is shown of it."""
    told = report(replace(entry(1), domain=name, reason=name))
    for colour in (False, True):
        text = "".join(render_report(told, colour=colour))
        assert text.replace("\033[32m", "").replace("\033[0m", "").isprintable()
    assert printable("el7-x86_64 ü 日本") == "el7-x86_64 ü 日本"


def test_colours() -> None:
    """Colours are of the state alone, and change nothing else."""
    told = report(*(entry(n, state) for n, state in enumerate(MappingState, start=1)))
    plain, coloured = render_report(told), render_report(told, colour=True)
    assert "\033" not in "".join(plain)
    for before, after in zip(plain, coloured, strict=True):
        if str(external(1))[:-3] not in before:
            assert after == before
            continue
        start, state, rest = after.split("\033[")[0], *after.split("\033[")[1:]
        assert f"{start}{state.partition('m')[2]}{rest.removeprefix('0m')}" == before


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.99, "0s"),
        (59.99, "59s"),
        (60, "1m"),
        (3599.9, "59m"),
        (3600, "1h00"),
        (86399, "23h59"),
        (86400, "1d00"),
        (86400 * 100 - 1, "99d23"),
        (86400 * 100, "100d"),
        (86400 * 9999, "9999d"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    """A time is shown in the units that matter."""
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.0k"),
        (9949, "9.9k"),
        (9950, "10k"),
        (999_499, "999k"),
        (999_500, "1.0M"),
        (35_000_000, "35M"),
        (999_499_999, "999M"),
        (10**12, "1.0T"),
        (2**64 - 1, "18E"),
    ],
)
def test_amount(number: int, text: str) -> None:
    """A number is shown with two or three digits and its unit."""
    assert amount(number) == text


@given(st.floats(0, 86400 * 9999), st.integers(0, 2**64))
def test_never_wider(seconds: float, number: int) -> None:
    """Neither is ever longer than its column."""
    assert len(duration(seconds)) <= 5
    assert len(amount(number)) <= 5


@given(st.integers(0, 2**63), st.integers(0, 2**63))
def test_both_directions(inbound: int, outbound: int) -> None:
    """Connections and bytes are those of both directions, of an active mapping only."""
    told = replace(entry(1), inbound=Traffic(inbound, 0, 0), outbound=Traffic(outbound, 0, 0))
    *_, connections, size = render_report(report(told))[3].split()
    assert (connections, size) == (amount(inbound + outbound), "0")
    assert len(render_report(report(told))[3]) <= WIDTH
