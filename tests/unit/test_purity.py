"""The line between modules that compute and modules that touch the system."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import vm_onetoone_nat

PACKAGE = Path(vm_onetoone_nat.__file__).parent
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py"))
PURE = (
    *("rtnetlink", "ifaddr", "routes", "nft_accept", "nft_table", "nft_elements"),
    *("family", "nat_table", "trigger", "writes", "host_writes", "nft_writes"),
    *(
        "state",
        "errors",
        "plan",
        "ruleset",
        "desired",
        "checks",
        "discovery",
        "mappings",
        "fights",
        "acd",
    ),
    *("reconcile", "history", "report", "table", "traffic"),
    *("firewall", "path", "diagnosis", "evidence", "remedies", "checklist", "changes"),
)
SYSTEM = ("libvirt", "pyroute2", "nftables", "systemd", "pydantic", "prometheus_client")
OF_THE_SYSTEM = {"os", "subprocess", "socket", "pathlib", "io", "shutil", "tempfile", "time"}
OF_THE_SYSTEM |= {"threading", "signal", "select", "ctypes", "multiprocessing", "asyncio", "fcntl"}


def imports(module: str) -> set[str]:
    """The full name of everything that a module imports, wherever in it the statement is."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names if node.module == "vm_onetoone_nat" else {str(node.module)}
    return found


@pytest.mark.parametrize("module", PURE)
def test_pure_module_imports(module: str) -> None:
    """A pure module imports the standard library and other pure modules only."""
    allowed = {f"vm_onetoone_nat.{pure}" for pure in PURE}
    others = {
        name
        for name in imports(module)
        if name not in allowed and name.partition(".")[0] not in sys.stdlib_module_names
    }
    assert others == set()


@pytest.mark.parametrize("module", PURE)
def test_pure_module_has_no_way_to_the_system(module: str) -> None:
    """A pure module imports nothing of the standard library that reads, writes, waits or runs."""
    tops = {name.partition(".")[0] for name in imports(module)}
    assert tops & OF_THE_SYSTEM == set()


@pytest.mark.parametrize("module", PURE)
def test_pure_module_calls_no_builtin_of_the_system(module: str) -> None:
    """A pure module neither opens a file nor prints."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    called = {
        node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert called & {"open", "print", "input", "exec", "eval", "__import__"} == set()


def test_pure_modules_load_nothing_of_the_system() -> None:
    """In an interpreter of its own, importing all pure modules loads no system library."""
    statements = [f"import vm_onetoone_nat.{module}" for module in PURE]
    answer = "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    code = "; ".join(["import sys", *statements, answer])
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert "vm_onetoone_nat" in loaded
    assert loaded & set(SYSTEM) == set()


@pytest.mark.parametrize("module", MODULES)
def test_no_module_runs_a_program(module: str) -> None:
    """No module runs nft, ip or any other program; but `unit` asks systemctl what it is doing."""
    tops = {name.partition(".")[0] for name in imports(module)}
    allowed = {"subprocess"} if module == "unit" else set()
    assert tops & {"subprocess", "multiprocessing", "pty", "asyncio"} == allowed
    starters = ("system", "popen", "fork", "forkpty", "posix_spawn", "posix_spawnp", "startfile")
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
    }
    assert not {name for name in used if name in starters or name.startswith(("exec", "spawn"))}
    named = {name for name in imports(module) if name.startswith(("os.", "posix"))}
    assert named == set()


@pytest.mark.parametrize(
    ("library", "modules"),
    [
        ("libvirt", {"libvirt_source", "agents"}),
        ("nftables", {"nft"}),
        ("prometheus_client", {"metrics"}),
        ("pydantic", {"schema"}),
    ],
)
def test_one_module_for_each_library(library: str, modules: set[str]) -> None:
    """Each outside thing has one module that knows it."""
    users = {m for m in MODULES if library in {name.partition(".")[0] for name in imports(m)}}
    assert users == modules


@pytest.mark.parametrize("module", [m for m in MODULES if m not in ("cli", "__main__")])
def test_only_the_command_ends_the_process(module: str) -> None:
    """No module but `cli` raises SystemExit or calls an exit."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    attributes = {
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    assert (names | attributes) & {"SystemExit", "exit", "sys.exit", "os._exit"} == set()
