"""A booted Debian on the LAN: systemd, journald and whatever is installed, in a container."""

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from .addresses import HOST, LAN_BROADCAST, LAN_CLIENT, UPLINK, mac_of
from .lan import Lan
from .namespace import CommandError, Namespace, Process
from .root import CERTIFICATES, pip_settings, proxies
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
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "USER": "root",
    "LOGNAME": "root",
    "SHELL": "/bin/bash",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
}

# Only the machine's own interfaces are in what this makes writable: bridges have settings there
# that libvirt writes. The rest of /sys, and of /proc/sys but for net, stays read-only.
_SYS_UNIT = """
[Unit]
Description=Settings of network interfaces, writable
DefaultDependencies=no
Before=sysinit.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=mkdir -p /run/lab-sys
ExecStart=mount -t sysfs sysfs /run/lab-sys
ExecStart=mount -o remount,rw /run/lab-sys
ExecStart=mount --bind /run/lab-sys/devices/virtual/net /sys/devices/virtual/net
ExecStart=umount /run/lab-sys
"""

_UPLINK_UNIT = f"""
[Unit]
Description=Uplink to the LAN
Wants=network-pre.target network.target
After=network-pre.target
Before=network.target network-online.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=ip address add {HOST} brd {LAN_BROADCAST} dev {UPLINK}
ExecStart=ip link set {UPLINK} up
ExecStart=ip route add default via {LAN_CLIENT.ip} dev {UPLINK} proto dhcp src {HOST.ip}
"""

_REBOOTED = 133  # systemd-nspawn's exit code with --keep-unit

_serial = itertools.count(1)


class Machine(Namespace):
    """A container booted from a root, on the LAN by its uplink `wlp0s20f3`, 192.168.1.100.

    The root is not written to; all changes live until `close()`, over any number of reboots.
    `bind` are files and folders outside that appear inside, read-only, in the same place. `pid` is
    its init while it is up. All that it is made of is inside an outer Namespace, and ends as that
    does. Make it from the main thread.
    """

    # Namespace's own constructor would make namespaces: here systemd-nspawn does, at each boot.
    def __init__(
        self, lan: Lan, root: Path, name: str = "machine", bind: tuple[Path, ...] = ()
    ) -> None:
        self.name = name
        self.lan = lan
        self.uplink_port: str | None = None
        self._processes = []
        self._pip = pip_settings()
        self._bind = (*bind, *self._pip.folders)
        self._boots = 0
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
            self._outer = Namespace(f"{name}-outer")
        except BaseException:
            self._end_reaper()
            raise
        self._holder = self._outer._holder
        self.pid = self._outer.pid
        try:
            mounted.mkdir()
            self._outer.run("sh", "-c", _MOUNTS, "mounts", root)
            self._configure()
        except BaseException:
            self.close()
            raise

    def boot(self, timeout: float = 60) -> None:
        """Start it, and wait until it is up."""
        self.start()
        self.wait_for_boot(timeout)

    def start(self) -> None:
        """Switch it on; `run` works when systemd has begun, which is not yet when all is up."""
        if self.booted:
            raise CommandError(f"{self.name} is up already")
        self.pid = self._outer.pid
        # systemd-nspawn takes it in and puts it back; it is lost if systemd-nspawn is killed.
        if self._outer.run("ip", "link", "show", "dev", UPLINK, check=False).returncode != 0:
            self.uplink_port = self.lan.attach(self._outer, UPLINK, mac=mac_of(HOST.ip))
        self._nspawn = self._start_nspawn(
            *("nsenter", "--target", str(self._outer.pid), "--net", "--mount", "--pid", "--"),
            nspawn=("--boot", "--private-network", f"--network-interface={UPLINK}"),
            writable="network",
            stdout=self._console,
            stderr=self._console,
        )
        nspawn = self._nspawn

        def init() -> int:
            if nspawn.poll() is not None:
                raise CommandError(f"{self.name}: exit {nspawn.returncode}\n{self.console()}")
            return _init_below(nspawn.inner_pid) or 0

        self.pid = wait_for(init, 30, f"{self.name}: systemd started")

    def wait_for_boot(self, timeout: float = 60) -> None:
        """Wait until all jobs of the boot are done; `failed_units` tells how they went."""
        state = ""

        def is_up() -> bool:
            nonlocal state
            if not self.booted:
                raise CommandError(f"{self.name} ended while booting\n{self.console()}")
            state = self.systemctl("is-system-running", check=False).strip()
            return state in ("running", "degraded")

        try:
            wait_for(is_up, timeout, f"{self.name} is up", interval=0.1)
        except WaitTimeoutError as late:
            jobs = self.systemctl("list-jobs", "--no-legend", check=False)
            raise WaitTimeoutError(
                f"{late}\nstate: {state}\nfailed: {self.failed_units()}\njobs:\n{jobs}"
            ) from late

    def reboot(self, timeout: float = 120) -> None:
        """`systemctl reboot`, and wait until it is up again, with all that is on its disk."""
        self._shut_down("reboot", _REBOOTED, timeout)
        self.boot(timeout)

    def poweroff(self, timeout: float = 120) -> None:
        """`systemctl poweroff`, and wait until it is off; `boot` starts it again."""
        self._shut_down("poweroff", 0, timeout)

    def close(self) -> None:
        """End all of it at once, as a power cut. Idempotent."""
        self._outer.close()
        super().close()
        self._end_reaper()
        self._console.close()

    @property
    def booted(self) -> bool:
        """It has an init."""
        return (
            self._nspawn is not None and self._nspawn.poll() is None and self.pid != self._outer.pid
        )

    def failed_units(self) -> list[str]:
        """Names of the units that failed."""
        listed = self.systemctl("list-units", "--failed", "--plain", "--no-legend")
        return [line.split()[0] for line in listed.splitlines() if line]

    def systemctl(self, *arguments: str, check: bool = True, timeout: float = 120) -> str:
        """Run systemctl and return what it printed."""
        return self.run("systemctl", *arguments, check=check, timeout=timeout).stdout

    def journal(self, *arguments: str) -> list[dict[str, str]]:
        """The journal's entries that journalctl selects, all their fields as text."""
        printed = self.run("journalctl", "-o", "json", "--all", "--no-pager", *arguments).stdout
        entries = [json.loads(line) for line in printed.splitlines()]
        return [{name: _text(value) for name, value in entry.items()} for entry in entries]

    def virsh(self, *arguments: str, timeout: float = 120) -> str:
        """Run virsh on the system libvirtd and return what it printed."""
        return self.run(
            *("virsh", "-q", "-c", "qemu:///system", *arguments), timeout=timeout
        ).stdout

    def console(self) -> str:
        """What systemd-nspawn and the machine printed so far."""
        self._console.seek(0)
        return self._console.read()

    def path(self, inside: str | os.PathLike[str]) -> Path:
        """A file of it, reachable from outside also while it is off, but then only on its disk."""
        if self.booted:
            return super().path(inside)
        return self._outer.path(_ROOT) / os.fspath(inside).lstrip("/")

    def prepare(
        self,
        *argv: str | os.PathLike[str],
        check: bool = True,
        timeout: float = 600,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program on its disk while it is off, with this machine's network: to install.

        It cannot change that network. apt and pip find what they find outside.
        """
        if self.booted:
            raise CommandError(f"{self.name} is up: prepare it before it boots")
        process = self._start_nspawn(
            *("nsenter", "--target", str(self._outer.pid), "--mount", "--pid", "--"),
            nspawn=(
                "--as-pid2",
                *(f"--bind-ro={path}" for path in ("/etc/resolv.conf", "/etc/hosts")),
                *(
                    f"--setenv={key}={value}"
                    for key, value in _inside(proxies() | dict(env or {})).items()
                ),
                "--",
                *(os.fspath(argument) for argument in argv),
            ),
            # The sysctls would be those of this machine.
            writable="no",
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        with process:
            try:
                out, err = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired as expired:
                process.kill()
                out, err = process.communicate()
                raise CommandError(
                    f"{self.name}: no end within {timeout:g} s\n{out}{err}"
                ) from expired
        if check and process.returncode != 0:
            raise CommandError(f"{self.name}: exit {process.returncode}\n{out}{err}")
        return subprocess.CompletedProcess(list(argv), process.returncode, out, err)

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

    def _configure(self) -> None:
        """What an installer writes to a disk: names, network."""
        files = {
            "hostname": f"{self.name}\n",
            "hosts": f"127.0.0.1 localhost\n127.0.1.1 {self.name}\n",
            "resolv.conf": f"nameserver {LAN_CLIENT.ip}\n",
            "pip.conf": self._pip.text,
            "systemd/system/lab-sys.service": _SYS_UNIT.lstrip(),
            "systemd/system/lab-uplink.service": _UPLINK_UNIT.lstrip(),
        }
        for file, text in files.items():
            path = self.path("/etc") / file
            path.unlink(missing_ok=True)
            path.write_text(text)
            path.chmod(0o644)
        if self._pip.certificates is not None:
            shutil.copy(self._pip.certificates, self.path(CERTIFICATES))
        for target, unit in (("sysinit", "lab-sys"), ("multi-user", "lab-uplink")):
            wants = self.path(f"/etc/systemd/system/{target}.target.wants")
            wants.mkdir(exist_ok=True)
            (wants / f"{unit}.service").symlink_to(f"/etc/systemd/system/{unit}.service")

    def _start_nspawn(
        self,
        *entry: str,
        nspawn: tuple[str, ...],
        writable: str,
        stdout: int | IO[str],
        stderr: int | IO[str],
    ) -> Process:
        self._boots += 1
        process = Process(
            [
                *entry,
                *("sh", "-c", _START, "start", f"{self._cgroup}/{self._boots}"),
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

    def _shut_down(self, verb: str, expected: int, timeout: float) -> None:
        nspawn = self._nspawn
        # The command itself may be ended by what it starts.
        self.systemctl("--no-block", verb, check=False)
        assert nspawn is not None
        try:
            nspawn.wait(timeout)
        except subprocess.TimeoutExpired as expired:
            jobs = self.systemctl("list-jobs", "--no-legend", check=False)
            raise WaitTimeoutError(
                f"{self.name}: no {verb} within {timeout:g} s\njobs:\n{jobs}\n{self.console()}"
            ) from expired
        self.pid = self._outer.pid
        if nspawn.returncode != expected:
            raise CommandError(f"{self.name}: {verb}: exit {nspawn.returncode}\n{self.console()}")

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


def _text(value: object) -> str:
    """A field as text: journalctl shows bytes that are no text as numbers, repeats as a list."""
    if isinstance(value, list):
        if all(isinstance(each, int) for each in value):
            return bytes(value).decode(errors="replace")
        return "\n".join(_text(each) for each in value)
    return "" if value is None else str(value)
