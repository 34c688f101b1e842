"""Hearing every write to the kernel's rules and addresses, as the kernel's own monitors tell it."""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lab import Host, wait_for

_MONITORS = {
    "nft": ("nft", "monitor"),
    "ip": ("ip", "monitor", "address", "link"),
}

# A write of the test's own, of the kind that a monitor hears: what it prints before is complete.
_MARKS = {
    "nft": ("nft", "add", "table", "ip", "{}"),
    "ip": ("ip", "link", "add", "{}", "type", "bridge"),
}
_OWN = re.compile(r"\bmark\d+|^# new generation|^\s*$|^\s+link/ether")


@contextmanager
def writes(host: Host, directory: Path) -> Iterator[list[str]]:
    """The lines of `nft monitor` and `ip monitor` during the block, complete after its end."""
    heard: list[str] = []
    with ExitStack() as stack:
        paths = {}
        for name, command in _MONITORS.items():
            paths[name] = directory / f"{name}.monitor"
            file = stack.enter_context(paths[name].open("w"))
            monitor = stack.enter_context(host.popen("stdbuf", "-oL", *command, stdout=file))
            stack.callback(monitor.kill)
        begin = {name: _mark(host, name, path) for name, path in paths.items()}
        yield heard
        for name, path in paths.items():
            end = _mark(host, name, path)
            lines = path.read_text()[begin[name] : end].splitlines()
            heard += [line for line in lines if not _OWN.search(line)]
        host.run("nft", "-f", "-", input="".join(f"delete table ip {m}\n" for m in _marks(host)))


def _mark(host: Host, name: str, path: Path) -> int:
    """Write until the monitor hears it, and return how much it has printed by then."""

    def heard() -> int:
        number = len(_marks(host)) + len(path.read_text())
        mark = f"mark{number}"
        host.run(*(word.format(mark) for word in _MARKS[name]))
        if name == "ip":
            host.run("ip", "link", "delete", mark)
        return len(path.read_text()) if mark in path.read_text() else 0

    return wait_for(heard, 60, f"{name} monitor hears")


def _marks(host: Host) -> list[str]:
    return re.findall(r"table ip (mark\d+)", host.run("nft", "list", "tables").stdout)
