"""The host's interfaces and default routes, as the kernel lists them. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from vm_onetoone_nat.model.family import IPAddress


@dataclass(frozen=True, slots=True)
class Link:
    """One interface. `running`: up, with a carrier. `has_arp`: it resolves neighbours by ARP.

    `kind` is that of a virtual interface, such as `bridge` or `tun`; None: the kernel names none.
    `master` is the index of the bridge or other device of which it is a port.
    """

    index: int
    name: str
    mac: str = ""
    running: bool = True
    has_arp: bool = True
    kind: str | None = None
    is_bridge_port: bool = False
    hairpin: bool = False
    master: int | None = None

    @property
    def is_bridge(self) -> bool:
        """Whether it is a bridge."""
        return self.kind == "bridge"


@dataclass(frozen=True, slots=True)
class Hop:
    """A next hop: the index of its interface, and its router, if any."""

    ifindex: int
    gateway: IPAddress | None


@dataclass(frozen=True, slots=True)
class DefaultRoute:
    """A default route; the lowest `priority` wins. A multipath route has several hops."""

    priority: int
    hops: tuple[Hop, ...]


def gateways(routes: Iterable[DefaultRoute]) -> frozenset[IPAddress]:
    """The routers of all these routes."""
    return frozenset(h.gateway for r in routes for h in r.hops if h.gateway is not None)
