"""When our table is listed again: the kernel's generation decides, and nothing else."""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from vm_onetoone_nat.kernel.messages.nft_owner import Ownership
from vm_onetoone_nat.kernel.messages.nft_table import table_commands
from vm_onetoone_nat.kernel.nft import Nft
from vm_onetoone_nat.kernel.ownership import OwnershipSocket
from vm_onetoone_nat.model.configuration import DEFAULT_FWMARK

MARK = DEFAULT_FWMARK
INTACT = [command["add"] for command in table_commands(MARK, persistent=False)]


class Ruleset:
    """The kernel's answers; `listed` counts how often our table was asked for."""

    def __init__(self) -> None:
        self.table: list[dict[str, Any]] = INTACT
        self.generation = 1
        self.listed = 0
        self.changes_meanwhile = False

    @property
    def ownership(self) -> Ownership | None:
        return Ownership(persistent=False, owner=None) if self.table else None

    def list(self, what: dict[str, Any]) -> list[dict[str, Any]]:
        if "chains" in what:
            return []
        self.listed += 1
        self.generation += self.changes_meanwhile
        return self.table


@pytest.fixture
def ruleset(monkeypatch: pytest.MonkeyPatch) -> Ruleset:
    ruleset = Ruleset()
    monkeypatch.setattr(
        "vm_onetoone_nat.kernel.nft._Context.list", lambda _self, what: ruleset.list(what)
    )
    monkeypatch.setattr(Nft, "_generation", lambda _self: ruleset.generation)
    monkeypatch.setattr(OwnershipSocket, "read", lambda _self: ruleset.ownership)
    return ruleset


@pytest.fixture
def nft(ruleset: Ruleset) -> Iterator[Nft]:
    with closing(Nft()) as nft:
        yield nft


def test_same_generation_is_listed_once(nft: Nft, ruleset: Ruleset) -> None:
    """Nobody has written since: what was listed still is."""
    before = nft.observe(MARK)
    assert before[0] is not None and before[0].intact
    assert nft.observe(MARK) == before
    assert ruleset.listed == 1


def test_new_generation_is_listed(nft: Nft, ruleset: Ruleset) -> None:
    """Somebody has written: the table is listed anew, and is what it is."""
    nft.observe(MARK)
    ruleset.generation, ruleset.table = 2, INTACT[:-1]
    table, _, _ = nft.observe(MARK)
    assert table is not None and not table.intact


def test_change_during_the_listing(nft: Nft, ruleset: Ruleset) -> None:
    """A listing of which it is not certain what generation it is of is not kept."""
    ruleset.changes_meanwhile = True
    nft.observe(MARK)
    ruleset.changes_meanwhile = False
    nft.observe(MARK)
    nft.observe(MARK)
    assert ruleset.listed == 2


def test_strange_table_is_listed_each_time(nft: Nft, ruleset: Ruleset) -> None:
    """A table that is not as we write it may change without a transaction, as with its owner."""
    ruleset.table = INTACT[:-1]
    nft.observe(MARK)
    nft.observe(MARK)
    assert ruleset.listed == 2


def test_table_that_is_gone(nft: Nft, ruleset: Ruleset) -> None:
    """Whether there is a table at all is looked at each time."""
    nft.observe(MARK)
    ruleset.table = []
    assert nft.observe(MARK)[0] is None
