"""Gathers the evidence for `diagnose` from libvirt, the kernel, the daemon, guest and LAN."""

from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from vm_onetoone_nat.decide.locate import interfaces
from vm_onetoone_nat.decide.reconcile import Look
from vm_onetoone_nat.decide.uplink import carrier
from vm_onetoone_nat.diagnose.evidence import Answers, Daemon, Evidence, Routes, Sysctls
from vm_onetoone_nat.diagnose.hooks import Endpoints, obstructions
from vm_onetoone_nat.kernel import conntrack
from vm_onetoone_nat.kernel.counters import read_counters
from vm_onetoone_nat.kernel.foreign import read_others
from vm_onetoone_nat.kernel.neighbours import neighbours
from vm_onetoone_nat.kernel.netlink import ROUTE, Netlink
from vm_onetoone_nat.kernel.probes import connects, echoes, who_has
from vm_onetoone_nat.model.family import Family, IPAddress, family_of
from vm_onetoone_nat.model.guests import Interface, Network
from vm_onetoone_nat.model.host import Uplink
from vm_onetoone_nat.model.links import Link
from vm_onetoone_nat.model.mapping import AddressSource, Mapping
from vm_onetoone_nat.model.nat_table import Translation
from vm_onetoone_nat.model.status import MappingState, MappingStatus
from vm_onetoone_nat.report.report import Report, report_from_json
from vm_onetoone_nat.service.status_socket import NotRunning, Silent, ask
from vm_onetoone_nat.virt.units import libvirt_units

_SOME_HOSTS = 8
"""At most this many hosts of the LAN are probed."""
_USUAL_PORTS = (22, 80, 443, 3389)
_SYSCTL = Path("/proc/sys/net")


@dataclass(frozen=True, slots=True)
class DaemonSeen:
    """Whether the daemon answers, and its report."""

    state: Daemon
    report: Report | None = None

    def knows(self, mapping: Mapping) -> bool:
        """Whether the daemon has this mapping, as the configuration has it now."""
        written = mapping.source is AddressSource.CONFIGURATION
        internal = str(mapping.internal) if mapping.internal is not None else None
        return self.report is not None and any(
            entry.external == str(mapping.external)
            and entry.domain == mapping.domain
            and (not written or entry.internal == internal)
            for entry in self.report.entries
        )


def ask_daemon(socket: Path) -> DaemonSeen:
    """Ask the daemon at its socket. Raises PrivilegeError, UnreadableReport."""
    try:
        return DaemonSeen(Daemon.RUNNING, report_from_json(ask(socket)))
    except Silent:
        return DaemonSeen(Daemon.SILENT)
    except NotRunning:
        return DaemonSeen(Daemon.STOPPED)


def examine(look: Look, status: MappingStatus, daemon: DaemonSeen, fwmark: int) -> Evidence:
    """Gather all about one mapping. Raises KernelError; needs CAP_NET_ADMIN and CAP_NET_RAW."""
    with IPRoute() as netlink:
        return _Examination(netlink, look, status, daemon, fwmark).evidence()


class _Examination:
    def __init__(
        self, netlink: IPRoute, look: Look, status: MappingStatus, daemon: DaemonSeen, fwmark: int
    ) -> None:
        self._netlink = netlink
        self._look = look
        self._observed = look.observed
        self._status = status
        self._mapping = status.mapping
        self._daemon = daemon
        self._fwmark = fwmark
        self._links = {link.name: link for link in look.observed.links}
        self._uplink = carrier(self._mapping, look.observed)
        guests = look.guests
        self._network = guests.network(self._mapping.network) if guests is not None else None

    def evidence(self) -> Evidence:
        uplink, bridge = self._uplink, self._bridge
        link = self._links.get(uplink.name) if uplink is not None else None
        nics = self._interfaces()
        found = Evidence(
            look=self._look,
            status=self._status,
            daemon=self._daemon.state,
            reloaded=self._daemon.knows(self._mapping),
            guest_macs=frozenset(nic.mac for nic in nics),
            plugged=not nics or any(nic.plugged for nic in nics),
            off_bridge=self._off_bridge(nics),
            elsewhere=self._elsewhere(nics),
            uplink_runs=link is not None and link.running,
            wireless=link is not None and _is_wireless(link),
            libvirt_units=libvirt_units(),
            sysctls=_sysctls(
                family_of(self._mapping.external),
                [each.name for each in (link, bridge) if each is not None],
            ),
        )
        internal, network = self._mapping.internal, self._network
        # In state error the kernel may lack one part only: the others are checked all the same.
        checked = self._status.state in (MappingState.ACTIVE, MappingState.ERROR)
        if not checked or internal is None or network is None:
            return found
        if uplink is None or link is None or bridge is None:
            return found
        routes, family = self._routes(internal, uplink), family_of(internal)
        pair = Translation(self._mapping.external, internal)
        own = [a.interface for a in uplink.addresses if a.interface.ip != pair.external]
        counters = read_counters()
        lan = next((i.network for i in own if pair.external in i.network), family.anywhere)
        others = read_others()
        endpoints = Endpoints(uplink.name, bridge.name, lan, pair.external, internal, self._fwmark)
        return replace(
            found,
            answers=self._answers(internal, network, uplink, bridge),
            routes=routes,
            obstructions=tuple(obstructions(others, endpoints)),
            unreadable=others.unreadable,
            tracked=conntrack.track(pair, tuple(i.ip for i in own)),
            traffic=counters.of(self._mapping) if counters is not None else None,
        )

    @property
    def _bridge(self) -> Link | None:
        return self._links.get((self._network.bridge or "") if self._network is not None else "")

    def _interfaces(self) -> tuple[Interface, ...]:
        guests = self._look.guests
        domain = guests.domain(self._mapping.domain) if guests is not None else None
        if domain is None or self._network is None:
            return ()
        return interfaces(domain, self._network, self._mapping.mac)

    def _off_bridge(self, nics: tuple[Interface, ...]) -> str | None:
        """The guest's tap device, if none of the guest's is a port of the bridge."""
        taps = [link for nic in nics if (link := self._links.get(nic.tap or "")) is not None]
        bridge = self._bridge
        if bridge is None or not taps or any(tap.master == bridge.index for tap in taps):
            return None
        return taps[0].name

    def _elsewhere(self, nics: tuple[Interface, ...]) -> tuple[IPAddress, ...]:
        """Other known addresses of the guest."""
        if self._network is None:
            return ()
        macs = {nic.mac for nic in nics}
        given = (*self._network.reservations, *self._network.leases)
        known = {address for mac, address in given if mac in macs}
        known |= {n.address for mac in macs for n in self._observed.neighbours_by_mac.get(mac, ())}
        return tuple(sorted(known - {self._mapping.internal}, key=int))

    def _routes(self, internal: IPAddress, uplink: Uplink) -> Routes:
        on_link = [a.interface.network for a in uplink.addresses]
        hosts = (*sorted(uplink.routers, key=int), *self._lan_hosts(uplink))
        lan_host = next((h for h in hosts if any(h in network for network in on_link)), None)
        return Routes(
            to_guest=self._output(internal),
            lan_host=lan_host,
            to_lan=self._output(lan_host) if lan_host is not None else None,
        )

    def _output(self, destination: IPAddress) -> str | None:
        """The interface through which this host sends to an address."""
        try:
            (route, *_) = self._netlink.route("get", dst=str(destination))
        except (NetlinkError, OSError):
            return None
        index = route.get_attr("RTA_OIF")
        return next((link.name for link in self._links.values() if link.index == index), None)

    def _lan_hosts(self, uplink: Uplink) -> tuple[IPAddress, ...]:
        """Hosts of the LAN in the neighbour table."""
        with closing(Netlink(ROUTE, "rtnetlink")) as netlink:
            entries = [e for e in neighbours(netlink) if e.ifindex == uplink.link.index]
        ours = {a.interface.ip for a in self._observed.addresses} | uplink.routers
        found = {e.address for e in entries if e.address is not None and e.address not in ours}
        found = {a for a in found if not a.is_multicast}
        return tuple(sorted(found, key=int))[:_SOME_HOSTS]

    def _answers(
        self, internal: IPAddress, network: Network, uplink: Uplink, bridge: Link
    ) -> Answers:
        external = self._mapping.external
        nobody = family_of(external).unspecified
        own = [a.interface for a in uplink.addresses]
        link = uplink.link
        host = next((i.ip for i in own if i.ip != external), nobody)
        gateway = next((g.ip for g in network.gateways if internal in g.network), nobody)
        conflicts = who_has(link, [external], nobody)[external] if link.has_arp else set()
        guest = who_has(bridge, [internal], gateway)[internal] if bridge.running else set()
        near = bool(guest) and self._reached(gateway, internal)
        routers = [r for r in uplink.routers if any(r in i.network for i in own)]
        hosts = self._lan_hosts(uplink) if _is_wireless(link) else ()
        answered = who_has(link, [*routers, *hosts], host) if hosts else {}
        return Answers(
            conflicts=frozenset(conflicts),
            guest=frozenset(guest),
            near=near,
            far=near and self._reached(host, internal),
            router=any(answered[r] for r in routers) if answered and routers else None,
            neighbours=tuple((h, bool(answered[h])) for h in hosts),
        )

    def _reached(self, source: IPAddress, internal: IPAddress) -> bool:
        """Whether the guest answers an echo request or a connection from this source address."""
        tcp = [s.first for s in self._mapping.allow or () if s.protocol == "tcp"]
        return echoes(source, internal) or connects(source, internal, tcp or _USUAL_PORTS)


def _is_wireless(link: Link) -> bool:
    return Path("/sys/class/net", link.name, "phy80211").exists()


def _sysctls(family: Family, names: list[str]) -> Sysctls:
    def of(name: str, key: str) -> int:
        try:
            return int(Path("/proc/sys", family.setting(name, key)).read_text())
        except OSError:
            return 0

    def most(name: str, key: str) -> int:
        """The effective value: the larger of the interface's own and that of `all`."""
        return max(of(name, key), of("all", key))

    return Sysctls(
        strict=frozenset(name for name in names if most(name, "rp_filter") == 1),
        unrouted=tuple(name for name in names if not of(name, "forwarding")),
        arp_ignore=most(names[0], "arp_ignore") if names else 0,
        tracking_full=_is_tracking_full(),
    )


def _is_tracking_full() -> bool:
    try:
        count, most = (
            int((_SYSCTL / "netfilter" / name).read_text())
            for name in ("nf_conntrack_count", "nf_conntrack_max")
        )
    except OSError:
        return False
    return count >= most > 0
