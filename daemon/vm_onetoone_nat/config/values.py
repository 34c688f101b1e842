"""One parser for each kind of value. Pure.

The text of a ValueError says what to write instead.
"""

import re
from dataclasses import dataclass
from ipaddress import AddressValueError, NetmaskValueError

from vm_onetoone_nat.model.configuration import Range
from vm_onetoone_nat.model.family import (
    TITLES,
    IPAddress,
    IPNetwork,
    family_of,
    family_of_text,
    network,
)
from vm_onetoone_nat.model.mapping import ICMP, AllowedService

_INTERFACE_MAX = 15  # IFNAMSIZ less the closing NUL


def name(value: str) -> str:
    """A name of a guest or network. Raises ValueError."""
    if not value.strip() or value != value.strip() or not value.isprintable():
        raise ValueError("write a name without spaces around it, or leave the key out")
    return value


def interface_name(value: str) -> str:
    """The name of a network interface, or `auto`. Raises ValueError."""
    name(value)
    if len(value.encode()) > _INTERFACE_MAX or "/" in value or " " in value or value in (".", ".."):
        raise ValueError(
            'write the name of an interface as in "ip link", such as "wlan0", or "auto"'
        )
    return value


def uri(value: str) -> str:
    """A libvirt URI. Raises ValueError."""
    if "://" not in value or not value.isprintable() or " " in value:
        raise ValueError('write a libvirt URI such as "qemu:///system"')
    return value


def domain(value: str) -> str:
    """A guest's name or UUID. Raises ValueError."""
    name(value)
    if "/" in value:
        raise ValueError("write a domain's name or UUID as in 'virsh list --all --name'")
    return value


def fwmark(value: str) -> int:
    """A mark of one bit, as hexadecimal text. Raises ValueError."""
    advice = 'write one bit as hexadecimal text, such as "0x00100000"'
    try:
        mark = int(value, 16)
    except ValueError as error:
        raise ValueError(advice) from error
    if not value.lower().startswith("0x") or mark <= 0 or mark.bit_count() != 1 or mark >> 32:
        raise ValueError(advice)
    return mark


def _usable(ip: IPAddress) -> None:
    reserved = ip.is_multicast or ip.is_loopback or ip.is_unspecified or ip.is_reserved
    if reserved or any(ip in unusable for unusable in family_of(ip).unusable):
        raise ValueError("no host can have this address; write an address of the LAN")


def address(value: str) -> IPAddress:
    """A guest's address. Raises ValueError."""
    try:
        found = family_of_text(value).address(value)
    except AddressValueError as error:
        raise ValueError(f'write an {TITLES} address such as "192.168.122.101"') from error
    _usable(found)
    return found


@dataclass(frozen=True, slots=True)
class External:
    """An external address as written; `prefixlen` None where there is no prefix."""

    ip: IPAddress
    prefixlen: int | None

    @property
    def lan(self) -> IPNetwork:
        """Its LAN; if no prefix is written, with the one that nearly all LANs have."""
        family = family_of(self.ip)
        length = family.usual_prefixlen if self.prefixlen is None else self.prefixlen
        return family.network((self.ip, length), strict=False)

    def __str__(self) -> str:
        return str(self.ip) if self.prefixlen is None else f"{self.ip}/{self.prefixlen}"


def external(value: str) -> External:
    """An external address, with or without a prefix. Raises ValueError."""
    advice = (
        f'write an {TITLES} address such as "192.168.1.101", or "192.168.1.101/24" with a prefix'
    )
    family = family_of_text(value)
    shortest, longest = family.shortest_prefixlen, family.bits
    ip, slash, prefix = value.partition("/")
    digits = prefix.isascii() and prefix.isdigit() and len(prefix) <= len(str(longest))
    if slash and not (digits and shortest <= int(prefix) <= longest):
        raise ValueError(f"a LAN's prefix is a number from {shortest} to {longest}; {advice}")
    try:
        found = External(family.address(ip), int(prefix) if slash else None)
    except AddressValueError as error:
        raise ValueError(advice) from error
    _usable(found.ip)
    if not _is_host(found):
        refusal = f"is the network or broadcast address of {found.lan}; write another address"
        if found.prefixlen is None:
            longer_first = range(family.usual_prefixlen - 1, shortest - 1, -1)
            wider = (External(found.ip, length) for length in longer_first)
            fitting = next((str(e) for e in wider if _is_host(e)), "")
            refusal += f', or the prefix in which it is a host\'s, such as "{fitting}"'
        raise ValueError(refusal)
    return found


def _is_host(host: External) -> bool:
    lan = host.lan
    edges = (lan.network_address, lan.broadcast_address)
    return lan.prefixlen >= lan.max_prefixlen - 1 or host.ip not in edges


def service(value: str) -> AllowedService:
    """A service that `allow` names. Raises ValueError."""
    advice = f'write "{ICMP}", "tcp/22", "udp/53" or a range such as "tcp/8000-8100"'
    protocol, slash, ports = value.partition("/")
    if value == ICMP:
        return AllowedService(ICMP)
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


def source(value: str) -> IPNetwork:
    """A prefix that `allowed_sources` names. Raises ValueError."""
    try:
        return network(value)
    except NetmaskValueError as error:
        raise ValueError('write a prefix such as "192.168.1.0/24"') from error
    except AddressValueError as error:
        raise ValueError(f'write an {TITLES} prefix such as "192.168.1.0/24"') from error
    except ValueError as error:
        fitting = family_of_text(value).network(value, strict=False)
        raise ValueError(f'has bits set past its prefix; write "{fitting}"') from error


def mac(value: str) -> str:
    """A MAC, in lower case. Raises ValueError."""
    if not re.fullmatch("[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", value):
        raise ValueError("write a MAC as in 'virsh domiflist', such as \"52:54:00:a8:7a:65\"")
    return value.lower()


_RANGE_MAX = 1 << 16


def address_range(value: str) -> Range:
    """One or more addresses of a pool. Raises ValueError."""
    advice = 'write addresses such as "192.168.1.200-192.168.1.220"'
    family = family_of_text(value)
    first, dash, last = (part.strip() for part in value.partition("-"))
    try:
        found = Range(family.address(first), family.address(last if dash else first))
    except AddressValueError as error:
        raise ValueError(advice) from error
    if int(found.first) > int(found.last):
        raise ValueError(f"the lower address comes first; {advice}")
    if int(found.last) - int(found.first) >= _RANGE_MAX:
        raise ValueError(f"a pool has {_RANGE_MAX:,} addresses at most; {advice}")
    _usable(found.first)
    _usable(found.last)
    return found


def boolean(value: object) -> object:
    """A truth value. Raises ValueError."""
    if not isinstance(value, bool):
        raise ValueError("write true or false, without quotes")
    return value
