"""What each mapping becomes: active, or why not.

Pure. A mapping is checked in this order: its guest, its internal address, its external address;
then against the other mappings, and last whether another host has its external address.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from vm_onetoone_nat.decide.locate import is_host, why_unknown
from vm_onetoone_nat.decide.uplink import carrier, own_address, why_none
from vm_onetoone_nat.model.configuration import Configuration
from vm_onetoone_nat.model.family import IPAddress, IPInterface, family_of, interface
from vm_onetoone_nat.model.guests import DomainState, Guests
from vm_onetoone_nat.model.host import Observed, Unavailable, Uplink
from vm_onetoone_nat.model.mapping import Mapping
from vm_onetoone_nat.model.status import Cause, MappingState, MappingStatus

ACTIVE, INACTIVE, PENDING, CONFLICT, ERROR = (
    MappingState.ACTIVE,
    MappingState.INACTIVE,
    MappingState.PENDING,
    MappingState.CONFLICT,
    MappingState.ERROR,
)


@dataclass(frozen=True, slots=True)
class _Finding:
    """Why a mapping is not active."""

    state: MappingState
    reason: str
    cause: Cause


def check(
    mappings: Iterable[Mapping],
    configuration: Configuration,
    guests: Guests | None,
    observed: Observed,
) -> tuple[MappingStatus, ...]:
    """The status of each mapping, apart from whether another host has its external address.

    `guests` as for `desired.desire`.
    """
    return _unambiguous(_status(m, configuration, guests, observed) for m in mappings)


def if_available(
    statuses: Iterable[MappingStatus], observed: Observed
) -> tuple[MappingStatus, ...]:
    """The same statuses, pending or conflict instead of active where an address is unavailable."""
    return tuple(_if_available(status, observed) for status in statuses)


def external_interface(mapping: Mapping, uplink: Uplink) -> IPInterface:
    """The external address with its own prefix length, or else that of its subnet.

    The uplink must have that subnet: see `Mapping.needs_subnet`.
    """
    prefixlen = mapping.prefixlen
    if prefixlen is None:
        subnet = uplink.subnet_of(mapping.external)
        assert subnet is not None, "the uplink has the mapping's subnet"
        prefixlen = subnet.prefixlen
    return interface(mapping.external.packed, prefixlen)


def _status(
    mapping: Mapping, configuration: Configuration, guests: Guests | None, observed: Observed
) -> MappingStatus:
    guest = _guest_state(mapping, guests, observed)
    internal = _internal_state(mapping, guests)
    external = _external_state(mapping, configuration, guests, observed)
    in_order = (guest, internal, external)
    if _rests_on_kernel(mapping, guests):
        # A fault of the uplink removes the mapping from the kernel. It stays the reason when the
        # kernel no longer has the mapping at the next pass.
        in_order = (external, guest, internal)
    found = [finding for finding in in_order if finding is not None]
    if not found:
        return MappingStatus(mapping, ACTIVE)
    # An error stays when the pending address is known, so it is reported first.
    if found[0].state is PENDING:
        found.sort(key=lambda finding: finding.state is not ERROR)
    return MappingStatus(mapping, found[0].state, found[0].reason, found[0].cause)


def _unambiguous(statuses: Iterable[MappingStatus]) -> tuple[MappingStatus, ...]:
    """The same statuses, with an error for each mapping whose internal address has one already."""
    first: dict[IPAddress | None, IPAddress] = {}
    checked = []
    for status in statuses:
        mapping = status.mapping
        if status.state is ACTIVE:
            other = first.setdefault(mapping.internal, mapping.external)
            if other != mapping.external:
                reason = f"internal {mapping.internal} is already used by external {other}"
                advice = "write another 'internal', or the 'mac' of another interface"
                checked.append(
                    MappingStatus(mapping, ERROR, f"{reason}; {advice}", Cause.ADDRESS_OF_ANOTHER)
                )
                continue
        checked.append(status)
    return tuple(checked)


def _if_available(status: MappingStatus, observed: Observed) -> MappingStatus:
    if status.state is not ACTIVE:
        return status
    external, uplink = status.mapping.external, carrier(status.mapping, observed)
    assert uplink is not None, "an active mapping has an uplink"
    found = observed.unavailable_by_ip.get(external)
    if found is None and observed.probed is not None and external not in observed.probed:
        found = None if external in uplink.ips else Unavailable(external)
    if found is None:
        return status
    if found.mac is None:
        reason = f"probing on {uplink.name} whether another host has the address"
        return MappingStatus(status.mapping, PENDING, reason, Cause.ASKING)
    reason = f"the host with MAC {found.mac} on {uplink.name} has the address"
    return MappingStatus(status.mapping, CONFLICT, reason, Cause.CONFLICT)


def _rests_on_kernel(mapping: Mapping, guests: Guests | None) -> bool:
    """Whether the mapping stays as the kernel has it, since the guest's state does not decide."""
    if guests is None or not guests.current:
        return True
    network, domain = guests.network(mapping.network), guests.domain(mapping.domain)
    runs = network is not None and network.active
    return runs and domain is not None and domain.state is DomainState.PAUSED


def _guest_state(mapping: Mapping, guests: Guests | None, observed: Observed) -> _Finding | None:
    """Why the guest, or the network of a mapping without one, is not running."""
    if (guests is None or not guests.current) and _was_active(mapping, observed):
        return None
    if guests is None:
        reason = "libvirt cannot be reached, so it is not known whether the guest runs"
        return _Finding(INACTIVE, reason, Cause.LIBVIRT)
    network = guests.network(mapping.network)
    if network is None:
        reason = f"libvirt has no network '{mapping.network}'"
        return _Finding(INACTIVE, reason, Cause.NETWORK_UNKNOWN)
    if not network.active:
        reason = f"network '{mapping.network}' is not active"
        return _Finding(INACTIVE, reason, Cause.NETWORK_INACTIVE)
    if mapping.domain is None:
        return None
    domain = guests.domain(mapping.domain)
    if domain is None:
        reason = f"libvirt has no domain '{mapping.domain}'"
        return _Finding(INACTIVE, reason, Cause.GUEST_UNKNOWN)
    if domain.state is DomainState.OFF:
        return _Finding(INACTIVE, f"domain '{domain.name}' is not running", Cause.GUEST_OFF)
    if domain.state is DomainState.LEAVING:
        reason = f"domain '{domain.name}' has migrated to another host, or is about to"
        return _Finding(INACTIVE, reason, Cause.GUEST_LEFT)
    if domain.state is DomainState.PAUSED and not _was_active(mapping, observed):
        return _Finding(INACTIVE, f"domain '{domain.name}' is paused", Cause.GUEST_PAUSED)
    return None


def _internal_state(mapping: Mapping, guests: Guests | None) -> _Finding | None:
    """Why the internal address is unknown, or not one of a host on its network."""
    if mapping.internal is None:
        return _Finding(PENDING, *why_unknown(mapping, guests))
    network = guests.network(mapping.network) if guests is not None else None
    if network is None:
        return None
    if not network.gateways:
        lack = f"has no {_title(mapping)} address of its own to route from"
        reason = f"network '{network.name}' {lack}"
        if network.fault:
            reason = f"network '{network.name}': {network.fault}"
        return _Finding(ERROR, reason, Cause.NETWORK_UNROUTED)
    for gateway in network.gateways:
        if mapping.internal == gateway.ip:
            reason = f"internal {mapping.internal} is the gateway of network '{network.name}'"
            return _Finding(ERROR, reason, Cause.ADDRESS_IS_GATEWAY)
        if is_host(mapping.internal, gateway.network):
            return None
    subnets = ", ".join(str(gateway.network) for gateway in network.gateways)
    reason = f"internal {mapping.internal} is no host address of network '{network.name}'"
    return _Finding(ERROR, f"{reason} ({subnets})", Cause.ADDRESS_OUTSIDE_NETWORK)


def _external_state(
    mapping: Mapping, configuration: Configuration, guests: Guests | None, observed: Observed
) -> _Finding | None:
    """Why the uplink cannot carry the external address."""
    external, uplink = mapping.external, carrier(mapping, observed)
    if uplink is None:
        return _Finding(ERROR, why_none(mapping, configuration), Cause.NO_UPLINK)
    for network in guests.networks if guests is not None else ():
        for gateway in network.gateways:
            if external in gateway.network:
                where = f"{gateway.network}, the subnet of libvirt network '{network.name}'"
                reason = f"external {external} lies in {where}"
                return _Finding(ERROR, reason, Cause.EXTERNAL_IN_GUESTS_SUBNET)
    if external in uplink.routers:
        reason = f"external {external} is the router of the LAN"
        return _Finding(ERROR, reason, Cause.EXTERNAL_IS_ROUTER)
    own = own_address(external, uplink, observed)
    if own is not None:
        reason = f"external {external} is the host's own address on {own.ifname}"
        return _Finding(ERROR, reason, Cause.EXTERNAL_IS_OWN)
    return _subnet_state(mapping, uplink) if mapping.needs_subnet else None


def _subnet_state(mapping: Mapping, uplink: Uplink) -> _Finding | None:
    """Why the external address is not one of a host in the uplink's subnet."""
    external = mapping.external
    if not uplink.subnets:
        reason = f"uplink {uplink.name} has no {_title(mapping)} address"
        return _Finding(ERROR, reason, Cause.UPLINK_WITHOUT_ADDRESS)
    subnet = uplink.subnet_of(external)
    if subnet is None:
        listed = ", ".join(map(str, uplink.subnets))
        reason = f"external {external} is outside the uplink's subnet {listed}"
        return _Finding(ERROR, reason, Cause.EXTERNAL_OUTSIDE_SUBNET)
    lan = subnet if mapping.prefixlen is None else external_interface(mapping, uplink).network
    if not is_host(external, lan):
        reason = f"external {external} is no host address of {lan}"
        return _Finding(ERROR, reason, Cause.EXTERNAL_IS_NO_HOST)
    return None


def _title(mapping: Mapping) -> str:
    return family_of(mapping.external).title


def _was_active(mapping: Mapping, observed: Observed) -> bool:
    """Whether the kernel translates this external address, or it is in conflict.

    Only a wanted address is probed, so a conflict shows that it was wanted.
    """
    found = observed.unavailable_by_ip.get(mapping.external)
    in_conflict = found is not None and found.mac is not None
    return observed.translated(mapping.external) is not None or in_conflict
