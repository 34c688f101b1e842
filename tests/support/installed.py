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

PACKAGE = CHECKOUT / "daemon" / "vm_onetoone_nat"

_FOLDERS = ("completion", "daemon", "docs", "packaging", "scripts", "systemd")
_FILES = ("pyproject.toml", "README.md", "LICENSE", "config.example.toml")


def copy_sources(machine: Machine) -> None:
    """What a clone has of the product, without the tests, to SOURCES of a machine that is off."""
    sources = machine.path(SOURCES)
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in _FOLDERS:
        shutil.copytree(CHECKOUT / name, sources / name, ignore=ignore)
    for name in _FILES:
        shutil.copy(CHECKOUT / name, sources)


def source_files() -> list[str]:
    """All Python files of the package, relative to the folder that it is in."""
    return sorted(str(path.relative_to(PACKAGE.parent)) for path in PACKAGE.rglob("*.py"))


def check_imports(machine: Machine, python: str, folder: str) -> None:
    """Check that an interpreter of the machine can import each module, from `folder` or below."""
    program = (
        f"import importlib, sys; sys.path.insert(0, '{folder}')\n"
        "for name in sys.argv[1:]: print(importlib.import_module(name).__file__)"
    )
    # `__main__` runs when it is imported.
    files = [file for file in source_files() if not file.endswith("/__main__.py")]
    names = [file.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for file in files]
    found = machine.run(python, "-I", "-c", program, *names).stdout.split()
    assert len(found) == len(names)
    for file, place in zip(files, found, strict=True):
        assert place.startswith(f"{folder}/")
        assert place.endswith(f"/{file}")
