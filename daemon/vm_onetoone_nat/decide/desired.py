"""The desired state, computed from the configuration, the guests and the observed kernel state.

Pure: nothing is kept from one pass to the next.
"""

from collections.abc import Iterable, Iterator
from collections.abc import Mapping as ReadOnly
from dataclasses import replace
from functools import lru_cache

from vm_onetoone_nat.decide.checks import check, external_interface, if_available
from vm_onetoone_nat.decide.gather import gather
from vm_onetoone_nat.decide.locate import doubtful
from vm_onetoone_nat.decide.uplink import carrier
from vm_onetoone_nat.model.configuration import Configuration
from vm_onetoone_nat.model.desired import Desired
from vm_onetoone_nat.model.family import Family, IPAddress, family_of
from vm_onetoone_nat.model.guests import Guests
from vm_onetoone_nat.model.host import Address, Observed, Uplink
from vm_onetoone_nat.model.mapping import ICMP, AllowedService, Mapping
from vm_onetoone_nat.model.nat_table import (
    ADMIT,
    ALLOWED,
    ANY_PROTOCOL,
    EXTERNAL,
    INBOUND,
    INTERNAL,
    OUTBOUND,
    RESTRICT,
    UNTRANSLATED_IN,
    UNTRANSLATED_OUT,
    UPLINK,
    Element,
    element,
    translations,
)
from vm_onetoone_nat.model.status import Cause, MappingState, MappingStatus
from vm_onetoone_nat.model.store import Stored

Refused = ReadOnly[IPAddress, str]


def desire(
    configuration: Configuration, guests: Guests | None, observed: Observed, stored: Stored
) -> Desired:
    """The desired state. `guests` is None if libvirt was never reached, and not `current` if it
    cannot be reached now.

    In both cases, and for a paused guest, a mapping stays as the kernel has it: the loss of libvirt
    does not mean that guests have stopped, and at the destination of a migration a guest is paused
    until it runs there.
    """
    gathered = gather(configuration, guests, observed, stored)
    checked = check(gathered.mappings, configuration, guests, observed)
    wanted = frozenset(s.mapping.external for s in checked if s.state is MappingState.ACTIVE)
    statuses = if_available(checked, observed)
    desired = _desired(statuses, observed, configuration.fwmark, wanted)
    return replace(
        desired,
        unmapped=gathered.unmapped,
        allocations=gathered.allocations,
        doubtful=doubtful(desired.active, observed),
    )


def without(desired: Desired, refused: Refused, observed: Observed) -> Desired:
    """The desired state without the mappings that the kernel has refused.

    `refused` has the reason for each, by external address; `desired` was computed from `observed`.
    """
    statuses = tuple(
        _refused(s.mapping, refused[s.mapping.external]) if s.mapping.external in refused else s
        for s in desired.statuses
    )
    left = _desired(statuses, observed, desired.fwmark, desired.wanted)
    return replace(
        desired,
        statuses=statuses,
        addresses=left.addresses,
        elements=left.elements,
        hairpins=left.hairpins,
    )


def with_elements(desired: Desired, elements: frozenset[Element]) -> Desired:
    """The desired state with these elements, and only the addresses that they translate."""
    translated = {pair.external for pair in translations(elements)}
    addresses = tuple(a for a in desired.addresses if a.interface.ip in translated)
    return replace(desired, elements=elements, addresses=addresses)


def _refused(mapping: Mapping, reason: str) -> MappingStatus:
    return MappingStatus(mapping, MappingState.ERROR, reason, Cause.REFUSED_BY_KERNEL)


def _desired(
    statuses: tuple[MappingStatus, ...],
    observed: Observed,
    fwmark: int,
    wanted: frozenset[IPAddress],
) -> Desired:
    active = [s.mapping for s in statuses if s.state is MappingState.ACTIVE]
    uplinks = [_carrier(m, observed) for m in active]
    elements = [e for m in active if not m.remembered for e in mapping_elements(m)]
    elements += _remembered([m for m in active if m.remembered], observed)
    elements += (element(UPLINK, (name,)) for name in {uplink.name for uplink in uplinks})
    return Desired(
        statuses=statuses,
        addresses=tuple(map(_address, active, uplinks)),
        elements=frozenset(elements),
        fwmark=fwmark,
        hairpins=_hairpins(active, observed),
        wanted=wanted,
    )


def _remembered(mappings: Iterable[Mapping], observed: Observed) -> Iterator[Element]:
    """The elements of these mappings in the kernel, whose keys begin with one of the addresses."""
    addresses = {str(address) for m in mappings for address in (m.external, m.internal)}
    for each in observed.table.elements if observed.table is not None else ():
        if each.key[0] in addresses:
            yield each


@lru_cache(1 << 14)
def mapping_elements(mapping: Mapping) -> tuple[Element, ...]:
    """The elements of our table for one active mapping whose internal address is known."""
    external, internal = str(mapping.external), str(mapping.internal)
    restricted = mapping.allow is not None or mapping.allowed_sources is not None
    translation = (
        element(EXTERNAL, (external,), internal),
        element(INTERNAL, (internal,), external),
        element(INBOUND, (external,), RESTRICT if restricted else ADMIT),
        element(OUTBOUND, (internal,)),
        element(UNTRANSLATED_IN, (external,)),
        element(UNTRANSLATED_OUT, (internal,)),
    )
    if not restricted:
        return translation
    services: Iterable[AllowedService] = (
        (AllowedService(ANY_PROTOCOL),) if mapping.allow is None else mapping.allow
    )
    family, sources = family_of(mapping.external), mapping.allowed_sources
    if sources is None:
        sources = (family.anywhere,)
    return translation + tuple(
        element(
            ALLOWED,
            (external, str(source), _protocol(service, family), f"{service.first}-{service.last}"),
        )
        for service in services
        for source in sources
    )


def _carrier(mapping: Mapping, observed: Observed) -> Uplink:
    uplink = carrier(mapping, observed)
    assert uplink is not None, "an active mapping has an uplink"
    return uplink


def _protocol(service: AllowedService, family: Family) -> str:
    return family.icmp if service.protocol == ICMP else service.protocol


def _address(mapping: Mapping, uplink: Uplink) -> Address:
    external = external_interface(mapping, uplink)
    family, network = family_of(external), external.network
    several = network.prefixlen < family.bits - 1
    broadcast = network.broadcast_address if family.has_broadcast and several else None
    return Address(uplink.name, external, broadcast, owned=True)


def _hairpins(active: list[Mapping], observed: Observed) -> frozenset[str]:
    """The bridge ports that need the hairpin flag.

    With br_netfilter, a guest's packet to its own external address is translated while it is
    bridged, and a bridge forwards to the port of arrival only with the flag.
    """
    if not observed.bridge_netfilter:
        return frozenset()
    ports = dict(observed.ports)
    return frozenset(ports[m.internal] for m in active if m.internal in ports)
