"""All mappings of a pass: from the configuration, from guests' metadata, and from pools.

Pure. The configuration comes first, then metadata in the order in which claims were made, then
pools; an address that one of them uses is not available to a later one. Allocations record which
guest has which address, so that guests keep their addresses over a restart.
"""

from collections.abc import Iterable
from dataclasses import replace

from vm_onetoone_nat.decide.claims import claims, faults, grant
from vm_onetoone_nat.decide.locate import located
from vm_onetoone_nat.decide.pools import assign, without_mapping
from vm_onetoone_nat.model.configuration import Configuration
from vm_onetoone_nat.model.desired import Gathered, Sides
from vm_onetoone_nat.model.family import IPAddress
from vm_onetoone_nat.model.guests import Guests
from vm_onetoone_nat.model.host import Observed
from vm_onetoone_nat.model.mapping import AddressSource, Mapping
from vm_onetoone_nat.model.store import Stored


def gather(
    configuration: Configuration, guests: Guests | None, observed: Observed, stored: Stored
) -> Gathered:
    """All mappings, with internal addresses where known, and the guests without an address.

    `guests` None: libvirt was never reached, and the kernel's state is used.
    """
    if guests is None:
        return _remembered(configuration, observed, stored)
    sides = Sides(guests, observed, stored)
    found = Gathered(configuration.mappings)
    mapped = {
        (domain.uuid, m.network)
        for m in configuration.mappings
        if (domain := guests.domain(m.domain)) is not None
    }
    if configuration.metadata:
        made = claims(configuration, guests, mapped)
        refused = Gathered(unmapped=faults(configuration, guests))
        found = _joined((found, refused, grant(made, configuration, sides)))
        # A guest whose claim is refused gets no address of a pool either.
        mapped |= {(claim.domain.uuid, claim.mapping.network) for claim in made}
    taken = _taken(configuration, observed) | {a.external for a in found.allocations}
    for pool in configuration.pools:
        waiting = without_mapping(pool, configuration, sides, mapped)
        assigned = assign(pool, waiting, sides, taken)
        taken |= {a.external for a in assigned.allocations}
        found = _joined((found, assigned))
    return replace(found, mappings=tuple(located(m, guests, observed) for m in found.mappings))


def _taken(configuration: Configuration, observed: Observed) -> frozenset[IPAddress]:
    """The addresses that no pool may give: written ones, and those of other hosts and this one."""
    return frozenset(
        (
            *(m.external for m in configuration.mappings),
            *observed.routers,
            *(each.address for each in observed.unavailable if each.mac),
            *(a.interface.ip for a in observed.addresses if not a.owned),
        )
    )


def _joined(parts: Iterable[Gathered]) -> Gathered:
    """All parts, in this order; the last allocation of an address counts."""
    parts = tuple(parts)
    allocations = {a.external: a for part in parts for a in part.allocations}
    return Gathered(
        tuple(m for part in parts for m in part.mappings),
        tuple(u for part in parts for u in part.unmapped),
        frozenset(allocations.values()),
    )


def _remembered(configuration: Configuration, observed: Observed, stored: Stored) -> Gathered:
    """The configuration and the allocations, with the addresses that the kernel translates to."""
    mappings = list(configuration.mappings)
    written = {m.external for m in mappings}
    mappings += (
        Mapping(a.external, a.network, domain=a.uuid, origin=a.origin, remembered=True)
        for a in sorted(stored.allocations)
        if a.external not in written and observed.translated(a.external) is not None
    )
    return Gathered(tuple(_kept(m, observed) for m in mappings), (), stored.allocations)


def _kept(mapping: Mapping, observed: Observed) -> Mapping:
    current = observed.translated(mapping.external)
    if mapping.internal is not None or current is None:
        return mapping
    return replace(mapping, internal=current, source=AddressSource.KEPT)
