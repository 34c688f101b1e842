"""The manual pages: they render, and tell of every command, option, key and cause."""

import argparse
import re
import subprocess
from pathlib import Path

import pytest
from vm_onetoone_nat.cli import _parser
from vm_onetoone_nat.schema import MappingTable, PoolTable, Settings
from vm_onetoone_nat.state import Cause, MappingState

DOCS = Path(__file__).parent.parent / "docs"
COMMAND, FILE = "vm-onetoone-nat.8", "vm-onetoone-nat.toml.5"


def rendered(page: str, directory: Path) -> str:
    """The page as a terminal shows it, without a warning."""
    source = (DOCS / f"{page}.scd").read_text()
    roff = subprocess.run(["scdoc"], input=source, capture_output=True, text=True, check=True)
    assert roff.stderr == ""
    path = directory / page
    path.write_text(roff.stdout)
    command = ["groff", "-man", "-t", "-ww", "-Tutf8", "-rLL=80n", "-P-c", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return re.sub(".\b", "", done.stdout)


@pytest.mark.parametrize("page", [COMMAND, FILE])
def test_renders(page: str, tmp_path: Path) -> None:
    """No warning of scdoc or groff, and the sections that a manual page has."""
    text = rendered(page, tmp_path)
    headings = re.findall(r"^[A-Z\[].*$", text, re.MULTILINE)
    assert [h for h in headings if h in ("NAME", "SYNOPSIS", "DESCRIPTION", "SEE ALSO")] == [
        *("NAME", "SYNOPSIS", "DESCRIPTION", "SEE ALSO")
    ]


def commands() -> dict[str, argparse.ArgumentParser]:
    """Every command's own parser."""
    (actions,) = (a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(actions.choices)


def test_commands_and_options() -> None:
    """Each command and option of the program is in the page, and no command that is not."""
    source = (DOCS / f"{COMMAND}.scd").read_text()
    section = source[source.index("# COMMANDS") : source.index("# OPTIONS")]
    assert set(re.findall(r"^\*([a-z]+)\*", section, re.MULTILINE)) == set(commands())
    options = {
        o for p in (_parser(), *commands().values()) for a in p._actions for o in a.option_strings
    }
    assert {o for o in options if f"*{o}*" not in source} == set()


@pytest.mark.parametrize(
    ("heading", "keys"),
    [
        ("# [settings]", set(Settings.model_fields)),
        ("# [[mapping]]", set(MappingTable.model_fields)),
        ("# [[pool]]", set(PoolTable.model_fields)),
    ],
)
def test_keys(heading: str, keys: set[str]) -> None:
    """Each key of the configuration is in its section, and no other."""
    source = (DOCS / f"{FILE}.scd").read_text()
    section = source.partition(f"{heading}\n")[2].partition("\n# ")[0]
    assert set(re.findall(r"^\*([a-z_]+)\* = ", section, re.MULTILINE)) == keys


def test_states_and_causes() -> None:
    """Each state, and each cause that `diagnose` can name, is explained."""
    source = (DOCS / f"{COMMAND}.scd").read_text()
    states = source[source.index("# STATES") : source.index("# CAUSES")]
    assert re.findall(r"^\*([a-z]+)\*", states, re.MULTILINE) == [s.value for s in MappingState]
    causes = source[source.index("# CAUSES") : source.index("# EXIT STATUS")]
    listed = re.findall(r"^\|  (.*)$", causes, re.MULTILINE)
    assert sorted(name for row in listed for name in row.split(", ")) == sorted(Cause)
