"""Which address of a pool each guest gets that has no mapping.

Pure. A guest keeps the address that the store has for it, also while it does not run.
"""

from collections.abc import Iterable, Iterator, Set
from itertools import chain

from vm_onetoone_nat.decide.locate import interfaces, is_host, located
from vm_onetoone_nat.decide.uplink import carrier_of_pool
from vm_onetoone_nat.model.configuration import Configuration, Pool
from vm_onetoone_nat.model.desired import Gathered, Sides
from vm_onetoone_nat.model.family import FAMILIES, IPAddress
from vm_onetoone_nat.model.guests import Domain, DomainState, Guests
from vm_onetoone_nat.model.host import Observed
from vm_onetoone_nat.model.mapping import Mapping, Origin
from vm_onetoone_nat.model.status import Unmapped
from vm_onetoone_nat.model.store import Allocation


def without_mapping(
    pool: Pool, configuration: Configuration, sides: Sides, mapped: Set[tuple[str, str]]
) -> tuple[Domain, ...]:
    """The guests on the pool's network that have no mapping, sorted by name.

    `mapped` are the UUIDs and networks that have one, or claim one.
    """
    network = sides.guests.network(pool.network)
    if network is None:
        return ()
    unspecified = FAMILIES[0].unspecified
    written = {m.internal for m in configuration.mappings if m.internal is not None}
    found = []
    for domain in sorted(sides.guests.domains, key=lambda d: d.name):
        if (domain.uuid, pool.network) in mapped or domain.fault:
            continue
        probe = Mapping(unspecified, pool.network, domain=domain.name)
        # The configuration may map a guest by its internal address, without `domain`.
        by_address = located(probe, sides.guests, sides.observed).internal in written
        if interfaces(domain, network) and not by_address:
            found.append(domain)
    return tuple(found)


def assign(pool: Pool, waiting: Iterable[Domain], sides: Sides, taken: Set[IPAddress]) -> Gathered:
    """Give each waiting guest that runs an address of the pool, in their order.

    First each guest that had one gets it again, then the others get free ones, then those of guests
    that libvirt no longer has. The allocations hold all that stay reserved, also for guests that
    need no address now. `taken` are the addresses that others use.
    """
    waiting = tuple(waiting)
    before = {a.uuid: a for a in sides.stored.allocations if _is_of(a, pool)}
    kept = {uuid: a for uuid, a in before.items() if a.external not in taken}
    allocations = {a.external: a for a in kept.values()}
    spare = chain(
        _free(pool, sides.observed, taken | allocations.keys()),
        _abandoned(kept.values(), sides.guests),
    )
    given = [(domain, kept[domain.uuid].external) for domain in waiting if domain.uuid in kept]
    unmapped = []
    for domain in waiting:
        if domain.uuid in kept or domain.state is DomainState.OFF:
            continue
        external = next(spare, None)
        if external is None and domain.uuid in before:
            # Its address is in conflict and the pool has no other: report the conflict.
            external = before[domain.uuid].external
        if external is None:
            unmapped.append(_exhausted(domain, pool))
            continue
        given.append((domain, external))
        allocations[external] = Allocation(external, domain.uuid, pool.network, Origin.POOL)
    return Gathered(
        tuple(Mapping(e, pool.network, domain=d.name, origin=Origin.POOL) for d, e in given),
        tuple(unmapped),
        frozenset(allocations.values()),
    )


def _is_of(allocation: Allocation, pool: Pool) -> bool:
    return (
        allocation.origin is Origin.POOL
        and allocation.network == pool.network
        and allocation.external in pool
    )


def _exhausted(domain: Domain, pool: Pool) -> Unmapped:
    reason = f"all addresses of the pool of network '{pool.network}' are in use"
    advice = "write more of them in 'external' of its [[pool]]"
    return Unmapped(domain.name, pool.network, f"{reason}; {advice}", origin=Origin.POOL)


def _free(pool: Pool, observed: Observed, used: Set[IPAddress]) -> Iterator[IPAddress]:
    """The addresses of the pool that are not used, each once, in its order."""
    uplink = carrier_of_pool(pool, observed)
    subnets = uplink.subnets if uplink is not None else ()
    seen = set(used)
    for address in chain.from_iterable(pool.ranges):
        if address in seen:
            continue
        seen.add(address)
        inside = [subnet for subnet in subnets if address in subnet]
        # Outside of all subnets it cannot work, but the mapping's state reports that.
        if not inside or any(is_host(address, subnet) for subnet in inside):
            yield address


def _abandoned(kept: Iterable[Allocation], guests: Guests) -> Iterator[IPAddress]:
    """Addresses of guests that libvirt no longer has; none while libvirt cannot be reached."""
    present = {domain.uuid for domain in guests.domains}
    known = sorted(kept) if guests.current else []
    return (a.external for a in known if a.uuid not in present)
