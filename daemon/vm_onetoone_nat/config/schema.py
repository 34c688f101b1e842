"""The content of one configuration file: keys, values, and the message for each fault.

A message has the key path, the value, and what to write instead; `files` prepends the file name.
All faults of a file are reported at once.
"""

import json
import re
import tomllib
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from ipaddress import collapse_addresses
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from vm_onetoone_nat.config import values
from vm_onetoone_nat.errors import ConfigError
from vm_onetoone_nat.model.configuration import DEFAULT_FWMARK, Range
from vm_onetoone_nat.model.family import IPAddress, IPNetwork
from vm_onetoone_nat.model.mapping import AddressSource, AllowedService, Mapping, Origin


def _from_text(parse: Callable[[str], object]) -> BeforeValidator:
    """A validator that accepts text only, and parses it with `parse`."""

    def validate(value: object) -> object:
        if not isinstance(value, str):
            raise ValueError("write text in quotes")
        return parse(value)

    return BeforeValidator(validate)


_from_boolean = BeforeValidator(values.boolean)


_Item = TypeVar("_Item")
_Listed = Annotated[list[_Item], Field(min_length=1)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Settings(_Model):
    """[settings] of one file; `model_fields_set` has the keys that it contains."""

    uplink: Annotated[str, _from_text(values.interface_name)] = "auto"
    network: Annotated[str, _from_text(values.name)] = "default"
    libvirt_uri: Annotated[str, _from_text(values.uri)] = "qemu:///system"
    fwmark: Annotated[int, _from_text(values.fwmark)] = DEFAULT_FWMARK
    conflict_detection: Annotated[bool, _from_boolean] = True
    guest_agent: Annotated[bool, _from_boolean] = False
    metadata: Annotated[bool, _from_boolean] = True
    metadata_external: list[Annotated[IPNetwork, _from_text(values.source)]] = []


class MappingTable(_Model):
    """One [[mapping]], with parsed values."""

    external: Annotated[values.External, _from_text(values.external)]
    internal: Annotated[IPAddress, _from_text(values.address)] | None = None
    domain: Annotated[str, _from_text(values.domain)] | None = None
    network: Annotated[str, _from_text(values.name)] | None = None
    mac: Annotated[str, _from_text(values.mac)] | None = None
    allow: _Listed[Annotated[AllowedService, _from_text(values.service)]] | None = None
    allowed_sources: _Listed[Annotated[IPNetwork, _from_text(values.source)]] | None = None


class PoolTable(_Model):
    """One [[pool]]."""

    external: _Listed[Annotated[Range, _from_text(values.address_range)]]
    network: Annotated[str, _from_text(values.name)] | None = None


class File(_Model):
    """One file without a fault in itself."""

    settings: Settings = Settings()
    mapping: list[MappingTable] = []
    pool: list[PoolTable] = []


def mapping_of(table: MappingTable, network: str, origin: Origin = Origin.CONFIGURATION) -> Mapping:
    """The mapping of a table; `network` is for tables that name none."""
    sources = table.allowed_sources
    return Mapping(
        external=table.external.ip,
        prefixlen=table.external.prefixlen,
        internal=table.internal,
        origin=origin,
        source=None if table.internal is None else AddressSource(origin),
        domain=table.domain,
        mac=table.mac,
        network=table.network or network,
        allow=None if table.allow is None else _merged(table.allow),
        allowed_sources=None if sources is None else tuple(collapse_addresses(sources)),
    )


def _merged(services: Iterable[AllowedService]) -> tuple[AllowedService, ...]:
    """Merge ranges that overlap or touch: nftables refuses overlapping intervals."""
    merged: list[AllowedService] = []
    for service in sorted(services):
        last = merged[-1] if merged else None
        if last and last.protocol == service.protocol and service.first <= last.last + 1:
            merged[-1] = AllowedService(last.protocol, last.first, max(last.last, service.last))
        else:
            merged.append(service)
    return tuple(merged)


def parse_text(text: str) -> File:
    """Parse a file's text. Raises ConfigError with a line, without file name, for each fault."""
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        # ValueError: TOMLDecodeError, or a number with more digits than Python parses.
        raise ConfigError((f"not valid TOML: {error}",)) from error
    return validated(document)


def validated(document: dict[str, Any]) -> File:
    """Validate a parsed document. Raises ConfigError with a line for each fault."""
    try:
        return File.model_validate(document)
    except ValidationError as error:
        raise ConfigError(tuple(_problem(e) for e in error.errors())) from error


_ADVICE = {
    "list_type": "write a list in square brackets",
    "too_short": "leave the key out, or name at least one",
}


def _problem(error: Any) -> str:
    """One line for one of pydantic's errors."""
    location = "".join(
        f"[{part}]" if isinstance(part, int) else f".{_key(part)}" for part in error["loc"]
    )
    where = location.lstrip(".")
    kind, value = error["type"], error["input"]
    if kind == "extra_forbidden":
        return f"{where}: unknown key; {_known_keys(error['loc'])}"
    if kind == "missing":
        return f"{where}: the key is missing; write it, such as {_EXAMPLES[error['loc'][0]]}"
    if error["loc"] in (("mapping",), ("pool",)):
        return f"{where}: {_shown(value)}: write each {where} as a table headed [[{where}]]"
    if kind == "model_type":
        return f"{where}: {_shown(value)}: write a table headed {_TABLES[error['loc'][0]]}"
    advice = (
        str(error["ctx"]["error"]) if kind == "value_error" else _ADVICE.get(kind, error["msg"])
    )
    return f"{where}: {_shown(value)}: {advice}"


def _key(name: str) -> str:
    """A key in TOML syntax: bare if possible, else quoted and escaped."""
    return name if re.fullmatch("[A-Za-z0-9_-]+", name) else json.dumps(name)


_EXAMPLES = {
    "mapping": 'external = "192.168.1.101"',
    "pool": 'external = ["192.168.1.200-192.168.1.220"]',
}
_TABLES = {"settings": "[settings]", "mapping": "[[mapping]]", "pool": "[[pool]]"}
_KEYS: dict[tuple[str, ...], type[BaseModel]] = {
    (): File,
    ("settings",): Settings,
    ("mapping",): MappingTable,
    ("pool",): PoolTable,
}


def _known_keys(location: tuple[str | int, ...]) -> str:
    *table, key = (part for part in location if isinstance(part, str))
    known = list(_KEYS[tuple(table)].model_fields)
    if close := get_close_matches(str(key), known, n=1):
        return f"write '{close[0]}'?"
    return f"write one of: {', '.join(known)}"


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # a number with more digits than Python prints
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."
