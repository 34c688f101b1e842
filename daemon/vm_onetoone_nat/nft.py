"""The kernel's nftables, through libnftables' JSON interface. The only module that writes rules."""

import json
from collections.abc import Sequence
from typing import Any

import nftables

from vm_onetoone_nat.errors import KernelError, TransactionRefused
from vm_onetoone_nat.plan import Transaction
from vm_onetoone_nat.ruleset import (
    FORWARD_CHAINS,
    parse_chains,
    parse_foreign_chain,
    parse_table,
    transaction_commands,
)
from vm_onetoone_nat.state import TABLE, ChainName, ForeignChain, Table


class _UnreadableListing(KernelError):
    """libnftables printed what is no JSON, as 1.0.6 does for a table with flags, `owner` say."""


class Nft:
    """One libnftables context. Not thread-safe: use it from the thread that reconciles."""

    def __init__(self) -> None:
        self._context = nftables.Nftables()
        self._context.set_json_output(True)
        self._context.set_handle_output(True)
        self._context.set_stateless_output(True)

    def observe(self) -> tuple[Table | None, tuple[ForeignChain, ...]]:
        """Our table if there is one, and the foreign chains that need an accept."""
        # Not `list tables`: libnftables 1.0.6 prints invalid JSON for tables with flags.
        chains = parse_chains(self._list("list", {"chains": None}))
        ours = any((chain.family, chain.table) == ("inet", TABLE) for chain in chains)
        foreign = tuple(self._chain(name) for name in FORWARD_CHAINS if chains.get(name))
        return self._table() if ours else None, foreign

    def apply(self, transaction: Transaction) -> None:
        """Write all of the transaction or nothing.

        Raises TransactionRefused with libnftables' own words; the kernel is then as before.
        """
        code, error, _ = self._run(transaction_commands(transaction))
        if code != 0:
            raise TransactionRefused(
                f"nftables refused a transaction: {_one_line(error)}",
                hint="'nft monitor' shows who else writes; it is tried again",
            )

    def _table(self) -> Table:
        try:
            return parse_table(self._list("list", {"table": {"family": "inet", "name": TABLE}}))
        except _UnreadableListing:
            # Not as we wrote it, whatever it is: it is to be replaced.
            return Table(intact=False)

    def _chain(self, name: ChainName) -> ForeignChain:
        reference = {"family": name.family, "table": name.table, "name": name.name}
        return parse_foreign_chain(name, self._list("list", {"chain": reference}))

    def _list(self, verb: str, what: dict[str, Any]) -> list[dict[str, Any]]:
        code, error, output = self._run([{verb: what}])
        if code != 0:
            raise KernelError(f"nftables cannot be listed: {_one_line(error)}")
        if not output:
            return []
        try:
            listing: list[dict[str, Any]] = json.loads(output)["nftables"]
        except json.JSONDecodeError as error:
            raise _UnreadableListing("libnftables printed a listing that is not JSON") from error
        return listing

    def _run(self, commands: Sequence[dict[str, Any]]) -> tuple[int, str, str]:
        code, output, error = self._context.cmd(json.dumps({"nftables": commands}))
        return code, error, output


def _one_line(error: str) -> str:
    """libnftables' words, once each: it repeats them for every command of a transaction."""
    lines = (line.partition("Error: ")[2] or line for line in error.splitlines())
    return "; ".join(dict.fromkeys(line.strip() for line in lines if line.strip())) or "no reason"
