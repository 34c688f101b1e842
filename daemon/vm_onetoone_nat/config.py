"""Reading and validating config.toml: the only place that knows its keys.

Every refusal names the file, the key path, the value, and what to write instead. All faults of a
file are reported at once.
"""

import json
import re
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from errno import ENOENT
from ipaddress import (
    AddressValueError,
    IPv4Address,
    IPv4Network,
    NetmaskValueError,
    collapse_addresses,
)
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from vm_onetoone_nat.errors import ConfigError
from vm_onetoone_nat.state import DEFAULT_FWMARK, Address, Configuration, Mapping, Service

DEFAULT_PATH = Path("/etc/vm-onetoone-nat/config.toml")

_INTERFACE_MAX = 15  # IFNAMSIZ less the closing NUL


def load(path: Path) -> Configuration:
    """The configuration in a file. Raises ConfigError with a line for each fault."""
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        hint = "; write it, starting from config.example.toml" if error.errno == ENOENT else ""
        raise ConfigError((f"{path}: cannot be read: {error.strerror}{hint}",)) from error
    except UnicodeDecodeError as error:
        raise ConfigError((f"{path}: byte {error.start}: not UTF-8 text",)) from error
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        # ValueError: TOMLDecodeError, or a number of more digits than Python reads.
        raise ConfigError((f"{path}: not valid TOML: {error}",)) from error
    try:
        parsed = _File.model_validate(document)
    except ValidationError as error:
        raise ConfigError(tuple(_problem(path, e) for e in error.errors())) from error
    problems = tuple(f"{path}: {problem}" for problem in _contradictions(parsed))
    if problems:
        raise ConfigError(problems)
    return _configuration(parsed)


def check_host(path: Path, configuration: Configuration, addresses: Iterable[Address]) -> None:
    """Refuse what cannot work on this host. Raises ConfigError.

    Apart from `load`, because a host's addresses change: the daemon reports the same faults as a
    mapping's state instead of not starting at all.
    """
    problems = []
    known = tuple(addresses)
    for position, mapping in enumerate(configuration.mappings):
        where = f"{path}: mapping[{position}].external: '{mapping.external}'"
        for address in known:
            network = address.interface.network
            if address.primary and address.interface.ip == mapping.external:
                problems.append(
                    f"{where} is this host's own address on {address.ifname}; "
                    f"write a free address of the LAN"
                )
            elif (
                mapping.internal is not None
                and mapping.external in network
                and mapping.internal in network
            ):
                problems.append(
                    f"{where} lies in the libvirt network's subnet {network} "
                    f"({address.ifname}); write an address of the LAN"
                )
    if problems:
        raise ConfigError(tuple(problems))


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
class _External:
    """An external address as written; `prefixlen` None where there is no prefix."""

    ip: IPv4Address
    prefixlen: int | None

    @property
    def lan(self) -> IPv4Network:
        """The LAN that it is in; of 24 bits, as nearly all are, where no prefix is written."""
        length = 24 if self.prefixlen is None else self.prefixlen
        return IPv4Network((self.ip, length), strict=False)

    def __str__(self) -> str:
        return str(self.ip) if self.prefixlen is None else f"{self.ip}/{self.prefixlen}"


def _external(value: str) -> _External:
    advice = 'write an IPv4 address such as "192.168.1.101", or "192.168.1.101/24" with a prefix'
    address, slash, prefix = value.partition("/")
    digits = prefix.isascii() and prefix.isdigit() and len(prefix) <= 2
    if slash and not (digits and 8 <= int(prefix) <= 32):
        raise ValueError(f"a LAN's prefix is a number from 8 to 32; {advice}")
    try:
        external = _External(IPv4Address(address), int(prefix) if slash else None)
    except AddressValueError as error:
        raise ValueError(advice) from error
    _usable(external.ip)
    if not _is_host(external):
        refusal = f"is the network or broadcast address of {external.lan}; write another address"
        if external.prefixlen is None:
            wider = (_External(external.ip, length) for length in range(23, 7, -1))
            fitting = next((str(e) for e in wider if _is_host(e)), "")
            refusal += f', or the prefix in which it is a host\'s, such as "{fitting}"'
        raise ValueError(refusal)
    return external


def _is_host(external: _External) -> bool:
    lan = external.lan
    edges = (lan.network_address, lan.broadcast_address)
    return lan.prefixlen >= 31 or external.ip not in edges


def _service(value: str) -> Service:
    advice = 'write "icmp", "tcp/22", "udp/53" or a range such as "tcp/8000-8100"'
    protocol, slash, ports = value.partition("/")
    if value == "icmp":
        return Service("icmp")
    if protocol not in ("tcp", "udp"):
        raise ValueError(advice)
    if not slash:
        return Service(protocol)
    first, dash, last = ports.partition("-")
    numbers = [first, last] if dash else [first, first]
    if not all(n.isascii() and n.isdigit() and len(n) <= 5 for n in numbers):
        raise ValueError(advice)
    low, high = int(numbers[0]), int(numbers[1])
    if not 1 <= low <= high <= 65535:
        raise ValueError(f"ports go from 1 to 65535, the lower first; {advice}")
    return Service(protocol, low, high)


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


def _from_text(parse: Callable[[str], object]) -> BeforeValidator:
    """A validator that takes text alone, and makes of it what `parse` makes."""

    def validate(value: object) -> object:
        if not isinstance(value, str):
            raise ValueError("write text in quotes")
        return parse(value)

    return BeforeValidator(validate)


_Item = TypeVar("_Item")
_Listed = Annotated[list[_Item], Field(min_length=1)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Settings(_Model):
    uplink: Annotated[str, _from_text(_interface_name)] = "auto"
    network: Annotated[str, _from_text(_name)] = "default"
    libvirt_uri: Annotated[str, _from_text(_uri)] = "qemu:///system"
    fwmark: Annotated[int, _from_text(_fwmark)] = DEFAULT_FWMARK


class _Mapping(_Model):
    external: Annotated[_External, _from_text(_external)]
    internal: Annotated[IPv4Address, _from_text(_address)] | None = None
    domain: Annotated[str, _from_text(_domain)] | None = None
    network: Annotated[str, _from_text(_name)] | None = None
    allow: _Listed[Annotated[Service, _from_text(_service)]] | None = None
    allowed_sources: _Listed[Annotated[IPv4Network, _from_text(_source)]] | None = None


class _File(_Model):
    settings: _Settings = _Settings()
    mapping: list[_Mapping] = []


_ADVICE = {
    "list_type": "write a list in square brackets",
    "too_short": "leave the key out, or name at least one",
}


def _problem(path: Path, error: Any) -> str:
    """One line for one of pydantic's errors."""
    location = "".join(
        f"[{part}]" if isinstance(part, int) else f".{_key(part)}" for part in error["loc"]
    )
    where = f"{path}: {location.lstrip('.')}"
    kind, value = error["type"], error["input"]
    if kind == "extra_forbidden":
        return f"{where}: unknown key; {_known_keys(error['loc'])}"
    if kind == "missing":
        return f"{where}: the key is missing; write it, such as {_EXAMPLES[error['loc'][-1]]}"
    if error["loc"] == ("mapping",):
        return f"{where}: {_shown(value)}: write each mapping as a table headed [[mapping]]"
    if kind == "model_type":
        return f"{where}: {_shown(value)}: write a table headed {_TABLES[error['loc'][0]]}"
    advice = (
        str(error["ctx"]["error"]) if kind == "value_error" else _ADVICE.get(kind, error["msg"])
    )
    return f"{where}: {_shown(value)}: {advice}"


def _key(name: str) -> str:
    """A key as it is written in TOML: bare, or else in quotes and escaped."""
    return name if re.fullmatch("[A-Za-z0-9_-]+", name) else json.dumps(name)


_EXAMPLES = {"external": 'external = "192.168.1.101"'}
_TABLES = {"settings": "[settings]", "mapping": "[[mapping]]"}
_KEYS: dict[tuple[str, ...], type[BaseModel]] = {
    (): _File,
    ("settings",): _Settings,
    ("mapping",): _Mapping,
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
    except ValueError:  # a number of more digits than Python prints
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _contradictions(parsed: _File) -> list[str]:
    """Faults between mappings, which no single key shows."""
    problems = []
    first: dict[tuple[str, IPv4Address], int] = {}
    for position, mapping in enumerate(parsed.mapping):
        for key, address in (("external", mapping.external.ip), ("internal", mapping.internal)):
            if address is None:
                continue
            other = first.setdefault((key, address), position)
            if other != position:
                problems.append(
                    f"mapping[{position}].{key}: '{address}' is already that of "
                    f"mapping[{other}]; write another address"
                )
    internals = [(i, m.internal) for i, m in enumerate(parsed.mapping) if m.internal is not None]
    for position, mapping in enumerate(parsed.mapping):
        lan = mapping.external.lan
        inside = next(((i, a) for i, a in internals if a in lan), None)
        if inside is not None:
            problems.append(
                f"mapping[{position}].external: '{mapping.external}' is in the same subnet {lan} "
                f"as mapping[{inside[0]}].internal '{inside[1]}'; write an address of the LAN, "
                f"with its prefix if that is longer than /{lan.prefixlen}"
            )
    return problems


def _configuration(parsed: _File) -> Configuration:
    settings = parsed.settings
    return Configuration(
        mappings=tuple(
            Mapping(
                external=m.external.ip,
                prefixlen=m.external.prefixlen,
                internal=m.internal,
                domain=m.domain,
                network=m.network or settings.network,
                allow=None if m.allow is None else _merged(m.allow),
                allowed_sources=None
                if m.allowed_sources is None
                else tuple(collapse_addresses(m.allowed_sources)),
            )
            for m in parsed.mapping
        ),
        uplink=None if settings.uplink == "auto" else settings.uplink,
        libvirt_uri=settings.libvirt_uri,
        fwmark=settings.fwmark,
    )


def _merged(services: Iterable[Service]) -> tuple[Service, ...]:
    """The same services in ranges that neither overlap nor touch, as nftables intervals must."""
    merged: list[Service] = []
    for service in sorted(services):
        last = merged[-1] if merged else None
        if last and last.protocol == service.protocol and service.first <= last.last + 1:
            merged[-1] = Service(last.protocol, last.first, max(last.last, service.last))
        else:
            merged.append(service)
    return tuple(merged)
