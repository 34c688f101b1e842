"""What foreign rules do with a guest's packets, decided from the rules alone.

Pure. A match has three results: true, false, or None if it depends on an unknown field such as the
port. A verdict is returned only if it is certain.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from vm_onetoone_nat.kernel.messages.nft_foreign import Chain, Json, Rule, Ruleset
from vm_onetoone_nat.model.family import IPV4, Family, IPAddress, IPNetwork, address, family_of
from vm_onetoone_nat.model.host import ChainName


@dataclass(frozen=True, slots=True)
class Packet:
    """What is known of a packet at one hook; None is unknown.

    `state` and `status` are those of its connection.
    """

    iifname: str | None = None
    oifname: str | None = None
    saddr: IPNetwork | None = None
    daddr: IPNetwork | None = None
    mark: int = 0
    state: str = "new"
    status: frozenset[str] = frozenset()
    family: Family = IPV4


@dataclass(frozen=True, slots=True)
class ChainVerdict:
    """The rule that certainly refuses or translates a packet, as `nft` prints it."""

    chain: ChainName
    rule: str
    translated: bool = False

    def __str__(self) -> str:
        return f"{self.rule!r} in chain {self.chain}"


def judge(ruleset: Ruleset, chain: Chain, packet: Packet) -> ChainVerdict | None:
    """The certain verdict of a base chain; None if the packet passes, or if it depends."""
    walk = _Walk(ruleset, packet)
    end = walk.through(chain)
    if isinstance(end, ChainVerdict):
        return end
    if end is None and chain.drops and not walk.doubtful:
        return ChainVerdict(chain.name, "policy drop")
    return None


_PASSED = "accepted, or unknown"
_End = ChainVerdict | str | None
"""A verdict; _PASSED; _RETURNED; None at the end of the chain."""


@dataclass(slots=True)
class _Walk:
    ruleset: Ruleset
    packet: Packet
    doubtful: bool = False
    """Whether an earlier rule may have accepted the packet or sent it elsewhere."""
    branch: int = 0
    """The number of jumps to here that only some packets take."""
    seen: set[ChainName] = field(default_factory=set)

    def through(self, chain: Chain) -> _End:
        self.seen.add(chain.name)
        for rule in chain.rules:
            matches, action = self._read(chain, rule)
            if matches is False or action is None:
                continue
            end = self._act(chain, rule, action, certain=matches is True)
            if end == _RETURNED:
                return None
            if end is not None:
                return end
        return None

    def _act(self, chain: Chain, rule: Rule, action: Json, *, certain: bool) -> _End:
        ((verb, value),) = action.items()
        if verb in ("jump", "goto"):
            return self._jump(chain, verb, value["target"], certain=certain)
        if certain and verb == "return":
            return _RETURNED
        if not certain or self.branch:
            # A possible accept makes the verdict of later rules doubtful; a possible drop does not.
            self.doubtful |= verb in ("accept", "return", "queue")
            return _RETURNED if certain else None
        if verb in ("accept", "queue") or self.doubtful:
            return _PASSED
        return ChainVerdict(chain.name, rule.text, translated=verb not in ("drop", "reject"))

    def _jump(self, chain: Chain, verb: str, target: str, *, certain: bool) -> _End:
        name = ChainName(chain.name.family, chain.name.table, target)
        if name not in self.ruleset.chains or name in self.seen:
            self.doubtful = True
            return None
        self.branch += not certain
        end = self.through(self.ruleset.chains[name])
        self.branch -= not certain
        self.seen.discard(name)
        if not certain:
            self.doubtful |= verb == "goto"
            return None
        # A goto does not return here, but to the rule after the last jump.
        return _RETURNED if end is None and verb == "goto" else end

    def _read(self, chain: Chain, rule: Rule) -> tuple[bool | None, Json | None]:
        """Whether a rule matches, and its verdict statement."""
        matches: bool | None = True
        for statement in rule.expression:
            ((kind, value),) = statement.items()
            if kind == "match":
                matches = _both(matches, self._matches(chain, value))
            elif kind == "vmap":
                found, verdict = self._looked_up(chain, value)
                return _both(matches, found), verdict
            elif kind == "xt" and value["name"] in _TARGETS:
                return matches, {_TARGETS[value["name"]]: {}}
            elif kind in _VERDICTS:
                return matches, {kind: value if value is not None else {}}
            elif kind not in _NEUTRAL:
                matches = _both(matches, None)
            if matches is False:
                return False, None
        return matches, None

    def _looked_up(self, chain: Chain, value: Json) -> tuple[bool | None, Json | None]:
        """Whether a verdict map matches the packet, and with which verdict."""
        data = value["data"]
        entries = data["set"] if isinstance(data, dict) else self._elements(chain, data)
        if entries is None:
            return None, {"accept": {}}
        known = _known(value["key"], self.packet)
        for entry in entries:
            key, verdict = entry
            found = _within(known, _bare(key), lambda name: self._elements(chain, name))
            if found is not False:
                ((verb, target),) = verdict.items()
                return found, {verb: target if target is not None else {}}
        return False, None

    def _matches(self, chain: Chain, match: Json) -> bool | None:
        known = _known(match["left"], self.packet)
        if known is _NEVER:
            return False
        found = _within(known, match["right"], lambda name: self._elements(chain, name))
        if match["op"] in ("==", "in"):
            return found
        if match["op"] == "!=":
            return None if found is None else not found
        return None

    def _elements(self, chain: Chain, reference: str) -> Sequence[Any] | None:
        name = (chain.name.family, chain.name.table, reference.removeprefix("@"))
        return self.ruleset.sets.get(name)


_RETURNED = "returned"
_TRANSLATIONS = {"dnat", "snat", "masquerade", "redirect"}
_VERDICTS = {"accept", "drop", "reject", "queue", "jump", "goto", "return"} | _TRANSLATIONS
_TARGETS = {name.upper(): name for name in {"reject"} | _TRANSLATIONS}
"""Targets of iptables; of its matches, libnftables shows the names only."""
_NEUTRAL = {"counter", "log", "comment", "notrack", "mangle"}
_NEVER = object()


def _both(one: bool | None, other: bool | None) -> bool | None:
    if one is False or other is False:
        return False
    return None if one is None or other is None else True


def _known(left: Any, packet: Packet) -> Any:
    """The packet's value for the left side of a match: None if unknown, _NEVER if it has none."""
    match left:
        case {"meta": {"key": "iifname" | "iif"}}:
            return packet.iifname
        case {"meta": {"key": "oifname" | "oif"}}:
            return packet.oifname
        case {"meta": {"key": "mark"}}:
            return packet.mark
        case {"&": [{"meta": {"key": "mark"}}, int(mask)]}:
            return packet.mark & mask
        case {"meta": {"key": "nfproto"}}:
            return packet.family.name
        case {"meta": {"key": "protocol"}}:
            return packet.family.nft
        case {"payload": {"protocol": "ip" | "ip6" | "arp" as other}} if other != packet.family.nft:
            return _NEVER
        case {"payload": {"protocol": packet.family.nft, "field": "saddr"}}:
            return packet.saddr
        case {"payload": {"protocol": packet.family.nft, "field": "daddr"}}:
            return packet.daddr
        case {"ct": {"key": "state"}}:
            return frozenset({packet.state})
        case {"ct": {"key": "status"}}:
            return packet.status
    return None


def _within(known: Any, right: Any, elements: Any) -> bool | None:
    """Whether the known value equals, or is in, the right side of a match."""
    if known is None:
        return None
    right = _bare(right)
    if isinstance(right, str) and right.startswith("@"):
        listed = elements(right)
        return None if listed is None else _any(_within(known, e, elements) for e in listed)
    if isinstance(right, list):
        return _any(_within(known, each, elements) for each in right)
    if isinstance(right, dict) and "set" in right:
        return _within(known, right["set"], elements)
    if isinstance(known, IPNetwork):
        return _covers(right, known)
    if isinstance(known, frozenset):
        return right in known
    if isinstance(known, str) and isinstance(right, str) and right.endswith("*"):
        return known.startswith(right[:-1])
    if isinstance(right, (str, int)):
        return bool(known == right)
    return None


def _bare(item: Any) -> Any:
    """The value of a set element or the key of a map entry, without counter and the like."""
    while isinstance(item, dict) and "elem" in item:
        item = item["elem"]["val"]
    return item


def _any(answers: Iterable[bool | None]) -> bool | None:
    unknown = False
    for answer in answers:
        if answer:
            return True
        unknown |= answer is None
    return None if unknown else False


def _covers(right: Any, known: IPNetwork) -> bool | None:
    match right:
        case {"prefix": {"addr": str(first), "len": int(length)}}:
            text = f"{first}/{length}"
        case {"range": [str(start), str(end)]}:
            return _inside(known, address(start), address(end))
        case str(text):
            pass
        case _:
            return None
    try:
        network = family_of(known).network(text, strict=False)
    except ValueError:
        return None
    return _inside(known, network.network_address, network.broadcast_address)


def _inside(known: IPNetwork, first: IPAddress, last: IPAddress) -> bool | None:
    start, end = int(known.network_address), int(known.broadcast_address)
    if int(first) <= start and end <= int(last):
        return True
    return False if end < int(first) or int(last) < start else None
