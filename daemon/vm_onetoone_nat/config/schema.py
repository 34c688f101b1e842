"""The content of one configuration file: keys, values, and the message for each fault.

A message has the key path, the value, and what to write instead; `config` prepends the file name.
All faults of a file are reported at once.
"""

import json
import re
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from ipaddress import (
    AddressValueError,
    IPv4Address,
    IPv4Network,
    NetmaskValueError,
    collapse_addresses,
)
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from vm_onetoone_nat.errors import ConfigError
from vm_onetoone_nat.state import (
    DEFAULT_FWMARK,
    AddressSource,
    AllowedService,
    Mapping,
    Origin,
    Range,
)

_INTERFACE_MAX = 15  # IFNAMSIZ less the closing NUL


def _name(value: str) -> str:
    if not value.strip() or value != value.strip() or not value.isprintable():
        raise ValueError("write a name without spaces around it, or leave the key out")
    return value


def _interface_name(value: str) -> str:
    _name(value)
    if len(value.encode()) > _INTERFACE_MAX or "/" in value or " " in value or value in (".", ".."):
        raise ValueError(
            'write the name of an interface as in "ip link", such as "wlan0", or "auto"'
        )
    return value


def _uri(value: str) -> str:
    if "://" not in value or not value.isprintable() or " " in value:
        raise ValueError('write a libvirt URI such as "qemu:///system"')
    return value


def _domain(value: str) -> str:
    _name(value)
    if "/" in value:
        raise ValueError("write a domain's name or UUID as in 'virsh list --all --name'")
    return value


def _fwmark(value: str) -> int:
    advice = 'write one bit as hexadecimal text, such as "0x00100000"'
    try:
        mark = int(value, 16)
    except ValueError as error:
        raise ValueError(advice) from error
    if not value.lower().startswith("0x") or mark <= 0 or mark.bit_count() != 1 or mark >> 32:
        raise ValueError(advice)
    return mark


def _usable(address: IPv4Address) -> None:
    if (
        address.is_multicast
        or address.is_loopback
        or address.is_unspecified
        or address.is_reserved
        or int(address) >> 24 == 0
    ):
        raise ValueError("no host can have this address; write an address of the LAN")


def _address(value: str) -> IPv4Address:
    try:
        address = IPv4Address(value)
    except AddressValueError as error:
        raise ValueError('write an IPv4 address such as "192.168.122.101"') from error
    _usable(address)
    return address


@dataclass(frozen=True, slots=True)
class External:
    """An external address as written; `prefixlen` None where there is no prefix."""

    ip: IPv4Address
    prefixlen: int | None

    @property
    def lan(self) -> IPv4Network:
        """Its LAN; with a prefix of 24 bits if none is written, as nearly all LANs have."""
        length = 24 if self.prefixlen is None else self.prefixlen
        return IPv4Network((self.ip, length), strict=False)

    def __str__(self) -> str:
        return str(self.ip) if self.prefixlen is None else f"{self.ip}/{self.prefixlen}"


def _external(value: str) -> External:
    advice = 'write an IPv4 address such as "192.168.1.101", or "192.168.1.101/24" with a prefix'
    address, slash, prefix = value.partition("/")
    digits = prefix.isascii() and prefix.isdigit() and len(prefix) <= 2
    if slash and not (digits and 8 <= int(prefix) <= 32):
        raise ValueError(f"a LAN's prefix is a number from 8 to 32; {advice}")
    try:
        external = External(IPv4Address(address), int(prefix) if slash else None)
    except AddressValueError as error:
        raise ValueError(advice) from error
    _usable(external.ip)
    if not _is_host(external):
        refusal = f"is the network or broadcast address of {external.lan}; write another address"
        if external.prefixlen is None:
            wider = (External(external.ip, length) for length in range(23, 7, -1))
            fitting = next((str(e) for e in wider if _is_host(e)), "")
            refusal += f', or the prefix in which it is a host\'s, such as "{fitting}"'
        raise ValueError(refusal)
    return external


def _is_host(external: External) -> bool:
    lan = external.lan
    edges = (lan.network_address, lan.broadcast_address)
    return lan.prefixlen >= 31 or external.ip not in edges


def _service(value: str) -> AllowedService:
    advice = 'write "icmp", "tcp/22", "udp/53" or a range such as "tcp/8000-8100"'
    protocol, slash, ports = value.partition("/")
    if value == "icmp":
        return AllowedService("icmp")
    if protocol not in ("tcp", "udp"):
        raise ValueError(advice)
    if not slash:
        return AllowedService(protocol)
    first, dash, last = ports.partition("-")
    numbers = [first, last] if dash else [first, first]
    if not all(n.isascii() and n.isdigit() and len(n) <= 5 for n in numbers):
        raise ValueError(advice)
    low, high = int(numbers[0]), int(numbers[1])
    if not 1 <= low <= high <= 65535:
        raise ValueError(f"ports go from 1 to 65535, the lower first; {advice}")
    return AllowedService(protocol, low, high)


def _source(value: str) -> IPv4Network:
    try:
        return IPv4Network(value)
    except NetmaskValueError as error:
        raise ValueError('write a prefix such as "192.168.1.0/24"') from error
    except AddressValueError as error:
        raise ValueError('write an IPv4 prefix such as "192.168.1.0/24"') from error
    except ValueError as error:
        network = IPv4Network(value, strict=False)
        raise ValueError(f'has bits set past its prefix; write "{network}"') from error


def _mac(value: str) -> str:
    if not re.fullmatch("[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", value):
        raise ValueError("write a MAC as in 'virsh domiflist', such as \"52:54:00:a8:7a:65\"")
    return value.lower()


_RANGE_MAX = 1 << 16


def _range(value: str) -> Range:
    advice = 'write addresses such as "192.168.1.200-192.168.1.220"'
    first, dash, last = (part.strip() for part in value.partition("-"))
    try:
        found = Range(IPv4Address(first), IPv4Address(last if dash else first))
    except AddressValueError as error:
        raise ValueError(advice) from error
    if found.first > found.last:
        raise ValueError(f"the lower address comes first; {advice}")
    if int(found.last) - int(found.first) >= _RANGE_MAX:
        raise ValueError(f"a pool has {_RANGE_MAX:,} addresses at most; {advice}")
    _usable(found.first)
    _usable(found.last)
    return found


def _from_text(parse: Callable[[str], object]) -> BeforeValidator:
    """A validator that accepts text only, and parses it with `parse`."""

    def validate(value: object) -> object:
        if not isinstance(value, str):
            raise ValueError("write text in quotes")
        return parse(value)

    return BeforeValidator(validate)


def _boolean(value: object) -> object:
    if not isinstance(value, bool):
        raise ValueError("write true or false, without quotes")
    return value


_from_boolean = BeforeValidator(_boolean)


_Item = TypeVar("_Item")
_Listed = Annotated[list[_Item], Field(min_length=1)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Settings(_Model):
    """[settings] of one file; `model_fields_set` has the keys that it contains."""

    uplink: Annotated[str, _from_text(_interface_name)] = "auto"
    network: Annotated[str, _from_text(_name)] = "default"
    libvirt_uri: Annotated[str, _from_text(_uri)] = "qemu:///system"
    fwmark: Annotated[int, _from_text(_fwmark)] = DEFAULT_FWMARK
    conflict_detection: Annotated[bool, _from_boolean] = True
    guest_agent: Annotated[bool, _from_boolean] = False
    metadata: Annotated[bool, _from_boolean] = True
    metadata_external: list[Annotated[IPv4Network, _from_text(_source)]] = []


class MappingTable(_Model):
    """One [[mapping]], with parsed values."""

    external: Annotated[External, _from_text(_external)]
    internal: Annotated[IPv4Address, _from_text(_address)] | None = None
    domain: Annotated[str, _from_text(_domain)] | None = None
    network: Annotated[str, _from_text(_name)] | None = None
    mac: Annotated[str, _from_text(_mac)] | None = None
    allow: _Listed[Annotated[AllowedService, _from_text(_service)]] | None = None
    allowed_sources: _Listed[Annotated[IPv4Network, _from_text(_source)]] | None = None


class PoolTable(_Model):
    """One [[pool]]."""

    external: _Listed[Annotated[Range, _from_text(_range)]]
    network: Annotated[str, _from_text(_name)] | None = None


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
