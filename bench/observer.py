"""Observes, inside the laptop, the times of libvirt's events and of changes in the kernel."""

import json
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE
from types import TracebackType
from typing import Any, Self

from lab import Namespace

_PROGRAM = Path(__file__).with_name("inside") / "observer.py"


@dataclass(frozen=True)
class Seen:
    """An observed event; `at` is monotonic, in seconds."""

    at: float
    what: str
    detail: str


class Observer:
    """A process of its own in `host`, connected to the libvirt at `uri`.

    `transient` are XML definitions of networks and domains that it creates; in libvirt's `test`
    driver they exist as long as its connection.
    """

    def __init__(self, host: Namespace, uri: str, transient: tuple[str, ...] = ()) -> None:
        self._directory = host.path("/run/lab")
        (self._directory / "definitions.json").write_text(json.dumps(transient))
        self._process = host.popen(
            *host.python(_PROGRAM, uri, "/run/lab/definitions.json"), stdin=PIPE, stdout=PIPE
        )
        self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End it."""
        with self._process as process:
            process.kill()

    def take(self) -> list[Seen]:
        """The events since the last call, in order."""
        return sorted((Seen(*each) for each in self._ask("take")), key=lambda each: each.at)

    def start(self, domain: str) -> None:
        """Start a domain."""
        self._ask("start", domain)

    def stop_domain(self, domain: str) -> None:
        """Destroy a domain."""
        self._ask("stop", domain)

    def toggle(self, seconds: float, domains: list[str]) -> None:
        """Start or destroy each of these domains, one after another within that time."""
        self._ask("toggle", str(seconds), *domains)

    def _ask(self, *words: str) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(words) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())
