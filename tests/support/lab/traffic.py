"""Packets as evidence: who reached whom, seen from which source address."""

import itertools
import json
import os
import secrets
import tempfile
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address
from pathlib import Path
from typing import IO, Self

from .addresses import RECORDER_PORT, control_wire
from .namespace import CommandError, Namespace, Process
from .stream_report import Exchange, StreamReport
from .waiting import wait_for

_INSIDE = Path(__file__).with_name("inside")

_streams = itertools.count()


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
    sender: Namespace, destination: IPv4Address, port: int, timeout: float = 10
) -> Answer | Failure:
    """Ask the echo server at `destination` by TCP, from `sender`; seconds for each step."""
    return _ask("tcp", sender, destination, port, timeout)


def udp(
    sender: Namespace, destination: IPv4Address, port: int, timeout: float = 10
) -> Answer | Failure:
    """Ask the echo server at `destination` by UDP, from `sender`."""
    return _ask("udp", sender, destination, port, timeout)


def icmp(sender: Namespace, destination: IPv4Address, timeout: float = 10) -> bool:
    """Whether an echo request from `sender` is answered."""
    arguments = ("-n", "-q", "-c", "1", "-W", str(timeout), str(destination))
    return sender.run("ping", *arguments, check=False).returncode == 0


def icmp_source(
    sender: Namespace, destination: IPv4Address, receiver: Namespace, timeout: float = 10
) -> IPv4Address | None:
    """The source that `receiver` sees when `sender` pings `destination`.

    None when the echo request does not arrive at `receiver`, whoever answered it.
    """
    payload = secrets.token_hex(16)
    arguments = ("-n", "-q", "-c", "1", "-W", str(timeout), "-p", payload)
    loopback = "127.0.0.1"
    with _Program(receiver, "echo_requests", payload) as watch:
        sender.run("ping", *arguments, str(destination), check=False)
        # What came before the receiver's own request was seen before it.
        receiver.run("ping", *arguments, loopback)

        def seen() -> list[str]:
            sources = [line.split()[0] for line in watch.lines()]
            return sources if loopback in sources else []

        first = wait_for(seen, 30, "the receiver's own echo request")[0]
    return None if first == loopback else IPv4Address(first)


def survives_a_stray_segment(sender: Namespace, destination: IPv4Address, port: int) -> str:
    """ "alive" if a connection of `sender` goes on after a segment outside its window.

    Else the error with which it ended.
    """
    interface = sender.run("ip", "-o", "route", "get", str(destination)).stdout.split()[2]
    command = sender.python(_INSIDE / "out_of_window.py", interface, str(destination), str(port))
    return sender.run(*command).stdout.strip()


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

    def __exit__(self, *_: object) -> None:
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


class Stream(_Program):
    """A lasting exchange with the echo server of `receiver`, at `rate` messages a second.

    `protocol` "tcp" is one connection, "udp" one socket, and "flows" a new one for each message,
    which is a connection of its own to the kernel. With each message goes one to the same server
    by a wire of its own, the control.
    """

    def __init__(  # noqa: PLR0913
        self,
        sender: Namespace,
        destination: IPv4Address,
        port: int,
        receiver: Namespace,
        protocol: str = "tcp",
        *,
        rate: float = 50,
    ) -> None:
        number = next(_streams)
        near, far = control_wire(number)
        self._wire = f"control{number}"
        sender.wire(self._wire, receiver, f"{self._wire}r", address=far)
        try:
            sender.run("ip", "address", "add", str(near), "dev", self._wire)
            arguments = (protocol, str(rate), str(destination), str(far.ip), str(port))
            super().__init__(sender, "stream", *arguments)
        except BaseException:
            self._remove_wire(sender)
            raise

    @property
    def broken(self) -> bool:
        """Whether a TCP connection has ended, on the measured side or by mistake on the other."""
        return "broken" in self.lines()

    def finish(self) -> StreamReport:
        """Stop sending, wait for the last answers, and report."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        if self.process.wait(60) != 0:
            raise CommandError(f"{self.namespace.name}: stream: {self.errors()}")
        raw = json.loads(self.lines()[-1])
        return StreamReport(
            sent_at=tuple(raw["sent_at"]),
            ended=raw["ended"],
            measured=Exchange.parse(raw["measured"]),
            control=Exchange.parse(raw["control"]),
        )

    def stop(self) -> None:
        super().stop()
        self._remove_wire(self.namespace)

    def _remove_wire(self, sender: Namespace) -> None:
        if sender.alive:
            sender.run("ip", "link", "delete", self._wire, check=False)


class Sources(_Program):
    """The sources of the IPv4 packets that arrive at an interface."""

    def __init__(self, namespace: Namespace, ifname: str) -> None:
        super().__init__(namespace, "sources", ifname)

    def seen(self) -> set[IPv4Address]:
        """Those that have arrived so far."""
        return {IPv4Address(line) for line in self.lines()}


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
