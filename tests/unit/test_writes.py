"""The kinds of writes: each has a place in the order and somebody who applies it."""

from collections.abc import Iterable
from inspect import isabstract
from ipaddress import IPv4Address

import pytest
from fakes import FORWARD, own_address
from lab.addresses import external
from vm_onetoone_nat.decide import host_writes, nft_writes
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
    AddElement,
    AdoptTable,
    DeleteAccept,
    DeleteElement,
    InsertAccept,
    InstallTable,
    RemoveTable,
)
from vm_onetoone_nat.decide.plan import Plan
from vm_onetoone_nat.decide.writes import NftWrite, Order, StoreWrite, Write
from vm_onetoone_nat.kernel import kernel
from vm_onetoone_nat.kernel.messages import ruleset
from vm_onetoone_nat.model import nat_table
from vm_onetoone_nat.model.nat_table import Translation, element

ADDRESS = own_address(external(1))
ELEMENT = element(nat_table.OUTBOUND, ("192.168.122.101",))
PAIR = Translation(external(1), IPv4Address("192.168.122.101"))

IN_ORDER: tuple[Write, ...] = (
    RecordAllocations(frozenset()),
    EnableIpForward(),
    DeleteAddress(ADDRESS),
    ClearHairpin("vnet0"),
    AdoptTable(),
    RemoveTable(),
    InstallTable(0x100000),
    DeleteElement(ELEMENT),
    AddElement(ELEMENT),
    DeleteAccept(FORWARD, 7),
    InsertAccept(FORWARD, 0x100000),
    SetHairpin("vnet1"),
    AddAddress(ADDRESS),
    FlushTranslated(PAIR),
    FlushBypassing(PAIR),
)
"""One of each kind, in the order of a pass."""


def kinds() -> Iterable[type[Write]]:
    """All kinds that can be planned."""
    for module in (host_writes, nft_writes):
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Write) and hasattr(value, "order"):
                assert not isabstract(value)
                yield value


def test_every_kind() -> None:
    """Each kind has its own place in the order."""
    assert sorted(kind.order for kind in kinds()) == list(Order)
    assert set(kinds()) == {type(write) for write in IN_ORDER}


def test_every_kind_is_applied() -> None:
    """The kernel side has one way to apply each kind; nftables' are requests of a transaction."""
    of_nftables = {kind for kind in kinds() if issubclass(kind, NftWrite)}
    assert set(ruleset.REQUESTS) == of_nftables
    of_the_store = {kind for kind in kinds() if issubclass(kind, StoreWrite)}
    assert set(kernel.APPLIERS) == {*kinds(), NftWrite} - of_nftables - of_the_store


def test_kind_that_is_not_applied() -> None:
    """A kind that the kernel side does not know is an error, not a plan cut short."""
    with pytest.raises(TypeError, match="no applier for RecordAllocations"):
        kernel._applier(RecordAllocations(frozenset()))


def test_order_of_a_plan() -> None:
    """A plan has its writes in the order of application, however it was put together."""
    assert Plan(IN_ORDER[::-1]).writes == IN_ORDER


def test_transaction_is_one() -> None:
    """The writes to nftables stand together, so that they are one transaction."""
    of_nftables = [isinstance(write, NftWrite) for write in IN_ORDER]
    first, count = of_nftables.index(True), sum(of_nftables)
    assert all(of_nftables[first : first + count])


@pytest.mark.parametrize("write", IN_ORDER, ids=lambda write: type(write).__name__)
def test_inverse(write: Write) -> None:
    """What undoes a write is about the same object, with the other sign, and undone by the first.

    A removal of the table does not say with which mark to install it.
    """
    inverse = write.inverse
    if inverse is None:
        return
    assert (inverse.adds, inverse.about) == (not write.adds, write.about)
    if not isinstance(write, InstallTable):
        assert inverse.words == write.words
        assert inverse.inverse == write


def test_kinds_differ() -> None:
    """Two writes with the same values are different writes, and a write equals itself."""
    assert len({AddAddress(ADDRESS), DeleteAddress(ADDRESS), AddAddress(ADDRESS)}) == 2
    assert len(set(IN_ORDER)) == len(IN_ORDER)
