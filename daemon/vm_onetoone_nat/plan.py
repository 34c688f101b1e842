"""The writes that turn the observed state into the desired state, in the order of application.

Pure. An empty plan means that the kernel has converged: nothing is written.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from vm_onetoone_nat.nat_table import (
    HAIRPIN,
    HAIRPIN_REASON,
    TABLE,
    Element,
    Translation,
    element,
    in_order,
    translations,
)
from vm_onetoone_nat.state import Address, Allocation, ChainName, Desired, Observed


@dataclass(frozen=True, slots=True)
class Transaction:
    """One nftables transaction: all of it takes effect, or nothing.

    `install` replaces the table by the static one with this mark bit; `add_elements` then has all
    elements, not a difference. `install` None keeps the table; `remove_table` deletes it.
    """

    install: int | None = None
    remove_table: bool = False
    delete_elements: tuple[Element, ...] = ()
    add_elements: tuple[Element, ...] = ()
    delete_accepts: tuple[tuple[ChainName, int], ...] = ()
    insert_accepts: tuple[tuple[ChainName, int], ...] = ()

    def __bool__(self) -> bool:
        return self != Transaction()


@dataclass(frozen=True, slots=True)
class Plan:
    """All writes of one pass, in order. `allocations` None keeps the recorded ones.

    An address is deleted before its translation and added after it: while the host has an external
    address without a translation, a packet for the guest reaches the host itself. A hairpin flag is
    set after the transaction has recorded the port in our table, and cleared before the record is
    deleted: a flag without a record would never be cleared.

    Tracked connections are flushed last. `flush_translated` are the translations that are deleted:
    their connections end. `flush_bypassing` are the translations that are new: connections from
    before would bypass them. Until now the guest's own connections left with one of `host_sources`.
    """

    allocations: frozenset[Allocation] | None = None
    enable_ip_forward: bool = False
    delete_addresses: tuple[Address, ...] = ()
    clear_hairpins: tuple[str, ...] = ()
    transaction: Transaction = Transaction()
    set_hairpins: tuple[str, ...] = ()
    add_addresses: tuple[Address, ...] = ()
    flush_translated: tuple[Translation, ...] = ()
    flush_bypassing: tuple[Translation, ...] = ()
    host_sources: tuple[IPv4Address, ...] = ()

    def __bool__(self) -> bool:
        return self != Plan()


def plan(observed: Observed, desired: Desired) -> Plan:
    """The writes after which the kernel holds the desired state, and nothing else of ours."""
    elements = desired.elements | _hairpin_records(observed, desired)
    table = observed.table
    present = table.elements if table is not None else frozenset()
    replace = table is None or not table.intact or table.fwmark != desired.fwmark
    recorded = _hairpins(present) | observed.hairpins_set
    wanted = _hairpins(elements)
    deleted, inserted = _accepts(observed, desired.fwmark, _marks(observed, desired.fwmark))
    # A table without its chains or rules did not translate, whatever elements it had.
    to_flush = translations(elements if replace else elements - present)
    if observed.flushed is not None:
        # The previous process may have ended after it wrote the elements, before it flushed.
        to_flush |= translations(elements) - observed.flushed
    record = desired.allocations != observed.allocations or not observed.recorded
    return Plan(
        allocations=desired.allocations if record else None,
        enable_ip_forward=bool(desired.active) and not observed.ip_forward,
        add_addresses=_missing_addresses(observed, desired),
        clear_hairpins=tuple(sorted((recorded - wanted) & observed.hairpins)),
        transaction=Transaction(
            install=desired.fwmark if replace else None,
            delete_elements=() if replace else in_order(present - elements),
            add_elements=in_order(elements if replace else elements - present),
            delete_accepts=deleted,
            insert_accepts=inserted,
        ),
        set_hairpins=tuple(sorted(wanted - observed.hairpins)),
        delete_addresses=_stale_addresses(observed, desired),
        flush_translated=_by_external(translations(present - elements)),
        flush_bypassing=_by_external(to_flush),
        host_sources=_uplink_hosts(observed) if to_flush else (),
    )


def removal(observed: Observed, fwmark: int) -> Plan:
    """The writes that remove all that is ours, from any state."""
    present = observed.table.elements if observed.table is not None else frozenset()
    recorded = _hairpins(present)
    marks = _marks(observed, fwmark)
    return Plan(
        clear_hairpins=tuple(sorted(recorded & observed.hairpins)),
        transaction=Transaction(
            remove_table=observed.table is not None,
            delete_accepts=tuple(
                (chain.name, rule.handle)
                for chain in observed.foreign
                for rule in chain.accepts
                if rule.fwmark in marks
            ),
        ),
        delete_addresses=tuple(a for a in observed.addresses if a.owned),
        flush_translated=_by_external(translations(present)),
    )


@dataclass(frozen=True, slots=True)
class OurTable:
    """Our nftables table, as the object of a write."""


@dataclass(frozen=True, slots=True)
class Write:
    """One write of a plan, as text: `adds` is true for an addition, false for a removal.

    `about` is the object that the write is for, or the reason if all such writes have the same.
    """

    adds: bool
    what: str
    about: Address | Element | Translation | ChainName | OurTable | str

    def __str__(self) -> str:
        return f"{'+' if self.adds else '-'} {self.what}"


def writes(planned: Plan) -> tuple[Write, ...]:
    """Every write of a plan, in order."""
    transaction = planned.transaction
    found = []
    if planned.allocations is not None:
        what = f"record of {len(planned.allocations)} allocated addresses"
        found.append(Write(True, what, "guests keep their addresses over a restart"))
    if planned.enable_ip_forward:
        why = "without it the host forwards nothing"
        found.append(Write(True, "sysctl net.ipv4.ip_forward = 1", why))
    found += [Write(False, f"address {a}", a) for a in planned.delete_addresses]
    found += [
        Write(False, f"hairpin on bridge port {h}", HAIRPIN_REASON) for h in planned.clear_hairpins
    ]
    if transaction.remove_table:
        found.append(Write(False, f"table inet {TABLE}", OurTable()))
    if transaction.install is not None:
        what = f"table inet {TABLE}, mark {transaction.install:#010x}"
        found.append(Write(True, what, OurTable()))
    found += [Write(False, str(e), e) for e in transaction.delete_elements]
    found += [Write(True, str(e), e) for e in transaction.add_elements]
    found += [
        Write(False, f"accept in {name}, handle {handle}", name)
        for name, handle in transaction.delete_accepts
    ]
    found += [
        Write(True, f"accept of mark {fwmark:#010x} at the head of {name}", name)
        for name, fwmark in transaction.insert_accepts
    ]
    found += [
        Write(True, f"hairpin on bridge port {h}", HAIRPIN_REASON) for h in planned.set_hairpins
    ]
    found += [Write(True, f"address {a}", a) for a in planned.add_addresses]
    found += [
        Write(False, f"connections of {t.external} and {t.internal}", t)
        for t in planned.flush_translated
    ]
    return tuple(found)


def describe(planned: Plan) -> tuple[str, ...]:
    """The plan as lines of text, `+` for additions and `-` for removals."""
    return tuple(str(write) for write in writes(planned))


def _by_external(pairs: Iterable[Translation]) -> tuple[Translation, ...]:
    return tuple(sorted(pairs, key=lambda pair: (int(pair.external), int(pair.internal))))


def _hairpin_records(observed: Observed, desired: Desired) -> frozenset[Element]:
    """The ports to record as ours, without those whose flag another program has set."""
    present = observed.table.elements if observed.table is not None else frozenset()
    records = (element(HAIRPIN, (name,)) for name in desired.hairpins)
    ours = observed.hairpins_set | _hairpins(present)
    return frozenset(r for r in records if r.key[0] in ours or r.key[0] not in observed.hairpins)


def _hairpins(elements: Iterable[Element]) -> set[str]:
    """The bridge ports that these elements record."""
    return {e.key[0] for e in elements if e.container is HAIRPIN}


def _marks(observed: Observed, fwmark: int) -> frozenset[int]:
    """The mark bits that are ours: the configured one, and the one that our table sets."""
    table = observed.table
    before = {table.fwmark} if table is not None and table.fwmark is not None else set()
    return frozenset(before | {fwmark})


def _accepts(
    observed: Observed, fwmark: int, marks: frozenset[int]
) -> tuple[tuple[tuple[ChainName, int], ...], tuple[tuple[ChainName, int], ...]]:
    """Accepts to delete, by handle, and to insert, so that each chain has one at its head."""
    deleted: list[tuple[ChainName, int]] = []
    inserted: list[tuple[ChainName, int]] = []
    for chain in observed.foreign:
        keep = next((r for r in chain.accepts if r.fwmark == fwmark and r.at_head), None)
        deleted += [
            (chain.name, r.handle) for r in chain.accepts if r.fwmark in marks and r != keep
        ]
        if keep is None:
            inserted.append((chain.name, fwmark))
    return tuple(deleted), tuple(inserted)


def _missing_addresses(observed: Observed, desired: Desired) -> tuple[Address, ...]:
    """Addresses to add. A foreign one on the uplink serves, whatever its prefix length."""
    foreign = {(a.ifname, a.interface.ip) for a in observed.addresses if not a.owned}
    present = {a for a in observed.addresses if a.owned} - _displacing(observed)
    return tuple(
        a
        for a in desired.addresses
        if a not in present and (a.ifname, a.interface.ip) not in foreign
    )


def _stale_addresses(observed: Observed, desired: Desired) -> tuple[Address, ...]:
    keep = set(desired.addresses) - _displacing(observed)
    return tuple(a for a in observed.addresses if a.owned and a not in keep)


def _displacing(observed: Observed) -> set[Address]:
    """Addresses of ours that stand before the host's own in the same subnet.

    The kernel makes the first address of a subnet the primary one, and adds a route to the subnet
    for that one only. A DHCP client may delete the host's own address and add it again, which makes
    it secondary to a guest's. Ours is then deleted and added again after it.
    """
    leading: dict[tuple[str, IPv4Network], Address] = {}
    displacing = set()
    for address in observed.addresses:
        first = leading.setdefault((address.ifname, address.interface.network), address)
        if first.owned and not address.owned:
            displacing.add(first)
    return displacing


def _uplink_hosts(observed: Observed) -> tuple[IPv4Address, ...]:
    """The host's own addresses on the uplink: the source of guests that have no mapping."""
    return tuple(
        a.interface.ip for a in observed.addresses if a.ifname == observed.uplink and not a.owned
    )
