"""What guests claim in their metadata: which claims become mappings, and why others are refused.

Pure. Anyone who may edit a guest can claim an address, so a claim is refused unless the
configuration allows the address and nothing of another guest is touched.
"""

from collections.abc import Iterable, Set
from dataclasses import dataclass, replace

from vm_onetoone_nat.decide.locate import interfaces
from vm_onetoone_nat.model.configuration import Configuration
from vm_onetoone_nat.model.desired import Gathered, Sides
from vm_onetoone_nat.model.family import IPAddress
from vm_onetoone_nat.model.guests import Domain, Guests
from vm_onetoone_nat.model.mapping import Mapping, Origin
from vm_onetoone_nat.model.status import Unmapped
from vm_onetoone_nat.model.store import Allocation


@dataclass(frozen=True, slots=True)
class Claim:
    """A guest and a mapping in its metadata, completed by the guest's name and the network."""

    domain: Domain
    mapping: Mapping

    @property
    def external(self) -> IPAddress:
        """The address that is claimed."""
        return self.mapping.external


def claims(
    configuration: Configuration, guests: Guests, mapped: Set[tuple[str, str]]
) -> tuple[Claim, ...]:
    """All claims, sorted by guest, of guests that the configuration does not map there.

    `mapped` are the UUIDs and networks that it maps.
    """
    made = (
        Claim(domain, replace(claimed, domain=domain.name, network=network))
        for domain in sorted(guests.domains, key=lambda d: d.name)
        for claimed in domain.claims
        if (network := claimed.network or _network(domain, configuration))
    )
    return tuple(c for c in made if (c.domain.uuid, c.mapping.network) not in mapped)


def faults(configuration: Configuration, guests: Guests) -> tuple[Unmapped, ...]:
    """The guests whose definition or metadata cannot be read, sorted by name."""
    return tuple(
        Unmapped(domain.name, _network(domain, configuration), domain.fault)
        for domain in sorted(guests.domains, key=lambda d: d.name)
        if domain.fault
    )


def grant(made: Iterable[Claim], configuration: Configuration, sides: Sides) -> Gathered:
    """The mappings that are granted, and the refusals.

    The guest that claimed an address first keeps it: it is the one that the store has it for. A
    guest that is `unread` keeps it reserved, since its claim may be unknown.
    """
    before = {a.external: a for a in sides.stored.allocations}
    ordered = sorted(made, key=lambda claim: not _was_allocated(claim, before.get(claim.external)))
    holders = _holders(ordered, before, sides.guests)
    mappings: list[Mapping] = []
    refused: list[Unmapped] = []
    granted: dict[IPAddress, Allocation] = {}
    unread = {domain.uuid for domain in sides.guests.domains if domain.unread}
    reserved = {e: a for e, a in before.items() if a.origin is Origin.METADATA and a.uuid in unread}
    for claim in ordered:
        domain, mapping, external = claim.domain, claim.mapping, claim.external
        holder = holders[external]
        used = holder.uuid != domain.uuid or external in granted
        reason = _refusal(claim, configuration, sides, holder if used else None)
        if reason:
            refused.append(Unmapped(domain.name, mapping.network, reason, str(external)))
            continue
        mappings.append(mapping)
        granted[external] = Allocation(external, domain.uuid, mapping.network, mapping.origin)
    allocations = frozenset((reserved | granted).values())
    return Gathered(tuple(mappings), tuple(refused), allocations)


def _network(domain: Domain, configuration: Configuration) -> str:
    """The network of a claim without one: the configured one, or else the guest's first."""
    names = [nic.network for nic in domain.interfaces if nic.network is not None]
    default = configuration.network
    return default if default in names or not names else names[0]


def _was_allocated(claim: Claim, before: Allocation | None) -> bool:
    return before is not None and before.uuid == claim.domain.uuid


def _holders(
    ordered: list[Claim], before: dict[IPAddress, Allocation], guests: Guests
) -> dict[IPAddress, Domain]:
    """Who has each claimed address: the guest that a pool gave it to, or one that is `unread` and
    that the store has it for, or else the first claimer.
    """
    holders = {claim.external: claim.domain for claim in reversed(ordered)}
    by_uuid = {domain.uuid: domain for domain in guests.domains}
    for external in holders:
        if (allocation := before.get(external)) is None:
            continue
        holder = by_uuid.get(allocation.uuid)
        if holder is not None and (allocation.origin is Origin.POOL or holder.unread):
            holders[external] = holder
    return holders


def _refusal(
    claim: Claim, configuration: Configuration, sides: Sides, holder: Domain | None
) -> str:
    """Why a claim is refused; empty if it is granted. `holder` has the address already."""
    return _refused_external(claim, configuration, holder) or _refused_guest(
        claim, configuration, sides
    )


def _refused_external(claim: Claim, configuration: Configuration, holder: Domain | None) -> str:
    """Why this guest may not have the external address."""
    external = claim.external
    prefixes = configuration.metadata_external
    if not any(external in prefix for prefix in prefixes):
        allowed = ", ".join(map(str, prefixes)) or "nothing"
        return (
            f"metadata claims {external}, and settings.metadata_external allows {allowed}; "
            "write another address, or allow it there"
        )
    if any(external == m.external for m in configuration.mappings):
        return f"metadata claims {external}, which the configuration gives to another guest"
    if holder is not None:
        return f"metadata claims {external}, which is already used by domain '{holder.name}'"
    return ""


def _refused_guest(claim: Claim, configuration: Configuration, sides: Sides) -> str:
    """Why the claim does not fit the guest's interfaces and addresses."""
    domain, mapping = claim.domain, claim.mapping
    network = sides.guests.network(mapping.network)
    if network is None:
        return f"libvirt has no network '{mapping.network}'"
    macs = {nic.mac for nic in interfaces(domain, network, mapping.mac)}
    if not macs:
        return f"domain '{domain.name}' has no such interface on network '{mapping.network}'"
    if mapping.internal is None:
        return ""
    users = {n.mac for n in sides.observed.neighbours if n.address == mapping.internal}
    if given := network.given.get(mapping.internal):
        users = {given}
    if users - macs or _is_of_another(mapping.internal, domain, configuration, sides.guests):
        return f"internal {mapping.internal} is the address of another guest"
    return ""


def _is_of_another(
    internal: IPAddress, domain: Domain, configuration: Configuration, guests: Guests
) -> bool:
    """Whether the configuration has this internal address for another guest."""
    return any(
        m.internal == internal and guests.domain(m.domain) != domain for m in configuration.mappings
    )
