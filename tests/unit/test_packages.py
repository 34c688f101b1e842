"""The folders of the program, as setuptools finds them."""

import tomllib
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
PACKAGE = CHECKOUT / "daemon" / "vm_onetoone_nat"


def test_every_folder_is_a_package() -> None:
    """Each folder with modules has an __init__.py: without it, the wheel would lack the folder."""
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert {folder for folder in folders if not (folder / "__init__.py").exists()} == set()


def test_packages_are_found() -> None:
    """setuptools looks for packages instead of taking them from a list."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["packages"] == {
        "find": {"where": ["daemon"], "namespaces": False}
    }
