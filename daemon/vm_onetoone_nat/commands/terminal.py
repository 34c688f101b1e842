"""The terminal that a command prints to."""

import os
import shutil
import sys

from vm_onetoone_nat.report.table import WIDTH


def width() -> int:
    """The width of a line of output, in columns."""
    return shutil.get_terminal_size((WIDTH, 0)).columns if sys.stdout.isatty() else WIDTH


def colour() -> bool:
    """Whether to colour the output: on a terminal, unless NO_COLOR is set (no-color.org)."""
    return (
        sys.stdout.isatty()
        and not os.environ.get("NO_COLOR")
        and os.environ.get("TERM", "") not in ("", "dumb")
    )
