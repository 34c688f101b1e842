"""The output of `diagnose`, as text and as JSON. Pure."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from vm_onetoone_nat.diagnose.check import Check, Diagnosis, Verdict
from vm_onetoone_nat.report.table import WIDTH, printable, wrapped

_MARKS = {
    Verdict.OK: ("✓", "32"),
    Verdict.FAILED: ("✗", "31"),
    Verdict.SUSPECT: ("?", "33"),
    Verdict.UNKNOWN: ("-", "2"),
}


def render_diagnosis(
    diagnosis: Diagnosis, *, width: int = WIDTH, colour: bool = False
) -> list[str]:
    """The checks with their marks; below them the first failure and its remedy."""
    lines = [f"{printable(diagnosis.subject)}:", ""]
    column = max((len(check.step) for check in diagnosis.checks), default=0)
    for check in diagnosis.checks:
        lines += _check(check, column, width, colour=colour)
    first = diagnosis.first
    lines.append("")
    if first is None:
        lines.append("nothing is wrong, as far as this host can see")
        return lines
    wrong = "wrong" if first.verdict is Verdict.FAILED else "suspected"
    lines += wrapped(f"{wrong}: ", first.text, width)
    lines += wrapped("remedy: ", first.remedy, width)
    return lines


def diagnoses_to_json(target: str, diagnoses: Sequence[Diagnosis]) -> str:
    """The document of `diagnose --json`; `cause` is that of the first mapping that has one."""
    firsts = [first for each in diagnoses if (first := each.first) is not None]
    document = {
        "target": target,
        "healthy": not firsts,
        "cause": firsts[0].cause if firsts else None,
        "text": firsts[0].text if firsts else "",
        "remedy": firsts[0].remedy if firsts else "",
        "mappings": [asdict(each) for each in diagnoses],
    }
    return json.dumps(document, indent=2)


def _check(check: Check, column: int, width: int, *, colour: bool) -> Iterator[str]:
    mark, number = _MARKS[check.verdict]
    shown = f"\033[{number}m{mark}\033[0m" if colour else mark
    first, *more = wrapped(f"{mark} {check.step.ljust(column)}  ", check.text, width)
    yield shown + first[1:]
    yield from more
