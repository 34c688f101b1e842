"""The daemon's command with faults in it: inject.py DIRECTORY [OPTION...] run.

Each fault of FAULTS is there while DIRECTORY has a file of its name: then that function raises
what nobody expects.
"""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vm_onetoone_nat import cli
from vm_onetoone_nat.decide import acd, reconcile
from vm_onetoone_nat.decide.host_writes import FlushBypassing
from vm_onetoone_nat.kernel import arp, kernel, watch
from vm_onetoone_nat.service import passlog, runner, service
from vm_onetoone_nat.virt import read, source

FAULTS: dict[str, tuple[Any, str]] = {
    "reconcile": (service, "reconcile"),
    "observation": (kernel.Kernel, "_observe"),
    "decision": (reconcile, "desire"),
    "log": (passlog.PassLog, "passed"),
    "probe": (kernel.Kernel, "_probe"),
    "write": (kernel.APPLIERS, "FlushBypassing"),
    "libvirt": (source, "read_domains"),
    "network": (read, "parse_network"),
    "status": (service, "report_to_json"),
    "reload": (service, "load"),
    "tick": (service.Service, "_tick"),
    "news": (service.Service, "_is_news"),
    "notification": (watch.Watch, "_changed"),
    "nftables": (watch.Watch, "_committed"),
    "packet": (arp, "parse_packet"),
    "arp": (acd.Detector, "deadline"),
}
"""Where each is: an object, and its attribute or key."""

ODD = "odd"
"""The name of the network of which the fault `network` is; others are read."""


class Fault(Exception):
    """No class that the program knows."""


def faulty(function: Callable[..., Any], switch: Path) -> Callable[..., Any]:
    """The function, which raises instead of its work, or after it, while the file is there."""

    def call(*arguments: Any, **more: Any) -> Any:
        def fail() -> None:
            if switch.exists() and (switch.name != "network" or f"<name>{ODD}<" in arguments[0]):
                raise Fault(f"of {switch.name}")

        fail()
        answer = function(*arguments, **more)
        # It may have waited for an event meanwhile.
        fail()
        return answer

    return call


def inject(directory: Path) -> None:
    """Put all of them into the program."""
    for name, (owner, attribute) in FAULTS.items():
        if isinstance(owner, dict):
            owner[FlushBypassing] = faulty(owner[FlushBypassing], directory / name)
        else:
            setattr(owner, attribute, faulty(getattr(owner, attribute), directory / name))


def main(arguments: Sequence[str]) -> None:
    """Run the command with the faults."""
    inject(Path(arguments[0]))
    # Polls are seen within the patience of a test.
    runner.TICK_SECONDS = 1.0
    sys.argv[1:] = arguments[1:]
    # sd_notify(3): systemd names the process that it has started.
    os.environ["WATCHDOG_PID"] = str(os.getpid())
    cli.main()


if __name__ == "__main__":
    main(sys.argv[1:])
