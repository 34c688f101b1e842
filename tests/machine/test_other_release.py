"""nft of the other release in the same network, as a container may have it, beside the service."""

from pathlib import Path

from foreign_sets import TABLES
from installed import PORT
from lab import Answer, Machine, NamespaceGuest, NetworkOf, Suite, tcp
from lab.addresses import LAN_CLIENT, external
from running import Service, mapping
from vm_onetoone_nat.events import Event

_OTHER: dict[str, Suite] = {"12": "trixie", "13": "bookworm"}
"""By the version of the machine's Debian."""


def test_sets_of_the_other_release(
    machine: Machine, roots: dict[Suite, Path], service: Service, guest: NamespaceGuest
) -> None:
    """Whatever sets the other release has written, the service goes on, and each pass succeeds.

    libnftables 1.0.6, in Debian 12, crashes on sets that 1.1.3 has declared, and each write by it
    reads all of them.
    """
    version = machine.path("/etc/debian_version").read_text().partition(".")[0]
    nft = ("chroot", str(roots[_OTHER[version]]), "/usr/sbin/nft")
    network = NetworkOf(machine)
    before = service.property("MainPID"), service.property("NRestarts")
    failures = failed_passes(service)
    try:
        for table in TABLES:
            network.run(*nft, "-f", "-", input=table)
        service.configure(mapping(1), mapping(2, domain="idle"), mapping(3))
        service.reload()
        service.wait_for(external(3), "active")
        for command in (
            f"delete element inet vm_onetoone_nat external {{ {external(1)} }}",
            "add element ip set0 x { 10.0.0.7 }; delete table inet vm_onetoone_nat",
        ):
            done = network.run(*nft, command, check=False)
            # On Debian 13 our table has an owner, and nobody else may change it.
            assert (done.returncode != 0) == (version == "13"), done.stderr
            service.wait_until_converged()
        assert tcp(machine.lan, external(1), PORT) == Answer(LAN_CLIENT.ip, guest.name)
        diagnosed = service.command("diagnose", str(external(1)))
        assert diagnosed.returncode == 0, diagnosed.stdout + diagnosed.stderr
        assert (service.property("MainPID"), service.property("NRestarts")) == before
        assert failed_passes(service) == failures
    finally:
        tables = (table.split()[2] for table in TABLES)
        network.run(*nft, "; ".join(f"delete table ip {name}" for name in tables), check=False)


def failed_passes(service: Service) -> int:
    """How many failures of a pass the journal has."""
    return len(service.journal(f"MESSAGE_ID={Event.RECONCILE_FAILED.value.hex}"))
