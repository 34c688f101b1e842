"""Fresh from the installer, and booted."""

from installed import BASH_COMPLETION, CHECKOUT, PAGES, PORT, check_imports
from lab import Answer, EchoServer, Lan, Machine, NamespaceGuest, tcp
from lab.addresses import LAN_CLIENT, external, internal
from running import UNIT, Service, mapping

LIBVIRT = ("libvirtd.service", "libvirtd.socket", "libvirtd-ro.socket", "libvirtd-admin.socket")


def test_installed(machine: Machine) -> None:
    """The system is up without a fault, and the unit waits for its configuration."""
    assert machine.failed_units() == []
    assert machine.systemctl("is-enabled", UNIT, check=False).strip() == "disabled"
    example = (CHECKOUT / "config.example.toml").read_text()
    assert machine.path("/etc/vm-onetoone-nat/config.toml").read_text() == example
    assert machine.run("vm-onetoone-nat", "--version").stdout.startswith("vm-onetoone-nat ")
    assert machine.run("vm-onetoone-nat", "check").returncode == 0
    assert [*machine.path("/usr/local/lib").glob("sysctl.d/*onetoone*")] == []
    for name in (
        *(f"man/{page}" for page in PAGES),
        *(BASH_COMPLETION, "zsh/site-functions/_vm-onetoone-nat"),
    ):
        assert machine.path(f"/usr/local/share/{name}").stat().st_size > 0


def test_modules(machine: Machine) -> None:
    """The installed copy has all modules of the checkout, and each can be imported."""
    check_imports(machine, "/opt/vm-onetoone-nat/bin/python3", "/opt/vm-onetoone-nat/lib")


def test_reboots(machine: Machine, lan: Lan) -> None:
    """Enabled once, it gives the LAN its guest after each boot, libvirt first or last."""
    service = Service(machine)
    service.configure(mapping(1))

    def check_guest() -> None:
        service.wait_for(external(1), "active")
        with NamespaceGuest(machine, "guest", internal(1)) as guest, EchoServer(guest, PORT):
            assert tcp(lan, external(1), PORT) == Answer(LAN_CLIENT.ip, "guest")

    service.systemctl("enable", "--now")
    check_guest()
    machine.reboot()
    assert service.property("ActiveState") == "active"
    check_guest()

    machine.systemctl("mask", *LIBVIRT)
    machine.reboot()
    assert service.property("ActiveState") == "active"
    assert service.property("StatusText") == "0 of 1 mappings active; libvirt cannot be reached"
    assert service.status()["libvirt"] == "disconnected"
    machine.systemctl("unmask", *LIBVIRT)
    machine.systemctl("start", "libvirtd.service")
    check_guest()
    assert service.property("StatusText") == "1 of 1 mappings active"
    service.systemctl("disable", "--now")
