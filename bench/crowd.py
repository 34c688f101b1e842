"""The cost of what others have: a crowded host beside an empty one, at the same time."""

import tempfile
from contextlib import ExitStack
from pathlib import Path

from crowd import MACS, churn, forge, repair, share
from lab.addresses import UPLINK

from .figures import Figures
from .laptop import Guest, Laptop, WideLan, external
from .product import Product

REPAIR = "address repaired"
BUSY = "processor time"

EMPTY, CROWDED = "this, on an empty host", "this, beside others"
COUNT = 30
"""Mappings."""

_SECONDS = 10.0


def crowd(figures: Figures) -> None:
    """The repair of each mapping's address, and the processor time of a daemon at rest."""
    with ExitStack() as stack:
        hosts, products = {}, {}
        for side in (EMPTY, CROWDED):
            host = hosts[side] = stack.enter_context(Laptop(stack.enter_context(WideLan())))
            host.bridge_netfilter(True)
            host.start_libvirt()
            directory = stack.enter_context(tempfile.TemporaryDirectory())
            product = products[side] = Product(host, Path(directory))
            product.map(COUNT)
            product.begin()
            stack.callback(product.end)
        stack.enter_context(churn(hosts[CROWDED]))
        forge(stack.enter_context(Guest(hosts[CROWDED], 1)), MACS)
        times: dict[str, list[float]] = {side: [] for side in hosts}
        for n in range(1, COUNT + 1):
            address = external(n)
            delete = f"ip address del {address} dev {UPLINK}"
            there = f"ip address show dev {UPLINK} | grep -qF 'inet {address}'"
            for side, host in hosts.items():
                times[side].append(1000 * repair(host, delete, there))
        for side, product in products.items():
            figures.add(REPAIR, side, COUNT, "ms", times[side])
            figures.add(BUSY, side, COUNT, "%", [100 * share(product, _SECONDS)])
