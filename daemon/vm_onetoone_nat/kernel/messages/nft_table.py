"""The chains and rules of our table, in libnftables' JSON. Pure.

Schema: libnftables-json(5). `nft_expressions` translates them for the kernel. The containers are
those of `nat_table`.
"""

from typing import Any

from vm_onetoone_nat.model.nat_table import (
    ADMIT,
    ALLOWED,
    DNAT_PRIORITY,
    EXTERNAL,
    INBOUND,
    INTERNAL,
    MARK_PRIORITY,
    OUTBOUND,
    RESTRICT,
    SNAT_PRIORITY,
    UNTRANSLATED_IN,
    UNTRANSLATED_OUT,
    UNTRANSLATED_PRIORITY,
    UPLINK,
    Container,
)

Json = dict[str, Any]


def table_objects(fwmark: int) -> list[Json]:
    """The chains of the table, and the rules in their order, independent of the mappings."""
    return [
        _base("prerouting", "nat", "prerouting", DNAT_PRIORITY),
        _base("output", "nat", "output", DNAT_PRIORITY),
        _base("postrouting", "nat", "postrouting", SNAT_PRIORITY),
        _base("forward", "filter", "forward", MARK_PRIORITY),
        _base("local", "filter", "output", MARK_PRIORITY),
        _base("input", "filter", "input", MARK_PRIORITY),
        _base("leaving", "filter", "postrouting", UNTRANSLATED_PRIORITY),
        {"chain": {"name": ADMIT}},
        {"chain": {"name": RESTRICT}},
        *_translation(),
        *_admission(fwmark),
        *_restriction(),
        *_untranslated(),
    ]


def _base(name: str, kind: str, hook: str, priority: int) -> Json:
    declaration = {"type": kind, "hook": hook, "prio": priority, "policy": "accept"}
    return {"chain": {"name": name, **declaration}}


def _rule(chain: str, *expression: Json) -> Json:
    return {"rule": {"chain": chain, "expr": list(expression)}}


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
