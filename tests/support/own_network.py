"""Runs a function of a test module in a process with a network namespace of its own. Needs root."""

import subprocess
import sys
from collections.abc import Callable


def in_own_network(child: Callable[..., None], *arguments: str) -> None:
    """Call a function of a module in a new process with a new network namespace.

    It gets the arguments as text. The test fails with what the process wrote if it fails.
    """
    module, name = child.__module__, child.__name__
    command = ["unshare", "--net", sys.executable, "-W", "error", "-c"]
    code = f"import sys; sys.path[:] = {sys.path!r}\n"
    code += f"import {module} as module; module.{name}(*sys.argv[1:])"
    done = subprocess.run([*command, code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
