"""Connection tracking of a namespace: entries that nobody's packets made, and what becomes of them.

Needs net.netfilter.nf_conntrack_max for as many; it is the same in all namespaces, and only the
machine's own can set it.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from subprocess import PIPE

from .namespace import Namespace

_PROGRAM = Path(__file__).with_name("inside") / "connections.py"
_COUNT = "/proc/sys/net/netfilter/nf_conntrack_count"


@dataclass
class Record:
    """What was recorded during a block; empty until its end. Times are monotonic, in seconds.

    `addresses`: when which one was "added" or "removed". `counts`: the number of entries, whenever
    it differed.
    """

    addresses: tuple[tuple[float, str, str], ...] = ()
    counts: tuple[tuple[float, int], ...] = ()

    def when(self, what: str, address: IPv4Address) -> float:
        """When an address was added or removed first."""
        found = (at for at, verb, of in self.addresses if (verb, of) == (what, str(address)))
        return next(found)

    def fell_to(self, count: int) -> float:
        """When there were so many entries at most."""
        return next(at for at, number in self.counts if number <= count)


def fill(namespace: Namespace, count: int) -> None:
    """Make so many entries of nobody's."""
    namespace.run(*namespace.python(_PROGRAM, "others", str(count)))


def fill_guest(
    namespace: Namespace, count: int, external: IPv4Address, internal: IPv4Address
) -> None:
    """Make so many entries of LAN hosts to a guest, by its external address."""
    command = namespace.python(_PROGRAM, "guest", str(count), str(external), str(internal))
    namespace.run(*command)


def entries(namespace: Namespace) -> int:
    """The number of all entries."""
    return int(namespace.run("cat", _COUNT).stdout)


def tracked(namespace: Namespace, address: IPv4Address) -> int:
    """The number of flows to an address."""
    return len(namespace.run("conntrack", "-L", "-d", str(address)).stdout.splitlines())


@contextmanager
def recorded(namespace: Namespace, *deletion: str) -> Iterator[Record]:
    """Record a block. `deletion` is FEWER, IFNAME and ADDRESS/LENGTH, as the program has them."""
    found = Record()
    command = namespace.python(_PROGRAM, "watch", *deletion)
    with namespace.popen(*command, stdin=PIPE, stdout=PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield found
        process.stdin.close()
        raw = json.loads(process.stdout.read())
    found.addresses = tuple((at, what, address) for at, what, address in raw["addresses"])
    found.counts = tuple((at, count) for at, count in raw["counts"])
