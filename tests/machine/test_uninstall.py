"""Upgrading and uninstalling, at the end of a machine's life."""

import re

from installed import INSTALL, PORT
from lab import Answer, Lan, Machine, NamespaceGuest, Stream, tcp
from lab.addresses import LAN_CLIENT, external
from running import UNIT, Service, mapping

PLACES = ("/etc", "/opt", "/usr/local", "/var/lib", "/run/vm-onetoone-nat")


def files(machine: Machine) -> set[str]:
    """Everything below the places that an installation writes to."""
    listed = machine.run("find", *PLACES, "-xdev", check=False).stdout.splitlines()
    # What libvirt and systemd write by themselves.
    return {path for path in listed if not re.match(r"/var/lib/(libvirt|systemd|private)", path)}


def test_upgrade_and_uninstall(machine: Machine, lan: Lan, guest: NamespaceGuest) -> None:
    """An upgrade loses no packet; uninstalling leaves configuration and state, or nothing."""
    service = Service(machine)
    service.systemctl("stop")
    service.configure(mapping(1))
    installed = files(machine)
    before = machine.listing()
    service.systemctl("enable", "--now")
    service.wait_for(external(1), "active")
    first = service.property("MainPID")
    # Version 0.1.0 turned forwarding on at boot.
    sysctl = machine.path("/usr/local/lib/sysctl.d/50-vm-onetoone-nat.conf")
    sysctl.parent.mkdir(parents=True, exist_ok=True)
    sysctl.write_text("net.ipv4.ip_forward = 1\n")
    with Stream(lan, external(1), PORT, guest, rate=1000) as stream:
        machine.run(INSTALL)
        service.wait_until_converged()
        assert stream.finish().whole
    assert not sysctl.exists()
    sysctl.parent.rmdir()
    assert service.property("MainPID") != first
    config = machine.path(service.config)
    kept = config.read_text()
    assert str(external(1)) in kept

    machine.run(INSTALL, "--uninstall")
    assert machine.listing() == before
    assert config.read_text() == kept
    assert {path for path in files(machine) if "onetoone" in path} == {
        "/etc/vm-onetoone-nat",
        "/etc/vm-onetoone-nat/conf.d",
        "/etc/vm-onetoone-nat/config.toml",
        "/var/lib/vm-onetoone-nat",
    }
    assert machine.run("getent", "passwd", "vm-onetoone-nat", check=False).returncode != 0
    assert machine.systemctl("list-unit-files", "--no-legend", UNIT, check=False).strip() == ""

    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/root/wheels"}
    machine.run(INSTALL, env=offline)
    assert config.read_text() == kept
    assert files(machine) == installed
    service.systemctl("enable", "--now")
    service.wait_for(external(1), "active")
    assert tcp(lan, external(1), PORT) == Answer(LAN_CLIENT.ip, "guest")

    machine.run(INSTALL, "--uninstall", "--purge")
    assert machine.listing() == before
    assert [path for path in files(machine) if "onetoone" in path] == []
    assert machine.failed_units() == []
