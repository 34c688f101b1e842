"""nf_tables' messages: their kinds, and the attributes of which they consist. Pure.

The numbers are those of linux/netfilter/nf_tables.h; a value is big-endian, except for data that
is compared with a packet or a mark.
"""

import struct
from collections.abc import Mapping

from vm_onetoone_nat.kernel.messages.rtnetlink import attribute, attributes

_SUBSYSTEM = 10 << 8  # NFNL_SUBSYS_NFTABLES
NEW_TABLE, GET_TABLE, DELETE_TABLE = _SUBSYSTEM | 0, _SUBSYSTEM | 1, _SUBSYSTEM | 2
NEW_CHAIN, GET_CHAIN = _SUBSYSTEM | 3, _SUBSYSTEM | 4
NEW_RULE, GET_RULE, DELETE_RULE = _SUBSYSTEM | 6, _SUBSYSTEM | 7, _SUBSYSTEM | 8
NEW_SET, GET_SET = _SUBSYSTEM | 9, _SUBSYSTEM | 10
NEW_ELEMENT, GET_ELEMENT, DELETE_ELEMENT = (_SUBSYSTEM | kind for kind in (12, 13, 14))
GET_OBJECT, GET_FLOWTABLE = _SUBSYSTEM | 19, _SUBSYSTEM | 23
NEW_GENERATION, GET_GENERATION = _SUBSYSTEM | 15, _SUBSYSTEM | 16

OF_SETS = frozenset(_SUBSYSTEM | kind for kind in (*range(9, 15), *range(18, 25)))
"""Messages about sets, elements, objects such as counters, and flowtables."""

DORMANT, OWNER, PERSIST = 0x1, 0x2, 0x4  # NFT_TABLE_F_*
LIST_ELEMENT = 1  # NFTA_LIST_ELEM
DATA_VALUE, DATA_VERDICT = 1, 2
VERDICT_CODE, VERDICT_CHAIN = 1, 2
EXPRESSION_NAME, EXPRESSION_DATA = 1, 2
MARK = 3  # NFT_META_MARK
STATUS, DNAT = 2, 1 << 5  # NFT_CT_STATUS, IPS_DST_NAT
REGISTER = 1  # NFT_REG_1; NFT_REG_VERDICT is 0

FAMILIES = {"inet": 1, "ip": 2, "arp": 3, "netdev": 5, "bridge": 7, "ip6": 10}
"""NFPROTO_*, by nftables' names."""

VERDICTS = {"drop": 0, "accept": 1, "jump": -3, "goto": -4, "return": -5}
"""NF_* and NFT_*, by nftables' names."""

_MESSAGE = struct.Struct("=BBH")  # nfgenmsg: family, version, resource
MESSAGE_SIZE = _MESSAGE.size
_NUMBER = struct.Struct(">i")
_UNSIGNED = struct.Struct(">I")
_ATTRIBUTE, _TWO = struct.Struct("=HH"), struct.Struct("=HHHH")
_HEADER_SIZE = _ATTRIBUTE.size
_NESTED, _KIND = 0x8000, 0x3FFF  # NLA_F_NESTED, NLA_TYPE_MASK


def header(family: str | None = None) -> bytes:
    """What a message begins with; None is all families."""
    return _MESSAGE.pack(FAMILIES[family] if family is not None else 0, 0, 0)


def text(kind: int, value: str) -> bytes:
    """An attribute that is a name."""
    return attribute(kind, value.encode(errors="surrogateescape") + b"\0")


def number(kind: int, value: int) -> bytes:
    """An attribute of 32 bits."""
    return attribute(kind, _UNSIGNED.pack(value & 0xFFFFFFFF))


def nest(kind: int, *inner: bytes) -> bytes:
    """An attribute that consists of attributes."""
    return attribute(kind | _NESTED, b"".join(inner))


def nest_value(kind: int, value: bytes) -> bytes:
    """An attribute that consists of one value, packed in one step: elements have thousands."""
    size = _HEADER_SIZE + len(value)
    headers = _TWO.pack(_HEADER_SIZE + (size + 3 & ~3), kind | _NESTED, size, DATA_VALUE)
    return headers + value + bytes(-size % 4)


def verdict(name: str, chain: str | None = None) -> bytes:
    """The value of an element or an expression that is a verdict."""
    target = b"" if chain is None else text(VERDICT_CHAIN, chain)
    return nest(DATA_VERDICT, number(VERDICT_CODE, VERDICTS[name]), target)


def read(data: bytes, offset: int = 0, end: int | None = None) -> Mapping[int, bytes]:
    """The attributes in a range of `data`, by kind. Raises struct.error.

    A loop of its own: by `attributes`, the elements of 1,000 mappings would take twice as long.
    """
    found: dict[int, bytes] = {}
    until = len(data) if end is None else end
    while offset < until:
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _HEADER_SIZE:
            raise struct.error(f"{length} bytes of a header of {_HEADER_SIZE}")
        found[kind & _KIND] = data[offset + _HEADER_SIZE : offset + length]
        offset += length + 3 & ~3
    return found


def read_value(data: bytes) -> bytes:
    """The value that the attribute consists of, as `nest_value` writes it. Raises ValueError."""
    length, kind = _ATTRIBUTE.unpack_from(data)
    if kind & _KIND != DATA_VALUE or not _HEADER_SIZE <= length <= len(data):
        raise ValueError("no value")
    return data[_HEADER_SIZE:length]


def read_list(data: bytes) -> list[bytes]:
    """The items of an attribute that is a list."""
    return [data[at:to] for _, at, to in attributes(data, 0, len(data))]


def read_text(value: bytes) -> str:
    """A name. The kernel takes any bytes, so what is not UTF-8 is kept as it is."""
    return value.rstrip(b"\0").decode(errors="surrogateescape")


def read_number(value: bytes | None) -> int:
    """A number of 32 bits with its sign; 0, the kernel's default, if it is missing."""
    return int(_NUMBER.unpack(value)[0]) if value is not None else 0
