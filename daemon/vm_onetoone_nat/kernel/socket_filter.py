"""Socket filters for what need not wake the daemon (classic BPF, socket(7)).

A filter passes a datagram as it is, or drops it. It must not shorten one: the kernel may deliver
the same datagram to the sockets of other programs, and they would receive the rest only
(do_one_broadcast in af_netlink.c, measured with 6.18).
"""

import ctypes
import logging
import socket
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import groupby, islice
from socket import AF_BRIDGE, htonl, htons

from vm_onetoone_nat.kernel.messages import changes, neighbour
from vm_onetoone_nat.model.nat_table import TABLE

log = logging.getLogger(__name__)

_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27

# linux/filter.h. BPF loads are big-endian; netlink headers are in host byte order.
_LOAD_WORD, _LOAD_HALF_WORD, _LOAD_BYTE = 0x20, 0x28, 0x30
_WORD_AT_X, _HALF_WORD_AT_X, _BYTE_AT_X = 0x40, 0x48, 0x50
_JUMP, _JUMP_IF_EQUAL, _JUMP_IF_AT_LEAST, _JUMP_IF_GREATER = 0x05, 0x15, 0x35, 0x25
_RETURN = 0x06
_MULTIPLY, _SHIFT_RIGHT, _AND, _ADD_X, _INTO_X, _SET_X = 0x24, 0x74, 0x54, 0x0C, 0x07, 0x01
_TYPE, _PORT, _DESTINATION_LENGTH = 4, 12, 17  # of nlmsghdr, and of the rtmsg after it
_FAMILY, _MAC = 16, 32  # of ndmsg, and of NDA_LLADDR, which comes first
_TABLE_NAME = 24  # after nlmsghdr, nfgenmsg and the attribute's header
_SENDER, _TARGET = 14, 24  # addresses in an ARP packet
_ALL = 0xFFFFFFFF

_MESSAGES = 48
"""So many messages of a datagram are examined. There are 40 in one, rarely up to 67. A filter has
to fit into net.core.optmem_max, which is 20 KiB before Linux 6.9."""

_MACS, _BEGINNINGS, _MACS_AT_ONCE = 400, 16, 100
"""As many MACs fit into it, with so many different first two bytes (measured). A jump skips at
most 255 instructions."""


class _Instruction(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_ushort),
        ("jt", ctypes.c_ubyte),
        ("jf", ctypes.c_ubyte),
        ("k", ctypes.c_uint),
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.POINTER(_Instruction)))


Filter = Sequence[_Instruction]

_PASS, _DROP = _Instruction(_RETURN, 0, 0, _ALL), _Instruction(_RETURN, 0, 0, 0)


def attach(receiver: socket.socket, filter_: Filter) -> None:
    """Replace a socket's filter. If the kernel refuses the new one, all passes. From any thread."""
    program = _Program(len(filter_), (_Instruction * len(filter_))(*filter_))
    # The kernel charges both against net.core.optmem_max while one replaces the other.
    with suppress(FileNotFoundError):
        receiver.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
    try:
        receiver.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, bytes(program))
    except OSError as error:
        log.debug("a filter of %d instructions: %s", len(filter_), error)


def nothing_of_our_own(port: int) -> Filter:
    """Of rtnetlink, drop our own changes of addresses and all but default routes.

    With each address the kernel adds a /32 route to it.
    """
    return (
        _Instruction(_LOAD_HALF_WORD, 0, 0, _TYPE),
        _Instruction(_JUMP_IF_EQUAL, 5, 0, htons(changes.NEW_ADDRESS)),
        _Instruction(_JUMP_IF_EQUAL, 4, 0, htons(changes.DELETE_ADDRESS)),
        _Instruction(_JUMP_IF_EQUAL, 1, 0, htons(changes.NEW_ROUTE)),
        _Instruction(_JUMP_IF_EQUAL, 0, 4, htons(changes.DELETE_ROUTE)),
        _Instruction(_LOAD_BYTE, 0, 0, _DESTINATION_LENGTH),
        _Instruction(_JUMP_IF_EQUAL, 2, 3, 0),
        _Instruction(_LOAD_WORD, 0, 0, _PORT),
        _Instruction(_JUMP_IF_EQUAL, 1, 0, htonl(port)),
        _PASS,
        _DROP,
    )


def bridges_only_for(macs: Collection[str]) -> Filter:
    """Of neighbours, drop the entries of bridges, but those in which one of these MACs appears.

    A guest may forge MACs, and each is a notification. With too many MACs all come through.
    """
    packed = sorted(bytes.fromhex(mac.replace(":", "")) for mac in macs)
    by_begin = [(begin, tuple(of)) for begin, of in groupby(packed, lambda mac: mac[:2])]
    if len(packed) > _MACS or len(by_begin) > _BEGINNINGS:
        return (_PASS,)
    return (
        _Instruction(_LOAD_BYTE, 0, 0, _FAMILY),
        _Instruction(_JUMP_IF_EQUAL, 1, 0, AF_BRIDGE),
        _PASS,
        _Instruction(_LOAD_HALF_WORD, 0, 0, _TYPE),
        _Instruction(_JUMP_IF_EQUAL, 1, 0, htons(neighbour.NEW)),
        _DROP,
        *(instruction for begin, of in by_begin for instruction in _one_of(begin, of)),
        _DROP,
    )


def _one_of(begin: bytes, macs: Iterable[bytes]) -> Iterator[_Instruction]:
    """Pass a MAC that is one of these, which all begin like that."""
    left = iter(macs)
    while some := tuple(islice(left, _MACS_AT_ONCE)):
        yield _Instruction(_LOAD_HALF_WORD, 0, 0, _MAC)
        yield _Instruction(_JUMP_IF_EQUAL, 0, 1 + 2 * len(some), int.from_bytes(begin, "big"))
        yield _Instruction(_LOAD_WORD, 0, 0, _MAC + 2)
        for mac in some:
            yield _Instruction(_JUMP_IF_EQUAL, 0, 1, int.from_bytes(mac[2:], "big"))
            yield _PASS


def arp_about(first: int, last: int) -> Filter:
    """Of ARP packets, pass those whose sender is between two addresses, and probes for such a one.

    The socket's packets have to begin with the ARP header (SOCK_DGRAM).
    """
    return (
        _Instruction(_LOAD_WORD, 0, 0, _SENDER),
        _Instruction(_JUMP_IF_EQUAL, 0, 1, 0),
        _Instruction(_LOAD_WORD, 0, 0, _TARGET),
        _Instruction(_JUMP_IF_AT_LEAST, 0, 2, first),
        _Instruction(_JUMP_IF_GREATER, 1, 0, last),
        _PASS,
        _DROP,
    )


def no_foreign_sets() -> Filter:
    """Of nftables, drop the datagrams in which each message is about a set of another program.

    It examines one message after the other. At the end of the datagram there is none to load, which
    drops it.
    """
    little = sys.byteorder == "little"
    swap = (
        _Instruction(_MULTIPLY, 0, 0, 0x10001),
        _Instruction(_SHIFT_RIGHT, 0, 0, 8),
        _Instruction(_AND, 0, 0, 0xFFFF),
    )
    advance = (
        _Instruction(_HALF_WORD_AT_X, 0, 0, 0 if little else 2),  # of the message's length
        *(swap if little else ()),
        _Instruction(_ADD_X, 0, 0, 0),
        _Instruction(_INTO_X, 0, 0, 0),
        _Instruction(_JUMP, 0, 0, 1),
        _PASS,
    )
    to_pass = len(advance) - 1
    message = (
        _Instruction(_BYTE_AT_X, 0, 0, _TYPE if little else _TYPE + 1),
        _Instruction(_JUMP_IF_AT_LEAST, 0, 5 + to_pass, 9),
        _Instruction(_JUMP_IF_AT_LEAST, 0, 2, 15),
        _Instruction(_JUMP_IF_AT_LEAST, 0, 3 + to_pass, 18),
        _Instruction(_JUMP_IF_AT_LEAST, 2 + to_pass, 0, 25),
        _Instruction(_WORD_AT_X, 0, 0, _TABLE_NAME),
        _Instruction(_JUMP_IF_EQUAL, to_pass, 0, int.from_bytes(TABLE[:4].encode(), "big")),
        *advance,
    )
    return (_Instruction(_SET_X, 0, 0, 0), *_MESSAGES * message, _PASS)
