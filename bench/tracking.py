"""What connections cost: those of a mapping that is removed, and those of others beside it."""

import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from lab import wait_for
from lab.connections import entries, fill, fill_guest, recorded

from .figures import Figures
from .laptop import Laptop, WideLan, external, internal
from .product import Product

REMOVAL = "pass that removes a mapping"
GONE = "until its connections are gone"
LIST, DELETE = "conntrack -L of them", "conntrack -D of them"
START = "start until ready, 20 mappings"

_MAPPINGS = 20


def tracking(figures: Figures, others: int, count: int, rounds: int) -> None:
    """A mapping with `count` connections is removed, beside `others`; and on an empty table.

    The limit is conntrack(8), which lists and deletes the same connections.
    """
    with WideLan() as lan, Laptop(lan) as host, tempfile.TemporaryDirectory() as directory:
        host.start_libvirt()
        product = Product(host, Path(directory), verbose=True)
        for side, unrelated, own in (("empty table", 0, 0), ("this", others, count)):
            found = [_removal(product, unrelated, own) for _ in range(rounds)]
            starts, passes, gone = zip(*found, strict=True)
            figures.add(START, side, unrelated, "s", starts)
            figures.add(REMOVAL, side, unrelated, "ms", passes)
            if own:
                figures.add(GONE, side, unrelated, "s", gone)
        for measure, option in ((LIST, "-L"), (DELETE, "-D")):
            fill_guest(host, count, external(2).ip, internal(2))
            began = time.monotonic()
            host.run("conntrack", option, "-d", str(external(2).ip))
            figures.add(measure, "limit", others, "s", [time.monotonic() - began])
            host.run("conntrack", "-D", "-d", str(external(2).ip), check=False)


def _removal(product: Product, others: int, count: int) -> tuple[float, float, float]:
    """The times of a start with 20 mappings (s), the pass that removes one (ms), its flush (s)."""
    host, address = product.host, external(2).ip
    host.run("conntrack", "-F")
    product.map(_MAPPINGS)
    fill(host, others)
    start = product.begin()
    product.map(2)
    _reload(product)
    fill_guest(host, count, address, internal(2))
    product.map(1)
    with recorded(host) as seen:
        before, present = len(product.log()), entries(host)
        _reload(product)
        wait_for(lambda: entries(host) <= present - count, 60, "its connections are gone")
    took = max(_passes(product.log()[before:]))
    gone = seen.fell_to(present - count) - seen.when("removed", address) if count else 0.0
    product.end()
    return start, took, gone


def _reload(product: Product) -> None:
    product.reload_at()
    product.ready()


def _passes(log: str) -> Iterator[float]:
    """How long passes took, in ms."""
    yield from (float(found) for found in re.findall(r"the pass took ([0-9.]+) ms", log))
