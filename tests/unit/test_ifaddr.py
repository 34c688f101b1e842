"""rtnetlink's address messages, against the kernel's own."""

from ipaddress import IPv4Address, IPv4Interface

from vm_onetoone_nat.kernel.messages.ifaddr import (
    ListedAddress,
    additions,
    deletions,
    listed_addresses,
)
from vm_onetoone_nat.kernel.messages.rtnetlink import parse_answer

ONE, OTHER = IPv4Interface("192.168.1.101/24"), IPv4Interface("192.168.1.102/24")
BROADCAST = IPv4Address("192.168.1.255")

# Recorded from `ip address add 192.168.1.101/24 brd + dev eth0 proto 118`, kernel 6.18.
LISTED = bytes.fromhex(
    "54000000 1400 0200 07000000 00000000"  # RTM_NEWADDR, part of a listing
    "02 18 80 00 03000000"
    "0800 0100 c0a80165  0800 0200 c0a80165  0800 0400 c0a801ff"
    "0500 0b00 76 000000  0800 0800 80000000"
    "1400 0600 ffffffff ffffffff 10270000 10270000"
)
END = bytes.fromhex("14000000 0300 0200 07000000 00000000 00000000")


def test_listed_address() -> None:
    """An address of a listing is read with its interface, broadcast and protocol."""
    answer = parse_answer(LISTED + END)
    assert tuple(listed_addresses(answer)) == (ListedAddress(3, ONE, BROADCAST, 118),)
    assert answer.results == {7: 0}
    assert not answer.interrupted


def test_interrupted_listing() -> None:
    """A listing during which addresses changed says so, and is not to be believed."""
    flags = bytes.fromhex("1200")
    assert parse_answer(LISTED[:6] + flags + LISTED[8:] + END).interrupted


def test_additions_are_read_as_they_were_written() -> None:
    """What asks the kernel for an address says what the kernel would list."""
    messages = additions(3, [(ONE, BROADCAST), (OTHER, None)], 118)
    assert tuple(listed_addresses(parse_answer(messages))) == (
        ListedAddress(3, ONE, BROADCAST, 118),
        ListedAddress(3, OTHER, None, 118),
    )


def test_last_message_is_answered() -> None:
    """Each message has its number, and the last alone asks for an answer."""
    messages = deletions(3, [ONE, OTHER])
    size = len(messages) // 2
    headers = [messages[at : at + 16] for at in (0, size)]
    assert [int.from_bytes(h[8:12], "little") for h in headers] == [0, 1]
    assert [bool(int.from_bytes(h[6:8], "little") & 0x4) for h in headers] == [False, True]


def test_results() -> None:
    """An error is known by the number of its message, success of the last one too."""
    error = bytes.fromhex("24000000 0200 0001 05000000 00000000 efffffff") + bytes(16)
    success = bytes.fromhex("24000000 0200 0001 07000000 00000000 00000000") + bytes(16)
    assert parse_answer(error + success).results == {5: 17, 7: 0}
