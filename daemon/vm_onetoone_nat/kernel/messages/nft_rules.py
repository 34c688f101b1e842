"""Chains and rules as the kernel lists them: of foreign tables only these, no sets. Pure.

libnftables reads the sets of a table with each of its chains, with all their elements.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from vm_onetoone_nat.kernel.messages import nftables, rtnetlink
from vm_onetoone_nat.kernel.messages.nftables import (
    FAMILIES,
    VERDICTS,
    read,
    read_number,
    read_text,
)
from vm_onetoone_nat.kernel.messages.rtnetlink import Answer
from vm_onetoone_nat.model.host import ChainName

_TABLE_NAME, _TABLE_FLAGS, _TABLE_OWNER = 1, 2, 7
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY = 1, 3, 4, 5
_HOOK_NUMBER, _HOOK_PRIORITY, _HOOK_DEVICES = 1, 2, 4
_RULE_TABLE, _RULE_CHAIN, _RULE_HANDLE, _RULE_EXPRESSIONS = 1, 2, 3, 4
_IMMEDIATE_DATA = 2
_GENERATION_NUMBER = 1
_HANDLE = struct.Struct(">Q")

_IP_HOOKS = ("prerouting", "input", "forward", "output", "postrouting", "ingress")
_HOOKS = {"netdev": ("ingress", "egress"), "arp": ("input", "output")}
"""By number, where they are not those of IP."""

_NAMES = {number: name for name, number in FAMILIES.items()}
_VERDICTS = {number: name for name, number in VERDICTS.items()}


class TableName(NamedTuple):
    """A table of any program."""

    family: str
    name: str


class ListedTable(NamedTuple):
    """A table's declaration. `owner` is the netlink port that alone can write to it, if any.

    `persistent`: it outlives its owner; others are deleted with it, without a new generation.
    `dormant`: its chains see no packets.
    """

    name: TableName
    owner: int | None = None
    persistent: bool = False
    dormant: bool = False

    @property
    def is_strange(self) -> bool:
        """Whether it has flags that we do not set."""
        return self.dormant or (self.owner is not None and not self.persistent)


@dataclass(frozen=True, slots=True)
class ListedChain:
    """A chain's declaration; without a `hook` it is not a base chain. `drops`: by its policy."""

    name: ChainName
    hook: str | None = None
    priority: int = 0
    drops: bool = False
    devices: frozenset[str] = frozenset()


class Verdict(NamedTuple):
    """What a rule decides; `chain` is the target of a jump or goto."""

    name: str
    chain: str | None = None


class Expression(NamedTuple):
    """One expression of a rule, with its data as bytes."""

    name: str
    data: bytes

    @property
    def attributes(self) -> Mapping[int, bytes]:
        """Its attributes, by kind."""
        return read(self.data)

    @property
    def verdict(self) -> Verdict | None:
        """The verdict, if it is one."""
        if self.name != "immediate":
            return None
        value = read(self.attributes.get(_IMMEDIATE_DATA, b"")).get(nftables.DATA_VERDICT)
        if value is None:
            return None
        parts = read(value)
        code = read_number(parts.get(nftables.VERDICT_CODE))
        chain = parts.get(nftables.VERDICT_CHAIN)
        return Verdict(
            _VERDICTS.get(code, str(code)), read_text(chain) if chain is not None else None
        )


class Rule(NamedTuple):
    """One rule of a chain, with its expressions as bytes: a chain may have thousands of rules."""

    handle: int
    data: bytes

    @property
    def expressions(self) -> tuple[Expression, ...]:
        """Its expressions, in their order."""
        return tuple(map(_expression, nftables.read_list(self.data)))

    def may_have(self, name: str) -> bool:
        """Whether it may have an expression of that name; in most rules a quick no."""
        return name.encode() in self.data

    @property
    def verdict(self) -> Verdict | None:
        """The verdict at its end. A verdict map's is not known: it is in the map's elements."""
        found = self.expressions
        return found[-1].verdict if found else None


def get_generation() -> bytes:
    """The request for the generation of the ruleset."""
    return rtnetlink.request(nftables.GET_GENERATION, nftables.header())


def list_tables() -> bytes:
    """The request for all tables, of all families."""
    return rtnetlink.listing(nftables.GET_TABLE, nftables.header())


def list_chains() -> bytes:
    """The request for the declarations of all chains, of all families."""
    return rtnetlink.listing(nftables.GET_CHAIN, nftables.header())


def list_rules(chain: ChainName) -> bytes:
    """The request for the rules of a chain, in their order."""
    named = nftables.text(_RULE_TABLE, chain.table) + nftables.text(_RULE_CHAIN, chain.name)
    return rtnetlink.listing(nftables.GET_RULE, nftables.header(chain.family) + named)


def generation(answer: Answer) -> int:
    """The generation in the answer; each transaction begins a new one."""
    ((_, found),) = _messages(answer)
    return read_number(found.get(_GENERATION_NUMBER)) & 0xFFFFFFFF


def tables(answer: Answer) -> Iterator[ListedTable]:
    """The tables in one datagram of a listing."""
    for family, found in _messages(answer):
        flags, owner = read_number(found.get(_TABLE_FLAGS)), found.get(_TABLE_OWNER)
        yield ListedTable(
            TableName(family, read_text(found[_TABLE_NAME])),
            read_number(owner) & 0xFFFFFFFF if owner is not None else None,
            bool(flags & nftables.PERSIST),
            bool(flags & nftables.DORMANT),
        )


def chains(answer: Answer) -> Iterator[ListedChain]:
    """The chains in one datagram of a listing."""
    for family, found in _messages(answer):
        name = ChainName(family, read_text(found[_CHAIN_TABLE]), read_text(found[_CHAIN_NAME]))
        if _CHAIN_HOOK not in found:
            yield ListedChain(name)
            continue
        hook, policy = read(found[_CHAIN_HOOK]), found.get(_CHAIN_POLICY)
        number = read_number(hook.get(_HOOK_NUMBER))
        yield ListedChain(
            name,
            dict(enumerate(_HOOKS.get(family, _IP_HOOKS))).get(number, str(number)),
            read_number(hook.get(_HOOK_PRIORITY)),
            drops=policy is not None and read_number(policy) == VERDICTS["drop"],
            devices=frozenset(map(read_text, _items(hook.get(_HOOK_DEVICES)))),
        )


def rules(answer: Answer) -> Iterator[Rule]:
    """The rules in one datagram of a listing."""
    for _, found in _messages(answer):
        (handle,) = _HANDLE.unpack(found[_RULE_HANDLE])
        yield Rule(handle, found.get(_RULE_EXPRESSIONS, b""))


def _items(value: bytes | None) -> list[bytes]:
    return nftables.read_list(value) if value is not None else []


def _expression(item: bytes) -> Expression:
    parts = read(item)
    name = read_text(parts[nftables.EXPRESSION_NAME])
    return Expression(name, parts.get(nftables.EXPRESSION_DATA, b""))


def _messages(answer: Answer) -> Iterator[tuple[str, Mapping[int, bytes]]]:
    """The family and the attributes of each message."""
    for start, end in answer.messages:
        number = answer.data[start]
        family = _NAMES.get(number, str(number))
        yield family, read(answer.data, start + nftables.MESSAGE_SIZE, end)
