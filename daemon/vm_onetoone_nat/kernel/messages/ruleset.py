"""One transaction in libnftables' JSON: the commands of a plan's writes to nftables.

Pure. Schema: libnftables-json(5).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from vm_onetoone_nat.decide.nft_writes import (
    AddElement,
    AdoptTable,
    DeleteAccept,
    DeleteElement,
    InsertAccept,
    InstallTable,
    RemoveTable,
)
from vm_onetoone_nat.decide.writes import NftWrite
from vm_onetoone_nat.kernel.messages.nft_accept import accept_expression
from vm_onetoone_nat.kernel.messages.nft_elements import element_json
from vm_onetoone_nat.kernel.messages.nft_table import (
    IN_TABLE,
    PERSISTENT_JSON,
    TABLE_JSON,
    table_commands,
)
from vm_onetoone_nat.model.host import ChainName
from vm_onetoone_nat.model.nat_table import Container, Element

Json = dict[str, Any]
W = TypeVar("W", bound=NftWrite)


def transaction_commands(writes: Sequence[NftWrite]) -> list[Json]:
    """The writes as libnftables commands, in an order in which each is valid."""
    commands: list[Json] = []
    for kind, commands_of in COMMANDS.items():
        batch = [write for write in writes if isinstance(write, kind)]
        if batch:
            commands += commands_of(batch)
    return commands


def _install(batch: Sequence[InstallTable]) -> list[Json]:
    commands: list[Json] = []
    for write in batch:
        if write.persistent:
            # Not add, delete, add: the kernel takes no "add" that changes the flags of a table.
            commands += [{"destroy": TABLE_JSON}]
        else:
            # add, delete, add: the delete fails without a table. libnftables 1.0.6 has no destroy.
            commands += [{"add": TABLE_JSON}, {"delete": TABLE_JSON}]
        commands += table_commands(write.fwmark, persistent=write.persistent)
    return commands


def _delete_accepts(batch: Sequence[DeleteAccept]) -> list[Json]:
    return [
        {"delete": {"rule": {**_chain_json(write.chain), "handle": write.handle}}}
        for write in batch
    ]


def _insert_accepts(batch: Sequence[InsertAccept]) -> list[Json]:
    return [
        {"insert": {"rule": {**_chain_json(write.chain), "expr": accept_expression(write.fwmark)}}}
        for write in batch
    ]


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


_Commands = Callable[[Sequence[Any]], list[Json]]


def _for(
    kind: type[W], commands: Callable[[Sequence[W]], list[Json]]
) -> tuple[type[NftWrite], _Commands]:
    return kind, commands


COMMANDS: dict[type[NftWrite], _Commands] = dict(
    (
        # The same flags: only an orphan changes.
        _for(AdoptTable, lambda _: [{"add": PERSISTENT_JSON}]),
        _for(RemoveTable, lambda _: [{"delete": TABLE_JSON}]),
        _for(InstallTable, _install),
        _for(DeleteAccept, _delete_accepts),
        _for(InsertAccept, _insert_accepts),
        _for(DeleteElement, lambda batch: _element_commands("delete", (w.element for w in batch))),
        _for(AddElement, lambda batch: _element_commands("add", (w.element for w in batch))),
    )
)
"""The commands of all writes of a kind, in the order of a transaction."""
