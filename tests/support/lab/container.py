"""A container that systemd boots in, and what systemd-nspawn needs to be started anywhere."""

import contextlib
import itertools
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from .namespace import PATH, CommandError, Namespace, Process
from .registry import proxies
from .waiting import WaitTimeoutError, wait_for

# Everything that the machine writes is in a tmpfs of the outer mount namespace and goes with it.
# /run is private because systemd-nspawn keeps locks there, and /sys is read-only because it would
# otherwise ask udev, which knows nothing of interfaces in namespaces.
_MOUNTS = """
set -e
umask 022
mount -o remount,ro /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=755,size=80% tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay -o "lowerdir=$1,upperdir=/mnt/upper,workdir=/mnt/work" overlay /mnt/root
"""
_ROOT = "mnt/root"

# systemd-nspawn makes two cgroups in the one that it is started in, and refuses if that is part
# of a login session: as the root of a cgroup namespace it is not. It takes the cgroup of pid 1,
# less an init.scope, for the one that has all others.
_START = """
set -e
mkdir "$1" "$1/init.scope"
echo 1 >"$1/init.scope/cgroup.procs"
echo 0 >"$1/cgroup.procs"
shift
exec unshare --cgroup --mount --propagation private sh -c '
    umount /sys/fs/cgroup
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    exec "$@"' nspawn "$@"
"""

# Outlives this process until the machine's last process is gone, also when this one is killed.
_REMOVE_CGROUP = """
read -r _
tries=0
while [ -d "$1" ] && [ $tries -lt 600 ]; do
    find "$1" -depth -type d -exec rmdir {} + 2>/dev/null || sleep 0.1
    tries=$((tries + 1))
done
"""

_ENTRY = ("--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup")

_ENVIRONMENT = {
    "PATH": PATH,
    "HOME": "/root",
    "USER": "root",
    "LOGNAME": "root",
    "SHELL": "/bin/bash",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
}

_serial = itertools.count(1)


class Container(Namespace):
    """A container on an overlay of `root`, which is not written to.

    `layers` lie over it, the topmost first: see `layer`. All changes live until `close()`, over any
    number of boots. `bind` are files and folders outside
    that appear inside, read-only, in the same place. `pid` is its init while it is up. All that it
    is made of is inside `outer`, and ends as that does. Make it from the main thread.
    """

    # Namespace's own constructor would make namespaces: here systemd-nspawn does, at each boot.
    def __init__(
        self,
        name: str,
        root: Path,
        bind: tuple[Path, ...] = (),
        layers: tuple[Path, ...] = (),
    ) -> None:
        self.name = name
        self._processes = []
        self._bind = bind
        self._starts = 0
        self._nspawn: Process | None = None
        # For appending, so that reading does not move where others write.
        self._console = tempfile.TemporaryFile("a+", errors="replace")  # noqa: SIM115
        self._cgroup, mounted = _cgroup(name)
        self._reaper = subprocess.Popen(
            ["sh", "-c", _REMOVE_CGROUP, f"lab-{name}-reaper", mounted],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            # Ctrl-C at a terminal must not end it before the rest.
            start_new_session=True,
        )
        try:
            self.outer = Namespace(f"{name}-outer")
        except BaseException:
            self._end_reaper()
            raise
        self._holder = self.outer._holder
        self.pid = self.outer.pid
        try:
            mounted.mkdir()
            lower = ":".join(str(path) for path in (*layers, root))
            self.outer.run("sh", "-c", _MOUNTS, "mounts", lower)
        except BaseException:
            self.close()
            raise

    def start(self, *interfaces: str) -> None:
        """Boot it, with these interfaces of `outer`; `run` works from now on, but little is up."""
        if self.booted:
            raise CommandError(f"{self.name} is up already")
        nspawn = self._start_nspawn(
            *("nsenter", "--target", str(self.outer.pid), "--net", "--mount", "--pid", "--"),
            nspawn=(
                *("--boot", "--private-network"),
                *(f"--network-interface={name}" for name in interfaces),
            ),
            writable="network",
            stdout=self._console,
            stderr=self._console,
        )
        self._nspawn = nspawn

        def init() -> int:
            if nspawn.poll() is not None:
                raise CommandError(f"{self.name}: exit {nspawn.returncode}\n{self.console()}")
            return _init_below(nspawn.inner_pid) or 0

        self.pid = wait_for(init, 30, f"{self.name}: systemd started")

    def close(self) -> None:
        """End all of it at once, as a power cut. Idempotent."""
        self.outer.close()
        super().close()
        self._end_reaper()
        self._console.close()

    def written(self) -> Path:
        """All that was written to its disk, as a layer of an overlay."""
        return self.outer.path("/mnt/upper")

    @property
    def booted(self) -> bool:
        """It has an init."""
        return (
            self._nspawn is not None and self._nspawn.poll() is None and self.pid != self.outer.pid
        )

    def console(self) -> str:
        """What systemd-nspawn and the machine printed so far."""
        self._console.seek(0)
        return self._console.read()

    def path(self, inside: str | os.PathLike[str]) -> Path:
        """A file of it, reachable from outside also while it is off, but then only on its disk."""
        if self.booted:
            return super().path(inside)
        return self.outer.path(_ROOT) / os.fspath(inside).lstrip("/")

    def prepare(
        self,
        *argv: str | os.PathLike[str],
        timeout: float = 600,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program on its disk while it is off, with this machine's network: to install.

        It cannot change that network. apt and pip find what they find outside.
        """
        if self.booted:
            raise CommandError(f"{self.name} is up: prepare it before it starts")
        process = self._start_nspawn(
            *("nsenter", "--target", str(self.outer.pid), "--mount", "--pid", "--"),
            nspawn=(
                "--as-pid2",
                *(f"--bind-ro={path}" for path in ("/etc/resolv.conf", "/etc/hosts")),
                *(f"--setenv={key}={value}" for key, value in _inside(proxies()).items()),
                "--",
                *(os.fspath(argument) for argument in argv),
            ),
            # The sysctls would be those of this machine.
            writable="no",
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        return self._finish(process, argv, check=True, timeout=timeout)

    def popen(
        self,
        *argv: str | os.PathLike[str],
        stdin: int | IO[str] | None = subprocess.DEVNULL,
        stdout: int | IO[str] | None = None,
        stderr: int | IO[str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Process:
        """Start a program inside, as root logged in: nothing of this process's environment."""
        clean = [f"{key}={value}" for key, value in _inside(env).items()]
        return super().popen(
            *("env", "-i", *clean, *argv), stdin=stdin, stdout=stdout, stderr=stderr, cwd=cwd
        )

    def _start_nspawn(
        self,
        *entry: str,
        nspawn: tuple[str, ...],
        writable: str,
        stdout: int | IO[str],
        stderr: int | IO[str],
    ) -> Process:
        self._starts += 1
        process = Process(
            [
                *entry,
                *("sh", "-c", _START, "start", f"{self._cgroup}/{self._starts}"),
                *("systemd-nspawn", "--quiet", "--register=no", "--keep-unit"),
                *(f"--directory=/{_ROOT}", f"--machine={self.name}", "--console=pipe"),
                *("--link-journal=no", "--resolv-conf=off", "--timezone=off"),
                # Units with device or address filters need it, as on a real machine.
                "--system-call-filter=bpf",
                *(f"--bind-ro={path}" for path in self._bind),
                *nspawn,
            ],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            text=True,
            env={**_ENVIRONMENT, "SYSTEMD_NSPAWN_API_VFS_WRITABLE": writable},
            cwd="/",
        )
        self._processes = [*self._processes, process]
        return process

    def _wait_for_end(self, timeout: float) -> int:
        """Wait until its init has ended, and return systemd-nspawn's exit code."""
        nspawn = self._nspawn
        assert nspawn is not None
        try:
            nspawn.wait(timeout)
        except subprocess.TimeoutExpired as expired:
            raise WaitTimeoutError(
                f"{self.name}: still up after {timeout:g} s\n{self.console()}"
            ) from expired
        self.pid = self.outer.pid
        return nspawn.returncode

    def _end_reaper(self) -> None:
        if self._reaper.stdin is not None and not self._reaper.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._reaper.stdin.close()
        try:
            self._reaper.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._reaper.send_signal(signal.SIGKILL)
            self._reaper.wait()

    def _enter(self, cwd: str | os.PathLike[str] | None) -> list[str]:
        if not self.booted:
            raise CommandError(f"{self.name} is not up\n{self.console()}")
        return ["nsenter", "--target", str(self.pid), *_ENTRY, f"--wdns={cwd or '/root'}", "--"]


def _inside(env: Mapping[str, str] | None) -> dict[str, str]:
    return {**_ENVIRONMENT, **(env or {})}


def _init_below(nspawn: int | None) -> int | None:
    """The init that systemd-nspawn has started, once it runs systemd."""
    try:
        children = Path(f"/proc/{nspawn}/task/{nspawn}/children").read_text().split()
        for child in children:
            status = Path(f"/proc/{child}/status").read_text()
            (line,) = (line for line in status.splitlines() if line.startswith("NSpid:"))
            if line.split()[-1] == "1" and Path(f"/proc/{child}/exe").readlink().name == "systemd":
                return int(child)
    except OSError:
        pass
    return None


def _cgroup(name: str) -> tuple[str, Path]:
    """A new cgroup below this process's: its path in a mount of all, and where it is here."""
    mounts = (line.split(" ") for line in Path("/proc/self/mounts").read_text().splitlines())
    mounted = [fields[1] for fields in mounts if fields[2] == "cgroup2"]
    own = [
        line.removeprefix("0::")
        for line in Path("/proc/self/cgroup").read_text().splitlines()
        if line.startswith("0::")
    ]
    if not mounted or not own:
        raise CommandError("a booted machine needs cgroup2, and it is not mounted here")
    path = own[0].rstrip("/") + f"/vm-onetoone-nat-{name}-{os.getpid()}-{next(_serial)}"
    return f"/sys/fs/cgroup{path}", Path(mounted[0] + path)
