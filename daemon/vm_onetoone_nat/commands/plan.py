"""`plan`: what a pass would change."""

import argparse
import json
from dataclasses import asdict

from vm_onetoone_nat.commands.look import look_at_host
from vm_onetoone_nat.config.files import load
from vm_onetoone_nat.report.changes import changes, render_changes

CHANGES_PENDING = 2
"""The exit code if a pass would change anything."""


def run(arguments: argparse.Namespace) -> int:
    """Print the changes. Raises ConfigError, PrivilegeError, KernelError."""
    found = changes(look_at_host(load(arguments.config)))
    if arguments.json:
        print(json.dumps({"changes": [asdict(change) for change in found]}, indent=2))
    elif found:
        print("\n".join(render_changes(found)))
    else:
        print("converged: nothing to change")
    return CHANGES_PENDING if found else 0
