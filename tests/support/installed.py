"""Where things are in a machine that the product is installed in."""

import shutil
from pathlib import Path

from lab import Machine

PORT = 7000
CHECKOUT = Path(__file__).parents[2]
SOURCES = "/root/vm-onetoone-nat"
INSTALL = f"{SOURCES}/scripts/install.sh"
PAGES = ("man8/vm-onetoone-nat.8", "man5/vm-onetoone-nat.toml.5")
BASH_COMPLETION = "bash-completion/completions/vm-onetoone-nat"

_FOLDERS = ("completion", "daemon", "docs", "packaging", "scripts", "systemd")
_FILES = ("pyproject.toml", "README.md", "config.example.toml")


def copy_sources(machine: Machine) -> None:
    """What a clone has of the product, without the tests, to SOURCES of a machine that is off."""
    sources = machine.path(SOURCES)
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in _FOLDERS:
        shutil.copytree(CHECKOUT / name, sources / name, ignore=ignore)
    for name in _FILES:
        shutil.copy(CHECKOUT / name, sources)
