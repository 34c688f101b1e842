"""Anonymous network, mount and pid namespaces that cannot outlive their creator."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from ipaddress import IPv4Interface
from pathlib import Path
from typing import IO, Self

from .waiting import wait_for

# A SIGCHLD that is ignored makes the kernel reap whatever is reparented to this pid 1, so a
# daemon that forked twice and died is gone, not a zombie that looks alive.
_INIT = """
set -e
umount -R -l /sys
mount -t sysfs sysfs /sys
ip link set lo up
echo ready
exec >&- 2>&-
exec env --ignore-signal=CHLD sleep infinity
"""

_KEPT = ("HOME", "LOGNAME", "TERM", "TMPDIR", "USER")

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class CommandError(AssertionError):
    """A command failed inside a namespace; the message has its output."""


class Process(subprocess.Popen[str]):
    """A process inside a namespace.

    What Popen started is nsenter, which has to fork to enter a pid namespace and forwards no
    signal: signals go to the program itself. nsenter ends as the program ended, so
    `returncode` is the program's.
    """

    @property
    def inner_pid(self) -> int | None:
        """Pid of the program as this process sees it; None while not started, or when over."""
        return _only_child(self.pid)

    def send_signal(self, sig: int) -> None:
        if self.poll() is not None:
            return
        wait_for(
            lambda: self.inner_pid is not None or self.poll() is not None, 60, "nsenter forked"
        )
        inner = self.inner_pid
        if inner is not None:
            try:
                os.kill(inner, sig)
                if sig == signal.SIGCONT:
                    # nsenter stops with what it started, and not only in appearance.
                    os.kill(self.pid, sig)
            except ProcessLookupError:
                return


class Namespace:
    """A network, a mount and a pid namespace with an init that holds them.

    Nothing is put into /run/netns: when init dies, every process inside dies with it, and
    with them the namespaces, their mounts and their interfaces. Init is killed by `close()`,
    and by the kernel when the *thread* that made the Namespace ends, SIGKILL included; make it
    from the main thread.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._processes: list[Process] = []
        self._holder = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL"),
                *("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child"),
                *("--mount-proc", "--propagation", "private"),
                *("sh", "-c", _INIT, f"lab-{name}"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=_environment(),
            cwd="/",
        )
        assert self._holder.stdout is not None and self._holder.stderr is not None
        with self._holder.stdout as out, self._holder.stderr as err:
            if out.readline() != "ready\n":
                self._holder.kill()
                raise CommandError(f"namespace {name}: {err.read()}")
        pid = _only_child(self._holder.pid)
        assert pid is not None
        self.pid = pid

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        """Whether programs can be started inside."""
        return self._holder.poll() is None

    def close(self) -> None:
        """End every process inside and wait until the namespaces are empty. Idempotent."""
        if self.alive:
            # The kernel reaps a pid namespace's init only after all other processes in it.
            try:
                os.kill(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                self._holder.kill()
            self._holder.wait(timeout=60)
        for process in self._processes:
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
            process.wait(timeout=60)
        self._processes.clear()

    def popen(
        self,
        *argv: str | os.PathLike[str],
        stdin: int | IO[str] | None = subprocess.DEVNULL,
        stdout: int | IO[str] | None = None,
        stderr: int | IO[str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Process:
        """Start a program inside; `env` is added to this process's environment."""
        process = Process(
            self._enter(cwd) + [os.fspath(argument) for argument in argv],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            text=True,
            env=_environment(env),
        )
        unfinished = (other for other in self._processes if other.returncode is None)
        self._processes = [*unfinished, process]
        return process

    def run(
        self,
        *argv: str | os.PathLike[str],
        check: bool = True,
        timeout: float = 60,
        input: str | None = None,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program inside to its end; CommandError when it fails and `check` is set."""
        process = self.popen(
            *argv,
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd,
            env=env,
        )
        return self._finish(process, argv, check, timeout, input)

    def python(self, program: Path, *arguments: str) -> list[str]:
        """The command line of one of the lab's own programs, for `run` and `popen`."""
        return [sys.executable, "-I", str(program), *arguments]

    def sysctl(self, key: str, value: int | str | None = None) -> str:
        """Read a sysctl, after writing it when a value is given."""
        if value is not None:
            self.run("sysctl", "-q", "-w", f"{key}={value}")
        return self.run("sysctl", "-n", key).stdout.strip()

    def bridge_netfilter(self, enabled: bool) -> None:
        """Let bridged frames pass the IP hooks, as on a host that has br_netfilter, or not.

        CommandError when it is to be on and the machine's kernel has not loaded br_netfilter:
        the lab loads no module, since it could not be unloaded again safely.
        """
        if not enabled and not Path("/proc/sys/net/bridge").exists():
            return
        for protocol in ("iptables", "ip6tables", "arptables"):
            self.sysctl(f"net.bridge.bridge-nf-call-{protocol}", int(enabled))

    def path(self, inside: str | os.PathLike[str]) -> Path:
        """A file as it is inside, reachable from outside while the namespace lives."""
        return Path(f"/proc/{self.pid}/root") / os.fspath(inside).lstrip("/")

    def processes(self) -> dict[int, str]:
        """Every live process inside but init: pid as seen from outside, and command line."""
        ours = os.readlink(f"/proc/{self.pid}/ns/pid")  # noqa: PTH115
        found: dict[int, str] = {}
        # Not by Path, which takes several times as long: some tests ask ten times a second.
        for name in os.listdir("/proc"):  # noqa: PTH208
            if not name.isdigit() or int(name) == self.pid:
                continue
            try:
                if os.readlink(f"/proc/{name}/ns/pid") == ours:  # noqa: PTH115
                    command = Path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" ")
                    found[int(name)] = command.decode(errors="replace").strip()
            except OSError:
                continue
        return found

    def wire(  # noqa: PLR0913
        self,
        ifname: str,
        peer: "Namespace",
        peer_ifname: str,
        *,
        address: IPv4Interface | None = None,
        mac: str | None = None,
        port_of: str | None = None,
    ) -> None:
        """Join two namespaces by a veth: `ifname` here, `peer_ifname` with `address` there.

        `port_of` is a bridge here that takes the near end.
        """
        # Enters the network namespace only: `netns PID` means a pid of the caller's pid
        # namespace.
        outer = ["nsenter", f"--net=/proc/{self.pid}/ns/net", "ip"]
        near = ["link", "add", ifname, *(["master", port_of] if port_of else [])]
        far = ["type", "veth", "peer", "name", peer_ifname, "netns", str(peer.pid)]
        done = subprocess.run(
            [*outer, *near, "up", *far, *(["address", mac] if mac else [])],
            check=False,
            capture_output=True,
            text=True,
            env=_environment(),
        )
        if done.returncode != 0:
            raise CommandError(f"{self.name}: veth {ifname} - {peer_ifname}: {done.stderr}")
        batch = f"link set {peer_ifname} up\n"
        if address is not None:
            broadcast = address.network.broadcast_address
            batch = f"address add {address} brd {broadcast} dev {peer_ifname}\n" + batch
        peer.run("ip", "-batch", "-", input=batch)

    def _finish(
        self,
        process: Process,
        argv: tuple[str | os.PathLike[str], ...],
        check: bool,
        timeout: float,
        input: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Wait for a process to end, and take what it printed."""
        with process:
            try:
                out, err = process.communicate(input, timeout=timeout)
            except subprocess.TimeoutExpired as expired:
                process.kill()
                out, err = process.communicate()
                raise CommandError(
                    f"{self.name}: {_shown(argv)}: no end within {timeout:g} s\n{out}{err}"
                ) from expired
        if check and process.returncode != 0:
            raise CommandError(
                f"{self.name}: {_shown(argv)}: exit {process.returncode}\n{out}{err}"
            )
        return subprocess.CompletedProcess(list(argv), process.returncode, out, err)

    def _enter(self, cwd: str | os.PathLike[str] | None) -> list[str]:
        entry = ["nsenter", "--target", str(self.pid), "--net", "--mount", "--pid"]
        return [*entry, f"--wdns={os.fspath(cwd)}", "--"] if cwd else [*entry, "--"]


class NetworkOf(Namespace):
    """The network of another namespace, as this machine's own programs see it."""

    def __init__(self, other: Namespace) -> None:
        self.name = other.name
        self.pid = other.pid
        self._processes = []
        self._holder = other._holder

    def _enter(self, cwd: str | os.PathLike[str] | None) -> list[str]:
        # Into the pid namespace too, so that nsenter forks as it does elsewhere.
        entry = ["nsenter", "--target", str(self.pid), "--net", "--pid"]
        return [*entry, f"--wdns={os.fspath(cwd)}", "--"] if cwd else [*entry, "--"]


def _only_child(pid: int) -> int | None:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return None
    return int(children[0]) if children else None


def _environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    # Not NOTIFY_SOCKET, RUNTIME_DIRECTORY and the like of a service that runs these tests.
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return {**kept, "PATH": PATH, "LC_ALL": "C.UTF-8", **(extra or {})}


def _shown(argv: tuple[str | os.PathLike[str], ...]) -> str:
    return " ".join(os.fspath(argument) for argument in argv)
