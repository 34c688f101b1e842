"""The kernel side of a pass: observes and writes addresses, bridge ports and nftables."""

from collections.abc import Callable, Sequence, Set
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

from vm_onetoone_nat.decide.flushes import Flush, Flushes
from vm_onetoone_nat.decide.host_writes import (
    AddAddress,
    ClearHairpin,
    DeleteAddress,
    EnableIpForward,
    FlushBypassing,
    FlushTranslated,
    SetHairpin,
)
from vm_onetoone_nat.decide.locate import possible_guests
from vm_onetoone_nat.decide.plan import Plan
from vm_onetoone_nat.decide.uplink import choose
from vm_onetoone_nat.decide.writes import NftWrite, StoreWrite, Write, WritesFailed, depending
from vm_onetoone_nat.errors import KernelError, TransactionRefused
from vm_onetoone_nat.internal_errors import Work, contain
from vm_onetoone_nat.kernel.addresses import Addresses
from vm_onetoone_nat.kernel.arp import NOT_PROBING, Arp, Detection, RecordedConflicts
from vm_onetoone_nat.kernel.bridge import Bridge, bridge_netfilter
from vm_onetoone_nat.kernel.classify import kernel_errors
from vm_onetoone_nat.kernel.conntrack import Flusher
from vm_onetoone_nat.kernel.legacy import has_legacy_filter
from vm_onetoone_nat.kernel.links import links
from vm_onetoone_nat.kernel.netlink import ROUTE, Netlink
from vm_onetoone_nat.kernel.nft import Nft
from vm_onetoone_nat.kernel.proc import sysctl
from vm_onetoone_nat.model.configuration import Configuration
from vm_onetoone_nat.model.desired import Desired
from vm_onetoone_nat.model.family import IPV4
from vm_onetoone_nat.model.host import Observed, Obstacle, Uplink

_FLUSH_SECONDS = 0.05
"""How long a plan flushes connection tracking: its addresses wait for that."""


class Kernel:
    """The network namespace in which it was created. Use it from one thread.

    `runtime` is the directory for files that last until the daemon stops. `arp` does the conflict
    detection; None is for a command, which reads the running daemon's record and whose process does
    not own our table.
    """

    def __init__(self, runtime: Path, arp: Arp | None = None) -> None:
        self._netlink = Netlink(ROUTE, "rtnetlink")
        self._arp = arp
        self._detection = arp or RecordedConflicts(conflicts_path(runtime))
        self._addresses = Addresses(runtime / "addresses.json")
        self._bridge = Bridge()
        self._nft = Nft(owner=arp is not None)
        self._flushes = Flushes()
        self._flusher = Flusher(self._flushes)

    def close(self) -> None:
        """Close the sockets."""
        self._netlink.close()
        self._bridge.close()
        self._addresses.close()
        self._nft.close()

    @property
    def portid(self) -> int:
        """The netlink port that changes addresses: the sender of notifications about them."""
        return self._addresses.portid

    @property
    def nft_portid(self) -> int:
        """The same of nftables."""
        return self._nft.portid

    @property
    def generation(self) -> int:
        """The ruleset generation that the last `observe` began with."""
        return self._nft.generation

    def observe(self, configuration: Configuration, macs: Set[str] = frozenset()) -> Observed:
        """Read everything that a plan needs; `macs` are those of guests. Raises KernelError."""
        # An interrupted dump, or an interface that disappeared during it: the pass is retried.
        with kernel_errors("the kernel's state could not be read"):
            return self._observe(configuration, macs)

    def _observe(self, configuration: Configuration, macs: Set[str]) -> Observed:
        table, foreign, obstacles = self._nft.observe(configuration.fwmark)
        if has_legacy_filter():
            obstacles = (*obstacles, _legacy_obstacle(configuration.fwmark))
        filtered = bridge_netfilter()
        found = links(self._netlink)
        interfaces = tuple(found.values())
        addresses = self._addresses.observe(found)
        routes = self._addresses.default_routes()
        uplink = choose(configuration, interfaces, routes, addresses)
        neighbours = self._bridge.neighbours(found)
        looked_up = possible_guests(neighbours, configuration, table, macs) if filtered else ()
        detected = self._detected(configuration, uplink)
        return Observed(
            uplink=uplink,
            addresses=addresses,
            table=table,
            foreign=foreign,
            ports=self._bridge.ports(found, looked_up),
            hairpins=frozenset(link.name for link in interfaces if link.hairpin),
            hairpins_set=frozenset(self._bridge.hairpins_set),
            bridge_netfilter=filtered,
            ip_forward=sysctl(IPV4.forwarding).read_text().strip() != "0",
            unavailable=detected.unavailable,
            probed=detected.probed,
            links=interfaces,
            routes=routes,
            neighbours=neighbours,
            obstacles=obstacles,
            persistent=self._nft.persistent,
            flushed=None if self._arp is None else self._flushes.flushed,
        )

    def probe(self, configuration: Configuration, seen: Observed, desired: Desired) -> None:
        """Probe wanted addresses, announce and defend those on the uplink.

        Also probe guests that may have moved to another address. `observe` has the results; a
        change is notified.
        """
        if self._arp is None:
            return
        with contain(Work.PROBE):
            self._probe(self._arp, configuration, seen, desired)

    def _probe(
        self, arp: Arp, configuration: Configuration, seen: Observed, desired: Desired
    ) -> None:
        bridges = {link.name: link for link in seen.links if link.is_bridge}
        for neighbour in desired.doubtful:
            if (bridge := bridges.get(neighbour.ifname)) is not None:
                self._bridge.probe(bridge, neighbour)
        foreign = {a.interface.ip for a in seen.addresses if not a.owned}
        uplink = seen.uplink
        arp.update(
            uplink.link if uplink is not None else None,
            wanted=desired.wanted - foreign if configuration.conflict_detection else frozenset(),
            held=uplink.held_ips if uplink is not None else frozenset(),
            own=frozenset(link.mac for link in seen.links),
        )

    def _detected(self, configuration: Configuration, uplink: Uplink | None) -> Detection:
        """What is unavailable. An address that is on the uplink stays until it is given up."""
        if not configuration.conflict_detection or uplink is None:
            return NOT_PROBING
        ours = {a.interface.ip: a.owned for a in uplink.addresses}
        found = self._detection.observe(uplink.link)
        unavailable = tuple(
            each
            for each in found.unavailable
            if each.address not in ours or (ours[each.address] and each.mac is not None)
        )
        return Detection(unavailable, found.probed)

    def apply(self, plan: Plan) -> None:
        """Write the plan, in its order. Raises WritesFailed, and TransactionRefused.

        Writes to the store are not the kernel's: the caller has made them.

        If one write fails, those that do not depend on it are made all the same. Only after a
        refused transaction nothing more is written.
        """
        failures = _Failures()
        served = [w.translation for w in plan.writes if isinstance(w, FlushBypassing)]
        # What bypasses a new translation has not been flushed until it has been.
        self._flushes.forget(served)
        writes_here = (w for w in plan.writes if not isinstance(w, StoreWrite))
        for apply, writes in groupby(writes_here, _applier):
            failures.attempt(apply, self, tuple(writes))
        added = {w.address.interface.ip for w in plan.writes if isinstance(w, AddAddress)}
        self._flushes.again(pair for pair in served if pair.external in added)
        failures.raise_any()

    def work(self, seconds: float) -> bool:
        """Continue the flushes that plans have left, for about so long; whether some are left.

        Raises KernelError; what failed is left.
        """
        return self._flusher.work(seconds)

    def _flush(self, writes: Sequence[Flush]) -> None:
        """Begin to flush; `work` does the rest, and repeats what fails."""
        self._flushes.add(writes)
        with suppress(KernelError):
            self._flusher.work(_FLUSH_SECONDS)


class _Failures:
    """Collects errors, so that the writes that do not depend on a failed one are still made."""

    def __init__(self) -> None:
        self._errors: list[KernelError] = []
        self._writes: set[Write] = set()

    def attempt(self, apply: "Applier", kernel: Kernel, writes: Sequence[Write]) -> None:
        hindered = depending(writes, self._writes)
        self._writes |= hindered
        possible = tuple(write for write in writes if write not in hindered)
        if not possible:
            return
        try:
            with contain(Work.WRITE, raises=KernelError):
                apply(kernel, possible)
        except TransactionRefused:
            raise
        except KernelError as error:
            self._errors.append(error)
            self._writes |= error.writes if isinstance(error, WritesFailed) else set(possible)

    def raise_any(self) -> None:
        if self._errors:
            text = "; ".join(str(error) for error in self._errors)
            raise WritesFailed(text, frozenset(self._writes))


def conflicts_path(runtime: Path) -> Path:
    """The file in which the running daemon records unavailable addresses."""
    return runtime / "claims.json"


def _legacy_obstacle(fwmark: int) -> Obstacle:
    mark = f"{fwmark:#x}/{fwmark:#x}"
    return Obstacle(
        "iptables-legacy, table filter",
        "its rules cannot be seen; if 'iptables-legacy -S FORWARD' refuses guests, run "
        f"'iptables-legacy -I FORWARD -m mark --mark {mark} -j ACCEPT', or move to iptables-nft",
    )


def _enable_ip_forward(write: EnableIpForward) -> None:
    name = write.family.forwarding
    try:
        sysctl(name).write_text("1\n")
    except OSError as error:
        raise KernelError(
            f"{name} is off and cannot be turned on: {error.strerror}",
            hint=f"turn it on with 'sysctl -w {name}=1'",
        ) from error


W = TypeVar("W", bound=Write)
Applier = Callable[[Kernel, Sequence[Any]], None]


def _all(
    kind: type[W], apply: Callable[[Kernel, Sequence[W]], None]
) -> tuple[type[Write], Applier]:
    """All writes of that kind at once."""
    return kind, apply


def _each(kind: type[W], apply: Callable[[Kernel, W], None]) -> tuple[type[Write], Applier]:
    """The writes of that kind one by one; if one fails, the others are tried all the same."""

    def apply_each(kernel: Kernel, writes: Sequence[W]) -> None:
        failures = _Failures()
        for write in writes:
            failures.attempt(lambda kernel, ws: apply(kernel, *ws), kernel, (write,))
        failures.raise_any()

    return kind, apply_each


APPLIERS: dict[type[Write], Applier] = dict(
    (
        _each(EnableIpForward, lambda _, write: _enable_ip_forward(write)),
        _all(DeleteAddress, lambda kernel, ws: kernel._addresses.delete(w.address for w in ws)),
        _each(ClearHairpin, lambda kernel, w: kernel._bridge.set_hairpin(w.port, False)),
        (NftWrite, lambda kernel, ws: kernel._nft.apply(ws)),
        _each(SetHairpin, lambda kernel, w: kernel._bridge.set_hairpin(w.port, True)),
        _all(FlushTranslated, Kernel._flush),
        _all(FlushBypassing, Kernel._flush),
        _all(AddAddress, lambda kernel, ws: kernel._addresses.add(w.address for w in ws)),
    )
)
"""How each kind is written: the writes of a plan for which it is the same are passed together."""


def _applier(write: Write) -> Applier:
    for kind, apply in APPLIERS.items():
        if isinstance(write, kind):
            return apply
    # Not StopIteration, which would end the loop over the writes without a word.
    raise TypeError(f"no applier for {type(write).__name__}")
