"""The contract of the kernel side of a pass, on the fake and on the real kernel.

Each case is a function `contract_…` of a world. For the real kernel it is called in a child process
with a network namespace of its own, which looks like the scenario's laptop.
"""

import subprocess
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Protocol

import pytest
from fakes import FORWARD, FakeKernel, default_network, laptop, of, own_address
from lab.addresses import (
    HOST,
    LAN_CLIENT,
    LIBVIRT_BRIDGE,
    LIBVIRT_GATEWAY,
    UPLINK,
    external,
    internal,
)
from own_network import in_own_network
from vm_onetoone_nat.decide.desired import desire, mapping_elements
from vm_onetoone_nat.decide.host_writes import (
    AddAddress,
    ClearHairpin,
    DeleteAddress,
    EnableIpForward,
    FlushBypassing,
    FlushTranslated,
    SetHairpin,
)
from vm_onetoone_nat.decide.nft_writes import (
    AddElement,
    DeleteAccept,
    DeleteElement,
    InsertAccept,
    InstallTable,
    RemoveTable,
)
from vm_onetoone_nat.decide.plan import Plan, plan, removal
from vm_onetoone_nat.decide.sides import KernelSide
from vm_onetoone_nat.decide.writes import NftWrite, Write
from vm_onetoone_nat.errors import KernelError, TransactionRefused
from vm_onetoone_nat.kernel.arp import Arp
from vm_onetoone_nat.kernel.kernel import Kernel
from vm_onetoone_nat.model import nat_table
from vm_onetoone_nat.model.configuration import DEFAULT_FWMARK, Configuration
from vm_onetoone_nat.model.guests import Guests
from vm_onetoone_nat.model.host import Address, ChainName, Observed
from vm_onetoone_nat.model.mapping import AllowedService, Mapping
from vm_onetoone_nat.model.nat_table import Element, Table, Translation, element
from vm_onetoone_nat.model.store import Stored

MARK = DEFAULT_FWMARK
OTHER_MARK = 0x2
PORT = "vnet0"
"""A bridge port of a guest."""
UNPROBED = Configuration(conflict_detection=False)


class World(Protocol):
    """The laptop of the scenario, and what other programs do there."""

    @property
    def kernel(self) -> KernelSide: ...

    def restart(self) -> None:
        """The daemon's process is another one."""

    def insert_rule(self) -> None:
        """Somebody inserts a rule at the head of FORWARD."""

    def add_address(self, address: Address) -> None:
        """Somebody adds an address that is not ours, on the uplink."""

    def flush_ours(self) -> None:
        """Somebody deletes our addresses."""

    def delete_table(self) -> None:
        """Somebody deletes our table."""

    def change_table(self) -> None:
        """Somebody adds a rule to our table."""

    def delete_default_route(self) -> None:
        """The default route goes."""

    def forbid_forwarding(self) -> None:
        """Somebody switches net.ipv4.ip_forward off."""


class Fake:
    def __init__(self) -> None:
        self.kernel: FakeKernel = laptop()

    def restart(self) -> None:
        self.kernel.forget()

    def insert_rule(self) -> None:
        self.kernel.chains[FORWARD].insert(0, self.kernel.new_rule())

    def add_address(self, address: Address) -> None:
        self.kernel.addresses.append(address)

    def flush_ours(self) -> None:
        self.kernel.addresses = [a for a in self.kernel.addresses if not a.owned]

    def delete_table(self) -> None:
        self.kernel.delete_table()

    def change_table(self) -> None:
        assert self.kernel.table is not None
        self.kernel.table = replace(self.kernel.table, intact=False)

    def delete_default_route(self) -> None:
        self.kernel.default_route = None

    def forbid_forwarding(self) -> None:
        self.kernel.ip_forward = False


class Real:
    """In the network namespace of this process."""

    def __init__(self, runtime: Path) -> None:
        for command in (
            f"ip link add {UPLINK} type veth peer name lan",
            f"ip link add {LIBVIRT_BRIDGE} type bridge",
            f"ip link add {PORT} type veth peer name guest",
            f"ip link set {PORT} master {LIBVIRT_BRIDGE}",
            *(f"ip link set {n} up" for n in (UPLINK, "lan", LIBVIRT_BRIDGE, PORT, "guest")),
            f"ip address add {HOST} broadcast + dev {UPLINK}",
            f"ip address add {LIBVIRT_GATEWAY} broadcast + dev {LIBVIRT_BRIDGE}",
            f"ip route add default via {LAN_CLIENT.ip}",
            "sysctl -q net.ipv4.ip_forward=1",
            "iptables -A FORWARD -s 10.9.9.9 -j REJECT",
            "iptables -A FORWARD -s 10.9.9.8 -j REJECT",
        ):
            _run(command)
        self._runtime = runtime
        self.kernel = self._new()

    def close(self) -> None:
        self.kernel.close()

    def restart(self) -> None:
        self.kernel.close()
        self.kernel = self._new()

    def insert_rule(self) -> None:
        _run("iptables -I FORWARD -s 10.9.9.7 -j REJECT")

    def add_address(self, address: Address) -> None:
        _run(f"ip address add {address.interface} broadcast + dev {address.ifname}")

    def flush_ours(self) -> None:
        for address in self.kernel.observe(UNPROBED).addresses:
            if address.owned:
                _run(f"ip address delete {address.interface} dev {address.ifname}")

    def delete_table(self) -> None:
        _run("nft delete table inet vm_onetoone_nat")

    def change_table(self) -> None:
        _run("nft add rule inet vm_onetoone_nat forward counter")

    def delete_default_route(self) -> None:
        _run("ip route delete default")

    def forbid_forwarding(self) -> None:
        _run("sysctl -q net.ipv4.ip_forward=0")

    def _new(self) -> Kernel:
        # Its thread is not started: nothing is probed here. With it, flushes are remembered.
        return Kernel(self._runtime, Arp(lambda _trigger: None, self._runtime / "claims.json"))


def _run(command: str) -> None:
    done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"


@dataclass(frozen=True)
class Holds:
    """The part of what is observed that plans change, without the kernel's own numbers."""

    addresses: tuple[Address, ...] = ()
    table: Table | None = None
    accepts: tuple[tuple[ChainName, tuple[tuple[int, bool], ...]], ...] = ((FORWARD, ()),)
    hairpins: frozenset[str] = frozenset()
    hairpins_set: frozenset[str] = frozenset()
    flushed: frozenset[Translation] = frozenset()
    ip_forward: bool = True


def holds(world: World) -> Holds:
    """What the kernel holds; the host's own addresses are the first, as before."""
    seen = world.kernel.observe(UNPROBED)
    first = {a.ifname: a.interface for a in reversed(seen.addresses) if not a.owned}
    assert first == {UPLINK: HOST, LIBVIRT_BRIDGE: LIBVIRT_GATEWAY}
    assert seen.flushed is not None
    return Holds(
        tuple(a for a in seen.addresses if a.owned),
        seen.table,
        tuple((c.name, tuple((r.fwmark, r.at_head) for r in c.accepts)) for c in seen.foreign),
        seen.hairpins,
        seen.hairpins_set,
        seen.flushed,
        seen.ip_forward,
    )


def handle(world: World) -> int:
    """The handle of the one accept in FORWARD."""
    (chain,) = world.kernel.observe(UNPROBED).foreign
    (rule,) = chain.accepts
    return rule.handle


def guest(n: int) -> Mapping:
    return Mapping(external(n), "default", internal=internal(n))


def elements(*numbers: int) -> tuple[Element, ...]:
    found = {e for n in numbers for e in mapping_elements(guest(n))}
    return tuple(sorted(found))


UPLINK_ELEMENT = element(nat_table.UPLINK, (UPLINK,))
HAIRPIN_ELEMENT = element(nat_table.HAIRPIN, (PORT,))
BOTH = frozenset({*elements(1, 2), UPLINK_ELEMENT, HAIRPIN_ELEMENT})
ONE_AND_TWO = (own_address(external(1)), own_address(external(2)))
PAIRS = (Translation(external(1), internal(1)), Translation(external(2), internal(2)))
OUTSIDE_NFT: tuple[Write, ...] = (
    SetHairpin(PORT),
    *map(AddAddress, ONE_AND_TWO),
    *(FlushBypassing(pair, host_sources=frozenset({HOST.ip})) for pair in PAIRS),
)
INSTALLED = Plan(
    (
        InstallTable(MARK),
        *map(AddElement, sorted(BOTH)),
        InsertAccept(FORWARD, MARK),
        *OUTSIDE_NFT,
    )
)
INSTALLED_HOLDS = Holds(
    ONE_AND_TWO,
    Table(intact=True, elements=BOTH, fwmark=MARK),
    ((FORWARD, ((MARK, True),)),),
    frozenset({PORT}),
    frozenset({PORT}),
    frozenset(PAIRS),
)
NOTHING = Holds()


def contract_install_and_remove(world: World) -> None:
    """A plan is held whole, also applied twice; after a removal nothing of ours is left."""
    assert holds(world) == NOTHING
    world.kernel.apply(INSTALLED)
    assert holds(world) == INSTALLED_HOLDS
    world.kernel.apply(Plan(OUTSIDE_NFT))
    assert holds(world) == INSTALLED_HOLDS
    for _ in range(2):
        world.kernel.apply(removal(world.kernel.observe(UNPROBED), MARK))
        assert holds(world) == NOTHING


def contract_change(world: World) -> None:
    """Elements, an address and the mark change in one plan, and the rest stays."""
    world.kernel.apply(INSTALLED)
    gone = set(elements(1)) - set(elements(2))
    world.kernel.apply(
        Plan(
            (
                DeleteAddress(ONE_AND_TWO[0]),
                ClearHairpin(PORT),
                *map(DeleteElement, (*sorted(gone), HAIRPIN_ELEMENT)),
                FlushTranslated(PAIRS[0]),
            )
        )
    )
    left = frozenset({*elements(2), UPLINK_ELEMENT})
    changed = replace(
        INSTALLED_HOLDS,
        addresses=ONE_AND_TWO[1:],
        table=Table(intact=True, elements=left, fwmark=MARK),
        hairpins=frozenset(),
        hairpins_set=frozenset(),
        flushed=frozenset(PAIRS[1:]),
    )
    assert holds(world) == changed
    # Installed anew, the table has what is added with it, and nothing of before.
    world.kernel.apply(Plan((InstallTable(OTHER_MARK), *map(AddElement, elements(3)))))
    table = Table(intact=True, elements=frozenset(elements(3)), fwmark=OTHER_MARK)
    assert holds(world) == replace(changed, table=table)


def contract_accept(world: World) -> None:
    """An accept is inserted at the head, is seen when it is not there, and deleted by handle."""
    world.kernel.apply(INSTALLED)
    world.insert_rule()
    buried = ((FORWARD, ((MARK, False),)),)
    assert holds(world) == replace(INSTALLED_HOLDS, accepts=buried)
    world.kernel.apply(Plan((DeleteAccept(FORWARD, handle(world)), InsertAccept(FORWARD, MARK))))
    assert holds(world) == INSTALLED_HOLDS
    world.kernel.apply(Plan((DeleteAccept(FORWARD, handle(world)),)))
    assert holds(world) == replace(INSTALLED_HOLDS, accepts=((FORWARD, ()),))


def contract_restart(world: World) -> None:
    """Another process sees the same, but neither set the hairpin itself nor flushed."""
    world.kernel.apply(INSTALLED)
    world.restart()
    known = replace(INSTALLED_HOLDS, hairpins_set=frozenset(), flushed=frozenset())
    assert holds(world) == known
    world.kernel.apply(removal(world.kernel.observe(UNPROBED), MARK))
    assert holds(world) == NOTHING


def contract_refused(world: World) -> None:
    """Of a refused transaction nothing is done, and nothing that comes after it in the plan.

    What comes before it is done.
    """
    world.kernel.apply(INSTALLED)
    world.forbid_forwarding()
    after = replace(INSTALLED_HOLDS, addresses=ONE_AND_TWO[1:], flushed=frozenset(PAIRS[1:]))
    stray = element(nat_table.OUTBOUND, ("203.0.113.9",))
    second = element(nat_table.EXTERNAL, (str(external(1)),), "10.1.1.1")
    transactions: tuple[tuple[NftWrite, ...], ...] = (
        (DeleteElement(stray), *map(AddElement, elements(3))),
        (*map(AddElement, elements(3)), AddElement(second)),
        (RemoveTable(), DeleteAccept(FORWARD, 4242)),
        (InstallTable(OTHER_MARK), InsertAccept(ChainName("ip", "filter", "NOWHERE"), MARK)),
    )
    for transaction in transactions:
        planned = Plan(
            (
                EnableIpForward(),
                DeleteAddress(ONE_AND_TWO[0]),
                *transaction,
                AddAddress(own_address(external(3))),
                FlushTranslated(PAIRS[0]),
            )
        )
        with pytest.raises(TransactionRefused):
            world.kernel.apply(planned)
        assert holds(world) == after, transaction


def contract_failure(world: World) -> None:
    """An address that cannot be added is an error, and stops no other write."""
    lost = replace(own_address(external(9)), ifname="nowhere")
    with pytest.raises(KernelError, match="nowhere"):
        world.kernel.apply(Plan((AddAddress(lost), *INSTALLED.writes)))
    assert holds(world) == INSTALLED_HOLDS


def contract_missing(world: World) -> None:
    """What is to be deleted and is gone already is no error."""
    gone = Plan(
        (
            *map(DeleteAddress, (*ONE_AND_TWO, replace(ONE_AND_TWO[0], ifname="nowhere"))),
            *map(ClearHairpin, (PORT, "vnet9")),
            *map(FlushTranslated, PAIRS),
        )
    )
    world.kernel.apply(gone)
    assert holds(world) == NOTHING


def contract_others_address(world: World) -> None:
    """An address that somebody else added is not ours, nor primary, and stays."""
    other = replace(own_address(external(7)), owned=False)
    world.add_address(other)
    world.kernel.apply(INSTALLED)
    assert holds(world) == INSTALLED_HOLDS
    world.kernel.apply(removal(world.kernel.observe(UNPROBED), MARK))
    seen = world.kernel.observe(UNPROBED)
    assert [a for a in seen.addresses if a.ifname == UPLINK] == [
        Address(UPLINK, HOST, HOST.network.broadcast_address, primary=True),
        other,
    ]


def contract_table_of_others(world: World) -> None:
    """A table that somebody changed is not intact; one that somebody deleted is None."""
    world.kernel.apply(INSTALLED)
    world.change_table()
    seen = world.kernel.observe(UNPROBED)
    assert seen.table is not None
    assert not seen.table.intact
    assert seen.table.elements == BOTH
    world.kernel.apply(Plan((InstallTable(MARK), *map(AddElement, BOTH))))
    assert holds(world) == INSTALLED_HOLDS
    world.delete_table()
    assert holds(world) == replace(INSTALLED_HOLDS, table=None)


def contract_forwarding(world: World) -> None:
    """net.ipv4.ip_forward is observed, and turned on by a plan that says so."""
    world.forbid_forwarding()
    assert holds(world) == replace(NOTHING, ip_forward=False)
    world.kernel.apply(Plan((EnableIpForward(),)))
    assert holds(world) == NOTHING


def contract_uplink(world: World) -> None:
    """The uplink is the configured interface, or that of the default route, or of our addresses."""

    def uplink(configured: str | None = None) -> str | None:
        found = world.kernel.observe(replace(UNPROBED, uplink=configured)).uplink
        return found.name if found is not None else None

    assert uplink() == UPLINK
    assert uplink(LIBVIRT_BRIDGE) == LIBVIRT_BRIDGE
    assert uplink("nowhere") is None
    world.kernel.apply(INSTALLED)
    world.delete_default_route()
    assert uplink() == UPLINK
    world.flush_ours()
    assert uplink() is None


CONTRACT: dict[str, Callable[[World], None]] = {
    each.__name__: each
    for each in (
        contract_install_and_remove,
        contract_change,
        contract_accept,
        contract_restart,
        contract_refused,
        contract_failure,
        contract_missing,
        contract_others_address,
        contract_table_of_others,
        contract_forwarding,
        contract_uplink,
    )
}


def child_contract(name: str) -> None:
    with tempfile.TemporaryDirectory() as runtime, closing(Real(Path(runtime))) as world:
        CONTRACT[name](world)


@pytest.mark.parametrize("name", CONTRACT)
def test_fake(name: str) -> None:
    """The fake kernel keeps the contract."""
    CONTRACT[name](Fake())


@pytest.mark.parametrize("name", CONTRACT)
def test_kernel(name: str) -> None:
    """The real kernel keeps the same contract, by the same assertions."""
    in_own_network(child_contract, name)


STEPS = 60
EVENTS = ("insert_rule", "flush_ours", "delete_table", "change_table", "forbid_forwarding")


def random_configuration(random: Random) -> Configuration:
    services = (AllowedService("icmp"), AllowedService("tcp", 22, 80))
    mappings = tuple(
        replace(guest(n), allow=random.choice([None, services]))
        for n in range(1, 7)
        if random.random() < 0.6
    )
    return replace(UNPROBED, mappings=mappings, fwmark=random.choice([MARK, OTHER_MARK]))


def planned(configuration: Configuration, seen: Observed) -> Plan:
    guests = Guests(networks=(default_network(),))
    return plan(seen, desire(configuration, guests, seen, Stored()))


def child_cycles(seed: str) -> None:
    random = Random(int(seed))
    with tempfile.TemporaryDirectory() as runtime, closing(Real(Path(runtime))) as real_world:
        worlds: tuple[World, ...] = (Fake(), real_world)
        for _ in range(STEPS):
            event = random.choice([*EVENTS, "restart", ""])
            configuration = random_configuration(random)
            for world in worlds:
                seen = world.kernel.observe(configuration)
                if event and (seen.table is not None or not event.endswith("_table")):
                    getattr(world, event)()
                world.kernel.apply(planned(configuration, world.kernel.observe(configuration)))
                assert not planned(configuration, world.kernel.observe(configuration)), event
            fake, real = map(holds, worlds)
            assert fake == real, event
            fake_plan, real_plan = (
                removal(world.kernel.observe(configuration), configuration.fwmark)
                for world in worlds
            )
            assert of(fake_plan, DeleteAddress) == of(real_plan, DeleteAddress)


def test_fake_and_kernel_agree() -> None:
    """In any sequence of configurations, events and passes both hold the same after each pass."""
    in_own_network(child_cycles, "1")
