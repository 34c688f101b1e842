"""A module fits in a head, and a function on a screen."""

import ast
from pathlib import Path

import vm_onetoone_nat

PACKAGE = Path(vm_onetoone_nat.__file__).parent

MODULE_LINES = 300
FUNCTION_LINES = 50
"""Of a definition, from `def` to its last line, with its docstring and without decorators."""


def too_long(package: Path) -> set[str]:
    """The names of all modules and functions of a package that are longer than allowed."""
    found = set()
    for path in package.rglob("*.py"):
        text = path.read_text()
        module = ".".join(path.relative_to(package).with_suffix("").parts)
        if len(text.splitlines()) > MODULE_LINES:
            found.add(module)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                if node.end_lineno - node.lineno >= FUNCTION_LINES:
                    found.add(f"{module}.{node.name}")
    return found


def test_sizes() -> None:
    """No module and no function is longer."""
    assert too_long(PACKAGE) == set()


def test_long_ones_are_found(tmp_path: Path) -> None:
    """One line too many is found, in a module and in a function, also in a class."""

    def function(lines: int, indent: str = "") -> str:
        return f"{indent}def f{lines}():\n" + f"{indent}    pass\n" * (lines - 1)

    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "fits.py").write_text(function(50) + "#\n" * 250)
    (folder / "long.py").write_text("#\n" * 301)
    (tmp_path / "functions.py").write_text(function(51) + "class C:\n" + function(52, "    "))
    assert too_long(tmp_path) == {"folder.long", "functions.f51", "functions.f52"}
