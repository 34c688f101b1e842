"""Our nftables table as values: its containers, their elements, and what it translates.

Pure. The chains and rules are in `nft_table`, the messages for containers in `nft_objects`, and for
elements in `nft_elements`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from functools import cached_property, lru_cache
from operator import attrgetter

from vm_onetoone_nat.model.family import IPV4, PARSED, Family, IPAddress, address

TABLE = "vm_onetoone_nat"

ADMIT, RESTRICT = "admit", "restrict"
"""The chains that a verdict of `inbound` leads to: everything, or only what is allowed."""

DNAT_PRIORITY = -105
"""Before other programs' destination NAT (-100): the first chain that binds a connection wins."""

SNAT_PRIORITY = 95
"""Before libvirt's masquerade, at srcnat (100)."""

MARK_PRIORITY = -5
"""Before the chains that accept our mark, at filter (0)."""

UNTRANSLATED_PRIORITY = 105
"""After source NAT, which is at srcnat (100) for the chains of all programs."""


class Part(Enum):
    """What a part of a key, or the value of a map, is."""

    ADDRESS = "address"
    NETWORK = "network"
    PROTOCOL = "protocol"
    PORTS = "ports"
    INTERFACE = "interface"
    VERDICT = "verdict"


Key = tuple[str, ...]


@dataclass(frozen=True, eq=False, slots=True)
class Container:
    """A set of our table, or with `value` a map. There is one object for each.

    `words` says what an element does, from its key and value. `counted`: each element has a
    counter. `by_external`: the key begins with a mapping's external address, else with an internal
    one. `why`: the reason for each element, if it is for no single mapping. `family`: that of its
    addresses, if it has any.
    """

    name: str
    key: tuple[Part, ...]
    words: Callable[[Key, str], str]
    value: Part | None = None
    counted: bool = False
    by_external: bool = False
    why: str = ""
    family: Family = IPV4

    def __lt__(self, other: "Container") -> bool:
        return self.name < other.name


HAIRPIN_REASON = "with br_netfilter, a guest needs it to reach itself at its external address"

EXTERNAL = Container(
    "external",
    (Part.ADDRESS,),
    lambda key, value: f"dnat {key[0]} to {value}",
    value=Part.ADDRESS,
    counted=True,
    by_external=True,
)
"""External to internal address."""

INTERNAL = Container(
    "internal",
    (Part.ADDRESS,),
    lambda key, value: f"snat {key[0]} to {value}",
    value=Part.ADDRESS,
    counted=True,
)
"""Internal to external address."""

INBOUND = Container(
    "inbound",
    (Part.ADDRESS,),
    lambda key, value: (
        f"forward connections to {key[0]}{', as allowed' if value == RESTRICT else ''}"
    ),
    value=Part.VERDICT,
    counted=True,
    by_external=True,
)
"""External address to the chain that decides about every packet of a connection to it."""

OUTBOUND = Container(
    "outbound",
    (Part.ADDRESS,),
    lambda key, _: f"forward connections from {key[0]}",
    counted=True,
)
"""Internal addresses whose own connections through the uplink are accepted."""

UNTRANSLATED_IN = Container(
    "untranslated_in",
    (Part.ADDRESS,),
    lambda key, _: f"drop packets to {key[0]} that are not translated",
    counted=True,
    by_external=True,
)
"""External addresses: a packet to one that reaches the host itself was not translated."""

UNTRANSLATED_OUT = Container(
    "untranslated_out",
    (Part.ADDRESS,),
    lambda key, _: f"drop packets from {key[0]} that are not translated",
    counted=True,
)
"""Internal addresses: a packet that leaves through the uplink with one was not translated."""

ALLOWED = Container(
    "allowed",
    (Part.ADDRESS, Part.NETWORK, Part.PROTOCOL, Part.PORTS),
    lambda key, _: f"allow {key[2]} {key[3]} from {key[1]} to {key[0]}",
    by_external=True,
)
"""What a restricted mapping accepts: external address, source, protocol, ports."""

UPLINK = Container(
    "uplink",
    (Part.INTERFACE,),
    lambda key, _: f"uplink {key[0]}",
    why="the uplink is the interface of the default route, or the configured one",
)
"""The interface with the external addresses."""

HAIRPIN = Container(
    "hairpin",
    (Part.INTERFACE,),
    lambda key, _: f"record of the hairpin on {key[0]}",
    why=HAIRPIN_REASON,
)
"""Not used for packets: records the bridge ports whose hairpin flag is ours to clear."""

CONTAINERS = (
    EXTERNAL,
    INTERNAL,
    INBOUND,
    OUTBOUND,
    UNTRANSLATED_IN,
    UNTRANSLATED_OUT,
    ALLOWED,
    UPLINK,
    HAIRPIN,
)
"""All, in the order of their declarations. NAT is looked up once for each connection, forwarding
for each packet: the counters of the first two count connections, the others packets."""

ANY_PROTOCOL = "any"
"""The protocol of an element of `allowed` that accepts each."""


@dataclass(frozen=True, slots=True, order=True)
class Element:
    """An element of a container; `value` is empty in a set. Create it by `element`.

    Parts of the key and the value are text in the form of `nft_elements`.
    """

    container: Container
    key: Key
    value: str = ""

    def __str__(self) -> str:
        """What it does, as `plan` shows it."""
        return self.container.words(self.key, self.value)


@lru_cache(4 * PARSED)
def element(container: Container, key: Key, value: str = "") -> Element:
    """An element; cached, so that listed and desired elements compare by identity.

    Leave `value` out for a set: the cache takes an empty one for another call.
    """
    return Element(container, key, value)


def in_order(elements: Iterable[Element]) -> tuple[Element, ...]:
    """The elements in the order in which a plan has them."""
    # By keys: with thousands of values, each comparison of two elements would be a Python call.
    return tuple(sorted(elements, key=attrgetter("container.name", "key", "value")))


@dataclass(frozen=True, slots=True, order=True)
class Translation:
    """A pair of addresses that the kernel translates into each other."""

    external: IPAddress
    internal: IPAddress

    def __hash__(self) -> int:
        return hash((int(self.external), int(self.internal)))


def translations(elements: Iterable[Element]) -> frozenset[Translation]:
    """The translations that these elements contain."""
    return frozenset(
        Translation(address(e.key[0]), address(e.value))
        for e in elements
        if e.container is EXTERNAL
    )


@dataclass(frozen=True)
class Table:
    """Our table. `intact` is false if chains, rules or declarations differ from ours.

    `fwmark` is the mark bit that the table sets; None if its rules do not show one. `persistent`:
    its owner alone may write to it, and it outlives the owner. `owned` is false if such a table has
    no owner, or has to be this process's and is not.
    """

    intact: bool
    elements: frozenset[Element] = frozenset()
    fwmark: int | None = None
    persistent: bool = False
    owned: bool = True

    @cached_property
    def translations(self) -> dict[IPAddress, IPAddress]:
        """Internal addresses by external ones."""
        return {t.external: t.internal for t in translations(self.elements)}
