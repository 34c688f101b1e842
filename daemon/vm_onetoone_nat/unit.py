"""What the service manager is about to do with our unit, as its ExecStopPost= has to know."""

import os
import subprocess

from vm_onetoone_nat.errors import VmNatError

_TIMEOUT_SECONDS = 10


def is_stopping(unit: str) -> bool:
    """Whether `unit` ends for good, and is not restarted. To be called from its ExecStopPost=.

    During a stop systemd lists a job "stop" for it, during a restart "restart". Without a job the
    daemon ended by itself: for good if it was told to ($SERVICE_RESULT is "success"), else by a
    crash, which Restart= answers. Raises VmNatError where systemd cannot be asked.
    """
    command = ["systemctl", "list-jobs", "--plain", "--no-legend", "--full", unit]
    try:
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise VmNatError(
            f"systemd cannot be asked whether {unit} is stopping; what is in the kernel stays",
            hint="remove it with 'vm-onetoone-nat cleanup' if it was",
        ) from error
    return decide(done.stdout, unit, os.environ.get("SERVICE_RESULT", ""))


def decide(jobs: str, unit: str, result: str) -> bool:
    """The decision alone; `jobs` as `systemctl list-jobs --plain --no-legend` prints them."""
    kinds = [kind for _, name, kind, *_ in map(str.split, jobs.splitlines()) if name == unit]
    return kinds == ["stop"] if kinds else result == "success"
