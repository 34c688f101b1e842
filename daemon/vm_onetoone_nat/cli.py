"""The command: arguments, output, exit codes. The only module that exits the process."""

import argparse
import faulthandler
import json
import logging
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from vm_onetoone_nat import __version__, journal
from vm_onetoone_nat.config import files as config
from vm_onetoone_nat.errors import ConfigError, PrivilegeError, VmNatError
from vm_onetoone_nat.events import Event
from vm_onetoone_nat.state import DEFAULT_FWMARK, Cause, Configuration, Mapping

if TYPE_CHECKING:
    from vm_onetoone_nat.diagnose.steps import Diagnosis
    from vm_onetoone_nat.reconcile import Look
    from vm_onetoone_nat.report.report import Report

EX_USAGE = 64
CHANGES_PENDING = 2

_WATCH_SECONDS = 1.0
_CAP_NET_ADMIN = 12

log = logging.getLogger(__name__)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(EX_USAGE, f"{self.prog}: {message}\n")


def main() -> NoReturn:
    """The entry point: runs one command and exits with its code."""
    arguments = _parser().parse_args()
    journal.configure(arguments.verbose)
    try:
        code = _COMMANDS[arguments.command](arguments)
    except VmNatError as error:
        _print_error(error)
        code = error.exit_code
    except BrokenPipeError:
        # The reader has closed the pipe; the interpreter must not flush to it at exit.
        sys.stdout = None
        code = 1
    sys.exit(code)


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
        default=config.DEFAULT_PATH,
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


def _run(arguments: argparse.Namespace) -> int:
    from vm_onetoone_nat.allocations import state_directory
    from vm_onetoone_nat.service.instance import runtime_directory
    from vm_onetoone_nat.service.service import Service

    configuration = config.load(arguments.config)
    _require_net_admin()
    # The watchdog sends SIGABRT when a pass hangs: then the traceback is in the journal.
    faulthandler.enable()
    Service(arguments.config, configuration, runtime_directory(), state_directory()).run()
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from vm_onetoone_nat.addresses import host_addresses

    configuration = config.load(arguments.config)
    config.check_host(arguments.config, configuration, host_addresses())
    print(f"{arguments.config}: {len(configuration.mappings)} mappings, no fault found")
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

    from vm_onetoone_nat.changes import changes, render_changes

    found = changes(_look(config.load(arguments.config)))
    if arguments.json:
        print(json.dumps({"changes": [asdict(change) for change in found]}, indent=2))
    elif found:
        print("\n".join(render_changes(found)))
    else:
        print("converged: nothing to change")
    return CHANGES_PENDING if found else 0


def _status(arguments: argparse.Namespace) -> int:
    if not arguments.watch:
        print("\n".join(_status_lines(arguments)))
        return 0
    try:
        while True:
            try:
                lines = _status_lines(arguments)
            except VmNatError as error:
                # The daemon may be restarting.
                lines = [str(error)]
            clear = "\033[H\033[2J" if sys.stdout.isatty() else ""
            print(clear + "\n".join(lines), flush=True)
            time.sleep(_WATCH_SECONDS)
    except KeyboardInterrupt:
        return 0


def _status_lines(arguments: argparse.Namespace) -> list[str]:
    from vm_onetoone_nat.report.report import report_to_json
    from vm_onetoone_nat.report.table import render_report

    report, note = _report(arguments.config)
    if arguments.json:
        return [report_to_json(report)]
    return [*note, *render_report(report, _width(), colour=_colour())]


def _diagnose(arguments: argparse.Namespace) -> int:
    from vm_onetoone_nat.diagnose.render import diagnoses_to_json, render_diagnosis

    diagnoses = _diagnoses(arguments.config, arguments.target)
    if arguments.json:
        print(diagnoses_to_json(arguments.target, diagnoses))
    else:
        for diagnosis in diagnoses:
            print("\n".join(render_diagnosis(diagnosis, width=_width(), colour=_colour())))
    return 1 if any(diagnosis.first is not None for diagnosis in diagnoses) else 0


def _diagnoses(path: Path, target: str) -> "list[Diagnosis]":
    """One for each mapping that matches the target, or for the fault that leaves none."""
    from vm_onetoone_nat.commands.examine import ask_daemon, examine
    from vm_onetoone_nat.diagnose.steps import Diagnosis, diagnose, failed
    from vm_onetoone_nat.reconcile import settled
    from vm_onetoone_nat.service.instance import runtime_path
    from vm_onetoone_nat.service.status_socket import socket_path

    _require_net_admin()
    try:
        configuration = config.load(path)
        seen = _look(configuration)
        config.check_host(path, configuration, seen.observed.addresses)
    except ConfigError as error:
        check = failed("configuration", Cause.CONFIGURATION, "; ".join(error.problems))
        return [Diagnosis(target, (check,))]
    daemon = ask_daemon(socket_path(runtime_path()))
    statuses = [s for s in settled(seen) if _means(target, s.mapping, seen)]
    refused = [u for u in seen.desired.unmapped if target in (u.domain, u.external)]
    return [
        *(diagnose(examine(seen, s, daemon, configuration.fwmark)) for s in statuses),
        *(
            Diagnosis(u.domain, (failed("mapping", Cause.CLAIM_REFUSED, u.reason),))
            for u in refused
        ),
    ] or [
        Diagnosis(target, (failed("mapping", Cause.NO_MAPPING, f"no mapping matches '{target}'"),))
    ]


def _means(target: str, mapping: Mapping, seen: "Look") -> bool:
    """Whether a mapping is for the target: a guest's name or UUID, or an address."""
    names = {str(mapping.external), str(mapping.internal), mapping.domain}
    if mapping.domain is None:
        # As `status` shows it in the GUEST column.
        names.add(f"net:{mapping.network}")
    if target in names:
        return True
    domain = seen.guests.domain(target) if seen.guests is not None else None
    return domain is not None and mapping.domain in (domain.name, domain.uuid)


def _report(path: Path) -> "tuple[Report, tuple[str, ...]]":
    """The daemon's report; if none answers, one from the kernel's state, and a note."""
    from vm_onetoone_nat.nft import read_counters
    from vm_onetoone_nat.reconcile import settled
    from vm_onetoone_nat.report.report import Report, mapped, report_from_json, unmapped
    from vm_onetoone_nat.service.instance import runtime_path
    from vm_onetoone_nat.service.status_socket import NotRunning, ask, socket_path

    try:
        return report_from_json(ask(socket_path(runtime_path()))), ()
    except NotRunning as error:
        absent = error.message
    configuration = config.load(path)
    try:
        seen = _look(configuration)
    except PrivilegeError as error:
        raise PrivilegeError(
            f"{absent}, and only root may read the kernel's state", hint="run it with sudo"
        ) from error
    counters = read_counters()
    entries = [mapped(status, None, counters) for status in settled(seen)]
    entries += [unmapped(guest) for guest in seen.desired.unmapped]
    report = Report(seen.observed.uplink or "", seen.libvirt, tuple(entries))
    return report, (f"{absent}: this is what the kernel has now",)


def _metrics(_arguments: argparse.Namespace) -> int:
    from vm_onetoone_nat.report.report import report_from_json
    from vm_onetoone_nat.service.exporter import inherited_sockets, serve
    from vm_onetoone_nat.service.instance import runtime_path
    from vm_onetoone_nat.service.metrics import application, exposition
    from vm_onetoone_nat.service.status_socket import NotRunning, ask, socket_path

    path = socket_path(runtime_path())

    def ask_daemon() -> "Report | None":
        try:
            return report_from_json(ask(path))
        except NotRunning:
            return None

    listeners = inherited_sockets()
    if listeners:
        serve(listeners, application(ask_daemon))
    else:
        print(exposition(ask_daemon), end="")
    return 0


def _width() -> int:
    """The width of a line of output, in columns."""
    from vm_onetoone_nat.report.table import WIDTH

    return shutil.get_terminal_size((WIDTH, 0)).columns if sys.stdout.isatty() else WIDTH


def _colour() -> bool:
    """Whether to colour the output: on a terminal, unless NO_COLOR is set (no-color.org)."""
    return (
        sys.stdout.isatty()
        and not os.environ.get("NO_COLOR")
        and os.environ.get("TERM", "") not in ("", "dumb")
    )


def _cleanup(arguments: argparse.Namespace) -> int:
    if arguments.unit is not None:
        from vm_onetoone_nat.service.unit import is_stopping

        # Before the other imports: a restart waits for this command.
        if not is_stopping(arguments.unit):
            return 0

    from vm_onetoone_nat.allocations import state_directory
    from vm_onetoone_nat.kernel import Kernel, conflicts_path
    from vm_onetoone_nat.plan import describe
    from vm_onetoone_nat.reconcile import remove
    from vm_onetoone_nat.service.instance import Instance, runtime_directory

    _require_net_admin()
    runtime = runtime_directory()
    instance = Instance(runtime)
    stopped = instance.stop_other()
    if stopped is not None:
        print(f"stopped the daemon, process {stopped}")
    for line in describe(remove(_fwmark(arguments.config), Kernel(runtime, state_directory()))):
        print(line)
    conflicts_path(runtime).unlink(missing_ok=True)
    return 0


_COMMANDS = {
    "run": _run,
    "check": _check,
    "plan": _plan,
    "status": _status,
    "metrics": _metrics,
    "diagnose": _diagnose,
    "cleanup": _cleanup,
}


def _look(configuration: Configuration) -> "Look":
    from vm_onetoone_nat.allocations import state_directory
    from vm_onetoone_nat.kernel import Kernel
    from vm_onetoone_nat.reconcile import look
    from vm_onetoone_nat.service.instance import runtime_path
    from vm_onetoone_nat.virt.connection import LibvirtOnce

    _require_net_admin()
    kernel = Kernel(runtime_path(), state_directory())
    libvirt = LibvirtOnce(configuration.libvirt_uri, guest_agent=configuration.guest_agent)
    return look(configuration, libvirt, kernel)


def _fwmark(path: Path) -> int:
    """The configured mark; the default if the file is missing or bad: clean-up must work."""
    try:
        return config.load(path).fwmark
    except ConfigError:
        return DEFAULT_FWMARK


def _require_net_admin() -> None:
    """Raise PrivilegeError unless this process may list and change the kernel's rules."""
    status = Path("/proc/self/status").read_text()
    effective = next(int(x.split()[1], 16) for x in status.splitlines() if x.startswith("CapEff"))
    if not effective >> _CAP_NET_ADMIN & 1:
        raise PrivilegeError("this needs CAP_NET_ADMIN", hint="run it as root, with sudo")
