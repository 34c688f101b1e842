"""`cleanup`: removes everything of ours from the kernel."""

import argparse
from math import inf
from pathlib import Path

from vm_onetoone_nat.service.unit import is_stopping


def run(arguments: argparse.Namespace) -> int:
    """Stop the daemon, if one runs, and clean up. Raises VmNatError."""
    if arguments.unit is None or is_stopping(arguments.unit):
        _clean_up(arguments.config, stop=arguments.unit is None)
    return 0


def _clean_up(config: Path, *, stop: bool) -> None:
    """Clean up. A running daemon is stopped first, or else is left alone with all that it has."""
    # Not at the head of the module: a restart waits for `cleanup --unit`, which ends before this.
    from vm_onetoone_nat.commands.privileges import require_net_admin
    from vm_onetoone_nat.decide.plan import describe
    from vm_onetoone_nat.decide.reconcile import remove
    from vm_onetoone_nat.kernel.kernel import Kernel, conflicts_path
    from vm_onetoone_nat.service.instance import Instance, runtime_directory

    require_net_admin()
    runtime = runtime_directory()
    instance = Instance(runtime)
    if stop:
        stopped = instance.stop_other()
        if stopped is not None:
            print(f"stopped the daemon, process {stopped}")
    elif not instance.try_acquire():
        print("a daemon that was started by hand is running: nothing is removed")
        return
    kernel = Kernel(runtime)
    for line in describe(remove(_fwmark(config), kernel)):
        print(line)
    kernel.work(inf)
    conflicts_path(runtime).unlink(missing_ok=True)


def _fwmark(path: Path) -> int:
    """The configured mark; the default if the file is missing or bad: clean-up must work."""
    from vm_onetoone_nat.config.files import load
    from vm_onetoone_nat.errors import ConfigError
    from vm_onetoone_nat.model.configuration import DEFAULT_FWMARK

    try:
        return load(path).fwmark
    except ConfigError:
        return DEFAULT_FWMARK
