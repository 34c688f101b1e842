"""The cost of writing mappings to the kernel, and of keeping them there."""

import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lab import IdleDomain, wait_for
from lab.addresses import LIBVIRT_BRIDGE, mac_of

from .figures import Figures
from .laptop import GATEWAY, NETWORK, Laptop, WideLan, internal
from .observer import Observer, Seen
from .product import Product
from .sides import Hook, Limit

INSTALL = "install"
RELOAD = "install, by a reload"
DETECTING = "install, the LAN asked for each address first"
CHANGE = "single change"
CHANGE_REAL = "single change, of a real domain"
PASS = "converged pass"
BURST = "converged after the last of 1,000 events"
PASSES = "passes for 1,000 events"
MEMORY = "resident memory"
START = "start until ready, adopting"

_QUIET_SECONDS = 0.25
"""Without a write for so long the kernel is quiet; a pass takes less."""

_PASSES = 20

_TEST_URI = "test+unix:///default"
_TEST_NETWORK = NETWORK.replace("default", "bench")
_TEST_DOMAIN = """
<domain type="test">
  <name>bench-{n}</name>
  <memory>8192</memory>
  <os><type>hvm</type></os>
  <devices>
    <interface type="network"><mac address="{mac}"/><source network="bench"/></interface>
  </devices>
</domain>
"""


def install(figures: Figures, counts: tuple[int, ...], rounds: int) -> None:
    """The first install, by all sides in turn; then reload, restart and memory of the daemon."""
    with _laptop() as (host, directory):
        host.start_libvirt()
        hook, limit = Hook(host), Limit(host)
        for count in counts:
            times: dict[str, list[float]] = {"hook": [], "limit": [], "this": []}
            reloads, starts, memory = [], [], []
            for _ in range(1 if count > 1000 else rounds):
                product = Product(host, directory)
                product.map(0)
                product.begin()
                with Observer(host, "qemu:///system") as observer:
                    product.map(count)
                    _settle(observer)
                    reloads.append(_written(observer, count, product.reload_at))
                    host.stop_network()
                    _wait(observer, "address removed", count)
                    _settle(observer)
                    host.start_network()
                    # The bridge's own address is one more.
                    seen = _wait(observer, "address added", count + 1)
                    (began,) = (each.at for each in seen if each.what == "network started")
                    times["this"].append(_last(seen) - began)
                    memory.append(product.resident()["VmRSS"] / 1e6)
                limit.capture(directory)
                product.kill()
                starts.append(product.begin())
                product.end()
                for side in (limit, hook):
                    if side is hook and count > 1000:
                        continue
                    side.prepare(count)
                    times[side.name].append(side.install(count))
                    side.remove()
            for name, values in times.items():
                if values:
                    figures.add(INSTALL, name, count, "s", values)
            figures.add(RELOAD, "this", count, "s", reloads)
            figures.add(START, "this", count, "s", starts)
            figures.add(MEMORY, "this", count, "MB", memory)


def detection(figures: Figures, count: int, rounds: int) -> None:
    """The first install with conflict detection, as by default: each address is probed first."""
    with _laptop() as (host, directory):
        host.start_libvirt()
        values = []
        for _ in range(rounds):
            product = Product(host, directory)
            product.map(0, detect=True)
            product.begin()
            with Observer(host, "qemu:///system") as observer:
                product.map(count, detect=True)
                _settle(observer)
                values.append(_written(observer, count, product.reload_at))
            product.end()
        figures.add(DETECTING, "this", count, "s", values)


def changes(figures: Figures, count: int, rounds: int) -> None:
    """One guest of many starts and stops; a converged pass; all guests start and stop at once.

    The guests are domains of libvirt's `test` driver in the laptop's libvirtd: their events and
    lists come over its socket as those of real guests, and no emulator uses the processors.
    """
    with _laptop() as (host, directory):
        host.libvirtd.start()
        bridge = ("link", "add", LIBVIRT_BRIDGE, "type", "bridge")
        host.run("ip", *bridge)
        host.run("ip", "address", "add", str(GATEWAY), "dev", LIBVIRT_BRIDGE)
        host.run("ip", "link", "set", LIBVIRT_BRIDGE, "up")
        names = [f"bench-{n}" for n in range(1, count + 1)]
        domains = (_TEST_DOMAIN.format(n=n, mac=mac_of(internal(n))) for n in range(1, count + 1))
        product = Product(host, directory, verbose=True)
        product.map(count, uri=_TEST_URI, domain="bench-{n}", network="bench")
        with Observer(host, _TEST_URI, (_TEST_NETWORK, *domains)) as observer:
            product.begin()
            _wait(observer, "address added", count)
            _settle(observer)
            figures.add(CHANGE, "this", count, "ms", _single(observer, names[-1], rounds))
            figures.add(PASS, "this", count, "ms", _converged(host, product, observer))
            if count == 1000:
                _burst(figures, product, observer, names)
                memory = product.resident()["VmRSS"] / 1e6
                figures.add(f"{MEMORY}, after all that", "this", count, "MB", [memory])
        product.end()


def real_changes(figures: Figures, count: int, rounds: int) -> None:
    """One real domain, in QEMU with software emulation, starts and stops among mappings."""
    with _laptop() as (host, directory):
        host.start_libvirt()
        nic = (mac_of(internal(count)), "default")
        domain = IdleDomain(host, f"bench-{count}", interfaces=[nic])
        product = Product(host, directory)
        product.map(count - 1)
        product.add(count, domain=domain.name)
        with Observer(host, "qemu:///system", (domain.xml,)) as observer:
            product.begin()
            _wait(observer, "address added", count - 1)
            _settle(observer)
            values = _single(observer, domain.name, rounds, begin_on=False)
            figures.add(CHANGE_REAL, "this", count, "ms", values)
        product.end()


def _burst(figures: Figures, product: Product, observer: Observer, names: list[str]) -> None:
    """All domains are switched within one second, once off and once on."""
    lags, passes = [], []
    for _ in range(2):
        before = len(product.log())
        observer.toggle(1.0, names)
        seen = _settle(observer)
        last = max(each.at for each in seen if each.what.startswith("domain"))
        lags.append(_last(seen) - last)
        passes.append(float(product.log()[before:].count("the pass took")))
    figures.add(BURST, "this", len(names), "s", lags)
    figures.add(PASSES, "this", len(names), "", passes)


def _single(
    observer: Observer, name: str, rounds: int, *, begin_on: bool = True
) -> Iterator[float]:
    """The time from libvirt's event to the last write in the kernel that follows, in ms."""
    for number in range(2 * rounds):
        on = bool(number % 2) == begin_on
        (observer.start if on else observer.stop_domain)(name)
        seen = _wait(observer, f"address {'added' if on else 'removed'}", 1) + _settle(observer)
        written = [each for each in seen if each.what.startswith(("element", "address"))]
        verb = "added" if on else "removed"
        found = Counter(each.what for each in written)
        assert found == {f"element {verb}": 6, f"address {verb}": 1}, found
        event_name = f"domain {'started' if on else 'stopped'}"
        (event,) = (each.at for each in seen if each.what == event_name)
        yield 1000 * (_last(seen) - event)


def _converged(host: Laptop, product: Product, observer: Observer) -> Iterator[float]:
    """The duration of a pass without a write, from the daemon's log, in ms."""
    took = re.compile(r"the pass took ([0-9.]+) ms")
    for number in range(_PASSES):
        before = len(product.log())
        # A link notification that needs no write.
        host.run("ip", "link", "set", LIBVIRT_BRIDGE, "txqueuelen", str(1000 + number))
        time.sleep(_QUIET_SECONDS)
        yield from (float(ms) for ms in took.findall(product.log()[before:]))
    assert not [s for s in observer.take() if s.what.startswith(("element", "address", "gen"))]


def _written(observer: Observer, count: int, begin: Callable[[], float]) -> float:
    """The time from `begin` until this many mappings are in the kernel, in s."""
    observer.take()
    began = begin()
    return _last(_wait(observer, "address added", count)) - began


def _wait(observer: Observer, what: str, count: int) -> list[Seen]:
    """Collect events until this many of one kind have been seen."""
    seen: list[Seen] = []

    def complete() -> bool:
        seen.extend(observer.take())
        return sum(each.what == what for each in seen) >= count

    wait_for(complete, 120, f"{count} of '{what}'", interval=0.1)
    return seen


def _last(seen: list[Seen]) -> float:
    """The time of the last write."""
    return max(each.at for each in seen if each.what.startswith(("element", "address")))


def _settle(observer: Observer) -> list[Seen]:
    """Collect events until the kernel is quiet."""
    seen: list[Seen] = []
    while True:
        time.sleep(_QUIET_SECONDS)
        more = observer.take()
        seen += more
        if not more:
            return seen


@contextmanager
def _laptop() -> Iterator[tuple[Laptop, Path]]:
    with WideLan() as lan, Laptop(lan) as host, tempfile.TemporaryDirectory() as directory:
        yield host, Path(directory)
