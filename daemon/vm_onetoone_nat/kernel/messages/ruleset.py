"""One transaction: the requests for a plan's writes to nftables. Pure."""

import struct
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
from vm_onetoone_nat.kernel.messages import rtnetlink
from vm_onetoone_nat.kernel.messages.nft_accept import accept_expression
from vm_onetoone_nat.kernel.messages.nft_objects import (
    Request,
    add_containers,
    add_elements,
    add_object,
    add_table,
    delete_elements,
    delete_rule,
    delete_table,
    insert_rule,
    own_table,
)
from vm_onetoone_nat.kernel.messages.nft_table import table_objects
from vm_onetoone_nat.model.nat_table import CONTAINERS

W = TypeVar("W", bound=NftWrite)

# NFNL_MSG_BATCH_BEGIN and NFNL_MSG_BATCH_END, each with an nfgenmsg that names the subsystem.
_BEGIN, _END = 0x10, 0x11
_OF_NFTABLES = struct.pack("!BBH", 0, 0, 10)


def transaction(writes: Sequence[NftWrite]) -> tuple[Request, ...]:
    """The requests for these writes, in an order in which each is valid."""
    return tuple(
        request
        for kind, requests_of in REQUESTS.items()
        for request in requests_of([write for write in writes if isinstance(write, kind)])
    )


def batch(requests: Sequence[Request], *, commit: bool = True) -> bytes:
    """The datagram of a transaction; an answer's sequence number is 1 for the first request.

    Without requests it only waits until all transactions before it are complete. The kernel checks
    one that it shall not commit, and changes nothing.
    """
    end = rtnetlink.request(_END, _OF_NFTABLES) if commit else b""
    checked = (
        rtnetlink.request(each.kind, each.body, flags=each.flags, sequence=number)
        for number, each in enumerate(requests, 1)
    )
    return b"".join((rtnetlink.request(_BEGIN, _OF_NFTABLES), *checked, end))


def _install(writes: Sequence[InstallTable]) -> list[Request]:
    if not writes:
        return []
    # add, delete, add: the delete fails without a table.
    requests = [add_table(), delete_table()]
    for write in writes:
        requests.append(own_table() if write.persistent else add_table())
        requests += add_containers(CONTAINERS)
        requests += map(add_object, table_objects(write.fwmark))
    return requests


_Requests = Callable[[Sequence[Any]], Iterable[Request]]


def _for(
    kind: type[W], requests: Callable[[Sequence[W]], Iterable[Request]]
) -> tuple[type[NftWrite], _Requests]:
    return kind, requests


REQUESTS: dict[type[NftWrite], _Requests] = dict(
    (
        _for(AdoptTable, lambda ws: [own_table() for _ in ws]),
        _for(RemoveTable, lambda ws: [delete_table() for _ in ws]),
        _for(InstallTable, _install),
        _for(DeleteAccept, lambda ws: [delete_rule(w.chain, w.handle) for w in ws]),
        _for(
            InsertAccept,
            lambda ws: [insert_rule(w.chain, accept_expression(w.fwmark)) for w in ws],
        ),
        _for(DeleteElement, lambda ws: delete_elements(w.element for w in ws)),
        _for(AddElement, lambda ws: add_elements(w.element for w in ws)),
    )
)
"""The requests for all writes of a kind, in the order of a transaction."""
