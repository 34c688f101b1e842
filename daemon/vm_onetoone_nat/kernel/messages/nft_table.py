"""Our table in libnftables' JSON: declarations, chains and rules, and its listing.

Pure. Schema: libnftables-json(5). The static table is written in the form in which the kernel lists
it, so that one comparison shows whether it is intact. Its containers are those of `nat_table`.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from vm_onetoone_nat.kernel.messages.nft_elements import forms, parse_elements
from vm_onetoone_nat.model.nat_table import (
    ADMIT,
    ALLOWED,
    CONTAINERS,
    DNAT_PRIORITY,
    EXTERNAL,
    INBOUND,
    INTERNAL,
    MARK_PRIORITY,
    OUTBOUND,
    RESTRICT,
    SNAT_PRIORITY,
    TABLE,
    UNTRANSLATED_IN,
    UNTRANSLATED_OUT,
    UNTRANSLATED_PRIORITY,
    UPLINK,
    Container,
    Element,
    Table,
)

Json = dict[str, Any]

TABLE_JSON: Json = {"table": {"family": "inet", "name": TABLE}}
IN_TABLE: Json = {"family": "inet", "table": TABLE}
"""The table, as the place of an object."""

_OWNERSHIP: tuple[Any, ...] = (["owner", "persist"], "persist")
"""The flags of a table that outlives its owner, while it has one and after."""

_BY_NAME = {container.name: container for container in CONTAINERS}


def table_objects(fwmark: int) -> list[Json]:
    """The static table: declarations, chains and rules, independent of the mappings."""
    return _static(fwmark)


def parse_table(listing: Sequence[Json]) -> Table:
    """Our table, from the objects of `list table inet vm_onetoone_nat`."""
    elements: set[Element] = set()
    static: list[Json] = []
    fwmark: int | None = None
    strange = False
    for entry in listing:
        ((kind, value),) = entry.items()
        if kind == "metainfo":
            continue
        value = {k: v for k, v in value.items() if k != "handle"}
        if kind == "table" and value.get("flags") in _OWNERSHIP:
            del value["flags"]
        if kind in ("set", "map"):
            items = value.pop("elem", ())
            container = _BY_NAME.get(value["name"])
            if container is not None:
                found, others = parse_elements(container, items)
                elements.update(found)
                strange |= others
        if kind == "rule" and value["chain"] == ADMIT:
            fwmark = _mangled_mark(value["expr"])
        static.append({kind: value})
    intact = fwmark is not None and _canonical(static) == _canonical(_static(fwmark))
    return Table(intact and not strange, frozenset(elements), fwmark)


def _static(fwmark: int) -> list[Json]:
    """The table as the kernel lists it, without handles and elements."""
    return [
        TABLE_JSON,
        *map(_declaration, CONTAINERS),
        _base("prerouting", "nat", "prerouting", DNAT_PRIORITY),
        _base("output", "nat", "output", DNAT_PRIORITY),
        _base("postrouting", "nat", "postrouting", SNAT_PRIORITY),
        _base("forward", "filter", "forward", MARK_PRIORITY),
        _base("local", "filter", "output", MARK_PRIORITY),
        _base("input", "filter", "input", MARK_PRIORITY),
        _base("leaving", "filter", "postrouting", UNTRANSLATED_PRIORITY),
        {"chain": {**IN_TABLE, "name": ADMIT}},
        {"chain": {**IN_TABLE, "name": RESTRICT}},
        *_translation(),
        *_admission(fwmark),
        *_restriction(),
        *_untranslated(),
    ]


def _declaration(container: Container) -> Json:
    known = forms(container.family)
    types = [known[part].nft_type for part in container.key]
    declared: Json = {**IN_TABLE, "name": container.name}
    declared["type"] = types if len(types) > 1 else types[0]
    if container.counted:
        declared["stmt"] = [{"counter": None}]
    if any(known[part].interval for part in container.key):
        declared["flags"] = ["interval"]
    if container.value is None:
        return {"set": declared}
    return {"map": {**declared, "map": known[container.value].nft_type}}


def _base(name: str, kind: str, hook: str, priority: int) -> Json:
    declaration = {"type": kind, "hook": hook, "prio": priority, "policy": "accept"}
    return {"chain": {**IN_TABLE, "name": name, **declaration}}


def _rule(chain: str, *expression: Json) -> Json:
    return {"rule": {**IN_TABLE, "chain": chain, "expr": list(expression)}}


def _match(left: Json, right: str, op: str = "==") -> Json:
    return {"match": {"op": op, "left": left, "right": right}}


def _in(container: Container) -> str:
    """The reference of an expression to a container."""
    return f"@{container.name}"


# An expression that is looked up in a container reads addresses of the container's family.


def _address(side: str, container: Container) -> Json:
    return {"payload": {"protocol": container.family.nft, "field": side}}


def _original(side: str, container: Container) -> Json:
    """The address in the first packet of the connection."""
    return {"ct": {"key": f"{container.family.nft} {side}", "dir": "original"}}


def _translate(kind: str, side: str, container: Container) -> Json:
    address = {"map": {"key": _address(side, container), "data": _in(container)}}
    return {kind: {"family": container.family.nft, "addr": address}}


def _allowed(client: str, port: str) -> Json:
    """Match a packet whose client may use the service on the other side."""
    service = {"payload": {"protocol": "th", "field": port}}
    packet = [_original("daddr", ALLOWED), _address(client, ALLOWED), _PROTOCOL, service]
    return _match({"concat": packet}, _in(ALLOWED))


def _state(name: str) -> Json:
    return _match({"ct": {"key": "state"}}, name, "in")


_MARK: Json = {"meta": {"key": "mark"}}
_PROTOCOL: Json = {"meta": {"key": "l4proto"}}
_INTO_UPLINK = _match({"meta": {"key": "oifname"}}, _in(UPLINK))
_FROM_UPLINK = _match({"meta": {"key": "iifname"}}, _in(UPLINK))
_REQUEST = _match({"ct": {"key": "direction"}}, "original")
_REPLY = _match({"ct": {"key": "direction"}}, "reply")
_ADMIT: Json = {"goto": {"target": ADMIT}}


def _translation() -> list[Json]:
    dnat = _translate("dnat", "daddr", EXTERNAL)
    snat = _translate("snat", "saddr", INTERNAL)
    return [
        _rule("prerouting", dnat),
        _rule("output", dnat),
        # Behind another interface than the uplink, such as a VPN, replies to the external address
        # are not routed back: that traffic is left to libvirt's masquerade.
        _rule("postrouting", _INTO_UPLINK, snat),
        # From a guest to an external address: replies must come back through this host.
        _rule("postrouting", _match({"ct": {"key": "status"}}, "dnat", "in"), snat),
    ]


def _admission(fwmark: int) -> list[Json]:
    inbound = {"vmap": {"key": _original("daddr", INBOUND), "data": _in(INBOUND)}}
    outbound = _match(_original("saddr", OUTBOUND), _in(OUTBOUND))
    return [
        _rule("forward", inbound),
        # Only through the uplink: other libvirt networks stay isolated as libvirt configures them.
        _rule("forward", _INTO_UPLINK, outbound, _ADMIT),
        _rule("forward", _FROM_UPLINK, _REPLY, outbound, _ADMIT),
        _rule("local", inbound),
        _rule(ADMIT, {"mangle": {"key": _MARK, "value": {"|": [_MARK, fwmark]}}}),
    ]


def _restriction() -> list[Json]:
    reset = {"reject": {"type": "tcp reset"}}
    return [
        # ICMP errors of connections, which TCP needs for path MTU discovery.
        _rule(RESTRICT, _state("related"), _ADMIT),
        # Both directions, so that a connection that is no longer allowed ends.
        _rule(RESTRICT, _REQUEST, _allowed("saddr", "dport"), _ADMIT),
        _rule(RESTRICT, _REPLY, _allowed("daddr", "sport"), _ADMIT),
        _rule(RESTRICT, _state("established"), _match(_PROTOCOL, "tcp"), reset),
        _rule(RESTRICT, {"reject": {"type": "icmpx", "expr": "port-unreachable"}}),
    ]


def _untranslated() -> list[Json]:
    """Drop what NAT left alone: packets in no connection, and flows from before a mapping."""
    drop: Json = {"drop": None}
    received = _match(_address("daddr", UNTRANSLATED_IN), _in(UNTRANSLATED_IN))
    sent = _match(_address("saddr", UNTRANSLATED_OUT), _in(UNTRANSLATED_OUT))
    return [
        # The host would answer in the guest's place, and reset its connections.
        _rule("input", received, drop),
        _rule("leaving", _INTO_UPLINK, sent, drop),
    ]


def _canonical(objects: Iterable[Json]) -> tuple[list[str], list[Json]]:
    """Objects in a canonical order; the rules of each chain keep theirs, which matters."""
    objects = list(objects)
    rules = [o["rule"] for o in objects if "rule" in o]
    others = [json.dumps(o, sort_keys=True) for o in objects if "rule" not in o]
    return sorted(others), sorted(rules, key=lambda rule: str(rule["chain"]))


def _mangled_mark(expression: Sequence[Json]) -> int | None:
    match expression:
        case [{"mangle": {"value": {"|": [_, int(fwmark)]}}}]:
            return fwmark
    return None
