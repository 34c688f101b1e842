"""Chains and rules as the kernel lists them, in bytes."""

import struct
from collections.abc import Sequence
from typing import Any

from vm_onetoone_nat.kernel.messages import nftables
from vm_onetoone_nat.kernel.messages.nft_expressions import expressions
from vm_onetoone_nat.kernel.messages.nftables import nest, number, text
from vm_onetoone_nat.kernel.messages.rtnetlink import Answer, attribute, parse_answer
from vm_onetoone_nat.model.host import ChainName

Json = dict[str, Any]

COUNTER = nest(1, text(1, "counter"), nest(2, attribute(1, bytes(8)), attribute(2, bytes(8))))
"""An expression with its counts."""


def datagram(kind: int, *bodies: bytes, flags: int = 0) -> bytes:
    """Messages of a kind, as they are notified or listed."""
    return b"".join(
        struct.pack("=IHHII", 16 + len(body), kind, flags, 0, 0) + body for body in bodies
    )


def answer(kind: int, *bodies: bytes) -> Answer:
    """The only datagram of a listing, with its end."""
    end = struct.pack("=IHHIIi", 20, 3, 2, 0, 0, 0)
    return parse_answer(datagram(kind, *bodies) + end)


def chain(name: ChainName, hook: int | None = None, policy: int | None = None) -> bytes:
    """A chain; with a hook it is a base chain."""
    body = nftables.header(name.family) + text(1, name.table) + text(3, name.name)
    if hook is not None:
        body += nest(4, number(1, hook), number(2, 0))
    return body + (number(5, policy) if policy is not None else b"")


def rule(name: ChainName, handle: int, statements: Sequence[Json | bytes]) -> bytes:
    """A rule of libnftables' statements, and of expressions in bytes."""
    parts = (s if isinstance(s, bytes) else b"".join(expressions([s])) for s in statements)
    body = nftables.header(name.family) + text(1, name.table) + text(2, name.name)
    return body + attribute(3, handle.to_bytes(8, "big")) + nest(4, *parts)
