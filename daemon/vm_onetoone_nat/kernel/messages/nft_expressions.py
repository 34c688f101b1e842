"""Rules of ours as the kernel takes them, from libnftables' JSON. Pure.

Not by libnftables: before each write it reads the declarations of all sets of all programs, and
1.0.6 crashes on those that 1.1.2 and later have written. Only the statements that we write are
known here.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vm_onetoone_nat.kernel.messages import nftables
from vm_onetoone_nat.kernel.messages.nftables import REGISTER, nest, number, text, verdict
from vm_onetoone_nat.kernel.messages.rtnetlink import attribute

Json = dict[str, Any]

_META = {"mark": (3, 4), "iifname": (6, 16), "oifname": (7, 16), "nfproto": (15, 1)}
_META |= {"l4proto": (16, 1)}
"""NFT_META_*, and the size of the value."""

_CT = {"state": (0, 4), "direction": (1, 1), "status": (2, 4), "ip saddr": (19, 4)}
_CT |= {"ip daddr": (20, 4), "ip6 saddr": (21, 16), "ip6 daddr": (22, 16)}
"""NFT_CT_*, and the size of the value."""

_NETWORK, _TRANSPORT = 1, 2  # NFT_PAYLOAD_*_HEADER
_PAYLOAD = {
    ("ip", "saddr"): (_NETWORK, 12, 4),
    ("ip", "daddr"): (_NETWORK, 16, 4),
    ("ip6", "saddr"): (_NETWORK, 8, 16),
    ("ip6", "daddr"): (_NETWORK, 24, 16),
    ("th", "sport"): (_TRANSPORT, 0, 2),
    ("th", "dport"): (_TRANSPORT, 2, 2),
}
"""Header, and where the field is in it, with its size."""

_NFPROTO = {"ip": 2, "ip6": 10}
_DIRECTIONS = {"original": 0, "reply": 1}
_CONSTANTS: Mapping[str, Mapping[str, int]] = {
    "direction": _DIRECTIONS,
    "l4proto": {"icmp": 1, "tcp": 6, "udp": 17},
    "state": {"invalid": 1, "established": 2, "related": 4, "new": 8, "untracked": 64},
    "status": {"snat": 16, "dnat": nftables.DNAT},
}
"""The values of fields that have names."""

_REJECTS = {("tcp reset", None): (1, 0), ("icmpx", "port-unreachable"): (2, 1)}
"""NFT_REJECT_*, and the code."""

_MAP_IPS = 1  # NF_NAT_RANGE_MAP_IPS: what the kernel adds
_EQUAL, _UNEQUAL = 0, 1  # NFT_CMP_*
_COMPARISONS = {"==": _EQUAL, "!=": _UNEQUAL}
_VERDICT_REGISTER, _REGISTERS = 0, 8  # NFT_REG_VERDICT; NFT_REG32_00, which is a part of the first
_WORD = 4


def expressions(statements: Sequence[Json]) -> Iterator[bytes]:
    """The expressions of a rule. Raises KeyError for what we do not write."""
    for statement in statements:
        ((kind, value),) = statement.items()
        yield from _ENCODERS[kind](kind, value)


def _match(_: str, value: Json) -> Iterator[bytes]:
    left, right = value["left"], value["right"]
    if isinstance(right, str) and right.startswith("@"):
        yield from _load(left)
        yield _lookup(right)
    elif value["op"] == "in":
        yield from _load(left)
        yield _bitwise(_constant(left, right), 0)
        yield _compare(_UNEQUAL, bytes(_WORD))
    else:
        yield from _load(left)
        yield _compare(_COMPARISONS[value["op"]], _packed(left, right))


def _vmap(_: str, value: Json) -> Iterator[bytes]:
    yield from _load(value["key"])
    yield _lookup(value["data"], _VERDICT_REGISTER)


def _translate(kind: str, value: Json) -> Iterator[bytes]:
    found = value["addr"]["map"]
    yield from _load(found["key"])
    yield _lookup(found["data"], REGISTER)
    # NFTA_NAT_TYPE, _FAMILY, _REG_ADDR_MIN, _REG_ADDR_MAX, _FLAGS
    yield _expression(
        "nat",
        number(1, {"snat": 0, "dnat": 1}[kind]),
        number(2, nftables.FAMILIES[value["family"]]),
        number(3, REGISTER),
        number(4, REGISTER),
        number(7, _MAP_IPS),
    )


def _mangle(_kind: str, value: Json) -> Iterator[bytes]:
    of, bits = value["value"]["|"]
    yield from _load(of)
    yield _bitwise(~bits & 0xFFFFFFFF, bits)
    key, _ = _META[value["key"]["meta"]["key"]]
    yield _expression("meta", number(2, key), number(3, REGISTER))  # NFTA_META_KEY, _SREG


def _reject(_: str, value: Json) -> Iterator[bytes]:
    kind, code = _REJECTS[value["type"], value.get("expr")]
    yield _expression("reject", number(1, kind), attribute(2, bytes([code])))


def _decide(kind: str, value: Json | None) -> Iterator[bytes]:
    chain = value["target"] if value is not None else None
    # NFTA_IMMEDIATE_DREG, NFTA_IMMEDIATE_DATA
    yield _expression("immediate", number(1, _VERDICT_REGISTER), nest(2, verdict(kind, chain)))


_ENCODERS = {
    "match": _match,
    "vmap": _vmap,
    "dnat": _translate,
    "snat": _translate,
    "mangle": _mangle,
    "reject": _reject,
    **dict.fromkeys(nftables.VERDICTS, _decide),
}


def _load(operand: Json) -> Iterator[bytes]:
    """Load an operand into the first register, and the parts of a concatenation into all after it.

    In a table of all families the address of a packet is that of one family only.
    """
    parts = operand.get("concat", [operand])
    protocols = (part.get("payload", {}).get("protocol") for part in parts)
    for family in dict.fromkeys(p for p in protocols if p in _NFPROTO):
        yield _field({"meta": {"key": "nfproto"}}, REGISTER)[0]
        yield _compare(_EQUAL, bytes([_NFPROTO[family]]))
    words = 0
    for part in parts:
        match part:
            case {"&": [of, mask]}:
                yield _field(of, REGISTER)[0]
                yield _bitwise(mask, 0)
            case _:
                loaded, size = _field(part, _REGISTERS + words if words else REGISTER)
                yield loaded
                words += -(-size // _WORD)


def _field(operand: Json, register: int) -> tuple[bytes, int]:
    """The expression that loads a field, and the field's size."""
    match operand:
        case {"meta": {"key": str(key)}}:
            kind, size = _META[key]
            return _expression("meta", number(2, kind), number(1, register)), size
        case {"ct": {"key": str(key), "dir": str(direction)}}:
            kind, size = _CT[key]
            of = attribute(3, bytes([_DIRECTIONS[direction]]))  # NFTA_CT_DIRECTION
            return _expression("ct", number(2, kind), number(1, register), of), size
        case {"ct": {"key": str(key)}}:
            kind, size = _CT[key]
            return _expression("ct", number(2, kind), number(1, register)), size
        case {"payload": {"protocol": str(protocol), "field": str(name)}}:
            base, offset, size = _PAYLOAD[protocol, name]
            # NFTA_PAYLOAD_DREG, _BASE, _OFFSET, _LEN
            place = (register, base, offset, size)
            return _expression("payload", *(number(n, v) for n, v in enumerate(place, 1))), size
    raise KeyError(f"{operand} is no field that we read")


def _constant(operand: Json, value: Any) -> int:
    """The number of a value that a field is compared with."""
    if isinstance(value, int):
        return value
    ((_, of),) = operand.items()
    return _CONSTANTS[of["key"]][value]


def _packed(operand: Json, value: Any) -> bytes:
    of = operand["&"][0] if "&" in operand else operand
    _, size = _field(of, REGISTER)
    return struct.pack({_WORD: "=I", 1: "=B"}[size], _constant(of, value))


def _bitwise(mask: int, xor: int) -> bytes:
    # NFTA_BITWISE_SREG, _DREG, _LEN, _MASK, _XOR
    return _expression(
        "bitwise",
        *(number(1, REGISTER), number(2, REGISTER), number(3, _WORD)),
        *(nest(n, _value(struct.pack("=I", bits))) for n, bits in ((4, mask), (5, xor))),
    )


def _compare(comparison: int, value: bytes) -> bytes:
    # NFTA_CMP_SREG, _OP, _DATA
    return _expression("cmp", number(1, REGISTER), number(2, comparison), nest(3, _value(value)))


def _lookup(reference: str, result: int | None = None) -> bytes:
    # NFTA_LOOKUP_SET, _SREG, _DREG
    loaded = number(3, result) if result is not None else b""
    return _expression("lookup", text(1, reference.removeprefix("@")), number(2, REGISTER), loaded)


def _value(data: bytes) -> bytes:
    return attribute(nftables.DATA_VALUE, data)


def _expression(name: str, *parts: bytes) -> bytes:
    named = text(nftables.EXPRESSION_NAME, name)
    return nest(nftables.LIST_ELEMENT, named, nest(nftables.EXPRESSION_DATA, *parts))
