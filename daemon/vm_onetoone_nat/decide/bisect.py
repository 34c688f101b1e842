"""Writes a plan of which the kernel refuses some mappings, and finds these by bisection.

Pure, apart from what it does with the kernel that it is given.
"""

from collections.abc import Callable, Set
from dataclasses import dataclass, field
from functools import partial
from itertools import chain

from vm_onetoone_nat.decide.desired import Refused, with_elements, without
from vm_onetoone_nat.decide.plan import is_replaced, plan
from vm_onetoone_nat.decide.sides import KernelOfPass, Written
from vm_onetoone_nat.errors import TransactionRefused
from vm_onetoone_nat.model.desired import Desired
from vm_onetoone_nat.model.family import IPAddress
from vm_onetoone_nat.model.host import Observed

_Attempt = Callable[[frozenset[IPAddress], Refused], Written]
"""Writes what the mappings need that neither wait nor are refused. Raises TransactionRefused."""

SECONDS = 2.0
"""How long a search may last: no event is served meanwhile."""

NOT_TRIED = "not tried yet: the kernel refuses other mappings"
"""The reason for a mapping that has waited until the end of the search."""


class Search:
    """Finds the refused mappings, in as many passes as that takes.

    A mapping that is refused is tried again after all others that the kernel lacks.
    """

    def __init__(self, clock: Callable[[], float] = lambda: 0.0) -> None:
        """`clock` is in seconds. Without one, a search has no limit of time."""
        self._clock = clock
        self._refused: dict[IPAddress, str] = {}
        """The reasons, in the order of refusal."""

    def forget(self) -> None:
        """The kernel has accepted a whole plan: what it refused before is no longer true."""
        self._refused.clear()

    def install(
        self,
        kernel: KernelOfPass,
        desired: Desired,
        seen: Observed,
        lacking: tuple[IPAddress, ...],
    ) -> tuple[Written, Refused]:
        """Write what the kernel accepts; return also the reason for each mapping that it refuses,
        and for each that was not tried.

        `desired` was computed from `seen`; `lacking` are the mappings of which the kernel lacks a
        part, by external address. First all that they do not need is written. Raises KernelError if
        the kernel cannot be observed.
        """
        attempt = partial(_attempt, kernel, desired, seen)
        try:
            first = attempt(frozenset(lacking), {})
        except TransactionRefused as error:
            # No mapping is at fault: no part of the ruleset can be written now.
            everything = dict.fromkeys(lacking, str(error))
            return Written(failures=_failures(everything)), everything
        if not lacking:
            return first, {}
        found, refused, left = self._bisect(attempt, lacking)
        try:
            # Remove what the kernel still has of the refused mappings.
            last = attempt(left, refused)
        except TransactionRefused as error:
            last = Written(failures=(str(error),))
        earlier = {each: reason for each, reason in self._refused.items() if each in left}
        self._refused = {**earlier, **refused}
        failures = _failures(self._refused)
        if left:
            failures += (f"the search for refused mappings has not ended within {SECONDS:g} s",)
        written = first + found + Written(failures=failures) + last
        return written, {**dict.fromkeys(left, NOT_TRIED), **self._refused}

    def _bisect(
        self, attempt: _Attempt, lacking: tuple[IPAddress, ...]
    ) -> tuple[Written, Refused, frozenset[IPAddress]]:
        """Install the mappings, or else each half of them, while the others wait.

        Returns also those that the kernel refuses, and those that still wait at the end of the
        time. At least one is installed or refused.
        """
        ends = self._clock() + SECONDS
        order = {external: number for number, external in enumerate(self._refused)}
        tried = tuple(sorted(lacking, key=lambda each: order.get(each, -1)))
        written, refused = Written(), dict[IPAddress, str]()
        groups = [tried]
        waiting = len(lacking)
        while groups and (waiting == len(lacking) or self._clock() < ends):
            tried = groups.pop()
            later = frozenset(chain.from_iterable(groups))
            try:
                written += attempt(later, refused)
            except TransactionRefused as error:
                if len(tried) > 1:
                    half = len(tried) // 2
                    groups += [tried[half:], tried[:half]]
                    continue
                refused[tried[0]] = str(error)
            waiting = len(later)
        return written, refused, frozenset(chain.from_iterable(groups))


@dataclass(frozen=True, slots=True)
class Limits:
    """What limits the writes of a pass: the keys of those held back, and the search."""

    held: Set[str] = frozenset()
    search: Search = field(default_factory=Search)


def _failures(refused: Refused) -> tuple[str, ...]:
    return tuple(f"mapping {external}: {reason}" for external, reason in refused.items())


def _attempt(
    kernel: KernelOfPass,
    desired: Desired,
    seen: Observed,
    waiting: frozenset[IPAddress],
    refused: Refused,
) -> Written:
    """An `_Attempt`, for the first three arguments.

    Of a mapping that waits, the kernel keeps the elements that it has and should have, and the
    address if its translation is one of them. So what has to be replaced is deleted first, with its
    connections: it could be in the way of other mappings.
    """
    observed = kernel.observe()
    stays = observed.table if not is_replaced(observed, desired.fwmark) else None
    present = stays.elements if stays is not None else frozenset()
    wanted = without(desired, refused, seen)
    least = without(desired, {**dict.fromkeys(waiting, NOT_TRIED), **refused}, seen)
    elements = least.elements | wanted.elements & present
    planned = plan(observed, with_elements(wanted, elements))
    return kernel.apply(kernel.possible(planned, observed))
