"""`run`: the daemon, in the foreground."""

import argparse
import faulthandler

from vm_onetoone_nat.commands.privileges import require_net_admin
from vm_onetoone_nat.config.files import load
from vm_onetoone_nat.service.instance import runtime_directory
from vm_onetoone_nat.service.service import Service
from vm_onetoone_nat.store.file import FileStore


def run(arguments: argparse.Namespace) -> int:
    """Run until a signal. Raises ConfigError, PrivilegeError, VmNatError."""
    configuration = load(arguments.config)
    require_net_admin()
    # The watchdog sends SIGABRT when a pass hangs: then the traceback is in the journal.
    faulthandler.enable()
    Service(arguments.config, configuration, runtime_directory(), FileStore()).run()
    return 0
