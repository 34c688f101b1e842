"""A netlink socket for messages of our own (netlink(7))."""

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from errno import EMSGSIZE, ENOBUFS, ENOENT
from struct import pack

from vm_onetoone_nat.errors import KernelError
from vm_onetoone_nat.kernel.classify import kernel_errors
from vm_onetoone_nat.kernel.messages import rtnetlink

ROUTE, NETFILTER = 0, 12
"""NETLINK_*."""

_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_GET_STRICT_CHK = 270, 10, 12
_SO_SNDBUFFORCE = 32

_DATAGRAM = 1 << 16
"""Bytes to receive at once; the kernel sends 32 KiB at most (af_netlink.c)."""
_ATTEMPTS = {ROUTE: 10, NETFILTER: 3}
"""Attempts to read a dump that is interrupted by changes."""
_TIMEOUT = pack("@ll", 5, 0)  # struct timeval


class TooLarge(KernelError):
    """A dump is larger than what the caller wants to read."""


class Netlink:
    """One socket, in the network namespace in which it was created. Not thread-safe.

    `protocol` is ROUTE or NETFILTER; `name` is that of the kernel's part in messages.
    """

    def __init__(self, protocol: int, name: str) -> None:
        self._protocol = protocol
        self._name = name
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
        # An error need not repeat the request.
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        # The kernel answers at once, or not at all.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEOUT)
        self._socket.bind((0, 0))

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    @property
    def portid(self) -> int:
        """The netlink port: the sender of notifications about what is written here."""
        port: int = self._socket.getsockname()[0]
        return port

    def send(self, request: bytes) -> None:
        """Send requests, after discarding replies to one that failed. Raises OSError."""
        self._discard()
        try:
            self._socket.send(request)
        except OSError as error:
            if error.errno != EMSGSIZE:
                raise
            # A transaction is one datagram, however long.
            self._enlarge(2 * len(request))
            self._socket.send(request)

    def receive(self) -> rtnetlink.Answer:
        """The next datagram of the kernel's answer. Raises OSError, struct.error."""
        return rtnetlink.parse_answer(self._socket.recv(_DATAGRAM))

    def waiting(self) -> Iterator[rtnetlink.Answer]:
        """The datagrams that the kernel has sent already. Raises OSError."""
        while True:
            try:
                data = self._socket.recv(_DATAGRAM, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            yield rtnetlink.parse_answer(data)

    def ask(self, requests: bytes, count: int) -> Iterator[rtnetlink.Answer]:
        """The answers to so many requests, of which each is one message. Raises KernelError."""
        with kernel_errors(f"{self._name} cannot be read"):
            self.send(requests)
            while count > 0:
                answer = self.receive()
                count -= len(answer.messages) + len(answer.results)
                yield answer

    def dump(self, request: bytes, most: int | None = None) -> list[rtnetlink.Answer]:
        """One dump; that of a missing object is empty. It is consistent, but for nftables.

        Any transaction interrupts a dump of nftables, also one of a set of another program, of
        which there may be thousands a second. One that changes what is read is notified.

        Raises KernelError, and TooLarge if the dump has more than `most` bytes.
        """
        answers: list[rtnetlink.Answer] = []
        with kernel_errors(f"{self._name} cannot be read"):
            for _ in range(_ATTEMPTS[self._protocol]):
                answers = self._answers(request, most)
                if not any(answer.interrupted for answer in answers):
                    return answers
        if self._protocol == NETFILTER:
            return answers
        raise KernelError(f"{self._name} cannot be read: it changes during each attempt")

    def _answers(self, request: bytes, most: int | None) -> list[rtnetlink.Answer]:
        """A dump to its end. Raises OSError, struct.error, TooLarge."""
        answers: list[rtnetlink.Answer] = []
        size = 0
        self.send(request)
        while not answers or not answers[-1].results:
            answers.append(self.receive())
            size += len(answers[-1].data)
            if most is not None and size > most:
                raise TooLarge(f"{self._name} cannot be read: more than {most} bytes")
            for error in set(answers[-1].results.values()) - {0, ENOENT}:
                raise OSError(error, os.strerror(error))
        return answers

    def _discard(self) -> None:
        while True:
            try:
                self._socket.recv(_DATAGRAM, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != ENOBUFS:
                    raise

    def _enlarge(self, size: int) -> None:
        """Enlarge the buffer for sending; without the capability, as far as wmem_max allows."""
        for option in (_SO_SNDBUFFORCE, socket.SO_SNDBUF):
            with suppress(PermissionError):
                self._socket.setsockopt(socket.SOL_SOCKET, option, size)
                return
