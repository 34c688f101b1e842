"""The manual pages: they render, and tell of every command, option, key, state and cause."""

import argparse
import re
import subprocess
import tomllib
from enum import StrEnum
from pathlib import Path

import pytest
from vm_onetoone_nat.cli import _parser
from vm_onetoone_nat.config.schema import File, MappingTable, PoolTable, Settings, parse_text
from vm_onetoone_nat.diagnose.remedies import remedy
from vm_onetoone_nat.internal_errors import Work
from vm_onetoone_nat.model.configuration import Range
from vm_onetoone_nat.model.status import Cause, MappingState
from vm_onetoone_nat.report.report import Passes, Report, Running
from vm_onetoone_nat.service.metrics import exposition

ROOT = Path(__file__).parents[2]
DOCS, CODE, UNITS = ROOT / "docs", ROOT / "daemon" / "vm_onetoone_nat", ROOT / "systemd"
COMMAND, FILE = "vm-onetoone-nat.8", "vm-onetoone-nat.toml.5"
HEADINGS = {
    COMMAND: [
        *("NAME", "SYNOPSIS", "DESCRIPTION", "COMMANDS", "OPTIONS", "STATES", "STATUS", "CAUSES"),
        *("SIGNALS", "METRICS", "EXIT STATUS", "ENVIRONMENT", "FILES", "JOURNAL", "EXAMPLES"),
        "SEE ALSO",
    ],
    FILE: [
        *("NAME", "SYNOPSIS", "DESCRIPTION", "DROP-INS", "[settings]", "[[mapping]]", "[[pool]]"),
        *("METADATA", "EXAMPLES", "SEE ALSO"),
    ],
}


def source(page: str) -> str:
    return (DOCS / f"{page}.scd").read_text()


def section(page: str, heading: str) -> str:
    """What stands below a heading, up to the next of its kind."""
    return source(page).partition(f"\n# {heading}\n")[2].partition("\n# ")[0]


def terms(page: str, heading: str) -> list[str]:
    """The terms that a section explains, in bold at the beginning of a line."""
    lines = re.findall(r"^\*.*(?=\n\t)", section(page, heading), re.MULTILINE)
    return [term.replace("\\", "") for line in lines for term in re.findall(r"\*(.+?)\*", line)]


@pytest.mark.parametrize("page", [COMMAND, FILE])
def test_renders(page: str) -> None:
    """scdoc and groff have no warning, with 80 columns no line is longer, and all is there."""
    roff = subprocess.run(["scdoc"], input=source(page), capture_output=True, text=True, check=True)
    assert roff.stderr == ""
    # As man(1) does it, from a pipe: man-db itself may be left out of a small system.
    command = ["groff", "-man", "-t", "-ww", "-Tutf8", "-rLL=80n", "-P-c", "-P-b", "-P-u"]
    done = subprocess.run(command, input=roff.stdout, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    text = done.stdout
    assert re.findall(r"^[A-Z\[].*$", text, re.MULTILINE) == HEADINGS[page]
    assert [line for line in text.splitlines() if len(line) > 80] == []
    # Terms are searched for: none is broken, and a hyphen is that of ASCII.
    explained = [term for heading in HEADINGS[page] for term in terms(page, heading)]
    assert [term for term in explained if term not in text] == []


def commands() -> dict[str, argparse.ArgumentParser]:
    """Every command's own parser."""
    (actions,) = (a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(actions.choices)


def test_commands_and_options() -> None:
    """Exactly the commands and options of the program are explained, each in the synopsis too."""
    assert {term for term in terms(COMMAND, "COMMANDS") if term != "-"} == set(commands())
    options = {
        o for p in (_parser(), *commands().values()) for a in p._actions for o in a.option_strings
    }
    assert set(terms(COMMAND, "OPTIONS")) == options
    synopsis = section(COMMAND, "SYNOPSIS")
    for name, parser in commands().items():
        (line,) = (line for line in synopsis.splitlines() if f" *{name}*" in line)
        own = {o for a in parser._actions for o in a.option_strings} - {"-h", "--help"}
        shown = set(re.findall(r"\*(--[a-z]+)\*", line.partition(f"*{name}*")[2]))
        assert shown == own


def test_commands_that_are_named() -> None:
    """Each command line in either page is one that the program understands."""
    for page in (COMMAND, FILE):
        named = re.findall(r"^[\t ]*(?:sudo )?vm-onetoone-nat ([a-z].*)$", source(page), re.M)
        named += re.findall(r"\*vm-onetoone-nat\s+([a-z][^*]*)\*", source(page))
        for line in named:
            words = re.split(r" *(?:[|&]|$)", line)[0].split()
            assert _parser().parse_args(words).command in commands()


@pytest.mark.parametrize(
    ("heading", "keys"),
    [
        ("[settings]", set(Settings.model_fields)),
        ("[[mapping]]", set(MappingTable.model_fields)),
        ("[[pool]]", set(PoolTable.model_fields)),
    ],
)
def test_keys(heading: str, keys: set[str]) -> None:
    """Each key of the configuration is in its section with a value, and no other."""
    written = re.findall(r"^\*([a-z_]+)\* = .*\n\t", section(FILE, heading), re.MULTILINE)
    assert sorted(written) == sorted(keys)


def test_values() -> None:
    """The defaults of [settings] are those that count, and the other values are good examples."""
    tables = ("[settings]", "[[mapping]]", "[[pool]]")
    text = "".join(
        f"{table}\n{written.replace('*', '')}\n"
        for table in tables
        for written in ["\n".join(re.findall(r"^\*[a-z_]+\* = .*$", section(FILE, table), re.M))]
    )
    file = parse_text(text)
    assert file.settings == Settings()
    assert file.settings.model_fields_set == set(Settings.model_fields)
    assert file.mapping[0].model_fields_set == set(MappingTable.model_fields)
    assert [type(each) for each in file.pool[0].external] == [Range]


def test_examples() -> None:
    """Each example of a configuration is accepted as it stands."""
    blocks = re.findall(r"^```\n(.*?)^```$", source(FILE), re.MULTILINE | re.DOTALL)
    examples = [parse_text(block) for block in blocks if block.startswith("[")]
    assert len(examples) == 3
    assert all(isinstance(each, File) for each in examples)
    assert tomllib.loads(blocks[0])["mapping"][0]["domain"] == "web"


def test_remedies() -> None:
    """Each command that `diagnose` advises is in the page, at the same cause."""
    entries = dict(re.findall(r"^\*(\S+)\*\n((?:\t.*\n)+)", section(COMMAND, "CAUSES"), re.M))
    commands = r"(?:virsh|sysctl|systemctl|conntrack|journalctl|ip) -?[a-z][^';,]*"
    for cause in Cause:
        text = " ".join(re.sub(r"[*\n\t]+", " ", entries[cause]).split())
        remedies = (remedy(cause, None), remedy(cause, None, "virtqemud virtnetworkd"))
        advised = [c.strip() for c in re.findall(commands, "; ".join(remedies))]
        assert [command for command in advised if command not in text] == []


def test_environment_and_files() -> None:
    """Each variable that the program reads, and each file that it keeps, is explained."""
    code = "".join(path.read_text() for path in CODE.rglob("*.py"))
    variables = re.findall(r'os\.environ(?:\.get\(|\[)"([A-Z_]+)"|"([A-Z_]+)" in os\.environ', code)
    assert {a or b for a, b in variables} - set(terms(COMMAND, "ENVIRONMENT")) == set()
    kept = set(re.findall(r'runtime(?:_path\(\))? / "([a-z.]+)"', code))
    assert kept >= {"lock", "status.sock"}
    files = section(COMMAND, "FILES")
    assert {name for name in kept if f"_/run/vm-onetoone-nat/{name}_" not in files} == set()
    units = {path.name for path in UNITS.iterdir() if path.suffix in (".service", ".socket")}
    assert {name for name in units if f"_{name}_" not in files} == set()


def test_metrics() -> None:
    """Exactly the metrics that the program prints are explained."""
    report = Report("", False, (), Running(0, "", 0, Passes()))
    printed = re.findall(r"^# TYPE vm_onetoone_nat(\S+)", exposition(lambda: report), re.M)
    assert sorted(terms(COMMAND, "METRICS")) == sorted(printed)


def test_work() -> None:
    """Each work that may fail by an internal error is named with its metric, and no other."""
    (listed,) = re.findall(
        r"_where_ names, which is repeated: ([^.]*)\.", section(COMMAND, "METRICS")
    )
    assert re.split(r",\s+|\s+or\s+", listed) == [work.label for work in Work]


@pytest.mark.parametrize(("heading", "kinds"), [("STATES", MappingState), ("CAUSES", Cause)])
def test_states_and_causes(heading: str, kinds: type[StrEnum]) -> None:
    """Each state, and each cause that `diagnose` can name, is explained, and no other."""
    found = [t for t in terms(COMMAND, heading) if " " not in t]
    assert sorted(found) == sorted(kinds)


def test_status() -> None:
    """Each key of the document of `status --json`, but for traffic's and the daemon's, is named."""
    text = section(COMMAND, "STATUS")
    entry = {"external", "internal", "domain", "network", "state", "reason", "origin", "source"}
    known = {"seconds", "inbound", "outbound", "uplink", "libvirt", "daemon", "mappings", *entry}
    named = set(re.findall(r"(?<!\w)_([a-z]+)_(?!\w)", text))
    assert known <= named
