"""What is remembered between runs. Pure."""

from dataclasses import dataclass

from vm_onetoone_nat.model.family import IPAddress
from vm_onetoone_nat.model.mapping import Origin


@dataclass(frozen=True, slots=True)
class Allocation:
    """An external address recorded for a guest, from a pool or its metadata; kept over restarts."""

    external: IPAddress
    uuid: str
    network: str
    origin: Origin

    def __lt__(self, other: "Allocation") -> bool:
        # By integers: addresses of two families cannot be compared.
        return self._key < other._key

    @property
    def _key(self) -> tuple[int, str, str, str]:
        return int(self.external), self.uuid, self.network, self.origin


@dataclass(frozen=True, slots=True)
class Stored:
    """What is remembered between runs, read at once.

    `recorded` is false while it is in memory only, so that a restart would lose it.
    """

    allocations: frozenset[Allocation] = frozenset()
    recorded: bool = True
