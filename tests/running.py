"""The daemon under test, run for real inside a lab host."""

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from lab.addresses import external, internal
from lab.host import Host
from lab.namespace import Process
from lab.waiting import wait_for


def mapping(n: int, **keys: object) -> dict[str, object]:
    """Guest n of the address plan; with the lifetime of its network unless `keys` has a domain."""
    return {"external": str(external(n)), "internal": str(internal(n)), **keys}


class Daemon:
    """One configuration file, and the commands on it. `host` is the laptop it runs on."""

    def __init__(self, host: Host, directory: Path) -> None:
        self.host = host
        self.config = directory / "config.toml"
        self.log_path = directory / "daemon.log"
        self.process: Process | None = None

    def configure(self, *mappings: Mapping[str, object], **settings: str) -> None:
        """Write the configuration file."""
        lines = ["[settings]", *(f"{key} = {json.dumps(value)}" for key, value in settings.items())]
        for mapping in mappings:
            lines += ["[[mapping]]", *(f"{k} = {json.dumps(v)}" for k, v in mapping.items())]
        self.config.write_text("\n".join(lines) + "\n")

    def start(self) -> None:
        """Start `run`; its log goes on in the same file."""
        with self.log_path.open("a") as log:
            self.process = self.host.popen(
                *self._command("run", "--verbose"), stdout=subprocess.DEVNULL, stderr=log
            )

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(60)

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

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Another command on the same configuration, whatever its exit code."""
        return self.host.run(*self._command(*arguments), check=False)

    def status(self) -> dict[str, Any]:
        """`status --json`."""
        done = self.command("status", "--json")
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def mapping(self, external: IPv4Address) -> dict[str, str]:
        """What `status` says of one mapping."""
        found: dict[str, str] = next(
            m for m in self.status()["mappings"] if m["external"] == str(external)
        )
        return found

    def wait_for(self, external: IPv4Address, state: str, timeout: float = 20) -> None:
        """Wait until a mapping is in that state."""
        try:
            wait_for(
                lambda: self.mapping(external)["state"] == state, timeout, f"{external} is {state}"
            )
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.mapping(external)}\n{self.log()}") from error

    def wait_until_converged(self, timeout: float = 20) -> None:
        """Wait until `plan` has nothing to change."""
        try:
            wait_for(lambda: self.command("plan").returncode == 0, timeout, "plan is empty")
        except AssertionError as error:
            plan = self.command("plan")
            raise AssertionError(f"{error}\n{plan.stdout}{plan.stderr}\n{self.log()}") from error

    def _command(self, command: str, *options: str) -> list[str]:
        before = [o for o in options if o == "--verbose"]
        after: Iterable[str] = (o for o in options if o != "--verbose")
        module = [sys.executable, "-m", "vm_onetoone_nat"]
        return [*module, *before, "--config", str(self.config), command, *after]
