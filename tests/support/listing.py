"""Our table as libnftables lists it, in JSON."""

import copy
from collections.abc import Iterable
from typing import Any

from vm_onetoone_nat.kernel.messages.nft_table import table_objects
from vm_onetoone_nat.model.nat_table import ANY_PROTOCOL, Element, Part

Json = dict[str, Any]
METAINFO: Json = {"metainfo": {"version": "1.0.6", "json_schema_version": 1}}


def listing(fwmark: int, elements: Iterable[Element] = ()) -> list[Json]:
    """The table with these elements: with metainfo, and a handle on every object."""
    entries: list[Json] = [METAINFO]
    for number, entry in enumerate(table_objects(fwmark)):
        ((kind, value),) = copy.deepcopy(entry).items()
        entries.append({kind: {**value, "handle": number}})
    named = {e[k]["name"]: e[k] for e in entries for k in ("set", "map") if k in e}
    for each in elements:
        named[each.container.name].setdefault("elem", []).append(listed(each))
    return entries


def listed(each: Element) -> Any:
    """An element, as a listing without state has it."""
    parts = [_part(part, text) for part, text in zip(each.container.key, each.key, strict=True)]
    key: Any = parts[0] if len(parts) == 1 else {"concat": parts}
    if each.container.counted:
        key = {"elem": {"val": key, "counter": None}}
    if each.container.value is None:
        return key
    verdict = each.container.value is Part.VERDICT
    return [key, {"goto": {"target": each.value}} if verdict else each.value]


def _part(part: Part, text: str) -> Any:
    if part is Part.NETWORK:
        address, length = text.split("/")
        return {"prefix": {"addr": address, "len": int(length)}}
    if part is Part.PORTS:
        first, last = map(int, text.split("-"))
        return {"range": [first, last]}
    return {"range": [0, 255]} if (part, text) == (Part.PROTOCOL, ANY_PROTOCOL) else text
