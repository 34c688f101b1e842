"""How the kernel side writes a plan of which parts fail."""

from collections.abc import Callable, Sequence

import pytest
from fakes import own_address
from lab.addresses import external, internal
from vm_onetoone_nat.decide.flushes import Flushes
from vm_onetoone_nat.decide.host_writes import (
    AddAddress,
    ClearHairpin,
    DeleteAddress,
    FlushBypassing,
    SetHairpin,
)
from vm_onetoone_nat.decide.nft_writes import TABLE_KEY, AddElement, DeleteElement, InstallTable
from vm_onetoone_nat.decide.plan import Plan
from vm_onetoone_nat.decide.writes import NftWrite, Write, WritesFailed, depending
from vm_onetoone_nat.errors import KernelError, TransactionRefused
from vm_onetoone_nat.internal_errors import OCCURRED
from vm_onetoone_nat.kernel import kernel as module
from vm_onetoone_nat.kernel.kernel import Kernel
from vm_onetoone_nat.model import nat_table
from vm_onetoone_nat.model.nat_table import Translation, element

PAIRS = {n: Translation(external(n), internal(n)) for n in (1, 2, 3)}
ADDRESSES = {n: own_address(external(n)) for n in PAIRS}
DNATS = {n: element(nat_table.EXTERNAL, (str(external(n)),), str(internal(n))) for n in PAIRS}
ADD = {n: AddElement(DNATS[n]) for n in PAIRS}

GOES = (DeleteAddress(ADDRESSES[1]), DeleteElement(DNATS[1], DeleteAddress(ADDRESSES[1]).key))
COMES = (
    ADD[2],
    AddAddress(ADDRESSES[2], ADD[2].key),
    FlushBypassing(PAIRS[2], ADD[2].key),
)
REPAIRED = AddAddress(ADDRESSES[3])
PLAN = Plan((*GOES, *COMES, REPAIRED, ClearHairpin("vnet0"), SetHairpin("vnet1", ADD[2].key)))


class Written:
    """What got through to the kernel; `errors` are raised for a kind instead."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.writes: list[Write] = []
        self.errors: dict[type[Write], Exception] = {}
        appliers = {kind: self._applier(kind) for kind in module.APPLIERS}
        monkeypatch.setattr(module, "APPLIERS", appliers)

    def _applier(self, kind: type[Write]) -> Callable[[Kernel, Sequence[Write]], None]:
        def apply(_: Kernel, writes: Sequence[Write]) -> None:
            if kind in self.errors:
                raise self.errors[kind]
            self.writes += writes

        return apply


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Written:
    return Written(monkeypatch)


def apply(planned: Plan) -> None:
    kernel = Kernel.__new__(Kernel)
    kernel._flushes = Flushes()
    kernel.apply(planned)


def test_all(written: Written) -> None:
    """Where nothing fails everything is written, in its order."""
    apply(PLAN)
    assert tuple(written.writes) == PLAN.writes


@pytest.mark.internal_errors
@pytest.mark.parametrize("error", [KernelError("no"), TypeError("a fault of ours")])
@pytest.mark.parametrize(
    ("kind", "lacking"),
    [
        (DeleteAddress, GOES),
        (ClearHairpin, (ClearHairpin("vnet0"),)),
        # A transaction, and what depends on it.
        (NftWrite, (GOES[1], *COMES, SetHairpin("vnet1", ADD[2].key))),
        (AddAddress, (COMES[1], REPAIRED)),
        (FlushBypassing, (COMES[2],)),
    ],
)
def test_failed_write(
    written: Written, kind: type[Write], lacking: tuple[Write, ...], error: Exception
) -> None:
    """What depends on it is not written, all else is; also where the error is a fault of ours.

    A translation was deleted whose address could not be.
    """
    written.errors[kind] = error
    with pytest.raises(WritesFailed) as failed:
        apply(PLAN)
    assert failed.value.writes == set(lacking)
    assert written.writes == [write for write in PLAN.writes if write not in lacking]
    assert OCCURRED.counts["write"] == isinstance(error, TypeError)


def test_refused_transaction(written: Written) -> None:
    """After it nothing is written."""
    written.errors = {NftWrite: TransactionRefused("no")}  # type: ignore[type-abstract]
    with pytest.raises(TransactionRefused):
        apply(PLAN)
    assert written.writes == [GOES[0], ClearHairpin("vnet0")]


def test_failures_are_told_together(written: Written) -> None:
    """All errors are in the one that is raised."""
    written.errors = {DeleteAddress: KernelError("one"), AddAddress: KernelError("other")}
    with pytest.raises(WritesFailed, match=r"^one; other$"):
        apply(PLAN)


def test_sibling_does_not_depend() -> None:
    """Of what depends on the same write, one that fails hinders no other."""
    install, first, second = (
        InstallTable(1),
        AddAddress(ADDRESSES[1], TABLE_KEY),
        AddAddress(ADDRESSES[2], TABLE_KEY),
    )
    assert depending((second,), (first,)) == frozenset()
    assert depending((first, second), (install,)) == {first, second}
    assert depending((FlushBypassing(PAIRS[1]),), (install, first)) == frozenset()
