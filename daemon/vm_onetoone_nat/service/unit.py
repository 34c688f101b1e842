"""Whether systemd is stopping the unit or restarting it, for its ExecStopPost=."""

import os
import subprocess

from vm_onetoone_nat.errors import VmNatError

_TIMEOUT_SECONDS = 10


def is_stopping(unit: str) -> bool:
    """Whether `unit` stops and is not restarted. Call it from its ExecStopPost=.

    During a stop systemd lists a "stop" job for the unit, during a restart a "restart" job. Without
    a job the daemon ended by itself: by SIGTERM, for good, if $SERVICE_RESULT is "success"; else by
    a crash, after which Restart= starts it again. Raises VmNatError if systemctl fails.
    """
    command = ["systemctl", "list-jobs", "--plain", "--no-legend", "--full", unit]
    try:
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise VmNatError(
            f"systemctl cannot list the jobs of {unit}; addresses and rules stay in the kernel",
            hint="if the unit is stopped, remove them with 'vm-onetoone-nat cleanup'",
        ) from error
    return decide(done.stdout, unit, os.environ.get("SERVICE_RESULT", ""))


def decide(jobs: str, unit: str, result: str) -> bool:
    """The decision; `jobs` is the output of `systemctl list-jobs --plain --no-legend`."""
    kinds = [kind for _, name, kind, *_ in map(str.split, jobs.splitlines()) if name == unit]
    return kinds == ["stop"] if kinds else result == "success"
