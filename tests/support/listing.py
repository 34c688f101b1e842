"""Our table as the kernel lists it, made of the requests that write it."""

from collections.abc import Iterable
from dataclasses import replace

from vm_onetoone_nat.decide.nft_writes import AddElement, InstallTable
from vm_onetoone_nat.kernel.messages import nftables
from vm_onetoone_nat.kernel.messages.nft_listing import Listing
from vm_onetoone_nat.kernel.messages.nftables import nest, read, read_list, read_text, text
from vm_onetoone_nat.kernel.messages.rtnetlink import attribute
from vm_onetoone_nat.kernel.messages.ruleset import transaction
from vm_onetoone_nat.model.nat_table import CONTAINERS, Container, Element

Attributes = dict[int, bytes]

_BY_NAME = {container.name: container for container in CONTAINERS}
_SET_NAME, _ELEMENTS, _COUNTER = 2, 3, 7  # NFTA_SET_ELEM_*


def listing(fwmark: int, elements: Iterable[Element] = ()) -> Listing:
    """The table with these elements, whose counters are 0."""
    requests = transaction((InstallTable(fwmark), *map(AddElement, elements)))
    bodies = [(each.kind, dict(read(each.body, nftables.MESSAGE_SIZE))) for each in requests]
    chains, sets, rules = (
        [body for kind, body in bodies if kind == wanted]
        for wanted in (nftables.NEW_CHAIN, nftables.NEW_SET, nftables.NEW_RULE)
    )
    listed: dict[Container, list[Attributes]] = {container: [] for container in CONTAINERS}
    for kind, body in bodies:
        if kind == nftables.NEW_ELEMENT:
            container = _BY_NAME[read_text(body[_SET_NAME])]
            more = counted(0, 0) if container.counted else {}
            listed[container] += ({**read(item), **more} for item in read_list(body[_ELEMENTS]))
    return Listing(chains, sets, rules, listed)


def with_elements(before: Listing, container: Container, *elements: Attributes) -> Listing:
    """A listing with these elements in a container instead of those that it has."""
    return replace(before, elements={**before.elements, container: elements})


def counted(packets: int, size: int) -> Attributes:
    """The counter of an element."""
    values = attribute(1, size.to_bytes(8, "big")) + attribute(2, packets.to_bytes(8, "big"))
    return {_COUNTER: text(1, "counter") + nest(2, values)}
