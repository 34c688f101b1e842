"""All mappings of a pass: from the configuration, from guests' metadata, and from pools.

Pure. The configuration comes first, then metadata in the order in which claims were made, then
pools; an address that one of them uses is not available to a later one. Allocations record which
guest has which address, so that guests keep their addresses over a restart.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address

from vm_onetoone_nat.discovery import interfaces, is_host, located
from vm_onetoone_nat.state import (
    AddressSource,
    Allocation,
    Configuration,
    Domain,
    DomainState,
    Guests,
    Mapping,
    Observed,
    Origin,
    Pool,
    Unmapped,
)


@dataclass(frozen=True, slots=True)
class Gathered:
    """The mappings, with internal addresses where known, and the guests without an address."""

    mappings: tuple[Mapping, ...]
    unmapped: tuple[Unmapped, ...]
    allocations: frozenset[Allocation]


def gather(
    configuration: Configuration,
    guests: Guests | None,
    observed: Observed,
    recorded: frozenset[Allocation],
) -> Gathered:
    """All mappings. `guests` None: libvirt was never reached, and the kernel's state is used.

    `recorded` are the allocations of the passes before.
    """
    if guests is None:
        return _remembered(configuration, observed, recorded)
    gathering = _Gathering(configuration, guests, observed, recorded)
    gathering.metadata()
    for pool in configuration.pools:
        gathering.pool(pool)
    return Gathered(
        tuple(located(m, guests, observed) for m in gathering.mappings),
        tuple(gathering.unmapped),
        frozenset(gathering.allocations.values()),
    )


def _remembered(
    configuration: Configuration, observed: Observed, recorded: frozenset[Allocation]
) -> Gathered:
    """The configuration and the allocations, with the addresses that the kernel translates to."""
    mappings = list(configuration.mappings)
    written = {m.external for m in mappings}
    mappings += (
        Mapping(a.external, a.network, domain=a.uuid, origin=a.origin, remembered=True)
        for a in sorted(recorded)
        if a.external not in written and observed.translated(a.external) is not None
    )
    return Gathered(tuple(_kept(m, observed) for m in mappings), (), recorded)


def _kept(mapping: Mapping, observed: Observed) -> Mapping:
    current = observed.translated(mapping.external)
    if mapping.internal is not None or current is None:
        return mapping
    return replace(mapping, internal=current, source=AddressSource.KEPT)


class _Gathering:
    def __init__(
        self,
        configuration: Configuration,
        guests: Guests,
        observed: Observed,
        recorded: frozenset[Allocation],
    ) -> None:
        self._configuration = configuration
        self._guests = guests
        self._observed = observed
        self.mappings = list(configuration.mappings)
        self.unmapped: list[Unmapped] = []
        self._before = {a.external: a for a in recorded}
        self.allocations: dict[IPv4Address, Allocation] = {}
        self._taken = {
            *(m.external for m in configuration.mappings),
            *observed.routers,
            *(each.address for each in observed.unavailable if each.mac),
            *(a.interface.ip for a in observed.addresses if not a.owned),
        }
        self._mapped = {
            (domain.uuid, m.network)
            for m in configuration.mappings
            if (domain := guests.domain(m.domain)) is not None
        }

    def metadata(self) -> None:
        """Add the mappings that guests claim in their metadata."""
        if not self._configuration.metadata:
            return
        claims: list[tuple[Domain, Mapping]] = []
        for domain in sorted(self._guests.domains, key=lambda d: d.name):
            if domain.fault:
                self._refuse(domain, self._network(domain), domain.fault)
            for claim in domain.claims:
                mapping = replace(
                    claim, domain=domain.name, network=claim.network or self._network(domain)
                )
                if (domain.uuid, mapping.network) not in self._mapped:
                    claims.append((domain, mapping))
        # The guest that claimed an address first keeps it.
        claims.sort(key=lambda claim: not self._was_allocated(*claim))
        claimed = {m.external: d for d, m in reversed(claims)}
        for domain, mapping in claims:
            refusal = self._refusal(domain, mapping, claimed)
            if refusal:
                self._refuse(domain, mapping.network, refusal, str(mapping.external))
            else:
                self._accept(domain, mapping)
        self._mapped |= {(d.uuid, m.network) for d, m in claims}

    def pool(self, pool: Pool) -> None:
        """Allocate an address to each guest on the pool's network that has no mapping."""
        had = {a.uuid: a for a in self._before.values() if self._is_of(a, pool)}
        domains = self._without_mapping(pool)
        served = set()
        for domain in domains:
            known = had.get(domain.uuid)
            if known is not None and known.external not in self._taken:
                self._accept(domain, Mapping(known.external, pool.network, origin=Origin.POOL))
                served.add(domain.uuid)
        # Guests that need no address now, or that libvirt no longer has, keep theirs.
        for allocation in had.values():
            if allocation.external not in self._taken:
                self.allocations[allocation.external] = allocation
                self._taken.add(allocation.external)
        free = (a for a in self._addresses(pool) if a not in self._taken)
        abandoned = self._abandoned(pool)
        for domain in domains:
            if domain.uuid in served or domain.state is DomainState.OFF:
                continue
            external = next(free, None) or next(abandoned, None)
            if external is None and domain.uuid in had:
                # Its address is in conflict and the pool has no other: report the conflict.
                external = had[domain.uuid].external
            if external is None:
                reason = f"all addresses of the pool of network '{pool.network}' are in use"
                advice = "write more of them in 'external' of its [[pool]]"
                self.unmapped.append(
                    Unmapped(domain.name, pool.network, f"{reason}; {advice}", origin=Origin.POOL)
                )
                continue
            self._accept(domain, Mapping(external, pool.network, origin=Origin.POOL))

    def _without_mapping(self, pool: Pool) -> list[Domain]:
        """The guests of a pool, sorted by name."""
        network = self._guests.network(pool.network)
        if network is None:
            return []
        written = {m.internal for m in self._configuration.mappings if m.internal is not None}
        found = []
        for domain in sorted(self._guests.domains, key=lambda d: d.name):
            if (domain.uuid, pool.network) in self._mapped or domain.fault:
                continue
            probe = Mapping(IPv4Address(0), pool.network, domain=domain.name)
            # The configuration may map a guest by its internal address, without `domain`.
            mapped = located(probe, self._guests, self._observed).internal in written
            if interfaces(domain, network) and not mapped:
                found.append(domain)
        return found

    def _accept(self, domain: Domain, mapping: Mapping) -> None:
        self.mappings.append(replace(mapping, domain=domain.name))
        self._taken.add(mapping.external)
        self.allocations[mapping.external] = Allocation(
            mapping.external, domain.uuid, mapping.network, mapping.origin
        )

    def _refuse(
        self, domain: Domain, network: str, reason: str, external: str | None = None
    ) -> None:
        self.unmapped.append(Unmapped(domain.name, network, reason, external))

    def _network(self, domain: Domain) -> str:
        """The network of a claim without one: the configured one, or else the guest's first."""
        names = [nic.network for nic in domain.interfaces if nic.network is not None]
        default = self._configuration.network
        return default if default in names or not names else names[0]

    def _refusal(self, domain: Domain, mapping: Mapping, claimed: dict[IPv4Address, Domain]) -> str:
        """Why a claim is refused; empty if it is accepted."""
        external = mapping.external
        prefixes = self._configuration.metadata_external
        if not any(external in prefix for prefix in prefixes):
            allowed = ", ".join(map(str, prefixes)) or "nothing"
            return (
                f"metadata claims {external}, and settings.metadata_external allows {allowed}; "
                "write another address, or allow it there"
            )
        if any(external == m.external for m in self._configuration.mappings):
            return f"metadata claims {external}, which the configuration gives to another guest"
        before = self._before.get(external)
        holder = claimed[external]
        if before is not None and before.origin is Origin.POOL and before.uuid != domain.uuid:
            holder = next((d for d in self._guests.domains if d.uuid == before.uuid), holder)
        if holder.uuid != domain.uuid or external in self.allocations:
            return f"metadata claims {external}, which is already used by domain '{holder.name}'"
        network = self._guests.network(mapping.network)
        if network is None:
            return f"libvirt has no network '{mapping.network}'"
        macs = {nic.mac for nic in interfaces(domain, network, mapping.mac)}
        if not macs:
            return f"domain '{domain.name}' has no such interface on network '{mapping.network}'"
        if mapping.internal is not None:
            macs_seen = {n.mac for n in self._observed.neighbours if n.address == mapping.internal}
            if given := network.given.get(mapping.internal):
                macs_seen = {given}
            if macs_seen - macs or self._is_another_guests(domain, mapping.internal):
                return f"internal {mapping.internal} is the address of another guest"
        return ""

    def _is_another_guests(self, domain: Domain, internal: IPv4Address) -> bool:
        return any(
            m.internal == internal and self._guests.domain(m.domain) != domain
            for m in self._configuration.mappings
        )

    def _was_allocated(self, domain: Domain, mapping: Mapping) -> bool:
        before = self._before.get(mapping.external)
        return before is not None and before.uuid == domain.uuid

    def _is_of(self, allocation: Allocation, pool: Pool) -> bool:
        return (
            allocation.origin is Origin.POOL
            and allocation.network == pool.network
            and allocation.external in pool
        )

    def _abandoned(self, pool: Pool) -> Iterator[IPv4Address]:
        """Addresses of guests that libvirt no longer has; none while libvirt cannot be reached."""
        present = {domain.uuid for domain in self._guests.domains}
        kept = sorted(self.allocations.values()) if self._guests.current else []
        return (a.external for a in kept if self._is_of(a, pool) and a.uuid not in present)

    def _addresses(self, pool: Pool) -> Iterator[IPv4Address]:
        subnets = [
            a.interface.network
            for a in self._observed.addresses
            if a.ifname == self._observed.uplink and not a.owned
        ]
        for part in pool.ranges:
            for address in part:
                inside = [subnet for subnet in subnets if address in subnet]
                # Outside of all subnets it cannot work, but the mapping's state reports that.
                if not inside or any(is_host(address, subnet) for subnet in inside):
                    yield address
