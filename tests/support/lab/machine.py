"""A Debian host on the LAN with systemd, journald, libvirt and whatever is installed."""

import json
import shutil
from pathlib import Path

from .addresses import HOST, LAN_BROADCAST, LAN_CLIENT, UPLINK, mac_of
from .container import Container
from .hypervisor import Hypervisor
from .lan import Lan
from .namespace import CommandError
from .registry import CERTIFICATES, pip_settings
from .waiting import WaitTimeoutError, wait_for

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


class Machine(Container, Hypervisor):
    """A container on the LAN by its uplink `wlp0s20f3`, 192.168.1.100."""

    def __init__(
        self, lan: Lan, root: Path, name: str = "machine", layers: tuple[Path, ...] = ()
    ) -> None:
        self.lan = lan
        self._pip = pip_settings()
        super().__init__(name, root, self._pip.folders, layers)
        try:
            self._configure()
        except BaseException:
            self.close()
            raise

    def boot(self, timeout: float = 60) -> None:
        """Start it, and wait until it is up."""
        # systemd-nspawn takes it in and puts it back; it is lost if systemd-nspawn is killed.
        if self.outer.run("ip", "link", "show", "dev", UPLINK, check=False).returncode != 0:
            self.lan.attach(self.outer, UPLINK, mac=mac_of(HOST.ip))
        self.start(UPLINK)
        self.wait_for_boot(timeout)

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
        # The command itself may be ended by what it starts.
        self.systemctl("--no-block", "reboot", check=False)
        code = self._wait_for_end(timeout)
        if code != _REBOOTED:
            raise CommandError(f"{self.name}: reboot: exit {code}\n{self.console()}")
        self.boot(timeout)

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


def _text(value: object) -> str:
    """A field as text: journalctl shows bytes that are no text as numbers, repeats as a list."""
    if isinstance(value, list):
        if all(isinstance(each, int) for each in value):
            return bytes(value).decode(errors="replace")
        return "\n".join(_text(each) for each in value)
    return "" if value is None else str(value)
