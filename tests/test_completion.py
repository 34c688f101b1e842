"""Completion in real shells, with a command and a virsh that know some guests."""

import os
import subprocess
from pathlib import Path

import pytest
from vm_onetoone_nat.report import Entry, Report, to_json
from vm_onetoone_nat.state import MappingState

COMPLETION = Path(__file__).parent.parent / "completion"

BASH = """
. "$1"
shift
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
_vm_onetoone_nat 2>/dev/null
printf '%s\\n' "${COMPREPLY[@]}"
"""

# An interactive zsh on a terminal of its own, as the completion system needs one.
ZSH = """
zmodload zsh/zpty
zpty shell 'PS1= zsh -f -i'
type() { zpty -w shell "$1"; }
type 'fpath=('"$1"' $fpath); autoload -Uz compinit; compinit -u; bindkey "^I" complete-word'
type 'zstyle ":completion:*" list-grouped false; zstyle ":completion:*" format ""; LISTMAX=10000'
type 'zstyle ":completion:*" menu no; setopt no_list_beep no_auto_menu'
type 'tell() { print -r -- "LINE=<$BUFFER>"; zle kill-buffer }; zle -N tell; bindkey "^X" tell'
type 'print READY'
while zpty -r shell line; do [[ $line == *READY* && $line != *print* ]] && break; done
zpty -w -n shell "$2"$'\\t\\x18'
while zpty -r shell line; do
    [[ $line == *'LINE=<'* ]] && { print -r -- "${${line#*LINE=<}%>*}"; break; }
done
zpty -d shell
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A PATH with a `vm-onetoone-nat` and a `virsh` of our own before all others."""
    entries = tuple(
        Entry(external, internal, domain, "default", MappingState.ACTIVE, "", "", None)
        for external, internal, domain in (
            ("192.168.1.101", "192.168.122.101", "web"),
            ("192.168.1.102", None, "web shop"),
            (None, None, "it's $HOME"),
            ("192.168.1.103", "192.168.122.103", None),
        )
    )
    (tmp_path / "status").write_text(to_json(Report("wlp0s20f3", True, entries)))
    for name, text in (
        ("vm-onetoone-nat", f'[ "$*" = "status --json" ] && cat {tmp_path}/status'),
        ("virsh", '[ "$*" = "--readonly --quiet list --all --name" ] && printf "web\\noff\\n\\n"'),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path), "TERM": "dumb"}


def bash(environment: dict[str, str], *words: str) -> list[str]:
    """What bash offers for the last of these words."""
    script = str(COMPLETION / "vm-onetoone-nat.bash")
    done = subprocess.run(
        ["bash", "--norc", "-c", BASH, "bash", script, "vm-onetoone-nat", *words],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
        cwd=environment["HOME"],
    )
    return done.stdout.split("\n")[:-1] if done.stdout != "\n" else []


def zsh(environment: dict[str, str], line: str) -> str:
    """What zsh makes of a line at the press of Tab."""
    done = subprocess.run(
        ["zsh", "-f", "-c", ZSH, "zsh", str(COMPLETION), line],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
        cwd=environment["HOME"],
        timeout=60,
    )
    return done.stdout.strip("\n")


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("",), ["run", "check", "plan", "status", "diagnose", "metrics", "cleanup"]),
        (("d",), ["diagnose"]),
        (("--v",), ["--verbose", "--version"]),
        (("--config", "sta"), ["status"]),
        (("--config", "x.toml", "c"), ["check", "cleanup"]),
        (("status", "-"), ["--json", "--watch", "--help"]),
        (("plan", "--j"), ["--json"]),
        (("--verbose", "cleanup", "--u"), ["--unit"]),
        (("run", ""), []),
        (("diagnose", "192.168.1."), ["192.168.1.101", "192.168.1.102", "192.168.1.103"]),
        (("diagnose", "192.168.122.101"), ["192.168.122.101"]),
        (("diagnose", "o"), ["off"]),
        (("diagnose", "web"), ["web", "web\\ shop"]),
        (("diagnose", "web\\ s"), ["web\\ shop"]),
        (("diagnose", "it"), ["it\\'s\\ \\$HOME"]),
        (("diagnose", "nobody"), []),
    ],
)
def test_bash(environment: dict[str, str], words: tuple[str, ...], offered: list[str]) -> None:
    """bash offers commands, their options, files, guests and addresses, quoted where need be."""
    assert bash(environment, *words) == offered


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("vm-onetoone-nat dia", "vm-onetoone-nat diagnose "),
        ("vm-onetoone-nat status --w", "vm-onetoone-nat status --watch "),
        ("vm-onetoone-nat --config sta", "vm-onetoone-nat --config status "),
        ("vm-onetoone-nat diagnose 192.168.122.101", "vm-onetoone-nat diagnose 192.168.122.101 "),
        ("vm-onetoone-nat diagnose 192.168.1", "vm-onetoone-nat diagnose 192.168.1"),
        ("vm-onetoone-nat diagnose of", "vm-onetoone-nat diagnose off "),
        ("vm-onetoone-nat diagnose web\\ ", "vm-onetoone-nat diagnose web\\ shop "),
        ("vm-onetoone-nat diagnose it", "vm-onetoone-nat diagnose it\\'s\\ \\$HOME "),
    ],
)
def test_zsh(environment: dict[str, str], line: str, completed: str) -> None:
    """zsh completes commands, options, files, guests and addresses, quoted where need be."""
    assert zsh(environment, line) == completed
