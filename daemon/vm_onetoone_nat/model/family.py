"""IPv4 addresses, parsed once: each pass over thousands of mappings parses the same. Pure."""

from functools import lru_cache
from ipaddress import IPv4Address, IPv4Interface

PARSED = 1 << 14
"""Size of the caches of parsed values."""


@lru_cache(PARSED)
def address(text: str) -> IPv4Address:
    """Parse an address. Raises ValueError."""
    return IPv4Address(text)


@lru_cache(PARSED)
def interface(packed: bytes, prefixlen: int) -> IPv4Interface:
    """The address in four bytes, with its prefix length."""
    return IPv4Interface((packed, prefixlen))
