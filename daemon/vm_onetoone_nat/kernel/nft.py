"""The ruleset of nftables, read and written by messages of our own. The only writer of rules."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

from vm_onetoone_nat.decide.writes import NftWrite
from vm_onetoone_nat.errors import KernelError, TransactionRefused
from vm_onetoone_nat.kernel.libnftables import Libnftables
from vm_onetoone_nat.kernel.messages import nft_listing, nft_rules
from vm_onetoone_nat.kernel.messages.nft_accept import FORWARD_CHAINS, foreign_chain, obstacle
from vm_onetoone_nat.kernel.messages.nft_listing import Listing
from vm_onetoone_nat.kernel.messages.nft_objects import own_table
from vm_onetoone_nat.kernel.messages.nft_rules import ListedTable, TableName
from vm_onetoone_nat.kernel.messages.rtnetlink import Answer
from vm_onetoone_nat.kernel.messages.ruleset import batch, transaction
from vm_onetoone_nat.kernel.netlink import NETFILTER, Netlink, TooLarge
from vm_onetoone_nat.model.family import FAMILIES
from vm_onetoone_nat.model.host import ForeignChain, Obstacle
from vm_onetoone_nat.model.nat_table import CONTAINERS, TABLE, Table

T = TypeVar("T")

_MOST = 8 << 20
"""Bytes that are read of our table, or four times as many as were written at once. With more it
has what others have added, and is replaced: that takes no more than it should have. A mapping has
600 bytes."""

_OURS = TableName("inet", TABLE)
_ROUTED = (*(family.nft for family in FAMILIES), "inet")
"""The families of tables that packets of guests pass as IP."""


@dataclass(frozen=True, slots=True)
class _Ruleset:
    """Our table, and what is of interest in the chains of other programs at the hook forward.

    `read` is when it was read, and with which mark bit. A table that has an owner may be deleted
    with it, without a new generation.
    """

    read: tuple[int, frozenset[ListedTable], int]
    table: Table | None
    foreign: tuple[ForeignChain, ...]
    obstacles: tuple[Obstacle, ...]


class Nft:
    """The whole ruleset. Not thread-safe: use it from the thread that reconciles.

    `owner`: where nftables knows tables with an owner, ours has to belong to this object. The owner
    is its socket, which it keeps while it exists.
    """

    def __init__(self, *, owner: bool = False) -> None:
        self._owner = owner
        self._netlink = Netlink(NETFILTER, "nftables")
        self.generation = 0
        """The ruleset generation with which `observe` began; it may miss later changes."""
        self._known: _Ruleset | None = None
        self._most = _MOST

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()

    @property
    def portid(self) -> int:
        """The netlink port that writes: the sender of notifications about that."""
        return self._netlink.portid

    @cached_property
    def persistent(self) -> bool:
        """Whether nftables knows tables that only their owner writes, and that outlive it.

        The kernel has to know them, and libnftables to list them. Nothing is written.
        """
        if not Libnftables().knows_flags():
            return False
        with suppress(OSError):
            self._netlink.send(batch([own_table(f"{TABLE}_flags")], commit=False))
            return not any(answer.results for answer in self._netlink.waiting())
        return False

    def observe(
        self, fwmark: int
    ) -> tuple[Table | None, tuple[ForeignChain, ...], tuple[Obstacle, ...]]:
        """Our table if it exists, the foreign chains that need an accept, and obstacles.

        `fwmark` is the mark bit of admitted packets, for the remedies of obstacles. Raises
        KernelError.
        """
        before, self.generation = self.generation, self._generation()
        if self.generation != before:
            self._wait_for_writer()
        tables = frozenset(self._list(nft_rules.list_tables(), nft_rules.tables))
        ours = next((table for table in tables if table.name == _OURS), None)
        known = self._read(tables, ours, fwmark)
        table = self._with_owner(known.table, ours) if known.table and ours else None
        return table, known.foreign, known.obstacles

    def apply(self, writes: Sequence[NftWrite]) -> None:
        """Write all in one transaction, or nothing.

        Raises TransactionRefused with the kernel's errors; nothing has changed then.
        """
        requests = transaction(writes)
        data = batch(requests)
        self._most = max(self._most, 4 * len(data))
        failed: dict[int, int] = {}
        try:
            self._netlink.send(data)
            # `send` returns when the kernel has done it or refused it; it answers errors only.
            for answer in self._netlink.waiting():
                for number, error in answer.results.items():
                    # The kernel goes on after the first, and others may fail because of it.
                    failed.setdefault(error, number)
        except OSError as error:
            raise _refusal([str(error.strerror)]) from error
        words = ["the transaction", *(request.words for request in requests)]
        reasons = [f"{os.strerror(error)}: {words[n]}" for error, n in failed.items() if error]
        if reasons:
            raise _refusal(reasons, self._other_owner())

    def _other_owner(self) -> int | None:
        """The netlink port of another process to which our table belongs."""
        with suppress(KernelError):
            for table in self._list(nft_rules.list_tables(), nft_rules.tables):
                if table.name == _OURS and table.owner != self.portid:
                    return table.owner
        return None

    def _with_owner(self, table: Table, listed: ListedTable) -> Table:
        owned = listed.owner == self.portid if self._owner else listed.owner is not None
        return replace(table, persistent=listed.persistent, owned=owned or not listed.persistent)

    def _read(
        self, tables: frozenset[ListedTable], ours: ListedTable | None, fwmark: int
    ) -> _Ruleset:
        """The ruleset; not read again while generation and tables are the same.

        Every transaction in this network namespace begins a new generation, and only a transaction
        changes the ruleset, apart from the end of an owner: elements of ours have no timeout, and
        no rule adds any. `observe` has waited until the transaction that began this generation was
        complete. What others write meanwhile has its own notification: the next pass reads it.
        """
        now = self.generation, tables, fwmark
        if self._known is not None and self._known.read == now:
            return self._known
        listed = self._netlink.dump(nft_rules.list_chains())
        chains = {
            chain.name: (chain, self._list(nft_rules.list_rules(chain.name), nft_rules.rules))
            for answer in listed
            for chain in nft_rules.chains(answer)
            if chain.hook == "forward" and chain.name.family in _ROUTED
            if chain.name.table != TABLE
        }
        others = (obstacle(*chains[name], fwmark) for name in chains if name not in FORWARD_CHAINS)
        found = _Ruleset(
            now,
            self._table(ours, listed) if ours is not None else None,
            tuple(foreign_chain(n, chains[n][1]) for n in FORWARD_CHAINS if n in chains),
            tuple(each for each in others if each is not None),
        )
        settled = self._generation() == self.generation
        intact = found.table is None or found.table.intact
        self._known = found if settled and intact else None
        return found

    def _table(self, ours: ListedTable, chains: Sequence[Answer]) -> Table:
        of_ours, left = nft_listing.of_our_table, self._most

        def listed(request: bytes, read: Callable[[Answer], Iterator[T]]) -> list[T]:
            nonlocal left
            answers = self._netlink.dump(request, left)
            left -= sum(len(answer.data) for answer in answers)
            return [each for answer in answers for each in read(answer)]

        try:
            listing = Listing(
                [each for answer in chains for each in of_ours(answer)],
                listed(nft_listing.list_sets(), of_ours),
                listed(nft_listing.list_rules(), of_ours),
                {
                    each: listed(nft_listing.list_elements(each), nft_listing.elements)
                    for each in CONTAINERS
                },
                others=ours.is_strange
                or any(listed(each, of_ours) for each in nft_listing.list_others()),
            )
        except TooLarge:
            return Table(intact=False)
        return nft_listing.parse_table(listing)

    def _list(self, request: bytes, read: Callable[[Answer], Iterator[T]]) -> list[T]:
        """A dump. Raises KernelError."""
        return [each for answer in self._netlink.dump(request) for each in read(answer)]

    def _wait_for_writer(self) -> None:
        """Wait until the transaction that began the current generation is complete.

        The kernel increments the generation before all of it can be listed: interval sets come last
        (nf_tables_commit). An empty transaction waits for the writers' mutex, and writes nothing.
        """
        with suppress(OSError):
            self._netlink.send(batch(()))

    def _generation(self) -> int:
        """The number of transactions in this network namespace. Raises KernelError."""
        (answer,) = self._netlink.ask(nft_rules.get_generation(), 1)
        return nft_rules.generation(answer)


def _refusal(reasons: Sequence[str], owner: int | None = None) -> TransactionRefused:
    if owner is not None:
        table = f"table {_OURS.family} {_OURS.name}"
        return TransactionRefused(
            f"nftables refused a transaction: {table} belongs to another process, "
            f"netlink port {owner}",
            hint=f"end the program that 'nft list {table}' names in its first line",
        )
    return TransactionRefused(
        f"nftables refused a transaction: {'; '.join(reasons)}",
        hint="the daemon retries; 'nft monitor' shows what other programs write",
    )
