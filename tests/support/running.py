"""The product under test, for real: the daemon by hand in a lab host, or the installed service."""

import json
import subprocess
import sys
from collections.abc import Mapping
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from lab.addresses import external, internal
from lab.host import Host
from lab.machine import Machine
from lab.namespace import Namespace, Process
from lab.waiting import wait_for
from vm_onetoone_nat.service.status_socket import NoAnswer, ask

SOCKET = "/run/vm-onetoone-nat/status.sock"
UNIT = "vm-onetoone-nat.service"
INTERNAL_ERROR = "internal error in "
"""With this begins what is logged of a fault of the program itself."""


def mapping(n: int, **keys: object) -> dict[str, object]:
    """Guest n of the address plan; with the lifetime of its network unless `keys` has a domain."""
    return {"external": str(external(n)), "internal": str(internal(n)), **keys}


class Product:
    """One configuration file in `host`, and the commands on it."""

    def __init__(self, host: Namespace, config: Path, program: list[str]) -> None:
        self.host = host
        self.config = config
        self._program = program

    def configure(self, *mappings: Mapping[str, object], **settings: str) -> None:
        """Write the configuration file."""
        lines = ["[settings]", *(f"{key} = {json.dumps(value)}" for key, value in settings.items())]
        for mapping in mappings:
            lines += ["[[mapping]]", *(f"{k} = {json.dumps(v)}" for k, v in mapping.items())]
        self.host.path(self.config).write_text("\n".join(lines) + "\n")

    def log(self) -> str:
        """What it has said so far."""
        raise NotImplementedError

    def internal_errors(self) -> list[str]:
        """What it has said of faults of its own."""
        return [line for line in self.log().splitlines() if INTERNAL_ERROR in line]

    def reload(self) -> None:
        """Let it read its configuration again."""
        raise NotImplementedError

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Another command on the same configuration, whatever its exit code."""
        return self.host.run(*self._command(*arguments), check=False)

    def status(self) -> dict[str, Any]:
        """What `status --json` prints; a process asks only where the daemon does not answer."""
        answered = self.answer()
        if answered is not None:
            return answered
        done = self.command("status", "--json")
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def answer(self) -> dict[str, Any] | None:
        """The same as the daemon answers it, without a process that asks; None if it does not."""
        try:
            answer: dict[str, Any] = json.loads(ask(self.host.path(SOCKET)))
        except NoAnswer:
            return None
        return answer

    def mapping(self, external: IPv4Address) -> dict[str, str]:
        """What `status` says of one mapping."""
        found: dict[str, str] = next(
            m for m in self.status()["mappings"] if m["external"] == str(external)
        )
        return found

    def wait_for(self, external: IPv4Address, state: str, timeout: float = 60) -> None:
        """Wait until a mapping is in that state."""

        def has_come() -> bool:
            # Just after a reload the daemon may not know the mapping yet.
            mappings = (self.answer() or {"mappings": []})["mappings"]
            return (str(external), state) in {(m["external"], m["state"]) for m in mappings}

        try:
            wait_for(has_come, timeout, f"{external} is {state}")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.status()}\n{self.log()}") from error

    def wait_until_converged(self, timeout: float = 60) -> None:
        """Wait until `plan` has nothing to change."""
        try:
            wait_for(lambda: self.command("plan").returncode == 0, timeout, "plan is empty")
        except AssertionError as error:
            plan = self.command("plan")
            raise AssertionError(f"{error}\n{plan.stdout}{plan.stderr}\n{self.log()}") from error

    def _command(self, command: str, *options: str) -> list[str]:
        return [*self._program, "--config", str(self.config), command, *options]


class Daemon(Product):
    """`run` as a process of its own. `host` is the laptop it runs on."""

    host: Host

    def __init__(self, host: Host, directory: Path) -> None:
        program = [sys.executable, "-m", "vm_onetoone_nat", "--verbose"]
        super().__init__(host, directory / "config.toml", program)
        self.log_path = directory / "daemon.log"
        self.process: Process | None = None
        self.clean = True
        """Whether it has left nothing: it never ran, or removed what it had at its stop."""
        self._before = 0

    def start(self, *under: str, env: Mapping[str, str] | None = None) -> None:
        """Start `run`, below the program `under` if given; its log goes on in the same file."""
        self._before = len(self.log())
        self.clean = False
        with self.log_path.open("a") as log:
            self.process = self.host.popen(
                *under, *self._command("run"), stdout=subprocess.DEVNULL, stderr=log, env=env
            )

    @property
    def ended(self) -> bool:
        """Whether its process is over, however it ended."""
        return self.process is None or self.process.poll() is not None

    @property
    def has_begun(self) -> bool:
        """Whether it has come to its first pass, and so handles signals."""
        return "pass: start" in self.log()[self._before :]

    def signal(self, number: int) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        assert self.process is not None
        self.process.terminate()
        code = self.process.wait(60)
        self.clean = code == 0
        return code

    def kill(self) -> None:
        """SIGKILL: a crash."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(60)

    def reload(self) -> None:
        """SIGHUP."""
        assert self.process is not None
        self.process.send_signal(1)

    def log(self) -> str:
        """What it has said so far."""
        return self.log_path.read_text() if self.log_path.exists() else ""


class Service(Product):
    """The installed unit in a booted machine."""

    host: Machine

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine, Path("/etc/vm-onetoone-nat/config.toml"), ["vm-onetoone-nat"])

    def systemctl(self, verb: str, *options: str) -> None:
        """Run `systemctl VERB` on the unit; CommandError if that fails."""
        self.host.systemctl(verb, *options, UNIT)

    def reload(self) -> None:
        self.systemctl("reload")

    def property(self, name: str) -> str:
        """A property of the unit, as `systemctl show` prints it."""
        return self.host.systemctl("show", "--value", "-p", name, UNIT).strip()

    def journal(self, *matches: str) -> list[dict[str, str]]:
        """The unit's entries in the journal, of all boots."""
        return self.host.journal("--unit", UNIT, *matches)

    def log(self) -> str:
        return "\n".join(entry.get("MESSAGE", "") for entry in self.journal())
