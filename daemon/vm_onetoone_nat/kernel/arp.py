"""ARP on the uplink: sends probes and announcements and receives, in a thread of its own."""

import json
import logging
import os
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Set
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address
from math import inf
from pathlib import Path

from vm_onetoone_nat.decide.acd import JITTER_SECONDS, Announcement, ArpPacket, Detector, Message
from vm_onetoone_nat.events import Event
from vm_onetoone_nat.internal_errors import Work, contain, thread
from vm_onetoone_nat.journal import entry
from vm_onetoone_nat.kernel.socket_filter import arp_about, attach
from vm_onetoone_nat.model.host import Unavailable
from vm_onetoone_nat.model.links import Link
from vm_onetoone_nat.model.trigger import Kind, Trigger
from vm_onetoone_nat.store.text import read_text, replace_text

log = logging.getLogger(__name__)

ARP_PROTOCOL = 0x0806
BROADCAST = b"\xff" * 6
_ARP = struct.Struct("!HHBBH6s4s6s4s")  # RFC 826, for Ethernet and IPv4
_REQUEST, _REPLY = 1, 2
_AT_ONCE, _PAUSE_SECONDS = 64, 0.001
"""After so many packets there is a pause, in which passes have the lock: another host may send
packets faster than they are received. The kernel drops what does not fit into the socket."""
_CHANGED = Trigger(Kind.ARP, "ARP: an address is free or unavailable")


@dataclass(frozen=True, slots=True)
class Detection:
    """Addresses not to add, and all that are or were probed; `probed` None: no probing."""

    unavailable: tuple[Unavailable, ...]
    probed: frozenset[IPv4Address] | None


NOT_PROBING = Detection((), None)


class Arp:
    """Probes wanted addresses on the uplink, announces and defends held ones.

    `notify` is called in the thread of this class when an address becomes free or unavailable.
    `record` is a file from which other processes read the unavailable addresses.
    """

    def __init__(self, notify: Callable[[Trigger], None], record: Path) -> None:
        self._notify = notify
        self._record = record
        self._recorded: str | None = None
        self._lock = threading.Lock()
        self._detector = _detector()
        self._link: Link | None = None
        self._socket: socket.socket | None = None
        self._filtered: tuple[int, int] | None = None
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._refused = False
        self._thread = thread(Work.ARP, self._run)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Remove the record; the thread ends with the process."""
        with suppress(OSError):
            self._record.unlink(missing_ok=True)

    def observe(self, link: Link | None) -> Detection:
        """The result of detection on that link."""
        if link is None or not link.has_arp or self._refused:
            return NOT_PROBING
        with self._lock:
            if self._link is None or (link.index, link.mac) != (self._link.index, self._link.mac):
                return Detection((), frozenset())  # nothing is probed on this link yet
            macs = self._detector.unavailable()
            return Detection(
                tuple(Unavailable(address, macs[address]) for address in sorted(macs, key=int)),
                frozenset(self._detector.addresses),
            )

    def update(
        self,
        link: Link | None,
        wanted: Set[IPv4Address],
        held: Set[IPv4Address],
        own: Set[str],
    ) -> None:
        """Set what is wanted and held on the uplink; `own` are the MACs of this host."""
        with self._lock:
            before, now = self._link, time.monotonic()
            if link is None or not link.has_arp:
                self._close()
            elif before is None or (link.index, link.mac) != (before.index, before.mac):
                self._close()
                self._open(link)
            if self._link is not None and link is not None:
                came_up = link.running and before is not None and not before.running
                self._link = link
                self._detector.update(now, wanted, held, own)
                self._filter()
                if came_up:
                    self._detector.link_is_up(now)
            self._write_record()
        os.eventfd_write(self._wake, 1)

    def _open(self, link: Link) -> None:
        try:
            packets = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, 0)
        except PermissionError:
            if not self._refused:
                log.warning(
                    "address conflicts are not detected: probing needs CAP_NET_RAW",
                    extra=entry(Event.DETECTION_OFF),
                )
            self._refused = True
            return
        except OSError as error:
            # It is tried again by the next pass.
            log.debug("ARP on %s: %s", link.name, error)
            return
        try:
            packets.bind((link.name, ARP_PROTOCOL))
        except OSError as error:
            # The interface is gone; its notification follows.
            log.debug("ARP on %s: %s", link.name, error)
            packets.close()
            return
        self._socket, self._link = packets, link

    def _filter(self) -> None:
        """Let the kernel drop what is about no address between the lowest and the highest one."""
        numbers = [int(address) for address in self._detector.addresses]
        if self._socket is None or not numbers:
            return
        ends = min(numbers), max(numbers)
        if ends != self._filtered:
            attach(self._socket, arp_about(*ends))
            self._filtered = ends

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket, self._link, self._filtered = None, None, None
        self._detector = _detector()

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        registered: socket.socket | None = None
        while True:
            with self._lock:
                deadline = self._deadline()
                packets = self._socket
            if packets is not registered:
                poll = select.poll()
                poll.register(self._wake, select.POLLIN)
                if packets is not None:
                    poll.register(packets, select.POLLIN)
                registered = packets
            wait = None if deadline == inf else max(0.0, deadline - time.monotonic()) * 1000
            # Rounded up, so that it does not wake before the deadline.
            ready = {fd for fd, _ in poll.poll(None if wait is None else int(wait) + 1)}
            if self._wake in ready:
                os.eventfd_read(self._wake)
            with self._lock:
                before, more = self._detector.unavailable(), False
                if self._socket is packets and packets is not None and ready - {self._wake}:
                    more = self._receive(packets)
                if self._deadline() <= time.monotonic():
                    self._send(self._detector.due(time.monotonic()))
                changed = self._detector.unavailable() != before
                if changed:
                    self._write_record()
            if changed:
                self._notify(_CHANGED)
            if more:
                time.sleep(_PAUSE_SECONDS)

    def _deadline(self) -> float:
        """When to send next; never while the link is down."""
        up = self._link is not None and self._link.running
        return self._detector.deadline() if up else inf

    def _receive(self, packets: socket.socket) -> bool:
        """Handle the packets that wait, `_AT_ONCE` at most; return whether more may wait."""
        for _ in range(_AT_ONCE):
            try:
                received = packets.recv(128)
            except BlockingIOError:
                return False
            except OSError as error:
                # The link went down or disappeared; its notification follows.
                log.debug("ARP: %s", error)
                return False
            # A packet that cannot be handled must not keep the others waiting.
            with contain(Work.ARP):
                packet = parse_packet(received)
                if packet is not None:
                    self._send(self._detector.received(time.monotonic(), packet))
        return True

    def _send(self, messages: tuple[Message, ...]) -> None:
        if self._link is None or self._socket is None:
            return
        for message in messages:
            for packet in _build(message, self._link.mac):
                try:
                    self._socket.sendto(packet, (self._link.name, ARP_PROTOCOL, 0, 0, BROADCAST))
                except OSError as error:
                    log.debug("ARP on %s: %s", self._link.name, error)

    def _write_record(self) -> None:
        """Write the record for `plan` and `status`, which see no conflicts without it."""
        name = None if self._link is None else self._link.name
        macs = {str(a): mac for a, mac in sorted(self._detector.unavailable().items())}
        text = json.dumps({"uplink": name, "contested": macs})
        if text == self._recorded:
            return
        try:
            replace_text(self._record, text)
        except OSError as error:
            log.debug("%s: %s", self._record, error)
            return
        self._recorded = text


def _detector() -> Detector:
    return Detector(lambda: random.uniform(0, JITTER_SECONDS))


class RecordedConflicts:
    """The unavailable addresses that the running daemon has recorded, for other commands."""

    def __init__(self, record: Path) -> None:
        try:
            content = json.loads(read_text(record))
            self._uplink = content["uplink"]
            self._macs = {IPv4Address(a): m for a, m in content["contested"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            # No daemon is running, or it could not write.
            self._uplink, self._macs = None, {}

    def observe(self, link: Link | None) -> Detection:
        """As Arp.observe; an address that is not in the record counts as free."""
        if link is None or link.name != self._uplink:
            return NOT_PROBING
        return Detection(tuple(Unavailable(a, mac) for a, mac in self._macs.items()), None)


def request(mac: str, sender: IPv4Address, target: IPv4Address) -> bytes:
    """An ARP request; `sender` is 0.0.0.0 in a probe (RFC 5227)."""
    return _packet(_REQUEST, bytes.fromhex(mac.replace(":", "")), sender, bytes(6), target)


def parse_packet(data: bytes) -> ArpPacket | None:
    """Parse a packet; None if it is not for IPv4 on Ethernet."""
    if len(data) < _ARP.size:
        return None
    hardware, protocol, hlen, plen, _, mac, sender, _, target = _ARP.unpack_from(data)
    if (hardware, protocol, hlen, plen) != (1, 0x0800, 6, 4):
        return None
    return ArpPacket(mac.hex(":"), IPv4Address(sender), IPv4Address(target))


def _build(message: Message, mac: str) -> tuple[bytes, ...]:
    address = message.address
    if isinstance(message, Announcement):
        own = bytes.fromhex(mac.replace(":", ""))
        # Some stacks accept only a request, some only a reply.
        return request(mac, address, address), _packet(_REPLY, own, address, own, address)
    return (request(mac, IPv4Address(0), address),)


def _packet(
    operation: int, mac: bytes, sender: IPv4Address, target_mac: bytes, target: IPv4Address
) -> bytes:
    return _ARP.pack(
        *(1, 0x0800, 6, 4, operation, mac, sender.packed, target_mac, target.packed),
    )
