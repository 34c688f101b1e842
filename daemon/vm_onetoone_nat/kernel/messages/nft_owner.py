"""Flags and owner of our table, which libnftables does not list: one message of nf_tables.

Pure. The numbers are those of linux/netfilter/nf_tables.h.
"""

import struct
from dataclasses import dataclass

from vm_onetoone_nat.kernel.messages.rtnetlink import Answer, attribute, attributes, request
from vm_onetoone_nat.model.nat_table import TABLE

_GET_TABLE = 10 << 8 | 1  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETTABLE
_INET = 1  # NFPROTO_INET
_NAME, _FLAGS, _OWNER = 1, 2, 7  # NFTA_TABLE_*
_PERSIST = 0x4  # NFT_TABLE_F_PERSIST
_FAMILY = struct.Struct("=BBH")  # nfgenmsg: family, version, resource
_NUMBER = struct.Struct(">I")

REQUEST = request(_GET_TABLE, _FAMILY.pack(_INET, 0, 0) + attribute(_NAME, TABLE.encode() + b"\0"))


@dataclass(frozen=True, slots=True)
class Ownership:
    """Whether a table outlives its owner; the owner's netlink port, None if it has none."""

    persistent: bool
    owner: int | None


def parse_ownership(answer: Answer) -> Ownership:
    """The answer to REQUEST, if it is no error."""
    ((start, end),) = answer.messages
    found = {
        kind: _NUMBER.unpack_from(answer.data, at)[0]
        for kind, at, _ in attributes(answer.data, start + _FAMILY.size, end)
        if kind in (_FLAGS, _OWNER)
    }
    return Ownership(bool(found.get(_FLAGS, 0) & _PERSIST), found.get(_OWNER))
