"""A real libvirtd inside a namespace."""

import subprocess
from uuid import uuid4

from .namespace import CommandError, Namespace, Process
from .waiting import wait_for

_LOG = "/var/log/libvirt/libvirtd.log"

# A namespace has no polkit, no cgroups of its own and perhaps no user libvirt-qemu. Ownership
# is never changed: kernel and initramfs of a domain lie in a cache shared with other labs.
_CONFIGURATION = {
    "libvirtd.conf": f"""
unix_sock_group = "root"
auth_unix_ro = "none"
auth_unix_rw = "none"
log_filters = "3:qemu.qemu_monitor 2:network 2:qemu"
log_outputs = "2:file:{_LOG}"
""",
    "virtlogd.conf": 'log_outputs = "3:file:/var/log/libvirt/virtlogd.log"\n',
    "qemu.conf": """
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
security_default_confined = 0
cgroup_controllers = []
namespaces = []
""",
    "libvirt.conf": 'uri_default = "qemu:///system"\n',
}

_ACCOUNTS = ("libvirt-qemu", "libvirt-dnsmasq")
_GROUPS = ("libvirt", "libvirt-qemu", "libvirt-dnsmasq", "kvm")


class Libvirtd:
    """virtlogd and libvirtd of one namespace, whose state directories must be private."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._virtlogd: Process | None = None
        self._libvirtd: Process | None = None

    @property
    def pid(self) -> int | None:
        """libvirtd's pid as seen from outside, None when it does not run."""
        return None if self._libvirtd is None else self._libvirtd.inner_pid

    def configure(self) -> None:
        """Write the lab's /etc/libvirt, and the accounts that the distribution would add."""
        for name, text in _CONFIGURATION.items():
            self._namespace.path(f"/etc/libvirt/{name}").write_text(text.lstrip())
        with self._namespace.path("/etc/libvirt/libvirtd.conf").open("a") as file:
            file.write(f'host_uuid = "{uuid4()}"\n')
        # Or each start of a domain waits for a name server, of which there is none.
        with self._namespace.path("/etc/hosts").open("a") as file:
            file.write(f"127.0.1.1 {self._namespace.name}\n")
        passwd, group = (self._namespace.path(f"/etc/{name}") for name in ("passwd", "group"))
        users, groups = (_first_fields(text) for text in (passwd.read_text(), group.read_text()))
        with passwd.open("a") as file:
            for number, name in enumerate(_ACCOUNTS):
                if name not in users:
                    file.write(f"{name}:x:{64100 + number}:65534::/nonexistent:/bin/false\n")
        with group.open("a") as file:
            for number, name in enumerate(_GROUPS):
                if name not in groups:
                    file.write(f"{name}:x:{64100 + number}:\n")

    def start(self, timeout: float = 60) -> None:
        """Start it and wait until it answers."""
        if self._virtlogd is None or self._virtlogd.poll() is not None:
            self._virtlogd = self._spawn("virtlogd")
            socket = self._namespace.path("/run/libvirt/virtlogd-sock")
            wait_for(socket.exists, timeout, "virtlogd's socket")
        self._libvirtd = self._spawn("libvirtd")
        wait_for(self._answers, timeout, "an answer from libvirtd", interval=0.1)

    def stop(self, timeout: float = 60) -> None:
        """Ask it to end, as `systemctl stop` does. Networks and domains live on."""
        if self._libvirtd is not None:
            self._libvirtd.terminate()
            try:
                self._libvirtd.wait(timeout)
            except subprocess.TimeoutExpired as expired:
                raise CommandError(
                    f"libvirtd did not end in {timeout:g} s\n{self.log()}"
                ) from expired

    def restart(self, timeout: float = 60) -> None:
        """Stop and start."""
        self.stop(timeout)
        self.start(timeout)

    def kill(self) -> None:
        """SIGKILL: a crash."""
        if self._libvirtd is not None:
            self._libvirtd.kill()
            self._libvirtd.wait(30)

    def signal(self, number: int) -> None:
        """Send libvirtd a signal."""
        if self._libvirtd is not None:
            self._libvirtd.send_signal(number)

    def log(self) -> str:
        """What it logged since the lab began."""
        path = self._namespace.path(_LOG)
        return path.read_text(errors="replace") if path.exists() else ""

    def _spawn(self, name: str) -> Process:
        # With a host name of its own, by which two hosts of a migration know each other apart.
        named = ("unshare", "--uts", "sh", "-c", f"hostname {self._namespace.name}; exec {name}")
        return self._namespace.popen(
            *named, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/"
        )

    def _answers(self) -> bool:
        assert self._libvirtd is not None
        if self._libvirtd.poll() is not None:
            raise CommandError(f"libvirtd ended: {self._libvirtd.returncode}\n{self.log()}")
        return self._namespace.run("virsh", "uri", check=False).returncode == 0


def _first_fields(text: str) -> set[str]:
    return {line.split(":", 1)[0] for line in text.splitlines()}
