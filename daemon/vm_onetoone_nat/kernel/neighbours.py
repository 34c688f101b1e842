"""The host's neighbour table, in one dump for each family (pyroute2)."""

from collections.abc import Iterator
from typing import Any

from pyroute2 import IPRoute

from vm_onetoone_nat.model.family import FAMILIES


def neighbours(netlink: IPRoute, **wanted: int) -> Iterator[Any]:
    """Every entry as pyroute2 has it; `wanted` as for its `get_neighbours`."""
    for family in FAMILIES:
        yield from netlink.get_neighbours(family=family.number, **wanted)
