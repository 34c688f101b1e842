"""One transaction in libnftables' JSON: the commands of a plan's writes to nftables.

Pure. Schema: libnftables-json(5).
"""

from collections.abc import Iterable
from typing import Any

from vm_onetoone_nat.nat_table import Container, Element
from vm_onetoone_nat.nft_elements import element_json
from vm_onetoone_nat.nft_foreign import accept_expression
from vm_onetoone_nat.nft_table import IN_TABLE, TABLE_JSON, table_commands
from vm_onetoone_nat.plan import Transaction
from vm_onetoone_nat.state import ChainName

Json = dict[str, Any]


def transaction_commands(transaction: Transaction) -> list[Json]:
    """The transaction as libnftables commands, in an order in which each is valid."""
    table = TABLE_JSON
    commands: list[Json] = []
    if transaction.remove_table:
        commands.append({"delete": table})
    if transaction.install is not None:
        # add, delete, add: the delete fails without a table.
        commands += [{"add": table}, {"delete": table}, *table_commands(transaction.install)]
    commands += [
        {"delete": {"rule": {**_chain_json(chain), "handle": handle}}}
        for chain, handle in transaction.delete_accepts
    ]
    commands += [
        {"insert": {"rule": {**_chain_json(chain), "expr": accept_expression(fwmark)}}}
        for chain, fwmark in transaction.insert_accepts
    ]
    commands += _element_commands("delete", transaction.delete_elements)
    commands += _element_commands("add", transaction.add_elements)
    return commands


def _chain_json(chain: ChainName) -> Json:
    return {"family": chain.family, "table": chain.table, "chain": chain.name}


def _element_commands(verb: str, elements: Iterable[Element]) -> list[Json]:
    """One command for each container, so that 1,000 mappings take a few commands."""
    by_container: dict[Container, list[Any]] = {}
    for each in elements:
        by_container.setdefault(each.container, []).append(element_json(each))
    return [
        {verb: {"element": {**IN_TABLE, "name": container.name, "elem": items}}}
        for container, items in by_container.items()
    ]
