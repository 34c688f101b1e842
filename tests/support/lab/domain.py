"""Real libvirt domains, under software emulation."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Interface
from typing import Self
from xml.sax.saxutils import escape

from .addresses import (
    LAN_CLIENT,
    LIBVIRT_GATEWAY,
    LIBVIRT_NETWORK,
    PAGE_PORT,
    RECORDER_PORT,
    mac_of,
)
from .hypervisor import Hypervisor
from .image import image
from .namespace import CommandError
from .waiting import wait_for

_DOMAIN = """
<domain type="qemu">
  <name>{name}</name>
  <memory unit="MiB">{memory}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch="x86_64" machine="pc">hvm</type>{boot}
  </os>
  <features><acpi/></features>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <controller type="usb" model="none"/>
    <serial type="file"><source path="{console}"/></serial>
    <memballoon model="none"/>{interface}{channel}
  </devices>
</domain>
"""

_BOOT = """
    <kernel>{kernel}</kernel>
    <initrd>{initramfs}</initrd>
    <cmdline>{command_line}</cmdline>"""

_INTERFACE = """
    <interface type="network">
      <mac address="{mac}"/>
      <source network="{network}"/>
      <model type="virtio"/>
    </interface>"""

_AGENT = """
    <channel type="unix">
      <target type="virtio" name="org.qemu.guest_agent.0"/>
    </channel>"""


class Domain:
    """A domain of the host's libvirtd, and its lifecycle by virsh."""

    def __init__(self, host: Hypervisor, name: str, xml: str) -> None:
        self.host = host
        self.name = name
        self.xml = xml

    def define(self) -> None:
        """Make it known to libvirt."""
        self.host.virsh("define", "/proc/self/fd/0", input=self.xml)

    def undefine(self) -> None:
        """Make libvirt forget it; one that runs becomes transient."""
        self.host.virsh("undefine", self.name)

    def start(self) -> None:
        """Start it; it has its tap device when this returns."""
        self.host.virsh("start", self.name)

    @contextmanager
    def running(self) -> Iterator[Self]:
        """Define and start it; at the end destroy it, unless it is shut off, and undefine it."""
        self.define()
        self.start()
        try:
            yield self
        finally:
            if self.state() != "shut off":
                self.destroy()
            self.undefine()

    def destroy(self) -> None:
        """Pull its plug."""
        self.host.virsh("destroy", self.name)

    def kill(self) -> None:
        """SIGKILL to its emulator: a crash."""
        pid = self.host.path(f"/run/libvirt/qemu/{self.name}.pid").read_text().strip()
        self.host.run("kill", "-KILL", pid)

    def suspend(self) -> None:
        """Stop its processor."""
        self.host.virsh("suspend", self.name)

    def resume(self) -> None:
        """Let its processor go on."""
        self.host.virsh("resume", self.name)

    def shutdown(self) -> None:
        """Press its power button; returns at once."""
        self.host.virsh("shutdown", "--mode", "acpi", self.name)

    def reboot(self) -> None:
        """Press its power button and start it again in the same process; returns at once."""
        self.host.virsh("reboot", "--mode", "acpi", self.name)

    def state(self) -> str:
        """As virsh calls it: running, paused, shut off, in shutdown, …"""
        return self.host.virsh("domstate", self.name).strip()

    def wait_for_state(self, state: str, timeout: float = 60) -> None:
        """Wait until libvirt reports `state`."""
        wait_for(lambda: self.state() == state, timeout, f"{self.name} is {state}", interval=0.1)

    def uuid(self) -> str:
        """Its UUID."""
        return self.host.virsh("domuuid", self.name).strip()

    def tap(self, mac: str | None = None) -> str:
        """While it runs, the interface on the host of its interface with that MAC, or its first."""
        rows = [row.split() for row in self.host.virsh("domiflist", self.name).splitlines() if row]
        return next(row[0] for row in rows if mac in (None, row[-1]))


class IdleDomain(Domain):
    """A domain without disk that idles in its BIOS: a real lifecycle, cheaply.

    It ignores its power button: it ends by `destroy`. It has an interface for each pair of MAC
    and network, on which it is silent: a `Voice` may speak for it.
    """

    def __init__(
        self,
        host: Hypervisor,
        name: str,
        memory: int = 8,
        interfaces: Iterable[tuple[str, str]] = (),
    ) -> None:
        interfaces = tuple(interfaces)
        self.macs = tuple(mac for mac, _ in interfaces)
        silent = _INTERFACE.replace("</interface>", '  <rom enabled="no"/>\n    </interface>')
        xml = _DOMAIN.format(
            name=escape(name),
            memory=memory,
            boot="",
            channel="",
            interface="".join(silent.format(mac=m, network=escape(n)) for m, n in interfaces),
            console=console_path(name),
        )
        super().__init__(host, name, xml)


class DomainGuest(Domain):
    """A domain that boots Linux and runs a web server.

    Page `/` names the guest, page `/cgi-bin/peer` says "<peer> <name>". On TCP port 7 it is an
    echo server as `traffic` knows it, but that it gives 0.0.0.0 as the source it saw. Its guest
    agent tells its address. Once a second it fetches `/from/<name>` from the recorder on the LAN
    client, a connection of its own. `memory` is in MiB.
    """

    def __init__(  # noqa: PLR0913
        self,
        host: Hypervisor,
        name: str,
        address: IPv4Address,
        *,
        mac: str | None = None,
        memory: int = 96,
        network: str = "default",
    ) -> None:
        self.address = address
        self.mac = mac or mac_of(address)
        parts = image()
        command_line = (
            "console=ttyS0 quiet panic=-1 mitigations=off"
            f" lab_name={name}"
            f" lab_address={IPv4Interface((address, LIBVIRT_NETWORK.prefixlen))}"
            f" lab_gateway={LIBVIRT_GATEWAY.ip}"
            f" lab_recorder={LAN_CLIENT.ip}:{RECORDER_PORT}"
        )
        boot = _BOOT.format(
            kernel=escape(str(parts.kernel)),
            initramfs=escape(str(parts.initramfs)),
            command_line=escape(command_line),
        )
        interface = _INTERFACE.format(mac=self.mac, network=escape(network))
        xml = _DOMAIN.format(
            name=escape(name),
            memory=memory,
            boot=boot,
            interface=interface,
            channel=_AGENT,
            console=console_path(name),
        )
        super().__init__(host, name, xml)

    def page(self, path: str = "/", timeout: float = 3) -> str | None:
        """A page of the guest fetched by the host from the internal address, None if it fails."""
        url = f"http://{self.address}:{PAGE_PORT}{path}"
        fetched = self.host.run("curl", "-sf", "-m", str(timeout), url, check=False)
        return fetched.stdout.strip() if fetched.returncode == 0 else None

    def wait_until_up(self, timeout: float = 120) -> None:
        """Wait until its web server answers; on failure the error has its console."""
        try:
            wait_for(
                lambda: self.page(timeout=0.5) == self.name, timeout, f"{self.name} serves its page"
            )
        except AssertionError as error:
            raise CommandError(f"{error}\nconsole:\n{self.console()}") from error

    def console(self) -> str:
        """What it has printed to its serial console since its last start."""
        path = self.host.path(console_path(self.name))
        return path.read_text(errors="replace") if path.exists() else ""


def console_path(name: str) -> str:
    """Where, inside the host, a domain's serial console is written."""
    return f"/var/log/libvirt/{name}.console"
