"""`metrics`: figures for Prometheus, once, or by HTTP on sockets of systemd."""

import argparse

from vm_onetoone_nat.report.report import Report, report_from_json
from vm_onetoone_nat.service.exporter import inherited_sockets, serve
from vm_onetoone_nat.service.instance import runtime_path
from vm_onetoone_nat.service.metrics import application, exposition
from vm_onetoone_nat.service.status_socket import NoAnswer, ask, socket_path


def run(_arguments: argparse.Namespace) -> int:
    """Print the figures; if systemd passes sockets, serve them until the process ends."""
    listeners = inherited_sockets()
    if listeners:
        serve(listeners, application(_ask_daemon))
    else:
        print(exposition(_ask_daemon), end="")
    return 0


def _ask_daemon() -> Report | None:
    try:
        return report_from_json(ask(socket_path(runtime_path())))
    except NoAnswer:
        return None
