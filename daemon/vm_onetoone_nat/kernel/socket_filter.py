"""Socket filters for notifications that need not wake the daemon (classic BPF, socket(7))."""

import ctypes
import socket
from socket import htonl, htons

from pyroute2.netlink import rtnl
from pyroute2.netlink.nlsocket import NetlinkSocket

NEW_GENERATION = 10 << 8 | 15  # NFNL_SUBSYS_NFTABLES, NFT_MSG_NEWGEN

_SO_ATTACH_FILTER = 26

# linux/filter.h. BPF loads are big-endian; netlink headers are in host byte order.
_LOAD_WORD, _LOAD_HALF_WORD, _LOAD_BYTE, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x28, 0x30, 0x15, 0x06
_TYPE, _PORT, _DESTINATION_LENGTH = 4, 12, 17  # of nlmsghdr, and of the rtmsg after it
_ALL = 0xFFFFFFFF


class _Instruction(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_ushort),
        ("jt", ctypes.c_ubyte),
        ("jf", ctypes.c_ubyte),
        ("k", ctypes.c_uint),
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.POINTER(_Instruction)))


def generations_only(netlink: NetlinkSocket) -> None:
    """Of the ruleset, pass new generations only: each transaction ends with one.

    Without the filter there is one message for each element as well.
    """
    _attach(
        netlink,
        _Instruction(_LOAD_HALF_WORD, 0, 0, _TYPE),
        _Instruction(_JUMP_IF_EQUAL, 0, 1, htons(NEW_GENERATION)),
        _Instruction(_RETURN, 0, 0, _ALL),
        _Instruction(_RETURN, 0, 0, 0),
    )


def nothing_of_our_own(netlink: NetlinkSocket, port: int) -> None:
    """Of rtnetlink, drop our own changes of addresses and all but default routes.

    With each address the kernel adds a /32 route to it.
    """
    _attach(
        netlink,
        _Instruction(_LOAD_HALF_WORD, 0, 0, _TYPE),
        _Instruction(_JUMP_IF_EQUAL, 5, 0, htons(rtnl.RTM_NEWADDR)),
        _Instruction(_JUMP_IF_EQUAL, 4, 0, htons(rtnl.RTM_DELADDR)),
        _Instruction(_JUMP_IF_EQUAL, 1, 0, htons(rtnl.RTM_NEWROUTE)),
        _Instruction(_JUMP_IF_EQUAL, 0, 4, htons(rtnl.RTM_DELROUTE)),
        _Instruction(_LOAD_BYTE, 0, 0, _DESTINATION_LENGTH),
        _Instruction(_JUMP_IF_EQUAL, 2, 3, 0),
        _Instruction(_LOAD_WORD, 0, 0, _PORT),
        _Instruction(_JUMP_IF_EQUAL, 1, 0, htonl(port)),
        _Instruction(_RETURN, 0, 0, _ALL),
        _Instruction(_RETURN, 0, 0, 0),
    )


def _attach(netlink: NetlinkSocket, *instructions: _Instruction) -> None:
    program = _Program(len(instructions), (_Instruction * len(instructions))(*instructions))
    netlink.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, bytes(program))
