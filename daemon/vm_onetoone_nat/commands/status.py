"""`status`: the state of every mapping."""

import argparse
import sys
import time
from pathlib import Path

from vm_onetoone_nat.commands.terminal import colour, width
from vm_onetoone_nat.errors import PrivilegeError, VmNatError
from vm_onetoone_nat.report.report import (
    Report,
    mapped,
    report_from_json,
    report_to_json,
    unmapped,
)
from vm_onetoone_nat.report.table import render_report
from vm_onetoone_nat.service.instance import runtime_path
from vm_onetoone_nat.service.status_socket import NoAnswer, ask, socket_path

_WATCH_SECONDS = 1.0


def run(arguments: argparse.Namespace) -> int:
    """Print the state of every mapping, once or until Ctrl-C. Raises VmNatError."""
    if not arguments.watch:
        print("\n".join(_lines(arguments)))
        return 0
    try:
        while True:
            try:
                lines = _lines(arguments)
            except VmNatError as error:
                # The daemon may be restarting.
                lines = [str(error)]
            clear = "\033[H\033[2J" if sys.stdout.isatty() else ""
            print(clear + "\n".join(lines), flush=True)
            time.sleep(_WATCH_SECONDS)
    except KeyboardInterrupt:
        return 0


def _lines(arguments: argparse.Namespace) -> list[str]:
    report, note = _report(arguments.config)
    if arguments.json:
        return [report_to_json(report)]
    return [*note, *render_report(report, width(), colour=colour())]


def _report(path: Path) -> tuple[Report, tuple[str, ...]]:
    """The daemon's report; if none answers, one from the kernel's state, and a note."""
    try:
        return report_from_json(ask(socket_path(runtime_path()))), ()
    except NoAnswer as error:
        absent = error.message
    try:
        return _report_of_kernel(path), (f"{absent}: this is what the kernel has now",)
    except PrivilegeError as error:
        raise PrivilegeError(
            f"{absent}, and only root may read the kernel's state", hint="run it with sudo"
        ) from error


def _report_of_kernel(path: Path) -> Report:
    """A report without a daemon. Raises ConfigError, PrivilegeError, KernelError."""
    # Not at the head of the module: with a daemon, none of it is needed.
    from vm_onetoone_nat.commands.look import look_at_host
    from vm_onetoone_nat.config.files import load
    from vm_onetoone_nat.decide.reconcile import settled
    from vm_onetoone_nat.kernel.counters import read_counters

    seen = look_at_host(load(path))
    counters = read_counters()
    entries = [mapped(status, None, counters) for status in settled(seen)]
    entries += [unmapped(guest) for guest in seen.desired.unmapped]
    return Report(seen.uplink_name, seen.libvirt, tuple(entries))
