"""The traffic of each mapping, from the counters in our table.

Pure. Counters start at 0 when the mapping is created, and again when the table is replaced.
"""

from collections.abc import Mapping as ReadOnly
from dataclasses import dataclass

from vm_onetoone_nat.model.family import IPAddress
from vm_onetoone_nat.model.mapping import Mapping
from vm_onetoone_nat.model.nat_table import (
    EXTERNAL,
    INBOUND,
    INTERNAL,
    OUTBOUND,
    UNTRANSLATED_IN,
    UNTRANSLATED_OUT,
    Container,
)


@dataclass(frozen=True, slots=True)
class Traffic:
    """Connections, and the forwarded packets and bytes in both their directions.

    `dropped`: packets of their initiator that NAT left alone, such as those in no connection.
    """

    connections: int = 0
    packets: int = 0
    bytes: int = 0
    dropped: int = 0

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(
            self.connections + other.connections,
            self.packets + other.packets,
            self.bytes + other.bytes,
            self.dropped + other.dropped,
        )


@dataclass(frozen=True, slots=True)
class Tracked:
    """The entries of a mapping in connection tracking, and those that bypass it."""

    entries: int
    elsewhere: int


@dataclass(frozen=True, slots=True)
class Counters:
    """The traffic of connections to each external and from each internal address."""

    inbound: ReadOnly[IPAddress, Traffic]
    outbound: ReadOnly[IPAddress, Traffic]

    def of(self, mapping: Mapping) -> tuple[Traffic, Traffic]:
        """The traffic of connections to a mapping's guest, and of those from it."""
        none = Traffic()
        outbound = self.outbound.get(mapping.internal, none) if mapping.internal else none
        return self.inbound.get(mapping.external, none), outbound


Counts = ReadOnly[IPAddress, tuple[int, int]]
"""Packets and bytes by address."""


def counters(counted: ReadOnly[Container, Counts]) -> Counters:
    """The traffic, from the counters of each container that has some."""
    return Counters(
        _joined(*(counted.get(each, {}) for each in (EXTERNAL, INBOUND, UNTRANSLATED_IN))),
        _joined(*(counted.get(each, {}) for each in (INTERNAL, OUTBOUND, UNTRANSLATED_OUT))),
    )


def _joined(translated: Counts, forwarded: Counts, dropped: Counts) -> dict[IPAddress, Traffic]:
    """NAT maps count connections: they are looked up for the first packet of each only."""
    none = 0, 0
    return {
        each: Traffic(translated.get(each, none)[0], packets, size, dropped.get(each, none)[0])
        for each, (packets, size) in forwarded.items()
    }
