"""One check of the path to a guest, and its outcome. Pure."""

from dataclasses import dataclass
from enum import StrEnum

from vm_onetoone_nat.diagnose.evidence import Evidence
from vm_onetoone_nat.diagnose.remedies import remedy
from vm_onetoone_nat.model.status import Cause


class Verdict(StrEnum):
    """The outcome of a check; the values are part of `diagnose --json`.

    `SUSPECT`: likely, but not verifiable from this host. `UNKNOWN`: hidden by an earlier failure,
    or by what another program has written.
    """

    OK = "ok"
    FAILED = "failed"
    SUSPECT = "suspect"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Check:
    """One part of the path, and what was found."""

    step: str
    verdict: Verdict
    text: str
    cause: Cause | None = None
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All checks of one mapping, in the order of the path."""

    subject: str
    checks: tuple[Check, ...]

    @property
    def first(self) -> Check | None:
        """The first failed check, or else the first suspect one."""
        for verdict in (Verdict.FAILED, Verdict.SUSPECT):
            for check in self.checks:
                if check.verdict is verdict:
                    return check
        return None


Found = str | Check | None
"""Text if the part is all right, a Check if not, None if that cannot be determined."""


def failed(step: str, cause: Cause, text: str) -> Check:
    """A check that failed, of no mapping, with its remedy."""
    return Check(step, Verdict.FAILED, text, cause, remedy(cause, None))


def fault(evidence: Evidence, step: str, cause: Cause, text: str) -> Check:
    """A check of a mapping that failed, with its remedy."""
    advice = remedy(cause, evidence.mapping, evidence.libvirt_units)
    return Check(step, Verdict.FAILED, text, cause, advice)
