"""When our table and foreign chains are listed again: the kernel's generation decides."""

from collections.abc import Iterator
from contextlib import closing

import pytest
from fakes import FORWARD
from nft_dump import answer, chain, rule
from vm_onetoone_nat.errors import KernelError
from vm_onetoone_nat.kernel.messages import nft_listing, nft_rules, nftables
from vm_onetoone_nat.kernel.messages.nft_accept import accept_expression
from vm_onetoone_nat.kernel.messages.nftables import OWNER, PERSIST, header, number, text
from vm_onetoone_nat.kernel.messages.rtnetlink import Answer
from vm_onetoone_nat.kernel.nft import Nft
from vm_onetoone_nat.model.configuration import DEFAULT_FWMARK
from vm_onetoone_nat.model.host import AcceptRule, ChainName, ForeignChain
from vm_onetoone_nat.model.nat_table import TABLE, Table

MARK = DEFAULT_FWMARK
INTACT, STRANGE = Table(True, frozenset(), MARK), Table(False)
OWNED = ChainName("inet", "firewalld", "filter_FORWARD")


class Ruleset:
    """The kernel's answers; `listed`, `read`: listings of our table, of foreign rules."""

    def __init__(self) -> None:
        self.table = INTACT
        self.tables = [("inet", TABLE), ("ip", "filter"), ("inet", "firewalld")]
        self.flags = b""
        self.generation = 1
        self.listed = self.read = 0
        self.changes_meanwhile = False

    def parse_table(self) -> Table:
        self.listed += 1
        self.generation += self.changes_meanwhile
        return self.table

    def ask(self, _requests: bytes, _count: int) -> Iterator[Answer]:
        body = header() + number(1, self.generation)
        yield answer(nftables.NEW_GENERATION, body)

    def dump(self, request: bytes, _most: int | None = None) -> list[Answer]:
        if request == nft_rules.list_tables():
            bodies = (header(f) + text(1, name) + self.flags for f, name in self.tables)
            return [answer(nftables.NEW_TABLE, *bodies)]
        if request == nft_rules.list_chains():
            names = (name for name in (FORWARD, OWNED) if (name.family, name.table) in self.tables)
            return [answer(nftables.NEW_CHAIN, *(chain(name, hook=2, policy=0) for name in names))]
        if request not in map(nft_rules.list_rules, (FORWARD, OWNED)):
            # Of our table, which `parse_table` has.
            return []
        self.read += 1
        self.generation += self.changes_meanwhile
        of_forward = request == nft_rules.list_rules(FORWARD)
        accepts = [rule(FORWARD, 7, accept_expression(MARK))] if of_forward else []
        return [answer(nftables.NEW_RULE, *accepts)]


@pytest.fixture
def ruleset(monkeypatch: pytest.MonkeyPatch) -> Ruleset:
    ruleset = Ruleset()
    netlink = "vm_onetoone_nat.kernel.nft.Netlink"
    monkeypatch.setattr(nft_listing, "parse_table", lambda _listing: ruleset.parse_table())
    monkeypatch.setattr(f"{netlink}.ask", lambda _self, *asked: ruleset.ask(*asked))
    monkeypatch.setattr(f"{netlink}.dump", lambda _self, *asked: ruleset.dump(*asked))
    return ruleset


@pytest.fixture
def nft(ruleset: Ruleset) -> Iterator[Nft]:
    with closing(Nft()) as nft:
        yield nft


def test_same_generation_is_listed_once(nft: Nft, ruleset: Ruleset) -> None:
    """Nobody has written since: what was listed still is."""
    table, foreign, obstacles = nft.observe(MARK)
    assert table is not None and table.intact
    assert foreign == (ForeignChain(FORWARD, (AcceptRule(7, MARK, at_head=True),)),)
    assert [each.where for each in obstacles] == [f"chain {OWNED}"]
    assert nft.observe(MARK) == (table, foreign, obstacles)
    assert (ruleset.listed, ruleset.read) == (1, 2)


def test_new_generation_is_listed(nft: Nft, ruleset: Ruleset) -> None:
    """Somebody has written: the table is listed anew, and is what it is."""
    nft.observe(MARK)
    ruleset.generation, ruleset.table = 2, STRANGE
    table, _, _ = nft.observe(MARK)
    assert table is not None and not table.intact
    assert ruleset.read == 4


def test_change_during_the_listing(nft: Nft, ruleset: Ruleset) -> None:
    """A listing of which it is not certain what generation it is of is not kept."""
    ruleset.changes_meanwhile = True
    nft.observe(MARK)
    ruleset.changes_meanwhile = False
    nft.observe(MARK)
    nft.observe(MARK)
    assert (ruleset.listed, ruleset.read) == (2, 4)


def test_strange_table_is_listed_each_time(nft: Nft, ruleset: Ruleset) -> None:
    """A table that is not as we write it may change without a transaction, as with its owner."""
    ruleset.table = STRANGE
    nft.observe(MARK)
    nft.observe(MARK)
    assert ruleset.listed == 2


def test_table_that_is_gone(nft: Nft, ruleset: Ruleset) -> None:
    """Whether there is a table at all is looked at each time, of ours and of others.

    A table with an owner is deleted with it, and no generation begins.
    """
    nft.observe(MARK)
    del ruleset.tables[0]
    assert nft.observe(MARK)[0] is None
    del ruleset.tables[-1]
    table, foreign, obstacles = nft.observe(MARK)
    assert (table, len(foreign), obstacles) == (None, 1, ())


def test_tables_that_cannot_be_read(
    nft: Nft, ruleset: Ruleset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure is that of this pass; the next one reads everything."""
    nft.observe(MARK)
    ruleset.generation = 2
    with monkeypatch.context() as broken:
        broken.setattr(ruleset, "dump", failing)
        with pytest.raises(KernelError):
            nft.observe(MARK)
    nft.observe(MARK)
    assert (ruleset.listed, ruleset.read) == (2, 4)


@pytest.mark.parametrize(
    ("flags", "owner", "process_owns", "persistent", "owned"),
    [
        (0, None, True, False, True),
        (OWNER | PERSIST, "itself", True, True, True),
        (OWNER | PERSIST, "another", True, True, False),
        (PERSIST, None, True, True, False),
        (OWNER | PERSIST, "another", False, True, True),
        (PERSIST, None, False, True, False),
    ],
)
def test_owner(
    ruleset: Ruleset,
    flags: int,
    owner: str | None,
    process_owns: bool,
    persistent: bool,
    owned: bool,
) -> None:
    """The daemon has to own such a table; for a command, somebody has to."""
    with closing(Nft(owner=process_owns)) as nft:
        port = nft._netlink.portid + (owner == "another")
        ruleset.flags = number(2, flags) + (number(7, port) if owner is not None else b"")
        table, _, _ = nft.observe(MARK)
    assert table is not None
    assert (table.intact, table.persistent, table.owned) == (True, persistent, owned)


def failing(_request: bytes) -> list[Answer]:
    raise KernelError("nftables cannot be read")
