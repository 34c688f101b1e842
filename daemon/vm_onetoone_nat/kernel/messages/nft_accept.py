"""Our accept in foreign chains, and foreign chains that would refuse guests. Pure."""

import struct
from collections.abc import Mapping, Sequence
from typing import Any

from vm_onetoone_nat.kernel.messages import nftables
from vm_onetoone_nat.kernel.messages.nft_rules import Expression, ListedChain, Rule, Verdict
from vm_onetoone_nat.kernel.messages.nftables import read, read_number
from vm_onetoone_nat.model.family import FAMILIES
from vm_onetoone_nat.model.host import AcceptRule, ChainName, ForeignChain, Obstacle

Json = dict[str, Any]

FORWARD_CHAINS = tuple(
    ChainName(family.nft, table, name)
    for family in FAMILIES
    for table, name in (("filter", "FORWARD"), ("libvirt_network", "forward"))
)
"""Base chains that may reject guests' traffic: that of iptables (libvirt, Docker, ufw), and that of
libvirt's nftables backend (10.4 and later). The daemon writes only to those that exist."""

_ACCEPT = Verdict("accept")
_BITS = struct.Struct("=I")  # of a mark or a status, in the order of the host
_DATA = 1  # NFTA_META_DREG, NFTA_CT_DREG: the register that is loaded
_KEY = 2  # NFTA_META_KEY, NFTA_CT_KEY
_SOURCE, _RESULT, _MASK, _XOR, _OPERATION = 1, 2, 4, 5, 6  # NFTA_BITWISE_*
_COMPARED, _COMPARISON, _VALUE = 1, 2, 3  # NFTA_CMP_*
_EQUAL, _UNEQUAL = 0, 1  # NFT_CMP_*


def accept_expression(fwmark: int) -> list[Json]:
    """Accept of one mark bit, in expressions that iptables-nft can read back and save."""
    masked = {"&": [{"meta": {"key": "mark"}}, fwmark]}
    return [{"match": {"op": "==", "left": masked, "right": fwmark}}, {"accept": None}]


def foreign_chain(name: ChainName, rules: Sequence[Rule]) -> ForeignChain:
    """The accepts of a mark bit among the rules of a foreign chain."""
    marks = ((position, rule, accepted_mark(rule)) for position, rule in enumerate(rules))
    return ForeignChain(
        name,
        tuple(
            AcceptRule(rule.handle, fwmark, at_head=position == 0)
            for position, rule, fwmark in marks
            if fwmark is not None
        ),
    )


def obstacle(chain: ListedChain, rules: Sequence[Rule], fwmark: int) -> Obstacle | None:
    """The obstacle, if a foreign base chain that we do not write to would refuse guests.

    `fwmark` is the mark bit of admitted packets, for the remedy. The chain refuses guests if it
    drops by policy or by a rule that matches everything, unless a rule accepts a mark bit, or all
    packets that have been DNATed, as in firewalld.
    """
    if any(accepted_mark(rule) is not None or _accepts_dnat(rule) for rule in rules):
        return None
    if not chain.drops and not any(map(_refuses_all, rules)):
        return None
    name = chain.name
    if name.table == "firewalld":
        remedy = "set StrictForwardPorts=no in firewalld.conf and reload firewalld"
    else:
        remedy = (
            f"run 'nft insert rule {name} meta mark and {fwmark:#x} == {fwmark:#x} accept' "
            "and save it there"
        )
    return Obstacle(f"chain {name}", remedy)


def accepted_mark(rule: Rule) -> int | None:
    """The bits, if the rule accepts packets with these mark bits and does nothing else but count.

    In JSON, it is `accept_expression`.
    """
    found = _masked(rule, "meta", nftables.MARK)
    if found is None:
        return None
    mask, comparison, value = found
    return mask if mask and (comparison, value) == (_EQUAL, mask) else None


def _accepts_dnat(rule: Rule) -> bool:
    """Whether it accepts all packets of connections with destination NAT: `ct status dnat`."""
    found = _masked(rule, "ct", nftables.STATUS)
    return found in ((nftables.DNAT, _UNEQUAL, 0), (nftables.DNAT, _EQUAL, nftables.DNAT))


def _refuses_all(rule: Rule) -> bool:
    # Most rules match something, and a chain may have thousands.
    if rule.may_have("cmp") or rule.may_have("lookup"):
        return False
    bare = [each for each in rule.expressions if each.name not in ("counter", "log")]
    match bare:
        case [Expression("reject")]:
            return True
        case [only]:
            return only.verdict == Verdict("drop")
    return False


def _masked(rule: Rule, kind: str, key: int) -> tuple[int, int, int] | None:
    """Mask, comparison and value, if the rule loads that field, compares it and then accepts."""
    if not rule.may_have("bitwise"):
        return None
    bare = [each for each in rule.expressions if each.name != "counter"]
    if [each.name for each in bare] != [kind, "bitwise", "cmp", "immediate"]:
        return None
    load, bitwise, compare = (each.attributes for each in bare[:3])
    connected = (load.get(_DATA), bitwise.get(_RESULT)) == (
        bitwise.get(_SOURCE),
        compare.get(_COMPARED),
    )
    plain = not read_number(bitwise.get(_OPERATION)) and not _bits(bitwise, _XOR)
    if read_number(load.get(_KEY)) != key or not connected or not plain:
        return None
    if bare[3].verdict != _ACCEPT:
        return None
    return _bits(bitwise, _MASK), read_number(compare.get(_COMPARISON)), _bits(compare, _VALUE)


def _bits(attributes: Mapping[int, bytes], kind: int) -> int:
    """The value of 32 bits in an attribute; 0 if there is none."""
    value = read(attributes.get(kind, b"")).get(nftables.DATA_VALUE, b"")
    return int(_BITS.unpack(value)[0]) if len(value) == _BITS.size else 0
