"""The families of addresses, and that another one would be written in its own words."""

import socket
from dataclasses import replace
from ipaddress import (
    AddressValueError,
    IPv4Address,
    IPv4Interface,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from typing import Any

import libvirt
import pytest
from pyroute2.netlink import rtnl
from vm_onetoone_nat.kernel.messages import nft_table
from vm_onetoone_nat.kernel.messages.nft_elements import packed_key, unpacked_element
from vm_onetoone_nat.kernel.messages.nft_objects import add_containers
from vm_onetoone_nat.kernel.messages.nftables import MESSAGE_SIZE, read
from vm_onetoone_nat.model.configuration import Range
from vm_onetoone_nat.model.family import (
    FAMILIES,
    IPV4,
    address,
    family_of,
    host_network,
    interface,
    network,
    unpacked,
)
from vm_onetoone_nat.model.mapping import Origin
from vm_onetoone_nat.model.nat_table import ALLOWED, EXTERNAL, Container, element
from vm_onetoone_nat.model.store import Allocation

GUEST = IPv4Address("192.168.1.101")


def other_family() -> Any:
    """IPv6, as far as these tests need it."""
    types: Any = {"address": IPv6Address, "interface": IPv6Interface, "network": IPv6Network}
    return replace(IPV4, name="ipv6", version=6, bits=128, nft="ip6", nft_type="ipv6_addr", **types)


def test_values_are_parsed_once() -> None:
    """The same text or bytes are the same object, so that a pass compares by identity."""
    assert address("192.168.1.101") is address("192.168.1.101")
    assert interface(GUEST.packed, 24) is interface(GUEST.packed, 24)


def test_values() -> None:
    """Each form of an address is parsed, and has its family."""
    assert address("192.168.1.101") == unpacked(GUEST.packed) == GUEST
    assert interface(GUEST.packed, 24) == IPv4Interface("192.168.1.101/24")
    assert host_network(GUEST) == network("192.168.1.101/32")
    assert {family_of(GUEST), family_of(network("192.168.1.0/24"))} == {IPV4}
    assert IPV4.anywhere == network("0.0.0.0/0")


@pytest.mark.parametrize("text", ["fd00::1", "192.168.1", "::ffff:192.168.1.1", ""])
def test_no_address(text: str) -> None:
    """An address of no family is refused."""
    with pytest.raises(AddressValueError):
        address(text)


def test_numbers() -> None:
    """The numbers are those of the C libraries, which a pure module cannot import."""
    assert (IPV4.number, IPV4.icmp_number) == (socket.AF_INET, socket.IPPROTO_ICMP)
    assert IPV4.libvirt_type == libvirt.VIR_IP_ADDR_TYPE_IPV4
    assert IPV4.groups == rtnl.RTMGRP_IPV4_IFADDR | rtnl.RTMGRP_IPV4_ROUTE | 1 << (24 - 1)


def test_each_family_has_its_own_words() -> None:
    """No two families have the same name or number."""
    for words in ("name", "version", "number", "bits", "nft", "nft_type", "libvirt_type"):
        assert len({getattr(family, words) for family in FAMILIES}) == len(FAMILIES)


def test_container_of_another_family() -> None:
    """The elements of a container have the length of its family."""
    allowed = replace_family(ALLOWED)
    key = ("fd00::1", "fd00::9/128", "tcp", "22-22")
    first, last = packed_key(element(allowed, key))
    addresses = IPv6Address("fd00::1").packed + IPv6Address("fd00::9").packed
    assert first.startswith(addresses)
    assert last.startswith(addresses)


def test_network_of_one_address_is_read_by_its_family() -> None:
    """Its length is that of the container's family."""
    key = ("192.168.1.101", "192.168.1.9/32", "tcp", "22-22")
    first, last = packed_key(element(ALLOWED, key))
    found = unpacked_element(ALLOWED, first, last, None)
    assert found is not None
    assert found.key == key


def replace_family(container: Container) -> Container:
    """A container like this one, of another family."""
    return replace(container, family=other_family())


def test_table_of_another_family(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container is declared with its family's type, and its rules read that family's packets."""
    other = replace_family(EXTERNAL)
    monkeypatch.setattr(nft_table, "EXTERNAL", other)
    (request,) = add_containers([other])
    declared = read(request.body, MESSAGE_SIZE)
    types, sizes = (declared[4], declared[6]), (declared[5], declared[7])
    assert types == ((8).to_bytes(4, "big"),) * 2
    assert sizes == ((16).to_bytes(4, "big"),) * 2
    (dnat, _) = (
        each["rule"]["expr"][0]["dnat"]
        for each in nft_table.table_objects(1)
        if "rule" in each and "dnat" in each["rule"]["expr"][0]
    )
    key = {"payload": {"protocol": "ip6", "field": "daddr"}}
    assert dnat == {"family": "ip6", "addr": {"map": {"key": key, "data": "@external"}}}


def test_order_of_two_families() -> None:
    """Allocations of two families can be sorted, and a range has no address of another family."""
    other: Any = IPv6Address("2001:db8::1")
    mixed = [Allocation(each, "a", "default", Origin.POOL) for each in (other, GUEST)]
    assert [each.external for each in sorted(mixed)] == [GUEST, other]
    assert other not in Range(GUEST, GUEST)
