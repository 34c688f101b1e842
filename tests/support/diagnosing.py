"""`diagnose` as the tests ask it."""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from lab import Namespace
from running import Daemon

PORT = 7000


def diagnose(daemon: Daemon, target: object) -> dict[str, Any]:
    """What `diagnose --json` says, whose exit code must fit it."""
    done = daemon.command("diagnose", "--json", str(target))
    assert done.stderr == ""
    found: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (0 if found["healthy"] else 1)
    assert (found["cause"] is None) == found["healthy"]
    return found


def cause(daemon: Daemon, target: object) -> str | None:
    """The cause that is named first; with it come a text and a remedy."""
    found = diagnose(daemon, target)
    if not found["healthy"]:
        assert found["text"] and found["remedy"]
        assert "{" not in found["remedy"]
    named: str | None = found["cause"]
    return named


@contextmanager
def table(namespace: Namespace, name: str, body: str) -> Iterator[None]:
    """A table of somebody, such as `ip mine`, with these chains and sets."""
    namespace.run("nft", "-f", "-", input=f"table {name} {{\n{body}\n}}\n")
    try:
        yield
    finally:
        namespace.run("nft", "delete", "table", *name.split())


def refusing(
    guest: Namespace, what: str = "meta l4proto { tcp, udp, icmp }"
) -> AbstractContextManager[None]:
    """The guest drops that."""
    chain = "type filter hook input priority 0;"
    return table(guest, "ip own", f"chain in {{\n {chain}\n {what} drop\n }}")
