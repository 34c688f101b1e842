"""The command: arguments, output, exit codes. The only module that exits the process."""

import argparse
import gc
import io
import logging
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from vm_onetoone_nat import __version__, journal
from vm_onetoone_nat.errors import CannotRun, ConfigError, VmNatError
from vm_onetoone_nat.events import Event

EX_USAGE = 64
DEFAULT_CONFIG = Path("/etc/vm-onetoone-nat/config.toml")

_COMMANDS = "vm_onetoone_nat.commands"

log = logging.getLogger(__name__)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(EX_USAGE, f"{self.prog}: {message}\n")


def main() -> NoReturn:
    """The entry point: runs one command and exits with its code."""
    arguments = _parser().parse_args()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # As standard error: a name may have characters that the locale cannot encode.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = _run(arguments)
    except VmNatError as error:
        _print_error(error)
        code = error.exit_code
    except BrokenPipeError:
        # The reader has closed the pipe; the interpreter must not flush to it at exit.
        sys.stdout = None
        code = 1
    sys.exit(code)


def _run(arguments: argparse.Namespace) -> int:
    """Run the command. Raises VmNatError."""
    try:
        journal.configure(arguments.verbose)
        return _command(arguments.command)(arguments)
    except ImportError as error:
        raise CannotRun(
            f"a Python module cannot be loaded: {error}",
            hint="install the program and its packages again",
        ) from error


def _command(name: str) -> Callable[[argparse.Namespace], int]:
    """The function of a command; only its module is loaded, with what that needs."""
    # What is loaded stays: looking for garbage among it takes a quarter of the time.
    gc.disable()
    try:
        run: Callable[[argparse.Namespace], int] = import_module(f"{_COMMANDS}.{name}").run
    finally:
        gc.enable()
    return run


def _print_error(error: VmNatError) -> None:
    """Print an error to the terminal, or log it to the journal with its fields."""
    for line in str(error).splitlines():
        if not journal.to_journal():
            print(f"vm-onetoone-nat: {line}", file=sys.stderr)
        elif isinstance(error, ConfigError):
            log.error("%s", line, extra=journal.entry(Event.CONFIGURATION_REFUSED, reason=line))
        else:
            log.error("%s", line)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="vm-onetoone-nat",
        description="Gives each guest on libvirt's NAT network an address of its own on the LAN.",
    )
    parser.add_argument(
        "--config",
        type=Path,
        default=DEFAULT_CONFIG,
        metavar="FILE",
        help="default: %(default)s",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("--verbose", action="store_true", help="log every write and every pass")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("run", help="the daemon, in the foreground")
    commands.add_parser("check", help="validate the configuration; needs no privileges")
    plan = commands.add_parser("plan", help="what a reconcile would change; exit 2 if anything")
    status = commands.add_parser("status", help="the state of every mapping")
    status.add_argument("--watch", action="store_true", help="again every second, until Ctrl-C")
    commands.add_parser(
        "metrics", help="figures for Prometheus, once; or by HTTP on systemd's sockets"
    )
    diagnose = commands.add_parser(
        "diagnose",
        help="why a guest cannot be reached, and what to do; exit 1 if anything is wrong",
    )
    diagnose.add_argument("target", metavar="TARGET", help="a guest, or one of its addresses")
    for command in (plan, status, diagnose):
        command.add_argument("--json", action="store_true", help="for programs")
    cleanup = commands.add_parser("cleanup", help="remove everything of ours from the kernel")
    cleanup.add_argument(
        "--unit",
        metavar="UNIT",
        help="only if systemd is stopping UNIT for good; for its ExecStopPost=",
    )
    return parser
