"""Writes a plan of which the kernel refuses some mappings, and finds these by bisection.

Pure, apart from what it does with the kernel that it is given.
"""

from collections.abc import Callable
from functools import partial

from vm_onetoone_nat.decide.desired import Refused, with_elements, without
from vm_onetoone_nat.decide.plan import is_replaced, plan
from vm_onetoone_nat.decide.sides import KernelOfPass, Written
from vm_onetoone_nat.errors import TransactionRefused
from vm_onetoone_nat.model.desired import Desired
from vm_onetoone_nat.model.family import IPAddress
from vm_onetoone_nat.model.host import Observed

_Attempt = Callable[[frozenset[IPAddress], Refused], Written]
"""Writes what the mappings need that neither wait nor are refused. Raises TransactionRefused."""


def install_singly(
    kernel: KernelOfPass, desired: Desired, seen: Observed, lacking: tuple[IPAddress, ...]
) -> tuple[Written, Refused]:
    """Write what the kernel accepts; return also the reason for each mapping that it refuses.

    `desired` was computed from `seen`; `lacking` are the mappings of which the kernel lacks a part,
    by external address. First all that they do not need is written. Raises KernelError if the
    kernel cannot be observed.
    """
    attempt = partial(_attempt, kernel, desired, seen)
    try:
        first = attempt(frozenset(lacking), {})
    except TransactionRefused as error:
        # No mapping is at fault: no part of the ruleset can be written now.
        return Written(), dict.fromkeys(lacking, str(error))
    if not lacking:
        return first, {}
    found, refused = _bisect(attempt, lacking, frozenset(), {})
    try:
        # Remove what the kernel still has of the refused mappings.
        last = attempt(frozenset(), refused)
    except TransactionRefused as error:
        last = Written(failures=(str(error),))
    return first + found + last, refused


def _bisect(
    attempt: _Attempt,
    tried: tuple[IPAddress, ...],
    later: frozenset[IPAddress],
    refused: Refused,
) -> tuple[Written, Refused]:
    """Install the mappings `tried`, or else each half of them, while those of `later` wait.

    Returns `refused` with those of `tried` that the kernel refuses.
    """
    try:
        return attempt(later, refused), refused
    except TransactionRefused as error:
        if len(tried) == 1:
            return Written(), {**refused, tried[0]: str(error)}
    half = len(tried) // 2
    first, refused = _bisect(attempt, tried[:half], later.union(tried[half:]), refused)
    second, refused = _bisect(attempt, tried[half:], later, refused)
    return first + second, refused


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
    least = without(desired, {**dict.fromkeys(waiting, "not tried yet"), **refused}, seen)
    elements = least.elements | wanted.elements & present
    planned = plan(observed, with_elements(wanted, elements))
    return kernel.apply(kernel.possible(planned, observed))
