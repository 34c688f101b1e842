"""A plan of which some writes are held back. Pure."""

from collections.abc import Iterable, Iterator, Set

from vm_onetoone_nat.decide.host_writes import DeleteAddress
from vm_onetoone_nat.decide.nft_writes import AddElement, DeleteElement, InstallTable
from vm_onetoone_nat.decide.plan import Plan
from vm_onetoone_nat.decide.writes import Write, excluding
from vm_onetoone_nat.model.host import Observed
from vm_onetoone_nat.model.nat_table import EXTERNAL, INTERNAL, Element, in_order, translations


def hold_back(planned: Plan, held: Set[str], observed: Observed) -> Plan:
    """The plan without the writes of these keys, and without the addresses that need them."""
    if not held:
        return planned
    kept = excluding(planned.writes, held)
    return Plan((*kept, *withdrawals(observed, kept, planned.writes)))


def withdrawals(
    observed: Observed, made: Iterable[Write] = (), planned: Iterable[Write] = ()
) -> Iterator[Write]:
    """The writes that delete each address of ours that lacks a translation once `made` are made.

    Packets for such an address reach the host itself, which answers in the guest's place. With the
    address goes the source NAT to it, since replies would not come back. They are part of the write
    that adds the translation, if that is one of `planned`.
    """
    made = tuple(made)
    left = _elements(observed, made)
    translated = {pair.external for pair in translations(left)}
    deleted = {write.address for write in made if isinstance(write, DeleteAddress)}
    lacking = tuple(
        a
        for a in observed.addresses
        if a.owned and a.interface.ip not in translated and a not in deleted
    )
    if not lacking:
        return
    part_of = {
        write.element.key[0]: write.key
        for write in planned
        if isinstance(write, AddElement) and write.element.container is EXTERNAL
    }
    for address in lacking:
        yield DeleteAddress(address, part_of.get(str(address.interface.ip)))
    externals = {str(address.interface.ip) for address in lacking}
    for each in in_order(left):
        if each.container is INTERNAL and each.value in externals:
            yield DeleteElement(each, part_of.get(each.value))


def _elements(observed: Observed, made: tuple[Write, ...]) -> set[Element]:
    """The elements of a table that translates, once these writes are made."""
    table = observed.table
    replaced = any(isinstance(write, InstallTable) for write in made)
    left = set() if table is None or not table.intact or replaced else set(table.elements)
    left.difference_update(write.element for write in made if isinstance(write, DeleteElement))
    left.update(write.element for write in made if isinstance(write, AddElement))
    return left
