"""The configuration: what the files say. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from vm_onetoone_nat.model.family import IPAddress, IPNetwork
from vm_onetoone_nat.model.mapping import Mapping

DEFAULT_FWMARK = 0x00100000


@dataclass(frozen=True, slots=True, order=True)
class Range:
    """Addresses from `first` to `last`, both included."""

    first: IPAddress
    last: IPAddress

    def __contains__(self, address: IPAddress) -> bool:
        return int(self.first) <= int(address) <= int(self.last)

    def __iter__(self) -> Iterator[IPAddress]:
        return (type(self.first)(n) for n in range(int(self.first), int(self.last) + 1))


@dataclass(frozen=True, slots=True)
class Pool:
    """External addresses for the guests of a network that have no mapping."""

    network: str
    ranges: tuple[Range, ...]

    def __contains__(self, address: IPAddress) -> bool:
        return any(address in part for part in self.ranges)


@dataclass(frozen=True, slots=True)
class Configuration:
    """config.toml and its drop-ins, merged; one pool for each network.

    `guest_agent`: query guest agents for addresses. `metadata`: read guests' metadata, in which
    they may claim addresses inside `metadata_external`. `network`: for mappings that name none.
    `uplink` None: the interface of the default route. `origins` is the place of each mapping, such
    as "conf.d/20-b.toml: mapping[0]", relative to the folder of config.toml; it is not compared,
    so a mapping that moves to another file stays the same mapping.
    """

    mappings: tuple[Mapping, ...] = ()
    uplink: str | None = None
    libvirt_uri: str = "qemu:///system"
    fwmark: int = DEFAULT_FWMARK
    conflict_detection: bool = True
    network: str = "default"
    guest_agent: bool = False
    metadata: bool = True
    metadata_external: tuple[IPNetwork, ...] = ()
    pools: tuple[Pool, ...] = ()
    origins: tuple[str, ...] = field(default=(), compare=False)
