"""ctnetlink's messages, against those that the kernel wrote."""

import struct
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv6Address, IPv6Interface, IPv6Network, ip_address
from random import Random
from typing import Any

import pytest
from tracking import Direction, Entry, attributes
from vm_onetoone_nat.kernel.messages.conntrack import (
    counting,
    deletion,
    listing,
    parse_count,
    parse_errors,
    parse_listing,
)
from vm_onetoone_nat.model.family import IPV4, Family
from vm_onetoone_nat.model.flow import Flow

CLIENT, EXTERNAL, INTERNAL = (
    ip_address(a).packed for a in ("192.168.1.1", "192.168.1.101", "192.168.122.101")
)
CLIENT6, EXTERNAL6, INTERNAL6 = (
    ip_address(a).packed for a in ("fd00::1", "fd00::e", "fd00:122::101")
)

# Recorded from a dump of entries of the client to the external address, which goes to the internal
# one: kernel 6.18.
UNKNOWN = bytes.fromhex(
    "a00000000001220000000000a949000002000000240001801400018008000100c0a8010108000200"
    "c0a801650c00028005000100fd000000240002801400018008000100c0a87a6508000200c0a80101"
    "0c00028005000100fd0000000800030000000008080008000000000008000c00c97adfc408000b00"
    "0000000108000700000002581c001880080001000000000008000200000000000800030000000000"
)
SCTP = bytes.fromhex(
    "e00000000001220000000000a949000002000000340001801400018008000100c0a8010108000200"
    "c0a801651c0002800500010084000000060002009c42000006000300000900003400028014000180"
    "08000100c0a87a6508000200c0a801011c0002800500010084000000060002000009000006000300"
    "9c4200000800030000000008080008000000000008000c007db4d86508000b000000000108000700"
    "00000258200004801c0003800500010000000000080002000000000008000300000000001c001880"
    "080001000000000008000200000000000800030000000000"
)
DCCP = bytes.fromhex(
    "a00000000001220000000000a949000002000000240001801400018008000100c0a8010108000200"
    "c0a801650c0002800500010021000000240002801400018008000100c0a87a6508000200c0a80101"
    "0c00028005000100210000000800030000000008080008000000000008000c00aed93e4808000b00"
    "0000000108000700000002571c001880080001000000000008000200000000000800030000000000"
)
GRE = bytes.fromhex(
    "c00000000001220000000000a949000002000000340001801400018008000100c0a8010108000200"
    "c0a801651c000280050001002f000000060002000000000006000300000000003400028014000180"
    "08000100c0a87a6508000200c0a801011c000280050001002f000000060002000000000006000300"
    "000000000800030000000008080008000000000008000c007522cb1708000b000000000108000700"
    "000002571c001880080001000000000008000200000000000800030000000000"
)
UDP_ZONE = bytes.fromhex(
    "c80000000001220000000000a949000002000000340001801400018008000100c0a8010108000200"
    "c0a801651c0002800500010011000000060002000001000006000300000200003400028014000180"
    "08000100c0a87a6508000200c0a801011c0002800500010011000000060002000002000006000300"
    "0001000006001200000700000800030000000008080008000000000008000c002b02ff3e08000b00"
    "0000000108000700000002571c001880080001000000000008000200000000000800030000000000"
)
UDP = bytes.fromhex(
    "c00000000001220000000000a949000002000000340001801400018008000100c0a8010108000200"
    "c0a801651c0002800500010011000000060002009c41000006000300003500003400028014000180"
    "08000100c0a87a6508000200c0a801011c0002800500010011000000060002000035000006000300"
    "9c4100000800030000000008080008000000000008000c00afffd41e08000b000000000108000700"
    "000002571c001880080001000000000008000200000000000800030000000000"
)
ICMP = bytes.fromhex(
    "d00000000001220000000000a9490000020000003c0001801400018008000100c0a8010108000200"
    "c0a80165240002800500010001000000060004000007000005000500080000000500060000000000"
    "3c0002801400018008000100c0a87a6508000200c0a8010124000280050001000100000006000400"
    "00070000050005000000000005000600000000000800030000000008080008000000000008000c00"
    "4be9006a08000b000000000108000700000002571c00188008000100000000000800020000000000"
    "0800030000000000"
)
TCP = bytes.fromhex(
    "f00000000001220000000000a949000002000000340001801400018008000100c0a8010108000200"
    "c0a801651c0002800500010006000000060002009c40000006000300001600003400028014000180"
    "08000100c0a87a6508000200c0a801011c0002800500010006000000060002000016000006000300"
    "9c4000000800030000000008080008000000000008000c0034751fad08000b000000000108000700"
    "00000257300004802c00018005000100000000000500020000000000050003000000000006000400"
    "0000000006000500000000001c001880080001000000000008000200000000000800030000000000"
)
UDPLITE = bytes.fromhex(
    "c00000000001220000000000a949000002000000340001801400018008000100c0a8010108000200"
    "c0a801651c0002800500010088000000060002000005000006000300000600003400028014000180"
    "08000100c0a87a6508000200c0a801011c0002800500010088000000060002000006000006000300"
    "000500000800030000000008080008000000000008000c003c7a1bc608000b000000000108000700"
    "000002571c001880080001000000000008000200000000000800030000000000"
)
END = bytes.fromhex("140000000300020000000000a949000000000000")
TCP6 = bytes.fromhex(
    "200100000001220000000000a94900000a0000004c0001802c00018014000300fd00000000000000"
    "000000000000000114000400fd00000000000000000000000000000e1c0002800500010006000000"
    "060002000001000006000300000200004c0002802c00018014000300fd0001220000000000000000"
    "0000010114000400fd0000000000000000000000000000011c000280050001000600000006000200"
    "0002000006000300000100000800030000000008080008000000000008000c00a64174f508000b00"
    "000000010800070000000257300004802c0001800500010000000000050002000000000005000300"
    "00000000060004000000000006000500000000001c00188008000100000000000800020000000000"
    "0800030000000000"
)
ICMPV6 = bytes.fromhex(
    "000100000001220000000000a94900000a000000540001802c00018014000300fd00000000000000"
    "000000000000000114000400fd00000000000000000000000000000e24000280050001003a000000"
    "060007000009000005000800800000000500090000000000540002802c00018014000300fd000122"
    "00000000000000000000010114000400fd0000000000000000000000000000012400028005000100"
    "3a000000060007000009000005000800810000000500090000000000080003000000000808000800"
    "0000000008000c0047e7f16a08000b000000000108000700000002571c0018800800010000000000"
    "08000200000000000800030000000000"
)

RECORDED = {
    "tcp": (TCP, 6),
    "udp": (UDP, 17),
    "udp in a zone": (UDP_ZONE, 17),
    "icmp": (ICMP, 1),
    "sctp": (SCTP, 132),
    "udplite": (UDPLITE, 136),
    "dccp, without its module": (DCCP, 33),
    "gre": (GRE, 47),
    "unknown protocol": (UNKNOWN, 253),
}
RECORDED6 = {"tcp": (TCP6, 6), "icmpv6": (ICMPV6, 58)}


def ipv6() -> Any:
    """The other family, as far as these tests need it."""
    types: Any = {"address": IPv6Address, "interface": IPv6Interface, "network": IPv6Network}
    return replace(
        IPV4, version=6, number=10, bits=128, tuple_addresses=(3, 4), dump_filter=False, **types
    )


def flows(data: bytes, family: Family = IPV4, **wanted: set[bytes]) -> list[Flow]:
    """The flows that are found in a datagram; by default those to the external address."""
    wanted = wanted or {"destinations": {EXTERNAL, EXTERNAL6}}
    sources, destinations = wanted.get("sources", set()), wanted.get("destinations", set())
    return [flow for flow, _ in parse_listing(data, family, sources, destinations).found]


@pytest.mark.parametrize("name", RECORDED)
def test_flow(name: str) -> None:
    """Of each protocol, an entry is read with its addresses in both directions."""
    entry, protocol = RECORDED[name]
    expected = Flow(CLIENT, EXTERNAL, INTERNAL, CLIENT, protocol)
    assert flows(entry) == [expected]
    assert flows(entry, sources={CLIENT}) == [expected]
    assert flows(entry, sources={EXTERNAL}, destinations={CLIENT, INTERNAL}) == []


@pytest.mark.parametrize("name", RECORDED6)
def test_flow_of_another_family(name: str) -> None:
    """An entry of IPv6 is read like one of IPv4."""
    entry, protocol = RECORDED6[name]
    expected = Flow(CLIENT6, EXTERNAL6, INTERNAL6, CLIENT6, protocol)
    assert flows(entry, ipv6()) == [expected]
    assert flows(entry, ipv6(), sources={CLIENT6}) == [expected]
    assert flows(entry, ipv6(), sources={EXTERNAL6}) == []


def test_whole_listing() -> None:
    """All entries of a datagram are read, up to its end, which is that of the listing."""
    data = b"".join(entry for entry, _ in RECORDED.values())
    part = parse_listing(data, IPV4, set(), {EXTERNAL})
    assert [flow.protocol for flow, _ in part.found] == [p for _, p in RECORDED.values()]
    assert part.result is None
    part = parse_listing(data + END, IPV4, set(), {EXTERNAL})
    assert (len(part.found), part.result) == (len(RECORDED), 0)


def test_other_layout() -> None:
    """An entry whose attributes have another order is read all the same."""

    def turned(data: bytes, nested: tuple[tuple[int, ...], ...]) -> bytes:
        """The attributes in reverse order, and those in the ones that `nested` has, by level."""
        found = []
        while data:
            length, kind = struct.unpack_from("=HH", data)
            value, data = data[4:length], data[length + 3 & ~3 :]
            if nested and kind & 0x3FFF in nested[0]:
                value = turned(value, nested[1:])
            found.append((struct.pack("=HH", length, kind) + value).ljust(length + 3 & ~3, b"\0"))
        return b"".join(reversed(found))

    entry = TCP[:20] + turned(TCP[20:], ((1, 2), (1,)))
    assert entry != TCP and len(entry) == len(TCP)
    assert flows(entry) == [Flow(CLIENT, EXTERNAL, INTERNAL, CLIENT, 6)]
    assert flows(entry, destinations={CLIENT}) == []


@pytest.mark.parametrize("name", RECORDED)
def test_deletion(name: str) -> None:
    """A deletion has the first packet, the zone and the number of the entry, as they were listed.

    No answer is asked for.
    """
    entry, _ = RECORDED[name]
    (found,) = parse_listing(entry, IPV4, set(), {EXTERNAL}).found
    request = deletion(found[1])
    length, kind, flags, _, _ = struct.unpack_from("=IHHII", request)
    assert (length, kind, flags) == (len(request), 0x102, 0x1)
    assert request[16:20] == entry[16:20]
    listed, sent = attributes(entry[20:]), attributes(request[20:])
    assert sent == {kind: listed[kind] for kind in (1, 18, 12) if kind in listed}
    assert (18 in sent) == ("zone" in name)


def test_nothing_is_deleted_without_addresses() -> None:
    """An entry without its first packet cannot be deleted: the kernel would empty the table."""
    with pytest.raises(ValueError, match="no addresses"):
        deletion(TCP[16:20] + TCP[20 + 52 :])
    with pytest.raises(ValueError, match="longer than its message"):
        deletion(TCP[16:60])


def test_listings() -> None:
    """A listing is of a family, and of the first packets with one address if that is given."""
    length, kind, flags, _, _ = struct.unpack_from("=IHHII", listing(IPV4))
    assert (length, kind, flags) == (20, 0x101, 0x301)
    assert listing(IPV4)[16:] == bytes([2, 0, 0, 0])
    for given, number, flag in (("source", 1, 1), ("destination", 2, 2)):
        sent = attributes(listing(IPV4, **{given: EXTERNAL})[20:])
        assert attributes(attributes(sent[1])[1]) == {number: EXTERNAL}
        assert attributes(sent[25]) == {1: struct.pack("=I", flag), 2: bytes(4)}


def test_count() -> None:
    """The number of entries is read from the kernel's answer, which this one is."""
    assert struct.unpack_from("=IHH", counting()) == (20, 0x105, 0x1)
    answer = bytes.fromhex(
        "2400000005010200000000004a4e00000000000008000100000001020800020000040000"
    )
    assert parse_count(answer) == 258
    with pytest.raises(ValueError, match="no attribute 1"):
        parse_count(answer[:20])


def test_errors() -> None:
    """The errors of deletions are read, and a success is the number 0."""
    error = bytes.fromhex("24000000 0200 0001 05000000 00000000 feffffff") + bytes(16)
    success = bytes.fromhex("24000000 0200 0001 07000000 00000000 00000000") + bytes(16)
    assert list(parse_errors(error + success + error)) == [2, 0, 2]
    assert list(parse_errors(error[:18])) == []


def test_listing_that_fails() -> None:
    """A listing that the kernel refuses has the number of the error."""
    refused = bytes.fromhex("24000000 0200 0001 00000000 00000000 ffffffff") + bytes(16)
    assert parse_listing(refused, IPV4, set(), set()).result == 1


def test_interrupted_listing() -> None:
    """A listing that says that it is not whole has failed."""
    flags = bytes.fromhex("1200")
    part = parse_listing(END[:6] + flags + END[8:], IPV4, set(), set())
    assert part.result == 4


def cut(data: bytes) -> Iterator[bytes]:
    """All beginnings of a datagram that is not whole."""
    for end in range(1, len(data)):
        yield data[:end]


@pytest.mark.parametrize("name", RECORDED)
def test_truncated(name: str) -> None:
    """A message that is cut off at any byte is an error, not an entry."""
    for data in cut(RECORDED[name][0]):
        with pytest.raises(ValueError, match=r"longer than its datagram"):
            flows(data)


def test_truncated_end() -> None:
    """The last message of a listing is whole, or an error."""
    for data in cut(END):
        with pytest.raises(ValueError, match="datagram"):
            flows(data)


def test_damaged() -> None:
    """Whatever bytes are wrong: a datagram is read or refused, and reading it comes to an end."""
    random = Random(1)
    good = TCP + ICMP + UDP_ZONE + END
    for _ in range(20_000):
        data = bytearray(good)
        for _ in range(random.randint(1, 4)):
            data[random.randrange(len(data))] = random.choice((0, 1, 4, 255, random.randrange(256)))
        try:
            part = parse_listing(bytes(data), IPV4, {CLIENT}, {EXTERNAL})
            for _, entry in part.found:
                assert 1 in attributes(deletion(entry)[20:])
        except ValueError:
            continue


def test_messages_of_the_tests() -> None:
    """The fake writes an entry as the kernel does."""
    client, external, internal = map(
        ip_address, ("192.168.1.1", "192.168.1.101", "192.168.122.101")
    )
    there = Direction(client, external, 17, (1, 2))
    back = Direction(internal, client, 17, (2, 1))
    written = Entry(there, back, zone=7).listed(1)
    listed, sent = attributes(UDP_ZONE[20:]), attributes(written[20:])
    assert {kind: listed[kind] for kind in (1, 2, 18)} == {kind: sent[kind] for kind in (1, 2, 18)}
    assert written[4:6] + written[16:20] == UDP_ZONE[4:6] + UDP_ZONE[16:20]
