"""Address conflict detection (RFC 5227): when to probe, announce, defend and give up.

Times and the jitter of probes are arguments, packets are return values. `arp` has the socket.
"""

from collections.abc import Callable, Set
from dataclasses import dataclass
from math import inf

from vm_onetoone_nat.model.family import IPAddress

PROBES = 3
PROBE_SECONDS = 0.2
"""Between two probes, and after the last. The RFC's two seconds are for slower networks; a guest
should be reachable when it is up. A conflict that shows later is detected by listening, which the
RFC requires too."""

ANNOUNCEMENTS = 3
ANNOUNCE_SECONDS = 2.0

DEFEND_SECONDS = 10.0
"""After a second conflict within this time the address is given up (RFC 5227, 2.4)."""

JITTER_SECONDS = 0.02
"""The longest delay of a first probe, so that two hosts that start at the same time receive each
other's probes."""

_RETRY_SECONDS = (1.0, 2.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0, 60.0)  # RFC: 60 after ten


@dataclass(frozen=True, slots=True)
class ArpPacket:
    """A received ARP packet; `sender` is unspecified in a probe."""

    mac: str
    sender: IPAddress
    target: IPAddress


@dataclass(frozen=True, slots=True)
class Probe:
    """Probe whether another host has the address."""

    address: IPAddress


@dataclass(frozen=True, slots=True)
class Announcement:
    """Announce the address as ours, by a gratuitous request and reply."""

    address: IPAddress


Message = Probe | Announcement


class _Record:
    """One address: being probed (`probe_at` is finite), clear, or in conflict (`mac` is set)."""

    def __init__(self, now: float) -> None:
        self.held = False
        self.probes = 0
        self.probe_at = now
        self.announcements = 0
        self.announce_at = inf
        self.mac: str | None = None
        self.conflicts = 0
        self.defended = -inf

    @property
    def clear(self) -> bool:
        return self.mac is None and (self.held or self.probe_at == inf)

    def probe(self, at: float) -> None:
        self.probes = 0
        self.probe_at = at

    def announce(self, now: float) -> None:
        self.announcements, self.announce_at = ANNOUNCEMENTS, now

    def lose(self, now: float, mac: str) -> None:
        self.mac = mac
        delay = _RETRY_SECONDS[min(self.conflicts, len(_RETRY_SECONDS) - 1)]
        self.conflicts += 1
        self.probes, self.probe_at = 0, now + delay
        self.announcements, self.announce_at = 0, inf


class Detector:
    """The addresses of one interface. Times are in seconds, of any monotonic clock.

    `jitter` returns a delay from 0 to JITTER_SECONDS, a random one for each call.
    """

    def __init__(self, jitter: Callable[[], float]) -> None:
        self._jitter = jitter
        self._records: dict[IPAddress, _Record] = {}
        self._own: Set[str] = frozenset()

    @property
    def addresses(self) -> Set[IPAddress]:
        """The addresses that are wanted or held."""
        return self._records.keys()

    def update(
        self, now: float, wanted: Set[IPAddress], held: Set[IPAddress], own: Set[str]
    ) -> None:
        """Set the addresses that are `wanted` and those that are `held`; `own` are our MACs.

        A wanted address is probed until it is free; a newly held one is announced.
        """
        self._own = own
        self._records = {a: r for a, r in self._records.items() if a in wanted or a in held}
        for address in wanted | held:
            record = self._records.get(address)
            if record is None:
                record = self._records[address] = _Record(now)
                record.probe_at = inf
                if address not in held:
                    record.probe(now + self._jitter())
            if address in held and not record.held and record.mac is None:
                record.announce(now)
            record.held = address in held

    def link_is_up(self, now: float) -> None:
        """The link came up, perhaps on another network: probe all again, announce what is held."""
        for record in self._records.values():
            record.probe(now + self._jitter())
            if record.held and record.mac is None:
                record.announce(now)

    def received(self, now: float, packet: ArpPacket) -> tuple[Message, ...]:
        """Handle a received packet, return what to send; `unavailable` may change."""
        if packet.mac in self._own:
            return ()
        probing_too = packet.sender.is_unspecified
        record = self._records.get(packet.target if probing_too else packet.sender)
        if record is None or (probing_too and record.clear):
            return ()
        address = packet.target if probing_too else packet.sender
        if record.mac is not None and record.probes == 0:
            pass  # in conflict already, and waiting for the next probe
        elif record.held and record.probe_at == inf and now - record.defended > DEFEND_SECONDS:
            record.defended = now
            return (Announcement(address),)
        else:
            record.lose(now, packet.mac)
        return ()

    def due(self, now: float) -> tuple[Message, ...]:
        """Return what to send now; `unavailable` may change."""
        messages: list[Message] = []
        for address, record in self._records.items():
            if record.probe_at <= now:
                if record.probes < PROBES:
                    record.probes += 1
                    record.probe_at = now + PROBE_SECONDS
                    messages.append(Probe(address))
                else:
                    record.probe_at, record.mac = inf, None
            if record.announce_at <= now:
                messages.append(Announcement(address))
                record.announcements -= 1
                record.announce_at = now + ANNOUNCE_SECONDS if record.announcements else inf
        return tuple(messages)

    def deadline(self) -> float:
        """When `due` has something to send next; infinite if never."""
        return min(
            (min(r.probe_at, r.announce_at) for r in self._records.values()),
            default=inf,
        )

    def unavailable(self) -> dict[IPAddress, str | None]:
        """Addresses not to add, with the MAC of the host in conflict, or None while probing."""
        return {a: r.mac for a, r in self._records.items() if not r.clear}
