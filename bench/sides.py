"""The other sides: the usual hook script, and the lower limit for writing the same state."""

import time
from pathlib import Path

from lab.addresses import UPLINK
from vm_onetoone_nat.model.configuration import DEFAULT_FWMARK
from vm_onetoone_nat.model.nat_table import TABLE

from .laptop import Laptop, external, internal

# A libvirt network hook: one `ip` and three `iptables` calls for each pair.
_HOOK = f"""
while read -r external prefix internal; do
    ip address add "$external/$prefix" brd + dev {UPLINK} scope global noprefixroute
    iptables -t nat -I PREROUTING -d "$external" -j DNAT --to-destination "$internal"
    iptables -t nat -I POSTROUTING -s "$internal" -j SNAT --to-source "$external"
    iptables -I FORWARD -d "$internal" -m conntrack --ctstate NEW -j ACCEPT
done
"""


class Side:
    """A way to install mappings, timed as a whole, and to remove them."""

    def __init__(self, host: Laptop) -> None:
        self.host = host
        self._before = host.run("iptables-save").stdout

    def install(self, count: int) -> float:
        """Install this many mappings on a host without any; return the time in seconds."""
        began = time.monotonic()
        self._install(count)
        return time.monotonic() - began

    def remove(self) -> None:
        """Restore the state from before."""
        self.host.run("iptables-restore", input=self._before)
        self.host.run("sh", "-c", f"nft delete table inet {TABLE} 2>/dev/null || true")
        self.host.lease()

    def prepare(self, count: int) -> None:
        """Prepare what `install` needs; not timed."""

    def _install(self, count: int) -> None:
        raise NotImplementedError


class Hook(Side):
    """The shell script."""

    name = "hook"

    def _install(self, count: int) -> None:
        pairs = "".join(
            f"{external(n).ip} {external(n).network.prefixlen} {internal(n)}\n"
            for n in range(1, count + 1)
        )
        self.host.run("sh", "-ec", _HOOK, input=pairs, timeout=600)


class Limit(Side):
    """The daemon's own final state, by one `ip -batch` and one `nft -f`."""

    name = "limit"

    def capture(self, directory: Path) -> None:
        """Record the state of a host on which the daemon has converged."""
        table = self.host.run("nft", "--stateless", "list", "table", "inet", TABLE).stdout
        mark = f"{DEFAULT_FWMARK:#x}"
        accept = f"insert rule ip filter FORWARD meta mark and {mark} == {mark} accept\n"
        (directory / "limit.nft").write_text(table + accept)
        self._directory = directory

    def prepare(self, count: int) -> None:
        lines = (
            f"address add {external(n)} brd + dev {UPLINK} scope global noprefixroute\n"
            for n in range(1, count + 1)
        )
        (self._directory / "limit.ip").write_text("".join(lines))

    def _install(self, count: int) -> None:
        self.host.run(
            *("sh", "-ec", 'nft -f "$1/limit.nft"; ip -batch "$1/limit.ip"'),
            *("limit", str(self._directory)),
        )
