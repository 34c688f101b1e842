"""The host's neighbour table, in one dump for each family."""

from collections.abc import Iterator

from vm_onetoone_nat.kernel.messages import neighbour
from vm_onetoone_nat.kernel.netlink import Netlink
from vm_onetoone_nat.model.family import FAMILIES


def neighbours(netlink: Netlink) -> Iterator[neighbour.Entry]:
    """Every entry. Raises KernelError."""
    for family in FAMILIES:
        for answer in netlink.dump(neighbour.listing(family)):
            yield from neighbour.entries(answer)
