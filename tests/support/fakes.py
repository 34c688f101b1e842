"""The kernel, libvirt and the store in memory: working models of what a pass needs, not mocks.

The kernel keeps everything that `Observed` shows, refuses what nftables refuses, and takes a
transaction whole or not at all. All satisfy the protocols of `reconcile`.
"""

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Interface
from itertools import groupby
from typing import Any

from lab.addresses import HOST, LIBVIRT_BRIDGE, LIBVIRT_GATEWAY, UPLINK, guest_name
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
    AdoptTable,
    DeleteAccept,
    DeleteElement,
    InsertAccept,
    InstallTable,
    RemoveTable,
)
from vm_onetoone_nat.decide.plan import Plan
from vm_onetoone_nat.decide.uplink import choose
from vm_onetoone_nat.decide.writes import (
    About,
    NftWrite,
    StoreWrite,
    Write,
    WritesFailed,
    depending,
)
from vm_onetoone_nat.errors import (
    KernelError,
    LibvirtUnavailable,
    StoreError,
    TransactionRefused,
)
from vm_onetoone_nat.model.configuration import Configuration
from vm_onetoone_nat.model.desired import Desired
from vm_onetoone_nat.model.guests import Domain, DomainState, Guests, Network
from vm_onetoone_nat.model.host import (
    AcceptRule,
    Address,
    ChainName,
    ForeignChain,
    Neighbour,
    Observed,
    Unavailable,
)
from vm_onetoone_nat.model.links import DefaultRoute, Hop, Link
from vm_onetoone_nat.model.nat_table import CONTAINERS, HAIRPIN, Element, Table, Translation
from vm_onetoone_nat.model.store import Allocation, Stored

FORWARD = ChainName("ip", "filter", "FORWARD")
LIBVIRT_FORWARD = ChainName("ip", "libvirt_network", "forward")


class Crash(BaseException):
    """The daemon's process ended in the middle of its writes."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of a foreign chain; `fwmark` None for one that accepts no mark bit."""

    handle: int
    fwmark: int | None = None


@dataclass(frozen=True, slots=True)
class NotOurs:
    """All that the daemon must leave as it is, in the kernel's order where order counts."""

    addresses: tuple[Address, ...]
    chains: tuple[tuple[ChainName, tuple[Rule, ...]], ...]
    hairpins: frozenset[str]


class FakeKernel:
    """One network namespace.

    `refuse` has external addresses whose elements nftables does not take, `fail` addresses that
    the kernel does not add. `persistent` is whether nftables knows tables with an owner; while
    there is a `rival`, ours belongs to another process. `writes` counts every write that got
    through, `applied` has the plans as they came in. With `crash_after` a number, the process ends
    after that many writes more.
    """

    def __init__(self, *addresses: Address) -> None:
        self.links = {UPLINK, LIBVIRT_BRIDGE}
        self.default_route: str | None = UPLINK
        self.addresses: list[Address] = list(addresses)
        self.table: Table | None = None
        self.chains: dict[ChainName, list[Rule]] = {}
        self.ports: dict[IPv4Address, str] = {}
        self.hairpins: set[str] = set()
        self.hairpins_by_us: set[str] = set()
        self.hairpins_set: set[str] = set()
        self.bridge_netfilter = False
        self.ip_forward = True
        self.squatters: dict[IPv4Address, str] = {}
        self.probed: frozenset[IPv4Address] = frozenset()
        self.flushed: set[Translation] = set()
        self.neighbours: list[Neighbour] = []
        self.routers: set[IPv4Address] = set()
        self.refuse: set[IPv4Address] = set()
        self.fail: set[IPv4Address] = set()
        self.persistent = False
        self.rival = False
        self.crash_after: int | None = None
        self.writes = 0
        self.applied: list[Plan] = []
        self._handle = 1000

    def observe(self, configuration: Configuration, macs: Set[str] = frozenset()) -> Observed:
        addresses, (links, routes) = self._addresses_listed(), self._links_and_routes()
        ports = self.ports if self.bridge_netfilter else {}
        return Observed(
            uplink=choose(configuration, links, routes, addresses),
            addresses=addresses,
            table=self.table,
            foreign=tuple(self._chain_listed(name) for name in sorted(self.chains)),
            ports=tuple(ports.items()),
            hairpins=frozenset(self.hairpins),
            hairpins_set=frozenset(self.hairpins_set),
            bridge_netfilter=self.bridge_netfilter,
            ip_forward=self.ip_forward,
            unavailable=tuple(
                Unavailable(a, mac if a in self.probed else None)
                for a, mac in sorted(self.squatters.items())
            ),
            links=links,
            routes=routes,
            neighbours=tuple(self.neighbours),
            persistent=self.persistent,
            flushed=frozenset(self.flushed),
        )

    def probe(self, configuration: Configuration, seen: Observed, desired: Desired) -> None:
        """Every address but those of `squatters` is found free at once."""
        self.probed = desired.wanted

    def apply(self, plan: Plan) -> None:
        self.applied.append(plan)
        failures: list[str] = []
        failed: set[Write] = set()
        self.flushed.difference_update(of(plan, FlushBypassing))
        here = [write for write in plan.writes if not isinstance(write, StoreWrite)]
        for one_by_one, group in groupby(here, lambda w: not isinstance(w, NftWrite)):
            for writes in [(w,) for w in group] if one_by_one else [tuple(group)]:
                hindered = depending(writes, failed)
                failed |= hindered
                possible = [write for write in writes if write not in hindered]
                try:
                    if one_by_one:
                        self._apply_each(possible)
                    else:
                        self.transact([write for write in possible if isinstance(write, NftWrite)])
                except TransactionRefused:
                    raise
                except KernelError as error:
                    failures.append(str(error))
                    failed |= set(possible)
        if failures:
            raise WritesFailed("; ".join(failures), frozenset(failed))

    def _apply_each(self, writes: Iterable[Write]) -> None:
        for write in writes:
            self._apply(write)

    def _apply(self, write: Write) -> None:
        match write:
            case EnableIpForward():
                self._write()
                self.ip_forward = True
            case DeleteAddress():
                self._delete_address(write.address)
            case ClearHairpin():
                self._write()
                self.hairpins.discard(write.port)
                self.hairpins_by_us.discard(write.port)
                self.hairpins_set.discard(write.port)
            case SetHairpin():
                self._write()
                if write.port not in self.hairpins:
                    self.hairpins_by_us.add(write.port)
                self.hairpins.add(write.port)
                self.hairpins_set.add(write.port)
            case AddAddress():
                self._add_address(write.address)
            case FlushTranslated():
                self.flushed.discard(write.translation)
            case FlushBypassing():
                self._write()
                self.flushed.add(write.translation)
            case _:
                raise TypeError(write)

    def transact(self, writes: Sequence[NftWrite]) -> None:
        """One nftables transaction, as the kernel takes it: in order, and whole or not at all."""
        table, chains = self.table, {name: list(rules) for name, rules in self.chains.items()}
        if self.rival and any(not isinstance(w, DeleteAccept | InsertAccept) for w in writes):
            raise _refused("the table belongs to another process")
        for write in writes:
            match write:
                case AdoptTable() | RemoveTable() | InstallTable():
                    table = _table_after(write, table)
                case DeleteAccept():
                    if all(rule.handle != write.handle for rule in chains.get(write.chain, ())):
                        raise _refused(f"no rule {write.handle} in {write.chain}")
                    rules = chains[write.chain]
                    chains[write.chain] = [rule for rule in rules if rule.handle != write.handle]
                case InsertAccept():
                    if write.chain not in chains:
                        raise _refused(f"no chain {write.chain}")
                    chains[write.chain].insert(0, self.new_rule(write.fwmark))
                case DeleteElement() | AddElement():
                    if table is None:
                        raise _refused("no such table")
                case _:
                    raise TypeError(write)
        if table is not None:
            table = replace(table, elements=self._elements(table, writes))
        self._write()
        self.table, self.chains = table, chains

    def new_rule(self, fwmark: int | None = None) -> Rule:
        """A rule with a handle of its own, to be put into `chains`."""
        self._handle += 1
        return Rule(self._handle, fwmark)

    def delete_table(self) -> None:
        """Somebody deletes our table, and with it the memory of whose hairpin flags are whose.

        The process that set them still knows.
        """
        self.table = None
        self.hairpins_by_us &= self.hairpins_set

    def flush_ruleset(self) -> None:
        """Somebody flushes the ruleset, without a table that has an owner."""
        self.chains.clear()
        if self.table is not None and not (self.table.persistent and self.table.owned):
            self.delete_table()

    def forget(self) -> None:
        """The process is another one, and knows what our table records."""
        if self.table is not None and self.table.persistent:
            self.table = replace(self.table, owned=False)
        self.probed = frozenset()
        self.flushed.clear()
        self.hairpins_set.clear()
        self.hairpins_by_us &= {e.key[0] for e in self.elements() if e.container is HAIRPIN}

    def remove_link(self, name: str) -> None:
        """An interface goes, with its addresses and the default route through it."""
        self.links.discard(name)
        self.addresses = [a for a in self.addresses if a.ifname != name]
        if self.default_route == name:
            self.default_route = None

    def elements(self) -> frozenset[Element]:
        return frozenset() if self.table is None else self.table.elements

    def owned(self) -> frozenset[Address]:
        return frozenset(a for a in self.addresses if a.owned)

    def accepts(self, fwmark: int) -> dict[ChainName, list[int]]:
        """The positions in each foreign chain at which this mark bit is accepted."""
        return {
            name: [i for i, rule in enumerate(rules) if rule.fwmark == fwmark]
            for name, rules in self.chains.items()
        }

    def not_ours(self, marks: Iterable[int]) -> NotOurs:
        """Everything but what is ours, where `marks` are the mark bits that are."""
        ours = frozenset(marks)
        return NotOurs(
            addresses=tuple(a for a in self._addresses_listed() if not a.owned),
            chains=tuple(
                (name, tuple(rule for rule in rules if rule.fwmark not in ours))
                for name, rules in sorted(self.chains.items())
            ),
            hairpins=frozenset(self.hairpins - self.hairpins_by_us),
        )

    def _elements(self, table: Table, writes: Sequence[NftWrite]) -> frozenset[Element]:
        elements = set(table.elements)
        for write in writes:
            if isinstance(write, DeleteElement):
                if write.element not in elements:
                    raise _refused(f"no element {write.element}")
                elements.remove(write.element)
            elif isinstance(write, AddElement):
                self._check(write.element, elements)
                elements.add(write.element)
        return frozenset(elements)

    def _check(self, element: Element, elements: set[Element]) -> None:
        assert element.container in CONTAINERS, f"our table has no {element.container.name}"
        if any(str(external) in str(element).split() for external in self.refuse):
            raise _refused(f"element {element} is not to the kernel's liking")
        if any(
            e.container is element.container and e.key == element.key and e != element
            for e in elements
        ):
            raise _refused(f"another element has the key of {element}")

    def _addresses_listed(self) -> tuple[Address, ...]:
        listed = []
        with_primary: set[str] = set()
        for address in self.addresses:
            primary = not address.owned and address.ifname not in with_primary
            listed.append(replace(address, primary=primary))
            if primary:
                with_primary.add(address.ifname)
        return tuple(listed)

    def _links_and_routes(self) -> tuple[tuple[Link, ...], tuple[DefaultRoute, ...]]:
        """The interface of the default route has number 1, whether it exists or not."""
        names = sorted(self.links, key=lambda name: (name != self.default_route, name))
        first = 1 if self.default_route in self.links else 2
        links = tuple(Link(number, name) for number, name in enumerate(names, first))
        if self.default_route is None:
            return links, ()
        hops = tuple(Hop(1, router) for router in sorted(self.routers)) or (Hop(1, None),)
        return links, (DefaultRoute(0, hops),)

    def _chain_listed(self, name: ChainName) -> ForeignChain:
        return ForeignChain(
            name,
            tuple(
                AcceptRule(rule.handle, rule.fwmark, at_head=position == 0)
                for position, rule in enumerate(self.chains[name])
                if rule.fwmark is not None
            ),
        )

    def _add_address(self, address: Address) -> None:
        if address.ifname not in self.links or address.interface.ip in self.fail:
            raise KernelError(f"address {address} could not be added")
        self._write()
        if not any(_same_address(a, address) for a in self.addresses):
            self.addresses.append(address)

    def _delete_address(self, address: Address) -> None:
        found = next((a for a in self.addresses if _same_address(a, address)), None)
        if found is None:
            return
        self._write()
        self.addresses = [a for a in self.addresses if a is not found]

    def _write(self) -> None:
        if self.crash_after is not None:
            if self.crash_after == 0:
                self.crash_after = None
                raise Crash
            self.crash_after -= 1
        self.writes += 1


class FakeLibvirt:
    """libvirt with domains and networks to be started and stopped."""

    def __init__(self, guests: Guests | None = None) -> None:
        self.guests = Guests() if guests is None else guests
        self.reachable = True
        self.known: Guests | None = None

    def observe(self) -> Guests:
        if self.reachable:
            self.known = self.guests
        elif self.known is None:
            raise LibvirtUnavailable("libvirt is not connected")
        else:
            return replace(self.known, current=False)
        return self.guests

    def set_domain(self, name: str, state: DomainState) -> None:
        """A domain of that name, known from now on, is in that state."""
        others = tuple(d for d in self.guests.domains if d.name != name)
        self.guests = replace(self.guests, domains=(*others, domain(name, state)))

    def undefine(self, name: str) -> None:
        """libvirt forgets a domain."""
        known = tuple(d for d in self.guests.domains if d.name != name)
        self.guests = replace(self.guests, domains=known)

    def set_network(self, active: bool) -> None:
        """The network `default` is started or stopped."""
        self.guests = replace(self.guests, networks=(default_network(active),))


class FakeStore:
    """What is remembered between runs. While it is `full` nothing can be written."""

    def __init__(self) -> None:
        self.written: frozenset[Allocation] = frozenset()
        self.full = False
        self._unwritten: frozenset[Allocation] | None = None

    def observe(self) -> Stored:
        if self._unwritten is not None:
            return Stored(self._unwritten, recorded=False)
        return Stored(self.written)

    def record(self, allocations: frozenset[Allocation]) -> None:
        self._unwritten = allocations
        if self.full:
            raise StoreError("the store cannot be written")
        self.written, self._unwritten = allocations, None

    def forget(self) -> None:
        """The process is another one: what could not be written is lost."""
        self._unwritten = None


def domain(name: str, state: DomainState = DomainState.RUNNING) -> Domain:
    """A domain with a UUID that follows from its name."""
    digits = "".join(c for c in name if c.isdigit()).zfill(12)[-12:]
    return Domain(name, f"00000000-0000-4000-8000-{digits}", state)


def default_network(active: bool = True) -> Network:
    """libvirt's network `default`."""
    return Network("default", active, LIBVIRT_BRIDGE, (LIBVIRT_GATEWAY,))


def laptop() -> FakeKernel:
    """The host of the scenario before the daemon: its own addresses, libvirt's rules."""
    kernel = FakeKernel(
        Address(UPLINK, HOST, HOST.network.broadcast_address),
        Address(LIBVIRT_BRIDGE, LIBVIRT_GATEWAY, LIBVIRT_GATEWAY.network.broadcast_address),
    )
    kernel.chains[FORWARD] = [kernel.new_rule(), kernel.new_rule()]
    return kernel


def running_guests(*numbers: int) -> FakeLibvirt:
    """libvirt with the network `default` and these guests running."""
    libvirt = FakeLibvirt(Guests(networks=(default_network(),)))
    for number in numbers:
        libvirt.set_domain(guest_name(number), DomainState.RUNNING)
    return libvirt


def observed_on(ifname: str, *addresses: Address, **more: Any) -> Observed:
    """These addresses, on a host whose default route is through that interface; and more facts."""
    others = sorted({address.ifname for address in addresses} - {ifname})
    links = tuple(Link(number, name) for number, name in enumerate((ifname, *others), 1))
    routes = (DefaultRoute(0, (Hop(1, None),)),)
    uplink = choose(Configuration(), links, routes, addresses)
    return Observed(uplink, addresses, links=links, routes=routes, **more)


def own_address(ip: IPv4Address, prefixlen: int = 24, ifname: str = UPLINK) -> Address:
    """An address as the daemon adds it."""
    interface = IPv4Interface((ip, prefixlen))
    broadcast = interface.network.broadcast_address if prefixlen < 31 else None
    return Address(ifname, interface, broadcast, owned=True)


def _same_address(one: Address, other: Address) -> bool:
    return one.ifname == other.ifname and one.interface == other.interface


def _table_after(write: NftWrite, table: Table | None) -> Table | None:
    match write:
        case InstallTable():
            return Table(intact=True, fwmark=write.fwmark, persistent=write.persistent)
        case AdoptTable() if table is not None and table.persistent:
            return replace(table, owned=True)
        case RemoveTable() if table is not None:
            return None
    raise _refused("no such table")


def _refused(reason: str) -> TransactionRefused:
    return TransactionRefused(f"nftables refused a transaction: {reason}")


def of(plan: Plan, kind: type[Write]) -> tuple[About, ...]:
    """The objects of the plan's writes of one kind."""
    return tuple(write.about for write in plan.writes if isinstance(write, kind))
