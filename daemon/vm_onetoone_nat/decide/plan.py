"""The writes that turn the observed state into the desired state, in the order of application.

Pure. An empty plan means that the kernel has converged: nothing is written.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter

from vm_onetoone_nat.decide.host_writes import (
    AddAddress,
    ClearHairpin,
    DeleteAddress,
    EnableIpForward,
    FlushBypassing,
    FlushTranslated,
    RecordAllocations,
    SetHairpin,
)
from vm_onetoone_nat.decide.nft_writes import (
    TABLE_KEY,
    AddElement,
    AdoptTable,
    DeleteAccept,
    DeleteElement,
    InsertAccept,
    InstallTable,
    RemoveTable,
    accept_key,
)
from vm_onetoone_nat.decide.uplink import host_sources
from vm_onetoone_nat.decide.writes import Write
from vm_onetoone_nat.model.desired import Desired
from vm_onetoone_nat.model.family import IPNetwork
from vm_onetoone_nat.model.host import Address, Observed
from vm_onetoone_nat.model.nat_table import (
    EXTERNAL,
    HAIRPIN,
    INTERNAL,
    Container,
    Element,
    Translation,
    element,
    in_order,
    translations,
)
from vm_onetoone_nat.model.store import Allocation


@dataclass(frozen=True, slots=True)
class Plan:
    """All writes of one pass, in the order of application, in whichever order they are given."""

    writes: tuple[Write, ...] = ()

    def __post_init__(self) -> None:
        in_order_of_kinds = tuple(sorted(self.writes, key=attrgetter("order")))
        object.__setattr__(self, "writes", in_order_of_kinds)

    def __bool__(self) -> bool:
        return bool(self.writes)


def plan(
    observed: Observed, desired: Desired, unrecorded: frozenset[Allocation] | None = None
) -> Plan:
    """The writes after which the kernel holds the desired state, and nothing else of ours.

    `unrecorded` are the allocations that the store lacks; None: it lacks none.
    """
    elements = desired.elements | _hairpin_records(observed, desired)
    first = (
        *map(DeleteAddress, _stale_addresses(observed, desired)),
        *map(ClearHairpin, _stale_hairpins(observed, elements)),
    )
    table = tuple(_table(observed, desired, elements, first))
    added = _keys(write for write in table if isinstance(write, AddElement))
    return Plan(
        (
            *_settings(observed, desired, unrecorded),
            *first,
            *table,
            *(
                SetHairpin(port, added.get((HAIRPIN, (port,))))
                for port in _missing_hairpins(observed, elements)
            ),
            *(
                AddAddress(each, added.get((EXTERNAL, (str(each.interface.ip),))))
                for each in _missing_addresses(observed, desired)
            ),
            *_accepts(observed, desired.fwmark),
        )
    )


def removal(observed: Observed, fwmark: int) -> Plan:
    """The writes that remove all that is ours, from any state."""
    present = _present(observed)
    marks = _marks(observed, fwmark)
    return Plan(
        (
            *map(ClearHairpin, sorted(_hairpins(present) & observed.hairpins)),
            *((RemoveTable(),) if observed.table is not None else ()),
            *(
                DeleteAccept(chain.name, rule.handle)
                for chain in observed.foreign
                for rule in chain.accepts
                if rule.fwmark in marks
            ),
            *(DeleteAddress(a) for a in observed.addresses if a.owned),
            *map(FlushTranslated, _by_external(translations(present))),
        )
    )


def is_replaced(observed: Observed, fwmark: int) -> bool:
    """Whether our table cannot stay, or does not exist: a plan installs it with all elements."""
    table = observed.table
    if table is None or not table.intact:
        return True
    return (table.fwmark, table.persistent) != (fwmark, observed.persistent)


def describe(planned: Plan) -> tuple[str, ...]:
    """The plan as lines of text, `+` for additions and `-` for removals."""
    return tuple(str(write) for write in planned.writes if write.shown)


def _settings(
    observed: Observed, desired: Desired, unrecorded: frozenset[Allocation] | None
) -> Iterator[Write]:
    if unrecorded is not None:
        yield RecordAllocations(unrecorded)
    if desired.active and not observed.ip_forward:
        yield EnableIpForward()


def _present(observed: Observed) -> frozenset[Element]:
    return observed.table.elements if observed.table is not None else frozenset()


def _table(
    observed: Observed, desired: Desired, elements: frozenset[Element], first: Iterable[Write]
) -> Iterator[Write]:
    """Our table with these elements, and the connections that the change concerns.

    `first` are the writes before it.
    """
    table, present = observed.table, _present(observed)
    replaced = is_replaced(observed, desired.fwmark)
    # A table without its chains or rules did not translate, whatever elements it had.
    additions = tuple(_additions(elements if replaced else elements - present, replaced))
    deletions: tuple[DeleteElement, ...] = ()
    if replaced:
        yield InstallTable(desired.fwmark, observed.persistent)
    else:
        if table is not None and not table.owned:
            yield AdoptTable()
        deletions = tuple(_deletions(present - elements, additions, first))
    yield from (*deletions, *additions)
    deleted = _keys(deletions)
    for pair in _by_external(translations(present - elements)):
        yield FlushTranslated(pair, TABLE_KEY if replaced else deleted[_place(pair)])
    added = _keys(additions)
    new = translations(write.element for write in additions)
    to_flush = new
    if observed.flushed is not None:
        # The previous process may have ended after it wrote the elements, before it flushed.
        to_flush = new | (translations(elements) - observed.flushed)
    hosts = host_sources(observed) if to_flush else frozenset()
    for pair in _by_external(to_flush):
        yield FlushBypassing(pair, added[_place(pair)] if pair in new else None, hosts)


def _additions(added: Iterable[Element], replaced: bool) -> Iterator[AddElement]:
    """These elements, as part of the table if it is replaced.

    The source NAT to an address is part of the destination NAT of it: without the latter the
    address is not on the uplink, and replies would not come back.
    """
    ordered = in_order(added)
    dnats = {e.key[0]: str(e) for e in ordered if e.container is EXTERNAL and not replaced}
    for each in ordered:
        dnat = dnats.get(each.value) if each.container is INTERNAL else None
        yield AddElement(each, TABLE_KEY if replaced else dnat)


def _deletions(
    removed: Iterable[Element], additions: Iterable[AddElement], first: Iterable[Write]
) -> Iterator[DeleteElement]:
    """These elements, each as part of the one that replaces it, or of what is written before it."""
    before: dict[_Place, str] = {}
    for write in first:
        if isinstance(write, DeleteAddress):
            before[EXTERNAL, (str(write.address.interface.ip),)] = write.key
        elif isinstance(write, ClearHairpin):
            before[HAIRPIN, (write.port,)] = write.key
    known = before | _keys(additions)
    for each in in_order(removed):
        yield DeleteElement(each, known.get((each.container, each.key)))


_Place = tuple[Container, tuple[str, ...]]
"""Where an element is: one place has one element at most."""


def _place(pair: Translation) -> _Place:
    return EXTERNAL, (str(pair.external),)


def _keys(writes: Iterable[AddElement | DeleteElement]) -> dict[_Place, str]:
    """The keys of these writes, by the place of their elements."""
    return {(write.element.container, write.element.key): write.key for write in writes}


def _by_external(pairs: Iterable[Translation]) -> tuple[Translation, ...]:
    return tuple(sorted(pairs, key=lambda pair: (int(pair.external), int(pair.internal))))


def _hairpin_records(observed: Observed, desired: Desired) -> frozenset[Element]:
    """The ports to record as ours, without those whose flag another program has set."""
    present = _present(observed)
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


def _stale_hairpins(observed: Observed, elements: frozenset[Element]) -> tuple[str, ...]:
    recorded = _hairpins(_present(observed)) | observed.hairpins_set
    return tuple(sorted((recorded - _hairpins(elements)) & observed.hairpins))


def _missing_hairpins(observed: Observed, elements: frozenset[Element]) -> tuple[str, ...]:
    return tuple(sorted(_hairpins(elements) - observed.hairpins))


def _accepts(observed: Observed, fwmark: int) -> Iterator[Write]:
    """One accept at the head of each foreign chain, and no other of ours."""
    marks = _marks(observed, fwmark)
    for chain in observed.foreign:
        keep = next((r for r in chain.accepts if r.fwmark == fwmark and r.at_head), None)
        part_of = accept_key(chain.name) if keep is None else None
        for rule in chain.accepts:
            if rule.fwmark in marks and rule != keep:
                yield DeleteAccept(chain.name, rule.handle, part_of)
        if keep is None:
            yield InsertAccept(chain.name, fwmark)


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
    leading: dict[tuple[str, IPNetwork], Address] = {}
    displacing = set()
    for address in observed.addresses:
        first = leading.setdefault((address.ifname, address.interface.network), address)
        if first.owned and not address.owned:
            displacing.add(first)
    return displacing
