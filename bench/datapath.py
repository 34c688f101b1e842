"""The datapath: connections, packets and bytes through the first and the last mapping."""

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from subprocess import PIPE

from lab import Namespace
from lab.addresses import LIBVIRT_BRIDGE

from .figures import Figures
from .laptop import GATEWAY, HOST, Guest, Laptop, WideLan, external, internal
from .product import Product
from .sides import Hook

MEASURES = {
    "connect": ("new TCP connections", "/s"),
    "packets": ("forwarded packets", "/s"),
    "bytes": ("forwarded megabytes", "MB/s"),
}

_SECONDS = 0.5
_LOAD = Path(__file__).parent.parent / "build" / "load"


@dataclass(frozen=True)
class _Target:
    """One side's measurement: from a LAN of its own, to the guest behind an address."""

    side: str
    count: int
    lan: Namespace
    address: IPv4Address


def datapath(figures: Figures, count: int, rounds: int) -> None:
    """Measure all sides in turn, in several rounds, so that load on the machine affects all."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        targets = [_plain(stack)]
        for mappings in (1, count):
            targets += _hook(stack, mappings)
            targets += _this(stack, mappings, directory / str(mappings))
        values: dict[tuple[str, _Target], list[float]] = {}
        for _ in range(rounds):
            for kind in MEASURES:
                for target in targets:
                    values.setdefault((kind, target), []).append(_measure(kind, target))
        for (kind, target), found in values.items():
            measure, unit = MEASURES[kind]
            figures.add(measure, target.side, target.count, unit, found)


def _measure(kind: str, target: _Target) -> float:
    done = target.lan.run(str(_LOAD), kind, str(target.address), str(_SECONDS))
    return float(done.stdout) / (1e6 if kind == "bytes" else 1)


def _plain(stack: ExitStack) -> _Target:
    """A router without rules and without connection tracking."""
    lan, host = _laptop(stack)
    host.run("ip", "link", "add", LIBVIRT_BRIDGE, "type", "bridge", "forward_delay", "0")
    host.run("ip", "address", "add", str(GATEWAY), "dev", LIBVIRT_BRIDGE)
    host.run("ip", "link", "set", LIBVIRT_BRIDGE, "up")
    host.sysctl("net.ipv4.ip_forward", 1)
    lan.run("ip", "route", "add", str(GATEWAY.network), "via", str(HOST.ip))
    _guests(stack, host, 1)
    return _Target("plain", 1, lan, internal(1))


def _hook(stack: ExitStack, count: int) -> list[_Target]:
    lan, host = _laptop(stack)
    host.start_libvirt()
    Hook(host).install(count)
    return [
        _Target(f"hook, {w}", count, lan, external(n).ip) for w, n in _guests(stack, host, count)
    ]


def _this(stack: ExitStack, count: int, directory: Path) -> list[_Target]:
    lan, host = _laptop(stack)
    host.start_libvirt()
    directory.mkdir()
    product = Product(host, directory)
    product.map(count)
    product.begin()
    return [
        _Target(f"this, {w}", count, lan, external(n).ip) for w, n in _guests(stack, host, count)
    ]


def _laptop(stack: ExitStack) -> tuple[WideLan, Laptop]:
    lan = stack.enter_context(WideLan())
    host = stack.enter_context(Laptop(lan))
    host.bridge_netfilter(False)
    return lan, host


def _guests(stack: ExitStack, host: Laptop, count: int) -> list[tuple[str, int]]:
    """The guests behind the first and the last mapping, serving."""
    numbers = [("first", 1), *([("last", count)] if count > 1 else [])]
    for _, n in numbers:
        guest = stack.enter_context(Guest(host, n))
        server = guest.popen(str(_LOAD), "serve", stdout=PIPE)
        assert server.stdout is not None and server.stdout.readline() == "ready\n"
    return numbers
