"""Deletes and counts entries of the kernel's connection tracking, by ctnetlink."""

import logging
import os
import socket
from collections.abc import Collection, Iterator, Sequence
from errno import ENOENT
from struct import pack
from time import thread_time

from vm_onetoone_nat.decide.flushes import Flushes
from vm_onetoone_nat.decide.host_writes import FlushBypassing
from vm_onetoone_nat.errors import KernelError
from vm_onetoone_nat.kernel.messages import conntrack
from vm_onetoone_nat.kernel.messages.conntrack import Entry, Part
from vm_onetoone_nat.model.family import FAMILIES, Family, IPAddress, family_of
from vm_onetoone_nat.model.flow import Flow
from vm_onetoone_nat.model.nat_table import Translation
from vm_onetoone_nat.model.traffic import Tracked

log = logging.getLogger(__name__)

_NETLINK_NETFILTER = 12
_SOL_NETLINK, _NETLINK_CAP_ACK = 270, 10
_TIMEOUT = pack("@ll", 5, 0)  # struct timeval

_DATAGRAM = 1 << 16
"""Bytes to receive at once; the kernel sends 32 KiB at most (af_netlink.c)."""

_BUFFER = 1 << 19
"""Bytes for answers: each entry of a datagram may cause one if it is gone when it is deleted."""

_MOST_LISTINGS = 10
_PER_LISTING = 4000
"""Few addresses have a listing each, instead of one of all entries: so many at most, and not more
than the entries are worth. Measured: a listing takes 12 ms without an entry, as the kernel locks
each of 262,144 buckets; with 115,000 entries 40 ms if it is of one address, and 430 ms of all."""


class Flusher:
    """Flushes connection tracking as work that is done in slices. Use it from one thread."""

    def __init__(self, flushes: Flushes) -> None:
        self._flushes = flushes
        self._round: Iterator[None] | None = None

    def work(self, seconds: float) -> bool:
        """Continue for about so many seconds of this thread; return whether some is left.

        The time that others have the processor does not count: a busy host gets as much done.
        Raises KernelError; what failed is left, and begins again with the next call.
        """
        until = thread_time() + seconds
        try:
            while self._flushes.left:
                self._round = self._round or self._steps()
                began = thread_time()
                for _ in self._round:
                    now = thread_time()
                    # A step cannot be divided: stop if the next one may end too late.
                    if now + (now - began) >= until:
                        return True
                    began = now
                self._round = None
        except (OSError, ValueError) as error:
            self._round = None
            raise _failure(error) from error
        return False

    def _steps(self) -> Iterator[None]:
        """A round: at each step, read a datagram of a listing and delete what is due in it.

        The kernel continues a listing only when it is received. An entry that is not deleted does
        not stop the round.
        """
        families = self._flushes.begin()
        deleted, failed = 0, 0
        for family in FAMILIES:
            if family not in families:
                continue
            with _socket() as netlink:
                for part in _listings(family, self._flushes.sources, self._flushes.destinations):
                    due = [entry for flow, entry in part.found if self._flushes.is_due(flow)]
                    failed = _delete(netlink, due) or failed
                    deleted += len(due)
                    yield
        if deleted:
            log.debug("flushed %d connections", deleted)
        if failed:
            raise OSError(failed, os.strerror(failed))
        self._flushes.end()


def track(translation: Translation, host_sources: Collection[IPAddress]) -> Tracked:
    """Count the entries of one translation, and those that bypass it. Raises KernelError."""
    flushes = Flushes()
    flushes.add([FlushBypassing(translation, host_sources=frozenset(host_sources))])
    flushes.begin()
    family = family_of(translation.external)
    found: dict[bytes, Flow] = {}
    try:
        for part in _listings(family, flushes.sources, flushes.destinations):
            # An entry may be listed twice; its deletion is the same.
            found.update((conntrack.deletion(entry), flow) for flow, entry in part.found)
    except (OSError, ValueError) as error:
        raise _failure(error) from error
    return Tracked(len(found), sum(map(flushes.is_due, found.values())))


def _listings(
    family: Family, sources: Collection[bytes], destinations: Collection[bytes]
) -> Iterator[Part]:
    """The entries whose first packet had one of these addresses. Raises OSError, ValueError.

    An entry may be listed twice: by two addresses, or after its neighbour has been deleted.
    """
    for request in _requests(family, sources, destinations):
        with _socket() as netlink:
            netlink.send(request)
            result = None
            while result is None:
                data = netlink.recv(_DATAGRAM)
                part = conntrack.parse_listing(data, family, sources, destinations)
                yield part
                result = part.result
        _raise(result)


def _requests(
    family: Family, sources: Collection[bytes], destinations: Collection[bytes]
) -> Sequence[bytes]:
    """Requests for these entries, those with an external address first."""
    entries = _count()
    if not entries:
        return ()
    size = family.bits // 8
    filters = [{"destination": each} for each in destinations if len(each) == size]
    filters += [{"source": each} for each in sources if len(each) == size]
    most = min(_MOST_LISTINGS, entries // _PER_LISTING) if family.dump_filter else 0
    if len(filters) > most:
        filters = [{}]
    return [conntrack.listing(family, **each) for each in filters]


def _count() -> int:
    """The entries of this network namespace, also those whose first packet is on its way."""
    with _socket() as netlink:
        netlink.send(conntrack.counting())
        data = netlink.recv(_DATAGRAM)
    for error in conntrack.parse_errors(data):
        _raise(error)
    return conntrack.parse_count(data)


def _delete(netlink: socket.socket, entries: Sequence[Entry]) -> int:
    """Delete entries; one that is gone is not an error. Return the number of the last error."""
    failed = 0
    if entries:
        netlink.send(b"".join(map(conntrack.deletion, entries)))
        # The kernel has handled all when `send` returns.
        while data := _answered(netlink):
            for error in conntrack.parse_errors(data):
                failed = failed if error in (0, ENOENT) else error
    return failed


def _answered(netlink: socket.socket) -> bytes:
    """A datagram of answers; empty if there are no more."""
    try:
        return netlink.recv(_DATAGRAM, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return b""


def _socket() -> socket.socket:
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
    netlink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    netlink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEOUT)
    netlink.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
    netlink.bind((0, 0))
    return netlink


def _raise(error: int) -> None:
    if error:
        raise OSError(error, os.strerror(error))


def _failure(error: OSError | ValueError) -> KernelError:
    text = error.strerror if isinstance(error, OSError) else str(error)
    return KernelError(f"connection tracking: {text}")
