"""The files of sysctls."""

from pathlib import Path


def sysctl(name: str) -> Path:
    """The file of a sysctl, as `sysctl` names it. Not for names with an interface's, with dots."""
    return Path("/proc/sys", *name.split("."))
