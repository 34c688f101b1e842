"""libnftables' JSON, to and from our values. Schema: libnftables-json(5).

The static table is written in the form in which the kernel lists it, so that one comparison shows
whether it is intact.

Maps and sets:

- `external`, `internal`: the translation, in both directions.
- `inbound`: external address to verdict, for every packet of a connection to that address.
- `outbound`: internal addresses whose own connections through the uplink are accepted.
- `allowed`: what a restricted mapping accepts: external . source . protocol . port.
- `uplink`: the interface with the external addresses.
- `hairpin`: not used for packets; records the bridge ports whose hairpin flag is ours to clear.

The first four have counters: NAT is looked up once for each connection, forwarding for each packet.
"""

import json
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network
from typing import Any

from vm_onetoone_nat.nft_foreign import accept_expression
from vm_onetoone_nat.plan import Transaction
from vm_onetoone_nat.state import (
    TABLE,
    ChainName,
    Element,
    Table,
    address,
    element,
)

Json = dict[str, Any]

_OURS = {"family": "inet", "table": TABLE}
_ANY_PROTOCOL = "any"
_COUNTED: list[Json] = [{"counter": None}]


def table_commands(fwmark: int) -> list[Json]:
    """The static table: declarations, chains and rules, independent of the mappings."""
    return [{"add": value} for value in _static(fwmark)]


def transaction_commands(transaction: Transaction) -> list[Json]:
    """The transaction as libnftables commands, in an order in which each is valid."""
    table = {"table": {"family": "inet", "name": TABLE}}
    commands: list[Json] = []
    if transaction.remove_table:
        commands.append({"delete": table})
    if transaction.install is not None:
        # add, delete, add: the delete fails without a table.
        commands += [{"add": table}, {"delete": table}, *table_commands(transaction.install)]
    commands += [
        {"delete": {"rule": {**_chain_json(chain), "handle": handle}}}
        for chain, handle in transaction.delete_accepts
    ]
    commands += [
        {"insert": {"rule": {**_chain_json(chain), "expr": accept_expression(fwmark)}}}
        for chain, fwmark in transaction.insert_accepts
    ]
    commands += _element_commands("delete", transaction.delete_elements)
    commands += _element_commands("add", transaction.add_elements)
    return commands


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
        if kind in ("set", "map"):
            for item in value.pop("elem", []):
                element = _parse_element(value["name"], item)
                if element is None:
                    strange = True
                else:
                    elements.add(element)
        if kind == "rule" and value["chain"] == "admit":
            fwmark = _mangled_mark(value["expr"])
        static.append({kind: value})
    intact = fwmark is not None and _canonical(static) == _canonical(_static(fwmark))
    return Table(intact and not strange, frozenset(elements), fwmark)


def _static(fwmark: int) -> list[Json]:
    """The table as the kernel lists it, without handles and elements."""

    def collection(kind: str, name: str, **more: object) -> Json:
        return {kind: {**_OURS, "name": name, **more}}

    def base(name: str, kind: str, hook: str, prio: int) -> Json:
        declaration = {"type": kind, "hook": hook, "prio": prio, "policy": "accept"}
        return {"chain": {**_OURS, "name": name, **declaration}}

    def rule(chain: str, *expression: Json) -> Json:
        return {"rule": {**_OURS, "chain": chain, "expr": list(expression)}}

    def match(left: Json, right: str, op: str = "==") -> Json:
        return {"match": {"op": op, "left": left, "right": right}}

    def address(side: str) -> Json:
        return {"payload": {"protocol": "ip", "field": side}}

    def original(side: str) -> Json:
        return {"ct": {"key": f"ip {side}", "dir": "original"}}

    def translate(kind: str, side: str, name: str) -> Json:
        return {kind: {"family": "ip", "addr": {"map": {"key": address(side), "data": f"@{name}"}}}}

    out, into = {"meta": {"key": "oifname"}}, {"meta": {"key": "iifname"}}
    mark = {"meta": {"key": "mark"}}
    request, reply = (match({"ct": {"key": "direction"}}, d) for d in ("original", "reply"))
    admit: Json = {"goto": {"target": "admit"}}
    dnat = translate("dnat", "daddr", "external")
    snat = translate("snat", "saddr", "internal")
    inbound = {"vmap": {"key": original("daddr"), "data": "@inbound"}}
    outbound = match(original("saddr"), "@outbound")
    protocol = {"meta": {"key": "l4proto"}}

    def allowed(client: str, port: str) -> Json:
        """Match a packet whose client may use the service on the other side."""
        service = {"payload": {"protocol": "th", "field": port}}
        return match(
            {"concat": [original("daddr"), address(client), protocol, service]}, "@allowed"
        )

    def state(name: str) -> Json:
        return match({"ct": {"key": "state"}}, name, "in")

    return [
        {"table": {"family": "inet", "name": TABLE}},
        collection("map", "external", type="ipv4_addr", map="ipv4_addr", stmt=_COUNTED),
        collection("map", "internal", type="ipv4_addr", map="ipv4_addr", stmt=_COUNTED),
        collection("map", "inbound", type="ipv4_addr", map="verdict", stmt=_COUNTED),
        collection("set", "outbound", type="ipv4_addr", stmt=_COUNTED),
        collection(
            "set",
            "allowed",
            type=["ipv4_addr", "ipv4_addr", "inet_proto", "inet_service"],
            flags=["interval"],
        ),
        collection("set", "uplink", type="ifname"),
        collection("set", "hairpin", type="ifname"),
        # Before other programs' destination NAT: the first chain that binds a connection wins.
        base("prerouting", "nat", "prerouting", -105),
        base("output", "nat", "output", -105),
        # Before libvirt's masquerade, at srcnat (100).
        base("postrouting", "nat", "postrouting", 95),
        # Before the chains that accept this mark, at filter (0).
        base("forward", "filter", "forward", -5),
        base("local", "filter", "output", -5),
        {"chain": {**_OURS, "name": "admit"}},
        {"chain": {**_OURS, "name": "restrict"}},
        rule("prerouting", dnat),
        rule("output", dnat),
        # Behind another interface than the uplink, such as a VPN, replies to the external address
        # are not routed back: that traffic is left to libvirt's masquerade.
        rule("postrouting", match(out, "@uplink"), snat),
        # From a guest to an external address: replies must come back through this host.
        rule("postrouting", match({"ct": {"key": "status"}}, "dnat", "in"), snat),
        rule("forward", inbound),
        # Only through the uplink: other libvirt networks stay isolated as libvirt configures them.
        rule("forward", match(out, "@uplink"), outbound, admit),
        rule("forward", match(into, "@uplink"), reply, outbound, admit),
        rule("local", inbound),
        rule("admit", {"mangle": {"key": mark, "value": {"|": [mark, fwmark]}}}),
        # ICMP errors of connections, which TCP needs for path MTU discovery.
        rule("restrict", state("related"), admit),
        # Both directions, so that a connection that is no longer allowed ends.
        rule("restrict", request, allowed("saddr", "dport"), admit),
        rule("restrict", reply, allowed("daddr", "sport"), admit),
        rule(
            "restrict",
            state("established"),
            match(protocol, "tcp"),
            {"reject": {"type": "tcp reset"}},
        ),
        rule("restrict", {"reject": {"type": "icmpx", "expr": "port-unreachable"}}),
    ]


def _canonical(objects: Iterable[Json]) -> tuple[list[str], list[Json]]:
    """Objects in a canonical order; the rules of each chain keep theirs, which matters."""
    objects = list(objects)
    rules = [o["rule"] for o in objects if "rule" in o]
    others = [json.dumps(o, sort_keys=True) for o in objects if "rule" not in o]
    return sorted(others), sorted(rules, key=lambda rule: str(rule["chain"]))


def _chain_json(chain: ChainName) -> Json:
    return {"family": chain.family, "table": chain.table, "chain": chain.name}


def _mangled_mark(expression: Sequence[Json]) -> int | None:
    match expression:
        case [{"mangle": {"value": {"|": [_, int(fwmark)]}}}]:
            return fwmark
    return None


def _element_commands(verb: str, elements: Iterable[Element]) -> list[Json]:
    """One command for each container, so that 1,000 mappings take a few commands."""
    by_container: dict[str, list[Any]] = {}
    for each in elements:
        by_container.setdefault(each.container, []).append(_element_json(each))
    return [
        {verb: {"element": {**_OURS, "name": name, "elem": items}}}
        for name, items in by_container.items()
    ]


def _element_json(element: Element) -> Any:
    match element.container:
        case "external" | "internal":
            return [element.key, element.value]
        case "inbound":
            verdict, target = element.value.split()
            return [element.key, {verdict: {"target": target}}]
        case "allowed":
            external, source, protocol, ports = element.key.split(" . ")
            network = IPv4Network(source)
            first, last = (int(port) for port in ports.split("-"))
            return {
                "concat": [
                    external,
                    {"prefix": {"addr": str(network.network_address), "len": network.prefixlen}},
                    {"range": [0, 255]} if protocol == _ANY_PROTOCOL else protocol,
                    {"range": [first, last]},
                ]
            }
        case _:
            return element.key


def _parse_element(container: str, item: Any) -> Element | None:
    """An element in a form that we write; None for any other, which is not ours."""
    match container, _uncounted(item):
        case (("external" | "internal"), [str(key), str(value)]) if _plain(key) and _plain(value):
            return element(container, key, value)
        case "inbound", [str(key), {"goto": {"target": str(target)}}] if _plain(key):
            return element(container, key, f"goto {target}")
        case "outbound", str(key) if _plain(key):
            return element(container, key)
        case (("uplink" | "hairpin"), str(key)):
            return element(container, key)
        case "allowed", {"concat": [str(external), source, protocol, ports]} if _plain(external):
            parts = (_source_text(source), _protocol_text(protocol), _ports_text(ports))
            if None not in parts:
                return element(container, " . ".join((external, *map(str, parts))))
    return None


def _uncounted(item: Any) -> Any:
    """An element without its counter, which the kernel adds and a stateless listing empties."""
    match item:
        case [{"elem": {"val": key, "counter": None, **more}}, value] if not more:
            return [key, value]
        case {"elem": {"val": key, "counter": None, **more}} if not more:
            return key
    return item


def _plain(text: str) -> bool:
    """Whether the text is one address."""
    try:
        address(text)
    except ValueError:
        return False
    return True


def _source_text(source: Any) -> str | None:
    match source:
        case {"prefix": {"addr": str(address), "len": int(length)}}:
            return f"{address}/{length}"
        case str(address) if _plain(address):
            return f"{address}/32"
    return None


def _protocol_text(protocol: Any) -> str | None:
    match protocol:
        case {"range": [0, 255]}:
            return _ANY_PROTOCOL
        case str(name):
            return name
    return None


def _ports_text(ports: Any) -> str | None:
    match ports:
        case {"range": [int(first), int(last)]}:
            return f"{first}-{last}"
        case int(port):
            return f"{port}-{port}"
    return None
