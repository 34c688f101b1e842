"""The line between folders that compute and folders that touch the system, and their order.

`faults` checks a folder, so that it is tested itself on folders with one fault each.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import vm_onetoone_nat

PACKAGE = Path(vm_onetoone_nat.__file__).parent

LAYERS: tuple[tuple[str, ...], ...] = (
    ("__init__",),
    ("errors", "events"),
    ("journal",),
    ("internal_errors",),
    ("model",),
    ("config", "decide"),
    ("kernel/messages",),
    ("store",),
    ("kernel", "virt"),
    ("report",),
    ("diagnose",),
    ("service",),
    ("commands",),
    ("cli",),
    ("__main__",),
)
"""From the bottom: a module imports its own folder and what is in lines above this one only."""

PURE = {
    "errors",
    "events",
    "model",
    "decide",
    "kernel/messages",
    "report",
    "diagnose",
    "config/values",
    "config/schema",
    "config/metadata",
    "virt/xml",
    "service/history",
}
"""Folders, and modules of folders that are not pure themselves."""

LIBRARIES = {"config/schema": {"pydantic"}}
"""What a pure module imports beside the standard library: pydantic only validates."""

PURE_LIBRARY = {
    "abc",
    "bisect",
    "collections",
    "copy",
    "dataclasses",
    "difflib",
    "enum",
    "functools",
    "heapq",
    "ipaddress",
    "itertools",
    "json",
    "math",
    "numbers",
    "operator",
    "re",
    "string",
    "struct",
    "textwrap",
    "tomllib",
    "types",
    "typing",
    "unicodedata",
    "uuid.UUID",
    "xml.etree.ElementTree.Element",
    "xml.etree.ElementTree.ParseError",
    "xml.etree.ElementTree.fromstring",
}
"""The part of the standard library without input, output, clock, chance and threads."""

IMPURE_BUILTINS = {"open", "print", "input", "breakpoint", "exec", "eval", "compile", "__import__"}


def faults(package: Path) -> list[str]:
    """Each forbidden import or call in a package, and each module without a layer."""
    return [fault for path in modules(package) for fault in _faults(package, path)]


def modules(package: Path) -> list[Path]:
    """All modules of a package."""
    return sorted(package.rglob("*.py"))


def label(package: Path, path: Path) -> str:
    """A module's name in the tables here, such as `config/schema`; that of a folder itself."""
    inside = path.relative_to(package).with_suffix("")
    return str(inside.parent if inside.name == "__init__" and inside.parent.name else inside)


def level(module: str) -> tuple[int, str] | None:
    """The number of a module's layer, and the entry of it; of two entries, the inner one."""
    entries = {entry: number for number, line in enumerate(LAYERS) for entry in line}
    return next(((entries[e], e) for e in _upwards(module) if e in entries), None)


def is_pure(module: str) -> bool:
    """Whether a module, or a folder that it is in, is pure."""
    return any(entry in PURE for entry in _upwards(module))


def _upwards(name: str, separator: str = "/") -> Iterator[str]:
    """A name, and what it is in: `a/b/c`, `a/b`, `a`."""
    while name:
        yield name
        name = name.rpartition(separator)[0]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """The line and the full name of everything that a module imports.

    Wherever the statement is: in a function, or for annotations only.
    """
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # A relative import has no library's name, so nothing allows it.
            origin = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)


def imported(package: Path, name: str) -> str | None:
    """The module of the package that is imported by that name; None if it is another's."""
    first, *parts = name.split(".")
    if first != package.name:
        return None
    for end in range(len(parts), 0, -1):
        path = package.joinpath(*parts[:end])
        if path.is_dir() or path.with_suffix(".py").exists():
            return "/".join(parts[:end])
    return "__init__"


def _faults(package: Path, path: Path) -> Iterator[str]:
    module = label(package, path)
    here, pure = level(module), is_pure(module)
    if here is None:
        yield f"{module}: is in no layer"
        return
    for line, name in imports(path):
        other = imported(package, name)
        if other is None:
            if pure and not _is_allowed(module, name):
                yield f"{module}:{line}: imports {name}, and is pure"
        elif other != "__init__":
            there = level(other)
            if there is None or there[0] > here[0] or (there[0] == here[0] and there != here):
                yield f"{module}:{line}: imports {name}, which is not below it"
            elif pure and not is_pure(other):
                yield f"{module}:{line}: imports {name}, which is not pure"
    if pure:
        yield from (f"{module}:{line}: uses {name}, and is pure" for line, name in builtins(path))


def _is_allowed(module: str, name: str) -> bool:
    """Whether a pure module may import that of another package, or of the standard library."""
    allowed = PURE_LIBRARY | LIBRARIES.get(module, set())
    return any(entry in allowed for entry in _upwards(name, "."))


def builtins(path: Path) -> Iterator[tuple[int, str]]:
    """The lines and names of builtins that touch the system, called or passed on."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Name) and node.id in IMPURE_BUILTINS:
            yield node.lineno, node.id


def test_layers() -> None:
    """No module imports upwards or sideways, and no pure one touches the system."""
    assert faults(PACKAGE) == []


def test_pure_modules_load_nothing_of_the_system() -> None:
    """In an interpreter of its own, importing all pure modules loads no system library."""
    pure = filter(is_pure, (label(PACKAGE, path) for path in modules(PACKAGE)))
    statements = [f"import {PACKAGE.name}.{module.replace('/', '.')}" for module in pure]
    answer = "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    code = "; ".join(["import sys", *statements, answer])
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert PACKAGE.name in loaded
    assert loaded & {"libvirt", "pyroute2", "nftables", "systemd", "prometheus_client"} == set()


class TestFaults:
    """What the check finds in a package with one fault."""

    @pytest.mark.parametrize(
        ("module", "text", "found"),
        [
            ("decide/a", "import pyroute2", "1: imports pyroute2, and is pure"),
            ("decide/a", "from pyroute2 import IPRoute", "1: imports pyroute2.IPRoute, and"),
            ("decide/a", "import time\ntime.time()", "1: imports time, and is pure"),
            ("decide/a", "from time import time\ntime()", "1: imports time.time, and is pure"),
            ("report/a", "def f():\n    import random", "2: imports random, and is pure"),
            ("report/a", "if T:\n    from os import environ", "2: imports os.environ, and is pure"),
            ("diagnose/a", "from pathlib import Path", "1: imports pathlib.Path, and is pure"),
            ("diagnose/a", "import socket", "1: imports socket, and is pure"),
            ("model/a", "import threading", "1: imports threading, and is pure"),
            ("model/a", "from logging import getLogger", "1: imports logging.getLogger, and"),
            ("kernel/messages/a", "import subprocess", "1: imports subprocess, and is pure"),
            ("config/values", "import pydantic", "1: imports pydantic, and is pure"),
            ("errors", "import uuid\nuuid.uuid4()", "1: imports uuid, and is pure"),
            ("model/a", "open('x')", "1: uses open, and is pure"),
            ("model/a", "x = map(print, ())", "1: uses print, and is pure"),
            ("model/a", "from . import b", "1: imports ..b, and is pure"),
            ("model/a", "from vm_onetoone_nat.decide import plan", "which is not below it"),
            ("model/a", "import vm_onetoone_nat.decide.plan", "which is not below it"),
            ("kernel/a", "from vm_onetoone_nat import service", "which is not below it"),
            ("kernel/a", "from vm_onetoone_nat.virt.read import f", "which is not below it"),
            (
                "kernel/messages/a",
                "from vm_onetoone_nat.kernel.nft import f",
                "not below it",
            ),
            (
                "kernel/a",
                "if TYPE_CHECKING:\n    from vm_onetoone_nat.service.runner import Runner",
                "2: imports vm_onetoone_nat.service.runner.Runner, which is not below it",
            ),
            ("report/a", "from vm_onetoone_nat.kernel.nft import f", "which is not pure"),
            ("report/a", "from vm_onetoone_nat.config import files", "which is not pure"),
            ("helper", "", "is in no layer"),
            ("tools/a", "", "is in no layer"),
        ],
    )
    def test_found(self, tmp_path: Path, module: str, text: str, found: str) -> None:
        """It is found, with its line, and nothing else is."""
        (fault,) = faults(self.package(tmp_path, module, text))
        assert fault.startswith(f"{module}:")
        assert found in fault

    @pytest.mark.parametrize(
        ("module", "text"),
        [
            ("decide/a", "from vm_onetoone_nat.model.mapping import Mapping"),
            ("decide/a", "from vm_onetoone_nat.decide.plan import Plan"),
            ("decide/a", "from vm_onetoone_nat import __version__"),
            ("decide/a", "import json, collections.abc"),
            ("config/schema", "import pydantic"),
            ("config/files", "from pathlib import Path"),
            ("kernel/a", "from vm_onetoone_nat.kernel.messages.nft import parse"),
            ("kernel/a", "import time"),
            ("cli", "from vm_onetoone_nat.commands import run"),
        ],
    )
    def test_allowed(self, tmp_path: Path, module: str, text: str) -> None:
        """What a layer is for is allowed."""
        assert faults(self.package(tmp_path, module, text)) == []

    @staticmethod
    def package(folder: Path, module: str, text: str) -> Path:
        """A package of sound modules, and one with this text."""
        package = folder / "vm_onetoone_nat"
        sound = (
            "model/mapping",
            "decide/plan",
            "config/files",
            "kernel/nft",
            "kernel/messages/nft",
        )
        for name in (*sound, "virt/read", "service/runner", "commands/run"):
            path = package / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        path = package / f"{module}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return package


@pytest.mark.parametrize("path", modules(PACKAGE), ids=lambda path: label(PACKAGE, path))
def test_no_module_runs_a_program(path: Path) -> None:
    """No module runs nft, ip or any other program.

    But `unit` asks systemctl what it is doing, and `foreign` runs a part of this one.
    """
    names = {name for _, name in imports(path)}
    runs = label(PACKAGE, path) in ("service/unit", "kernel/foreign")
    allowed = {"subprocess"} if runs else set()
    tops = {name.partition(".")[0] for name in names}
    assert tops & {"subprocess", "multiprocessing", "pty", "asyncio"} == allowed
    starters = ("system", "popen", "fork", "forkpty", "posix_spawn", "posix_spawnp", "startfile")
    used = {
        node.attr
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
    }
    assert not {name for name in used if name in starters or name.startswith(("exec", "spawn"))}
    assert {name for name in names if name.startswith(("os.", "posix"))} == set()


@pytest.mark.parametrize(
    ("library", "users"),
    [
        ("libvirt", {"virt/agents", "virt/connection", "virt/read"}),
        ("nftables", {"kernel/libnftables"}),
        ("prometheus_client", {"service/metrics"}),
        ("pydantic", {"config/schema"}),
    ],
)
def test_one_place_for_each_library(library: str, users: set[str]) -> None:
    """Each outside thing has one place that knows it."""
    found = {
        label(PACKAGE, path)
        for path in modules(PACKAGE)
        if library in {name.partition(".")[0] for _, name in imports(path)}
    }
    assert found == users


@pytest.mark.parametrize("path", modules(PACKAGE), ids=lambda path: label(PACKAGE, path))
def test_only_the_command_ends_the_process(path: Path) -> None:
    """No module but `cli` raises SystemExit or calls an exit."""
    if label(PACKAGE, path) in ("cli", "__main__"):
        return
    tree = ast.parse(path.read_text())
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    attributes = {
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    assert (names | attributes) & {"SystemExit", "exit", "sys.exit", "os._exit"} == set()
