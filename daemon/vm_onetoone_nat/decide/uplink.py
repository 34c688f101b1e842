"""Which interface is the uplink, and which uplink carries an external address.

Pure. The only place that decides either: everything else asks an `Uplink`.
"""

from collections.abc import Sequence

from vm_onetoone_nat.model.configuration import Configuration, Pool
from vm_onetoone_nat.model.family import IPAddress, family_of
from vm_onetoone_nat.model.host import Address, Observed, Uplink
from vm_onetoone_nat.model.links import DefaultRoute, Link, gateways
from vm_onetoone_nat.model.mapping import Mapping


def choose(
    configuration: Configuration,
    links: Sequence[Link],
    routes: Sequence[DefaultRoute],
    addresses: Sequence[Address],
) -> Uplink | None:
    """The uplink; None if there is none."""
    link = _link(configuration.uplink, links, routes, addresses)
    if link is None:
        return None
    on_it = tuple(a for a in addresses if a.ifname == link.name)
    return Uplink(link, on_it, gateways(routes))


def carrier(_mapping: Mapping, observed: Observed) -> Uplink | None:
    """The uplink that carries a mapping's external address: the only one, or None."""
    return observed.uplink


def carrier_of_pool(_pool: Pool, observed: Observed) -> Uplink | None:
    """The uplink that carries the addresses of a pool: the only one, or None."""
    return observed.uplink


def why_none(mapping: Mapping, configuration: Configuration) -> str:
    """The reason of a mapping that no uplink carries."""
    if configuration.uplink is None:
        title = family_of(mapping.external).title
        return f"there is no uplink: the host has no {title} default route"
    return f"there is no uplink: interface '{configuration.uplink}' does not exist"


def shown(observed: Observed) -> str:
    """The uplink's name for people; empty if there is none."""
    return observed.uplink.name if observed.uplink is not None else ""


def host_sources(observed: Observed) -> frozenset[IPAddress]:
    """The source addresses, on the LAN, of connections of guests that have no mapping."""
    return observed.uplink.host_ips if observed.uplink is not None else frozenset()


def own_address(external: IPAddress, uplink: Uplink, observed: Observed) -> Address | None:
    """The host's own address that equals an external one; that cannot be given to a guest.

    A secondary address on the uplink is not one: an administrator may have put it there for the
    guest.
    """
    for address in observed.host_addresses_by_ip.get(external, ()):
        if address.primary or address.ifname != uplink.name:
            return address
    return None


def _link(
    configured: str | None,
    links: Sequence[Link],
    routes: Sequence[DefaultRoute],
    addresses: Sequence[Address],
) -> Link | None:
    """The configured interface, or that of the best default route.

    Without a default route, the interface with our addresses stays the uplink: connections survive
    a route that disappears for a moment, as when Wi-Fi roams.
    """
    outputs = [(route.priority, route.hops[0].ifindex) for route in routes if route.hops]
    if configured is None and outputs:
        index = min(outputs)[1]
        return next((link for link in links if link.index == index), None)
    name = configured
    if name is None:
        name = next((a.ifname for a in addresses if a.owned), None)
    return next((link for link in links if link.name == name), None)
