"""The kernel side of a pass: observes and writes addresses, bridge ports and nftables."""

from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from vm_onetoone_nat import conntrack
from vm_onetoone_nat.addresses import Addresses
from vm_onetoone_nat.allocations import Allocations
from vm_onetoone_nat.arp import NOT_PROBING, Arp, Detection, RecordedConflicts
from vm_onetoone_nat.bridge import Bridge, bridge_netfilter
from vm_onetoone_nat.errors import KernelError
from vm_onetoone_nat.legacy import has_legacy_filter
from vm_onetoone_nat.links import Link, links
from vm_onetoone_nat.nat_table import Translation
from vm_onetoone_nat.nft import Nft
from vm_onetoone_nat.plan import Plan
from vm_onetoone_nat.state import Address, Configuration, Desired, Observed, Obstacle

_IP_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")


class Kernel:
    """The network namespace in which it was created. Use it from one thread.

    `runtime` is the directory for files that last until the daemon stops, `state` the one for files
    that last longer. `arp` does the conflict detection; None reads the running daemon's record.
    """

    def __init__(self, runtime: Path, state: Path, arp: Arp | None = None) -> None:
        self._netlink = IPRoute()
        self._arp = arp
        self._detection = arp or RecordedConflicts(conflicts_path(runtime))
        self._links: dict[int, Link] = {}
        self._addresses = Addresses(runtime / "addresses.json")
        self._bridge = Bridge(self._netlink)
        self._allocations = Allocations(state / "allocations.json")
        self._nft = Nft()
        self._flushed: set[Translation] = set()

    def close(self) -> None:
        """Close the sockets."""
        self._netlink.close()
        self._addresses.close()
        self._nft.close()

    @property
    def portid(self) -> int:
        """The netlink port that changes addresses: the sender of notifications about them."""
        return self._addresses.portid

    @property
    def generation(self) -> int:
        """The ruleset generation that the last `observe` began with."""
        return self._nft.generation

    def observe(self, configuration: Configuration) -> Observed:
        """Read everything that a plan needs. Raises KernelError."""
        try:
            return self._observe(configuration)
        except NetlinkError as error:
            # An interrupted dump, or an interface that disappeared during it: the pass is retried.
            raise KernelError(f"the kernel's state could not be read: {error}") from error

    def _observe(self, configuration: Configuration) -> Observed:
        table, foreign, obstacles = self._nft.observe(configuration.fwmark)
        if has_legacy_filter():
            obstacles = (*obstacles, _legacy_obstacle(configuration.fwmark))
        filtered = bridge_netfilter()
        found = self._links = links(self._netlink)
        addresses = self._addresses.observe(found)
        routes = self._addresses.default_routes()
        uplink = self._addresses.uplink(configuration.uplink, found, addresses, routes)
        neighbours = self._bridge.neighbours(found)
        detected = self._detected(configuration, uplink, addresses)
        return Observed(
            uplink=uplink,
            addresses=addresses,
            table=table,
            foreign=foreign,
            ports=self._bridge.ports(found, neighbours) if filtered else (),
            hairpins=frozenset(link.name for link in found.values() if link.hairpin),
            hairpins_set=frozenset(self._bridge.hairpins_set),
            bridge_netfilter=filtered,
            ip_forward=_IP_FORWARD.read_text().strip() != "0",
            unavailable=detected.unavailable,
            probed=detected.probed,
            routers=frozenset(h.gateway for r in routes for h in r.hops if h.gateway is not None),
            neighbours=neighbours,
            allocations=self._allocations.read(),
            recorded=self._allocations.recorded,
            obstacles=obstacles,
            flushed=None if self._arp is None else frozenset(self._flushed),
        )

    def probe(self, configuration: Configuration, seen: Observed, desired: Desired) -> None:
        """Probe wanted addresses, announce and defend those on the uplink.

        Also probe guests that may have moved to another address. `observe` has the results; a
        change is notified.
        """
        if self._arp is None:
            return
        for neighbour in desired.doubtful:
            if (link := self._link(neighbour.ifname)) is not None:
                self._bridge.probe(link, neighbour)
        foreign = {a.interface.ip for a in seen.addresses if not a.owned}
        on_uplink = (a for a in seen.addresses if a.ifname == seen.uplink and a.owned)
        self._arp.update(
            self._link(seen.uplink),
            wanted=desired.wanted - foreign if configuration.conflict_detection else frozenset(),
            held=frozenset(a.interface.ip for a in on_uplink),
            own=frozenset(link.mac for link in self._links.values()),
        )

    def _detected(
        self, configuration: Configuration, uplink: str | None, addresses: tuple[Address, ...]
    ) -> Detection:
        """What is unavailable. An address that is on the uplink stays until it is given up."""
        if not configuration.conflict_detection:
            return NOT_PROBING
        ours = {a.interface.ip: a.owned for a in addresses if a.ifname == uplink}
        found = self._detection.observe(self._link(uplink))
        unavailable = tuple(
            each
            for each in found.unavailable
            if each.address not in ours or (ours[each.address] and each.mac is not None)
        )
        return Detection(unavailable, found.probed)

    def _link(self, name: str | None) -> Link | None:
        return next((link for link in self._links.values() if link.name == name), None)

    def apply(self, plan: Plan) -> None:
        """Write the plan, in the order that Plan gives. Raises KernelError, TransactionRefused.

        If one part fails, the others are tried all the same. Only after a refused transaction
        nothing more is written.
        """
        failures = _Failures()
        self._flushed.difference_update(plan.flush_translated, plan.flush_bypassing)
        if plan.allocations is not None:
            failures.attempt(self._allocations.write, plan.allocations)
        if plan.enable_ip_forward:
            failures.attempt(_enable_ip_forward)
        if plan.delete_addresses:
            failures.attempt(self._addresses.delete, plan.delete_addresses)
        for name in plan.clear_hairpins:
            failures.attempt(self._bridge.set_hairpin, name, False)
        if plan.transaction:
            self._nft.apply(plan.transaction)
        for name in plan.set_hairpins:
            failures.attempt(self._bridge.set_hairpin, name, True)
        if plan.add_addresses:
            failures.attempt(self._addresses.add, plan.add_addresses)
        if plan.flush_translated:
            failures.attempt(conntrack.flush_translated, plan.flush_translated)
        if plan.flush_bypassing:
            failures.attempt(self._flush_bypassing, plan.flush_bypassing, plan.host_sources)
        failures.raise_any()

    def _flush_bypassing(
        self, translations: tuple[Translation, ...], host_sources: tuple[IPv4Address, ...]
    ) -> None:
        conntrack.flush_bypassing(translations, host_sources)
        self._flushed.update(translations)


class _Failures:
    """Collects errors, so that the writes after a failed one are still tried."""

    def __init__(self) -> None:
        self._errors: list[KernelError] = []

    def attempt(self, write: Callable[..., object], *arguments: object) -> None:
        try:
            write(*arguments)
        except KernelError as error:
            self._errors.append(error)

    def raise_any(self) -> None:
        if self._errors:
            raise KernelError("; ".join(str(error) for error in self._errors))


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


def _enable_ip_forward() -> None:
    try:
        _IP_FORWARD.write_text("1\n")
    except OSError as error:
        raise KernelError(
            f"net.ipv4.ip_forward is off and cannot be turned on: {error.strerror}",
            hint="turn it on with 'sysctl -w net.ipv4.ip_forward=1'",
        ) from error
