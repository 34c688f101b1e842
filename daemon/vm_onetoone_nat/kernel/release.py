"""The version of the running kernel."""

import os
import re

_NUMBERS = re.compile(r"([0-9]+)\.([0-9]+)")


def kernel_release() -> tuple[int, int]:
    """Its major and minor number."""
    return parse_release(os.uname().release)


def parse_release(text: str) -> tuple[int, int]:
    """The first two numbers of a release as `uname -r` prints it, whatever a builder has appended.

    (0, 0), older than every kernel, if there are none.
    """
    found = _NUMBERS.match(text)
    return (int(found[1]), int(found[2])) if found is not None else (0, 0)
