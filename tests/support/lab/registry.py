"""Where this machine's apt and pip get packages from, for the machines of the lab."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

CERTIFICATES = "/etc/lab-certificates.pem"

_PROXIES = ("http_proxy", "https_proxy", "no_proxy")

# What else pip may be told, what to install and where to, is this machine's own affair.
_OF_INDEXES = {
    "index-url",
    "extra-index-url",
    "no-index",
    "find-links",
    "trusted-host",
    "cert",
    "proxy",
    "timeout",
    "default-timeout",
    "retries",
    "disable-pip-version-check",
}


class RegistryError(AssertionError):
    """The settings cannot be used for the lab; the message says which."""


@dataclass(frozen=True)
class PipSettings:
    """How this machine's pip reaches its indexes, for a machine in the lab."""

    text: str
    """A pip.conf, valid where `folders` are in the same place."""

    folders: tuple[Path, ...]

    certificates: Path | None
    """What to copy to `CERTIFICATES`, which `text` names."""


def pip_settings() -> PipSettings:
    """The settings of this Python's pip, files and environment together."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"],
        check=False,
        capture_output=True,
        text=True,
    ).stdout
    values: dict[str, str] = {}
    # Sorted by pip: what the environment sets comes first, and wins.
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        section, _, key = name.rpartition(".")
        if section in (":env:", "global", "install") and key in _OF_INDEXES:
            values.setdefault(key, ast.literal_eval(value))
    folders: set[Path] = set()
    for value in values.values():
        for word in value.split():
            folders.update(_local(word))
    certificates = values.get("cert")
    if certificates is not None:
        values["cert"] = CERTIFICATES
    text = "".join(f"{key} = {' '.join(value.split())}\n" for key, value in values.items())
    return PipSettings(
        f"[global]\n{text}",
        tuple(sorted(folders)),
        None if certificates is None else Path(certificates),
    )


def proxies() -> dict[str, str]:
    """The proxy variables of this process's environment."""
    return {name: value for name, value in os.environ.items() if name.lower() in _PROXIES}


@cache
def apt_sources(suite: str) -> str:
    """A sources.list for `suite` of the Debian mirrors that this machine's apt uses."""
    configured = _output(
        *("apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)"),
        "Created-By: Packages",
    )
    ours = _os_codename()
    lines: dict[str, None] = {}
    for line in configured.splitlines():
        uri, release, component = line.split(" ")
        part = release.removeprefix(ours)
        if release.startswith(ours) and part in ("", "-updates", "-security"):
            lines[f"deb {uri} {suite}{part} {component}\n"] = None
    # debootstrap's mirror is the first.
    ordered = sorted(lines, key=lambda each: each.split(" ")[2:] != [suite, "main\n"])
    if not ordered or ordered[0].split(" ")[2:] != [suite, "main\n"]:
        raise RegistryError(
            f"this machine's apt has no source of {ours} main to derive {suite} from"
        )
    return "".join(ordered)


@cache
def apt_settings() -> str:
    """How this machine's apt reaches its mirrors, as an apt.conf: proxies, checks, retries."""
    wanted = ("http::", "https::", "Check-", "Retries", "ForceIPv", "Languages")
    dumped = _output("apt-config", "dump", "--no-empty", "--format", '%f "%v";%n', "Acquire")
    return "".join(
        f"{line}\n"
        for line in dumped.splitlines()
        if line.removeprefix("Acquire::").startswith(wanted)
    )


def _local(word: str) -> Iterator[Path]:
    """The folder that a path or a file URL in pip's settings needs."""
    if word.startswith("file:"):
        # An index refers to its files by `../`.
        yield Path(urlsplit(word).path).parent
    elif word.startswith("/") and Path(word).is_dir():
        yield Path(word)


def _os_codename() -> str:
    for line in Path("/etc/os-release").read_text().splitlines():
        if line.startswith("VERSION_CODENAME="):
            return line.partition("=")[2].strip('"')
    raise RegistryError("/etc/os-release names no VERSION_CODENAME")


def _output(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout
