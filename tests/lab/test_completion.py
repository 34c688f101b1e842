"""Completion in interactive shells, with a command and a virsh that know some guests."""

import argparse
import os
import pty
import re
import select
import shlex
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from vm_onetoone_nat.cli import _parser
from vm_onetoone_nat.model.status import MappingState
from vm_onetoone_nat.report.report import Entry, Report, report_to_json

COMPLETION = Path(__file__).parents[2] / "completion"

# Ctrl-X a puts all that is offered on the line, Ctrl-X l tells what the line is then.
ALL, TELL = "\x18a", "\x18l"

BASH = f"""
PS1='READY>'
bind 'set bell-style none' 'set enable-bracketed-paste off' 2>/dev/null
bind '"\\C-xa": insert-completions'
tell() {{ printf 'LINE=<%s>END\\n' "$READLINE_LINE"; }}
bind -x '"\\C-xl": tell'
. {shlex.quote(str(COMPLETION / "vm-onetoone-nat.bash"))}
"""

ZSH = f"""
PS1='READY>'
unset zle_bracketed_paste
fpath=({shlex.quote(str(COMPLETION))} $fpath)
autoload -Uz compinit
compinit -u -d "$COMPLETIONS"
setopt no_list_beep no_auto_menu
LISTMAX=10000
zstyle ':completion:all:*' completer _all_matches _complete
zstyle ':completion:all:*' insert true
zle -C all complete-word _generic
tell() {{ zle -I; printf 'LINE=<%s>END\\n' "$BUFFER" }}
zle -N tell
bindkey '^I' complete-word '^Xa' all '^Xl' tell
"""


@dataclass(frozen=True)
class Shell:
    """An interactive shell on a terminal of its own, in a home of its own."""

    command: tuple[str, ...]
    environment: dict[str, str]
    home: Path

    def completed(self, line: str, key: str = "\t") -> str:
        """The line after it was typed, and the key pressed; nothing of it is run."""
        terminal, inside = pty.openpty()
        shell = subprocess.Popen(
            self.command,
            stdin=inside,
            stdout=inside,
            stderr=inside,
            env=self.environment,
            cwd=self.home,
            start_new_session=True,
        )
        os.close(inside)
        try:
            read_until(terminal, "READY>")
            os.write(terminal, f"{line}{key}{TELL}".encode())
            return read_until(terminal, "LINE=<(.*)>END")
        finally:
            shell.kill()
            shell.wait()
            os.close(terminal)

    def offered(self, line: str) -> list[str]:
        """All that can stand in place of the last word, as the shell would read it."""
        before = len(shlex.split(f"{line}x")) - 1
        return shlex.split(self.completed(line, ALL))[before:]


def read_until(terminal: int, pattern: str) -> str:
    """What the terminal shows, up to the last group of this pattern."""
    text, deadline = "", time.monotonic() + 30
    while (found := re.search(pattern, text)) is None:
        ready, _, _ = select.select([terminal], [], [], max(0, deadline - time.monotonic()))
        assert ready, text
        text += os.read(terminal, 4096).decode(errors="replace")
    return found[found.re.groups]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with some files, and with a `vm-onetoone-nat` and a `virsh` in bin."""
    guests = (
        ("192.168.1.101", "192.168.122.101", "web"),
        ("192.168.1.102", None, "web shop"),
        (None, None, "it's $HOME"),
        ("192.168.1.103", "192.168.122.103", None),
    )
    entries = tuple(
        Entry(external, internal, domain, "default", MappingState.ACTIVE, "", "", None)
        for external, internal, domain in guests
    )
    (tmp_path / "status").write_text(report_to_json(Report("wlp0s20f3", True, entries)))
    names = ("web", "off", 'a "quoted" `name`', "lab:one", "lab:two", "übung", "back\\slash")
    (tmp_path / "names").write_text("".join(f"{name}\n" for name in names) + "\n")
    asked = "--connect qemu:///system --readonly --quiet list --all --name"
    (tmp_path / "bin").mkdir()
    for name, text in (
        ("vm-onetoone-nat", f'[ "$*" = "status --json" ] && cat {tmp_path}/status'),
        ("virsh", f'[ "$*" = "{asked}" ] && cat {tmp_path}/names; echo error >&2'),
    ):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "my config.toml").touch()
    (tmp_path / "web.d").mkdir()
    return tmp_path


@pytest.fixture(params=["bash", "zsh"])
def shell(
    request: pytest.FixtureRequest, home: Path, tmp_path_factory: pytest.TempPathFactory
) -> Shell:
    """Each of the two; zsh reads all of its functions once."""
    (home / ".bashrc").write_text(BASH)
    (home / ".zshrc").write_text(ZSH)
    environment = {
        "PATH": f"{home}/bin:{os.environ['PATH']}",
        "HOME": str(home),
        "TERM": "dumb",
        "LC_ALL": "C.UTF-8",
        "INPUTRC": os.devnull,
        "COMPLETIONS": str(tmp_path_factory.getbasetemp() / "completions"),
    }
    commands = {
        "bash": ("bash", "--noprofile", "--rcfile", str(home / ".bashrc"), "-i"),
        "zsh": ("zsh", "-d", "-i"),
    }
    return Shell(commands[request.param], environment, home)


def completes(shell: Shell, *cases: tuple[str, str]) -> None:
    """Each line becomes the other at the press of Tab."""
    before = [f"vm-onetoone-nat {line}" for line, _ in cases]
    after = [f"vm-onetoone-nat {line}" for _, line in cases]
    assert [shell.completed(line) for line in before] == after


def test_commands(shell: Shell) -> None:
    """A command is completed, also behind options and a file."""
    completes(
        shell,
        ("di", "diagnose "),
        ("--verbose m", "--verbose metrics "),
        ("--config x.toml me", "--config x.toml metrics "),
        ("--config=x.toml me", "--config=x.toml metrics "),
        ("run x", "run x"),
    )
    assert sorted(shell.offered("vm-onetoone-nat ")) == sorted(set(parsers()) - {""})


def test_files(shell: Shell) -> None:
    """--config completes files, escaped where need be, in both of its forms."""
    completes(
        shell,
        ("--config my", "--config my\\ config.toml "),
        ("--config=my", "--config=my\\ config.toml "),
        ("--config my\\ c", "--config my\\ config.toml "),
    )


def test_guests(shell: Shell) -> None:
    """Guests and addresses are completed, and so written that the shell reads their very names."""
    completes(
        shell,
        ("diagnose 192.168.122.101", "diagnose 192.168.122.101 "),
        ("diagnose --json of", "diagnose --json off "),
        ("diagnose web\\ ", "diagnose web\\ shop "),
        ("diagnose it", "diagnose it\\'s\\ \\$HOME "),
        ("diagnose b", "diagnose back\\\\slash "),
        ("diagnose üb", "diagnose übung "),
        ("diagnose lab:t", "diagnose lab:two "),
        ("diagnose off of", "diagnose off of"),
        ("diagnose nobody", "diagnose nobody"),
        ("status of", "status of"),
    )


def test_open_quotes(shell: Shell) -> None:
    """A name is completed between quotes as well, in the way that these want."""
    completes(
        shell,
        ('diagnose "web s', 'diagnose "web shop" '),
        ("diagnose 'web s", "diagnose 'web shop' "),
        ('diagnose "it', 'diagnose "it\'s \\$HOME" '),
        ("diagnose 'it", "diagnose 'it'\\''s $HOME' "),
        ("diagnose 'lab:t", "diagnose 'lab:two' "),
        ('diagnose "a \\"', 'diagnose "a \\"quoted\\" \\`name\\`" '),
    )


def test_all_guests(shell: Shell) -> None:
    """Where several begin with the word, all of them are offered, each once."""
    assert sorted(shell.offered("vm-onetoone-nat diagnose web")) == ["web", "web shop"]
    assert sorted(shell.offered("vm-onetoone-nat diagnose 192.168.1.")) == [
        *("192.168.1.101", "192.168.1.102", "192.168.1.103")
    ]


def test_nothing_is_run(shell: Shell) -> None:
    """What stands on the line is not run by completing it."""
    for word in ("$(touch ran)", "`touch ran`", '"$(touch ran)', "x;touch${IFS}ran"):
        shell.completed(f"vm-onetoone-nat diagnose {word}")
    assert not (shell.home / "ran").exists()


def test_without_daemon_and_libvirt(shell: Shell) -> None:
    """Where neither answers, or is installed, nothing is offered, and nothing is said."""
    for name in ("vm-onetoone-nat", "virsh"):
        (shell.home / "bin" / name).write_text("#!/bin/sh\necho error >&2\nexit 1\n")
    completes(shell, ("diagnose o", "diagnose o"))


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The program's own parser, and those of its commands."""
    (actions,) = (a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))
    return {"": _parser(), **actions.choices}


def test_every_option(shell: Shell) -> None:
    """Exactly the commands that there are are offered, and to each exactly its long options."""
    offered = {
        command: {o.rstrip("=") for o in shell.offered(f"{line} --")}
        for command in parsers()
        for line in [f"vm-onetoone-nat {command}".rstrip()]
    }
    assert offered == {
        command: {o for a in parser._actions for o in a.option_strings if o.startswith("--")}
        for command, parser in parsers().items()
    }
