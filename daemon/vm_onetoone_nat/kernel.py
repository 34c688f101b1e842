"""The kernel as one thing that is observed and written to: addresses, bridge ports, nftables."""

from collections.abc import Callable
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from vm_onetoone_nat import conntrack
from vm_onetoone_nat.addresses import Addresses
from vm_onetoone_nat.bridge import Bridge, bridge_netfilter
from vm_onetoone_nat.errors import KernelError
from vm_onetoone_nat.nft import Nft
from vm_onetoone_nat.plan import Plan
from vm_onetoone_nat.state import Configuration, Observed

_IP_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")


class Kernel:
    """The network namespace that it was made in. Use it from one thread."""

    def __init__(self, runtime: Path) -> None:
        self._netlink = IPRoute()
        self._addresses = Addresses(self._netlink, runtime / "addresses.json")
        self._bridge = Bridge(self._netlink)
        self._nft = Nft()

    def close(self) -> None:
        """Close the sockets."""
        self._netlink.close()

    def observe(self, configuration: Configuration) -> Observed:
        """One look at everything that a plan needs. Raises KernelError."""
        try:
            return self._observe(configuration)
        except NetlinkError as error:
            # A dump that was interrupted, or an interface that went during it: look again.
            raise KernelError(f"the kernel's state could not be read: {error}") from error

    def _observe(self, configuration: Configuration) -> Observed:
        table, foreign = self._nft.observe()
        filtered = bridge_netfilter()
        hairpins = self._bridge.hairpins()
        internals = [m.internal for m in configuration.mappings if m.internal is not None]
        return Observed(
            uplink=self._addresses.uplink(configuration.uplink),
            addresses=self._addresses.observe(),
            table=table,
            foreign=foreign,
            ports=self._bridge.ports(hairpins, internals) if filtered else (),
            hairpins=frozenset(name for name, hairpin in hairpins.values() if hairpin),
            bridge_netfilter=filtered,
            ip_forward=_IP_FORWARD.read_text().strip() != "0",
        )

    def apply(self, plan: Plan) -> None:
        """Write the plan, in the order that Plan gives. Raises KernelError, TransactionRefused.

        A part that fails does not keep others from being tried, with one exception: where the
        transaction is refused, nothing that depends on it is written.
        """
        failures = _Failures()
        if plan.enable_ip_forward:
            failures.attempt(_enable_ip_forward)
        for address in plan.delete_addresses:
            failures.attempt(self._addresses.delete, address)
        for name in plan.clear_hairpins:
            failures.attempt(self._bridge.set_hairpin, name, False)
        if plan.transaction:
            self._nft.apply(plan.transaction)
        for name in plan.set_hairpins:
            failures.attempt(self._bridge.set_hairpin, name, True)
        for address in plan.add_addresses:
            failures.attempt(self._addresses.add, address)
        if plan.forget:
            failures.attempt(conntrack.forget, plan.forget)
        failures.raise_any()


class _Failures:
    """Collects what went wrong, so that one fault does not leave the rest undone."""

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


def _enable_ip_forward() -> None:
    try:
        _IP_FORWARD.write_text("1\n")
    except OSError as error:
        raise KernelError(
            f"net.ipv4.ip_forward is off and cannot be turned on: {error.strerror}",
            hint="turn it on with 'sysctl -w net.ipv4.ip_forward=1'",
        ) from error
