"""Finds the guest's own address if the configuration has none.

Pure. Sources in this order: the network's reservation for the guest's MAC, its DHCP lease, the
guest agent, the bridge's neighbour table; else the address that the kernel translates to is kept.
"""

from collections.abc import Iterable, Iterator, Set
from dataclasses import replace

from vm_onetoone_nat.model.configuration import Configuration
from vm_onetoone_nat.model.family import IPAddress, IPNetwork
from vm_onetoone_nat.model.guests import Domain, DomainState, Guests, Interface, Network
from vm_onetoone_nat.model.host import Neighbour, Observed
from vm_onetoone_nat.model.mapping import AddressSource, Mapping
from vm_onetoone_nat.model.nat_table import Table
from vm_onetoone_nat.model.status import Cause


def is_host(address: IPAddress, network: IPNetwork) -> bool:
    """Whether it is a host address: neither the network address nor the broadcast address.

    Networks of one or two addresses have neither (RFC 3021).
    """
    return address in network and (
        address not in (network.network_address, network.broadcast_address)
        or network.prefixlen >= network.max_prefixlen - 1
    )


def interfaces(domain: Domain, network: Network, mac: str | None = None) -> tuple[Interface, ...]:
    """The guest's interfaces on a network; with `mac`, only the one that has it."""
    return tuple(
        nic
        for nic in domain.interfaces
        if (
            nic.network == network.name or (nic.bridge is not None and nic.bridge == network.bridge)
        )
        and mac in (None, nic.mac)
    )


def located(mapping: Mapping, guests: Guests, observed: Observed) -> Mapping:
    """The mapping with its internal address, if that is known."""
    if mapping.internal is not None:
        return mapping
    current = observed.translated(mapping.external)
    network, domain = guests.network(mapping.network), guests.domain(mapping.domain)
    if network is None or domain is None:
        return mapping
    for nic in interfaces(domain, network, mapping.mac):
        for source, address in _known(nic, network, observed, current):
            if _may_have(nic, address, network):
                return replace(mapping, internal=address, source=source)
    # Of a guest that is off the kernel has the address only until the end of this pass.
    runs = domain.state is not DomainState.OFF
    if runs and current is not None and any(current in g.network for g in network.gateways):
        return replace(mapping, internal=current, source=AddressSource.KEPT)
    return mapping


def why_unknown(mapping: Mapping, guests: Guests | None) -> tuple[str, Cause]:
    """Why `located` found no address."""
    if mapping.domain is None:
        reason = "write 'internal', or write 'domain' to have the guest's address found"
        return reason, Cause.ADDRESS_UNKNOWN
    if guests is None:
        reason = "libvirt cannot be reached, so it is not known which address the guest has"
        return reason, Cause.LIBVIRT
    network, domain = guests.network(mapping.network), guests.domain(mapping.domain)
    if network is not None and domain is not None:
        if domain.fault and not domain.interfaces:
            return f"domain '{domain.name}': {domain.fault}", Cause.ADDRESS_UNKNOWN
        if not interfaces(domain, network, mapping.mac):
            which = "no interface" if mapping.mac is None else f"no interface {mapping.mac}"
            reason = f"domain '{domain.name}' has {which} on network '{network.name}'"
            return reason, Cause.NO_INTERFACE
        if network.fault:
            return f"network '{network.name}': {network.fault}", Cause.ADDRESS_UNKNOWN
        macs = {nic.mac for nic in interfaces(domain, network, mapping.mac)}
        for mac, fault in network.unreadable:
            if mac in macs:
                return f"network '{network.name}', {mac}: {fault}", Cause.ADDRESS_UNKNOWN
    reason = (
        f"the guest's address on network '{mapping.network}' is not known yet: it has no "
        "reservation and no lease, and has sent no packet"
    )
    return reason, Cause.ADDRESS_UNKNOWN


def doubtful(mappings: Iterable[Mapping], observed: Observed) -> tuple[Neighbour, ...]:
    """Neighbour entries of internal addresses whose guest has shown another address since.

    A guest may have two addresses: it has moved only if the kernel's probe is not answered.
    """
    addresses = {m.internal for m in mappings if m.source is AddressSource.NEIGHBOUR}
    return tuple(
        n
        for n in observed.neighbours
        if n.address in addresses
        and not n.fresh
        and any(o.address != n.address for o in observed.neighbours_by_mac[n.mac])
    )


def possible_guests(
    neighbours: Iterable[Neighbour],
    configuration: Configuration,
    table: Table | None,
    macs: Set[str],
) -> tuple[Neighbour, ...]:
    """The neighbours that a mapping may be for: with one of the guests' MACs, at an address of the
    configuration, or at one that the kernel translates to. A guest may forge any number of others.
    """
    addresses = {m.internal for m in configuration.mappings}
    addresses.update(table.translations.values() if table is not None else ())
    return tuple(n for n in neighbours if n.mac in macs or n.address in addresses)


def _known(
    nic: Interface, network: Network, observed: Observed, current: IPAddress | None
) -> Iterator[tuple[AddressSource, IPAddress]]:
    for source, known in (
        (AddressSource.RESERVATION, network.reservations),
        (AddressSource.LEASE, network.leases),
    ):
        yield from ((source, address) for mac, address in known if mac == nic.mac)
    yield from ((AddressSource.AGENT, address) for address in nic.addresses)
    neighbours = observed.neighbours_by_mac.get(nic.mac, ())
    seen = [n for n in neighbours if n.ifname == network.bridge]
    # The address in use stays while the guest answers there.
    seen.sort(key=lambda n: (n.address != current, n.age))
    yield from ((AddressSource.NEIGHBOUR, n.address) for n in seen)


def _may_have(nic: Interface, address: IPAddress, network: Network) -> bool:
    """Whether an address can be this guest's: not the gateway's, nor one given to another MAC."""
    return any(
        is_host(address, gateway.network) and address != gateway.ip for gateway in network.gateways
    ) and network.given.get(address) in (None, nic.mac)
