"""The netfilter hooks that a guest's packets pass, and foreign rules at each. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from vm_onetoone_nat.diagnose.firewall import ChainVerdict, Packet, judge
from vm_onetoone_nat.kernel.messages.nft_foreign import Chain, Ruleset
from vm_onetoone_nat.model.family import Family, IPAddress, IPNetwork, family_of, host_network
from vm_onetoone_nat.model.nat_table import DNAT_PRIORITY, MARK_PRIORITY, SNAT_PRIORITY


@dataclass(frozen=True, slots=True)
class Endpoints:
    """The interfaces and addresses of a mapping's packets."""

    uplink: str
    bridge: str
    lan: IPNetwork
    external: IPAddress
    internal: IPAddress
    fwmark: int


@dataclass(frozen=True, slots=True)
class Obstruction:
    """The verdict of a foreign chain for some packets of a mapping."""

    packets: str
    verdict: ChainVerdict


def obstructions(ruleset: Ruleset, endpoints: Endpoints) -> Iterator[Obstruction]:
    """Foreign rules that certainly refuse or translate packets, in the order of the path."""
    for name, hooks in _WAYS.items():
        for where, hook in hooks:
            for chain in _at(ruleset, where, hook, family_of(endpoints.external)):
                if chain.name.family == "netdev" and endpoints.uplink not in chain.devices:
                    continue
                verdict = judge(ruleset, chain, _packet(name, hook, chain, endpoints))
                if verdict is not None and _matters(chain, verdict):
                    yield Obstruction(name, verdict)


_INBOUND = "packets from the LAN"
_ANSWERS = "the guest's answers"
_OUTBOUND = "the guest's own packets"

_ROUTED = "routed"
"""The hooks of IP: chains of the family's own tables, and of those of both."""

_WAYS = {
    _INBOUND: (
        ("netdev", "ingress"),
        (_ROUTED, "prerouting"),
        (_ROUTED, "forward"),
        (_ROUTED, "postrouting"),
        ("bridge", "output"),
        ("bridge", "postrouting"),
    ),
    _ANSWERS: (
        ("bridge", "prerouting"),
        ("bridge", "input"),
        (_ROUTED, "prerouting"),
        (_ROUTED, "forward"),
        (_ROUTED, "postrouting"),
    ),
    _OUTBOUND: ((_ROUTED, "prerouting"), (_ROUTED, "forward"), (_ROUTED, "postrouting")),
}


def _at(ruleset: Ruleset, where: str, hook: str, family: Family) -> list[Chain]:
    families = (family.nft, "inet") if where == _ROUTED else (where,)
    found = [c for c in ruleset.chains.values() if c.hook == hook and c.name.family in families]
    return sorted(found, key=lambda chain: chain.priority)


def _packet(way: str, hook: str, chain: Chain, endpoints: Endpoints) -> Packet:
    """The packet as that chain sees it."""
    family = family_of(endpoints.external)
    external, internal = host_network(endpoints.external), host_network(endpoints.internal)
    translated = frozenset({"dnat"}) if way != _OUTBOUND else frozenset()
    marked = hook == "postrouting" or (hook == "forward" and chain.priority > MARK_PRIORITY)
    mark = endpoints.fwmark if marked else 0
    forwarded = hook in ("forward", "postrouting")
    if way == _INBOUND:
        before = hook == "ingress" or (hook == "prerouting" and chain.priority <= DNAT_PRIORITY)
        packet = Packet(
            iifname=endpoints.uplink,
            saddr=endpoints.lan,
            daddr=external if before else internal,
            status=frozenset() if before else translated,
        )
    else:
        there = endpoints.lan if way == _ANSWERS else family.anywhere
        packet = Packet(iifname=endpoints.bridge, saddr=internal, daddr=there, status=translated)
        if way == _ANSWERS:
            packet = replace(packet, state="established")
    if forwarded:
        oifname = endpoints.bridge if way == _INBOUND else endpoints.uplink
        # From postrouting on, rules do not see the input interface.
        iifname = packet.iifname if hook == "forward" else None
        packet = replace(packet, iifname=iifname, oifname=oifname)
    if chain.name.family == "bridge":
        packet = replace(packet, iifname=None, oifname=None)
    return replace(packet, mark=mark, family=family)


def _matters(chain: Chain, verdict: ChainVerdict) -> bool:
    """Whether it matters: another translation does only before ours."""
    if not verdict.translated:
        return True
    first = {"prerouting": DNAT_PRIORITY, "postrouting": SNAT_PRIORITY}.get(chain.hook or "")
    return first is not None and chain.priority <= first
