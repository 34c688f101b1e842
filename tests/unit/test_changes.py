"""`plan` for a person: each write, and why it is to be made."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from fakes import FORWARD, FakeKernel, FakeLibvirt, FakeStore, laptop, running_guests
from lab.addresses import UPLINK, external, guest_name, internal
from vm_onetoone_nat.decide.reconcile import look, reconcile
from vm_onetoone_nat.model.configuration import Configuration
from vm_onetoone_nat.model.guests import DomainState
from vm_onetoone_nat.model.mapping import AllowedService, Mapping
from vm_onetoone_nat.report.changes import Change, changes, render_changes

GUEST = Mapping(external(1), "default", internal=internal(1), domain=guest_name(1))
RESTRICTED = Mapping(
    external(1),
    "default",
    internal=internal(1),
    domain=guest_name(1),
    allow=(AllowedService("tcp", 22, 22),),
)


def why(mapping: Mapping, libvirt: FakeLibvirt, kernel: FakeKernel) -> dict[str, str]:
    """The reason for each change."""
    seen = look(Configuration((mapping,)), libvirt, kernel, FakeStore())
    return {change.change: change.why for change in changes(seen)}


def test_first_installation() -> None:
    """From nothing to one guest: the table, the accept, and each part of the mapping in words."""
    seen = look(Configuration((RESTRICTED,)), running_guests(1), laptop(), FakeStore())
    assert render_changes(changes(seen)) == [
        "our table does not exist:",
        "+ table inet vm_onetoone_nat, mark 0x00100000",
        "el7-x86_64-101 gets 192.168.1.101:",
        "+ allow tcp 22-22 from 0.0.0.0/0 to 192.168.1.101",
        "+ dnat 192.168.1.101 to 192.168.122.101",
        "+ forward connections to 192.168.1.101, as allowed",
        "+ snat 192.168.122.101 to 192.168.1.101",
        "+ forward connections from 192.168.122.101",
        "+ drop packets to 192.168.1.101 that are not translated",
        "+ drop packets from 192.168.122.101 that are not translated",
        f"+ address 192.168.1.101/24 on {UPLINK}",
        "the uplink is the interface of the default route, or the configured one:",
        f"+ uplink {UPLINK}",
        "chain ip filter FORWARD would refuse guests:",
        "+ accept of mark 0x00100000 at the head of ip filter FORWARD",
    ]


def test_every_change_is_shown_once() -> None:
    """What is shown to a person is what a program gets."""
    found = changes(look(Configuration((GUEST,)), running_guests(1), laptop(), FakeStore()))
    shown = render_changes(found)
    assert sorted(line for line in shown if line[0] in "+-") == sorted(c.change for c in found)
    assert render_changes(()) == []
    assert render_changes([Change("+ a", "so"), Change("- b", "no"), Change("+ c", "so")]) == [
        *("so:", "+ a", "+ c"),
        *("no:", "- b"),
    ]


def off(libvirt: FakeLibvirt, _kernel: FakeKernel) -> None:
    libvirt.set_domain(guest_name(1), DomainState.OFF)


def not_forwarding(_libvirt: FakeLibvirt, kernel: FakeKernel) -> None:
    kernel.ip_forward = False


def no_accept(_libvirt: FakeLibvirt, kernel: FakeKernel) -> None:
    kernel.chains[FORWARD] = kernel.chains[FORWARD][1:]


def accept_elsewhere(_libvirt: FakeLibvirt, kernel: FakeKernel) -> None:
    rules = kernel.chains[FORWARD]
    kernel.chains[FORWARD] = [*rules[1:], rules[0]]


@pytest.mark.parametrize(
    ("change", "line", "reason"),
    [
        (
            off,
            f"- address {external(1)}/24 on {UPLINK}",
            "el7-x86_64-101 is inactive, domain 'el7-x86_64-101' is not running",
        ),
        (
            off,
            f"- connections of {external(1)} and {internal(1)}",
            "el7-x86_64-101 is inactive, domain 'el7-x86_64-101' is not running",
        ),
        (
            not_forwarding,
            "+ sysctl net.ipv4.ip_forward = 1",
            "without it the host forwards nothing",
        ),
        (
            no_accept,
            "+ accept of mark 0x00100000 at the head of ip filter FORWARD",
            "chain ip filter FORWARD would refuse guests",
        ),
        (
            accept_elsewhere,
            "+ accept of mark 0x00100000 at the head of ip filter FORWARD",
            "chain ip filter FORWARD would refuse guests",
        ),
    ],
)
def test_reasons(change: Callable[[FakeLibvirt, FakeKernel], None], line: str, reason: str) -> None:
    """What has changed since the last pass is the reason for what is to be written."""
    kernel, libvirt = laptop(), running_guests(1)
    reconcile(Configuration((GUEST,)), libvirt, kernel, FakeStore())
    assert why(GUEST, libvirt, kernel) == {}
    change(libvirt, kernel)
    assert why(GUEST, libvirt, kernel)[line] == reason


def test_mapping_that_is_gone() -> None:
    """What no mapping asks for goes for that reason."""
    kernel, libvirt = laptop(), running_guests(1)
    reconcile(Configuration((GUEST,)), libvirt, kernel, FakeStore())
    found = changes(look(Configuration(), libvirt, kernel, FakeStore()))
    reasons = {c.why for c in found if not c.change.startswith("- uplink")}
    assert reasons == {"no mapping needs it any more"}


def test_other_internal_address() -> None:
    """A guest at another address: what goes says where the guest is now."""
    kernel, libvirt = laptop(), running_guests(1)
    reconcile(Configuration((GUEST,)), libvirt, kernel, FakeStore())
    moved = Mapping(external(1), "default", internal=internal(2), domain=guest_name(1))
    assert why(moved, libvirt, kernel)[f"- dnat {external(1)} to {internal(1)}"] == (
        f"the mapping of {guest_name(1)} is {external(1)} to {internal(2)}"
    )


def test_table_that_was_changed() -> None:
    """A table with other rules than ours, or another mark, says which."""
    kernel, libvirt = laptop(), running_guests(1)
    reconcile(Configuration((GUEST,)), libvirt, kernel, FakeStore())
    found = changes(look(Configuration((GUEST,), fwmark=0x2), libvirt, kernel, FakeStore()))
    by_change = {c.change: c.why for c in found}
    assert by_change["+ table inet vm_onetoone_nat, mark 0x00000002"] == (
        "'settings.fwmark' has changed"
    )
    assert kernel.table is not None
    kernel.table = replace(kernel.table, intact=False)
    line = "+ table inet vm_onetoone_nat, mark 0x00100000"
    assert why(GUEST, libvirt, kernel)[line] == "another program changed our table"


def test_table_without_an_owner() -> None:
    """A table that is to get an owner, and one whose owner has ended, say why."""
    kernel, libvirt = laptop(), running_guests(1)
    reconcile(Configuration((GUEST,)), libvirt, kernel, FakeStore())
    kernel.persistent = True
    line = "+ table inet vm_onetoone_nat, mark 0x00100000"
    assert why(GUEST, libvirt, kernel)[line].startswith("our table has to have an owner")
    reconcile(Configuration((GUEST,)), libvirt, kernel, FakeStore())
    assert why(GUEST, libvirt, kernel) == {}
    assert kernel.table is not None
    kernel.table = replace(kernel.table, owned=False)
    assert why(GUEST, libvirt, kernel) == {
        "+ ownership of table inet vm_onetoone_nat": (
            "only its owner can change the table, and 'nft flush ruleset' leaves it alone"
        )
    }
