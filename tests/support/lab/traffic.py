"""Packets as evidence: who reached whom, seen from which source address."""

import json
import os
import secrets
import tempfile
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from .addresses import RECORDER_PORT
from .namespace import CommandError, Namespace, Process
from .waiting import wait_for

_INSIDE = Path(__file__).with_name("inside")


class Failure(Enum):
    """Why no answer came."""

    REFUSED = "refused"  # a TCP reset, or the ICMP port unreachable of a reject rule
    UNREACHABLE = "unreachable"  # no route, or nobody answers for the address
    SILENT = "silent"  # nothing came back in time


@dataclass(frozen=True)
class Answer:
    """An echo server's answer: the source address that it saw, and its own name."""

    source: IPv4Address
    name: str


def tcp(
    sender: Namespace, destination: IPv4Address, port: int, timeout: float = 3
) -> Answer | Failure:
    """Ask the echo server at `destination` by TCP, from `sender`; seconds for each step."""
    return _ask("tcp", sender, destination, port, timeout)


def udp(
    sender: Namespace, destination: IPv4Address, port: int, timeout: float = 3
) -> Answer | Failure:
    """Ask the echo server at `destination` by UDP, from `sender`."""
    return _ask("udp", sender, destination, port, timeout)


def icmp(sender: Namespace, destination: IPv4Address, timeout: float = 3) -> bool:
    """Whether an echo request from `sender` is answered."""
    arguments = ("-n", "-q", "-c", "1", "-W", str(timeout), str(destination))
    return sender.run("ping", *arguments, check=False).returncode == 0


def icmp_source(
    sender: Namespace, destination: IPv4Address, receiver: Namespace, timeout: float = 3
) -> IPv4Address | None:
    """The source that `receiver` sees when `sender` pings `destination`.

    None when the echo request does not arrive at `receiver`, whoever answered it.
    """
    payload = secrets.token_hex(16)
    with _Program(receiver, "echo_requests", payload) as watch:
        arguments = ("-n", "-q", "-c", "1", "-W", str(timeout), "-p", payload)
        pinged = sender.run("ping", *arguments, str(destination), check=False)
        answered = pinged.returncode == 0
        try:
            # An answer proves that the request arrived somewhere, not that it was here.
            seen = wait_for(watch.lines, 0.5 if answered else 0.2, "an echo request")
        except AssertionError:
            return None
    return IPv4Address(seen[0].split()[0])


class _Program:
    """One of the lab's own programs, running inside a namespace; it has said that it is ready."""

    def __init__(self, namespace: Namespace, program: str, *arguments: str) -> None:
        # Files without a name, rather than pipes: nobody has to read them, nothing is left.
        self._output = tempfile.TemporaryFile()  # noqa: SIM115
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self.namespace = namespace
        self.process: Process = namespace.popen(
            *namespace.python(_INSIDE / f"{program}.py", *arguments),
            stdin=-1,
            stdout=self._output.fileno(),
            stderr=self._errors.fileno(),
        )
        try:
            wait_for(self._ready, 30, f"{program} in {namespace.name} is ready")
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def lines(self) -> list[str]:
        """What it has printed since it was ready, whole lines only; not after `stop`."""
        text = _text(self._output)
        return text[: text.rfind("\n") + 1].splitlines()[1:]

    def errors(self) -> str:
        """What it has printed to standard error."""
        return _text(self._errors)

    def stop(self) -> None:
        """End it. Idempotent."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.kill()
        self.process.wait(30)
        self._output.close()
        self._errors.close()

    def _ready(self) -> bool:
        if self.process.poll() is not None:
            raise CommandError(f"{self.namespace.name}: {self.errors()}")
        return _text(self._output).startswith("ready\n")


class EchoServer(_Program):
    """Answers TCP and UDP on `ports`, with the peer that it sees and the namespace's name."""

    def __init__(self, namespace: Namespace, *ports: int, name: str | None = None) -> None:
        super().__init__(namespace, "echo", name or namespace.name, *map(str, ports))


@dataclass(frozen=True)
class Request:
    """A request that the recorder has seen; `at` is in seconds since the epoch."""

    at: float
    source: IPv4Address
    path: str


class Recorder(_Program):
    """A web server that remembers who fetched what; answers with the peer's address."""

    def __init__(self, namespace: Namespace, port: int = RECORDER_PORT) -> None:
        super().__init__(namespace, "recorder", str(port))

    def requests(self, path: str | None = None) -> list[Request]:
        """All requests, or those for `path`, oldest first."""
        parsed = [json.loads(line) for line in self.lines()]
        found = [Request(at, IPv4Address(peer), fetched) for at, peer, fetched in parsed]
        return [request for request in found if path is None or request.path == path]

    def next_from(self, guest: str, timeout: float = 60) -> Request:
        """The next request of a DomainGuest, made after this call."""
        path = f"/from/{guest}"
        before = len(self.requests(path))
        return wait_for(lambda: self.requests(path)[before:], timeout, f"a request for {path}")[0]


@dataclass(frozen=True)
class StreamReport:
    """What became of the messages of a Stream. Delays are in seconds.

    For TCP `retransmits` is the kernel's count for the sender's side of the connection: with 0
    not one of its packets was lost. Each answer acknowledges, so a lost answer shows as a late one.
    `last_lost` is when the last message without an answer was sent, on the monotonic clock.
    """

    sent: int
    answered: int
    late: int
    slowest: float
    retransmits: int
    broken: bool
    errors: tuple[str, ...]
    sources: tuple[IPv4Address, ...]
    last_lost: float | None

    @property
    def lost(self) -> int:
        """Messages that were never answered."""
        return self.sent - self.answered

    @property
    def whole(self) -> bool:
        """Nothing was lost or sent again, and the connection holds."""
        return not (self.lost or self.retransmits or self.broken or self.errors)


class Stream(_Program):
    """A lasting exchange with an echo server, at `rate` messages a second.

    `protocol` "tcp" is one connection, "udp" one socket, and "flows" a new one for each message,
    which is a connection of its own to the kernel. A message is late when its answer
    takes longer than `late` seconds: the default is the kernel's shortest retransmission.
    """

    def __init__(  # noqa: PLR0913
        self,
        sender: Namespace,
        destination: IPv4Address,
        port: int,
        protocol: str = "tcp",
        *,
        rate: float = 50,
        late: float = 0.2,
    ) -> None:
        super().__init__(
            sender, "stream", protocol, str(destination), str(port), str(rate), str(late)
        )

    def finish(self) -> StreamReport:
        """Stop sending, wait for the last answers, and report."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        if self.process.wait(60) != 0:
            raise CommandError(f"{self.namespace.name}: stream: {self.errors()}")
        raw = json.loads(self.lines()[0])
        return StreamReport(
            sent=raw["sent"],
            answered=raw["answered"],
            late=raw["late"],
            slowest=raw["slowest"],
            retransmits=raw["retransmits"],
            broken=raw["broken"],
            errors=tuple(raw["errors"]),
            sources=tuple(IPv4Address(source) for source in raw["sources"]),
            last_lost=raw["last_lost"],
        )


class ArpAsker(_Program):
    """Somebody on the LAN who asks for an address by ARP, `rate` times a second."""

    def __init__(
        self, sender: Namespace, ifname: str, address: IPv4Address, rate: float = 100
    ) -> None:
        super().__init__(sender, "arp_asker", ifname, str(address), str(rate))

    def finish(self) -> list[tuple[float, list[str]]]:
        """Stop asking: when each question was asked, and the MACs that answered it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        if self.process.wait(60) != 0:
            raise CommandError(f"{self.namespace.name}: arp_asker: {self.errors()}")
        return [(at, macs) for at, macs in json.loads(self.lines()[0])]


def _text(file: IO[bytes]) -> str:
    # The program writes at the offset that it shares with us: read without moving it.
    size = os.fstat(file.fileno()).st_size
    return os.pread(file.fileno(), size, 0).decode()


def _ask(
    protocol: str, sender: Namespace, destination: IPv4Address, port: int, timeout: float
) -> Answer | Failure:
    command = sender.python(_INSIDE / "ask.py", protocol, str(destination), str(port), str(timeout))
    said = sender.run(*command, timeout=timeout * 3 + 30).stdout.strip()
    if said.startswith("!"):
        return Failure(said[1:])
    source, name, _ = said.split(" ", 2)
    return Answer(IPv4Address(source), name)
