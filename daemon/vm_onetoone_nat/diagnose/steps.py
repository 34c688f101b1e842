"""Checks the whole path to a guest, from the configuration to the guest's own answer.

Pure. A failed check has a cause. The first failed check is the one to correct first, since later
failures may follow from it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from vm_onetoone_nat.diagnose.evidence import Daemon, Evidence
from vm_onetoone_nat.diagnose.remedies import remedy
from vm_onetoone_nat.state import (
    AllowedService,
    Cause,
    DomainState,
    Mapping,
    MappingState,
)


class Verdict(StrEnum):
    """The outcome of a check; the values are part of `diagnose --json`.

    `SUSPECT`: likely, but not verifiable from this host. `UNKNOWN`: hidden by an earlier failure.
    """

    OK = "ok"
    FAILED = "failed"
    SUSPECT = "suspect"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Check:
    """One part of the path, and what was found."""

    step: str
    verdict: Verdict
    text: str
    cause: Cause | None = None
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All checks of one mapping, in the order of the path."""

    subject: str
    checks: tuple[Check, ...]

    @property
    def first(self) -> Check | None:
        """The first failed check, or else the first suspect one."""
        for verdict in (Verdict.FAILED, Verdict.SUSPECT):
            for check in self.checks:
                if check.verdict is verdict:
                    return check
        return None


def diagnose(evidence: Evidence) -> Diagnosis:
    """Check each part of the path."""
    subject = f"{evidence.mapping.subject} ({evidence.mapping.external})"
    return Diagnosis(subject, tuple(_walk(evidence)))


def failed(step: str, cause: Cause, text: str, mapping: Mapping | None = None) -> Check:
    """A check that failed, with its remedy."""
    return Check(step, Verdict.FAILED, text, cause, remedy(cause, mapping))


_Found = str | Check | None
"""Text if the part is all right, a Check if not, None if that cannot be determined."""


def _walk(evidence: Evidence) -> Iterator[Check]:
    status = evidence.status
    for step, causes, look in _STEPS:
        if status.cause in causes:
            yield failed(step, status.cause, status.reason, status.mapping)
            continue
        found = look(evidence, step)
        if isinstance(found, Check):
            yield found
        elif found is None:
            yield Check(step, Verdict.UNKNOWN, "unknown, because of a failure above")
        else:
            yield Check(step, Verdict.OK, found)


def _fail(evidence: Evidence, step: str, cause: Cause, text: str) -> Check:
    return failed(step, cause, text, evidence.mapping)


def _daemon(evidence: Evidence, step: str) -> _Found:
    if evidence.daemon is Daemon.STOPPED:
        return _fail(evidence, step, Cause.DAEMON_STOPPED, "the daemon is not running")
    if evidence.daemon is Daemon.SILENT:
        return _fail(
            evidence, step, Cause.DAEMON_SILENT, "the daemon is running but does not answer"
        )
    if not evidence.reloaded:
        text = "the daemon is running, but has not loaded this mapping yet"
        return _fail(evidence, step, Cause.NOT_RELOADED, text)
    return "running, with this mapping loaded"


def _libvirt(evidence: Evidence, step: str) -> _Found:
    if not evidence.look.libvirt:
        return _fail(evidence, step, Cause.LIBVIRT, "libvirt cannot be reached")
    return "connected"


def _network(evidence: Evidence, _step: str) -> _Found:
    network = evidence.network
    if network is None or not network.active:
        return None
    return f"'{network.name}' is active on bridge {network.bridge}"


def _guest(evidence: Evidence, step: str) -> _Found:
    mapping = evidence.mapping
    if mapping.domain is None:
        return "none is named: the mapping is active while its network is"
    guests = evidence.look.guests
    domain = guests.domain(mapping.domain) if guests is not None else None
    if domain is None:
        return None
    text = f"'{domain.name}' is {domain.state.value}"
    # A guest that is paused while its mapping is active keeps the mapping.
    if domain.state is DomainState.PAUSED:
        return _fail(evidence, step, Cause.GUEST_PAUSED, text)
    return text


def _interface(evidence: Evidence, step: str) -> _Found:
    mapping = evidence.mapping
    if not evidence.plugged:
        text = f"the link of its interface on '{mapping.network}' is set down"
        return _fail(evidence, step, Cause.LINK_DOWN, text)
    if evidence.off_bridge is not None and evidence.network is not None:
        text = f"{evidence.off_bridge} of the guest is not a port of {evidence.network.bridge}"
        return _fail(evidence, step, Cause.OFF_BRIDGE, text)
    if mapping.domain is None:
        return "any guest on the network"
    if not evidence.guest_macs:
        return None
    return f"{', '.join(sorted(evidence.guest_macs))} on network '{mapping.network}'"


def _guest_address(evidence: Evidence, step: str) -> _Found:
    mapping = evidence.mapping
    if mapping.internal is None:
        return None
    answers = evidence.answers
    if evidence.elsewhere and answers is not None and not answers.guest:
        found = ", ".join(map(str, evidence.elsewhere))
        text = f"the guest has {found}, but does not answer at {mapping.internal}"
        return _fail(evidence, step, Cause.ADDRESS_DIFFERS, text)
    source = f", by {mapping.source.value}" if mapping.source is not None else ""
    return f"{mapping.internal}{source}"


def _uplink(evidence: Evidence, step: str) -> _Found:
    uplink = evidence.look.observed.uplink
    if uplink is None:
        return None
    if not evidence.uplink_runs:
        text = f"{uplink} is down, or has no carrier"
        return _fail(evidence, step, Cause.UPLINK_DOWN, text)
    return f"{uplink} is up"


def _external(evidence: Evidence, _step: str) -> _Found:
    if evidence.look.observed.uplink is None:
        return None
    return f"{evidence.mapping.external} can be an address of the uplink"


def _route(evidence: Evidence, step: str) -> _Found:
    routes, network = evidence.routes, evidence.network
    if routes is None or network is None:
        return None
    internal, uplink = evidence.mapping.internal, evidence.look.observed.uplink
    if routes.to_guest != network.bridge:
        way = f"through {routes.to_guest}" if routes.to_guest else "nowhere"
        text = f"the host sends to {internal} {way}, not through bridge {network.bridge}"
        return _fail(evidence, step, Cause.ROUTE_TO_GUEST, text)
    if (
        routes.lan_host is not None
        and routes.to_lan != uplink
        and uplink in evidence.sysctls.strict
    ):
        text = (
            f"rp_filter of {uplink} is strict, and the host sends to {routes.lan_host} through "
            f"{routes.to_lan or 'no interface'}: packets from the LAN to guests are dropped"
        )
        return _fail(evidence, step, Cause.REVERSE_PATH, text)
    return f"to {internal} through {network.bridge}"


def _forwarding(evidence: Evidence, step: str) -> _Found:
    if not evidence.look.observed.ip_forward:
        return _fail(evidence, step, Cause.IP_FORWARD, "net.ipv4.ip_forward is off")
    if evidence.sysctls.unrouted:
        names = ", ".join(evidence.sysctls.unrouted)
        text = f"forwarding is off on {names}"
        return _fail(evidence, step, Cause.FORWARDING, text)
    return "on"


def _conflict(evidence: Evidence, step: str) -> _Found:
    answers, external = evidence.answers, evidence.mapping.external
    if answers is None:
        return None
    if answers.conflicts:
        macs = ", ".join(sorted(answers.conflicts))
        text = f"another host on the LAN has {external} too: its MAC is {macs}"
        return _fail(evidence, step, Cause.CONFLICT, text)
    return f"no other host has {external}"


def _address_on_uplink(evidence: Evidence, step: str) -> _Found:
    observed, external = evidence.look.observed, evidence.mapping.external
    if not _active(evidence):
        return None
    uplink = observed.uplink
    if all((a.ifname, a.interface.ip) != (uplink, external) for a in observed.addresses):
        text = f"{external} is not on {uplink}"
        return _fail(evidence, step, Cause.EXTERNAL_MISSING, text)
    if evidence.sysctls.arp_ignore > _HARMLESS_ARP_IGNORE:
        text = f"arp_ignore of {uplink} is {evidence.sysctls.arp_ignore}: ARP is not answered"
        return _fail(evidence, step, Cause.ARP_IGNORED, text)
    return f"{external} is on {uplink}"


_HARMLESS_ARP_IGNORE = 2
"""Up to this value, ARP from the uplink's own subnet is answered for addresses of the uplink."""


def _rules(evidence: Evidence, _step: str) -> _Found:
    if not _active(evidence) or evidence.traffic is None:
        return None
    inbound, outbound = evidence.traffic
    return (
        f"in place; connections: {inbound.connections} from the LAN, "
        f"{outbound.connections} from the guest{_limits(evidence.mapping)}"
    )


def _limits(mapping: Mapping) -> str:
    """What `allow` and `allowed_sources` restrict, which is not a fault."""
    text = ""
    if mapping.allow is not None:
        text += f"; only {', '.join(map(_service, mapping.allow))} to the guest"
    if mapping.allowed_sources is not None:
        text += f"; only from {', '.join(map(str, mapping.allowed_sources))}"
    return text


def _service(service: AllowedService) -> str:
    if (service.first, service.last) == (0, 65535):
        return service.protocol
    last = f"-{service.last}" if service.last != service.first else ""
    return f"{service.protocol}/{service.first}{last}"


def _firewall(evidence: Evidence, step: str) -> _Found:
    if evidence.routes is None:
        return None
    for each in evidence.obstructions:
        if not each.verdict.translated:
            text = f"{each.packets} are refused by {each.verdict}"
            return _fail(evidence, step, Cause.FIREWALL, text)
    return "no rule of another program refuses all of its packets"


def _other_nat(evidence: Evidence, step: str) -> _Found:
    if evidence.routes is None:
        return None
    for each in evidence.obstructions:
        if each.verdict.translated:
            text = f"{each.packets} are translated before our rules, by {each.verdict}"
            return _fail(evidence, step, Cause.OTHER_NAT, text)
    return "none comes before our rules"


def _tracking(evidence: Evidence, step: str) -> _Found:
    if evidence.sysctls.tracking_full:
        text = "the connection tracking table is full: new connections are dropped"
        return _fail(evidence, step, Cause.TRACKING_FULL, text)
    tracked = evidence.tracked
    if tracked is None:
        return None
    if tracked.elsewhere:
        text = f"{tracked.elsewhere} flows from before the mapping still bypass it"
        return _fail(evidence, step, Cause.TRACKED_ELSEWHERE, text)
    return f"{tracked.entries} connections now, all through the mapping"


def _answers_arp(evidence: Evidence, step: str) -> _Found:
    answers, mapping = evidence.answers, evidence.mapping
    if answers is None:
        return None
    if not answers.guest:
        text = f"no host answers ARP for {mapping.internal} on the bridge"
        return _fail(evidence, step, Cause.GUEST_SILENT, text)
    strangers = answers.guest - evidence.guest_macs if evidence.guest_macs else frozenset()
    if strangers or len(answers.guest) > 1:
        text = f"ARP for {mapping.internal} is answered by {', '.join(sorted(answers.guest))}"
        return _fail(evidence, step, Cause.GUEST_TWICE, text)
    return f"{mapping.internal} is at {next(iter(answers.guest))}"


def _answers_packets(evidence: Evidence, step: str) -> _Found:
    answers = evidence.answers
    if answers is None or not answers.guest:
        return None
    if not answers.near:
        text = "it answers ARP, but neither an echo request nor a connection"
        return _fail(evidence, step, Cause.GUEST_FIREWALL, text)
    if not answers.far:
        text = "it answers the bridge's own address, but no address beyond its own subnet"
        return _fail(evidence, step, Cause.GUEST_GATEWAY, text)
    return "it answers, also an address beyond its own subnet"


def _lan(evidence: Evidence, step: str) -> _Found:
    """Whether the access point seems to isolate its clients."""
    answers = evidence.answers
    if answers is None:
        return None
    silent = [address for address, answered in answers.neighbours if not answered]
    if evidence.wireless and answers.router and silent and len(silent) == len(answers.neighbours):
        text = (
            f"the router answers, but no other host of the LAN does ({', '.join(map(str, silent))})"
        )
        cause = Cause.CLIENT_ISOLATION
        return Check(step, Verdict.SUSPECT, text, cause, remedy(cause, evidence.mapping))
    return "no fault is visible"


def _active(evidence: Evidence) -> bool:
    return evidence.status.state is MappingState.ACTIVE


_CheckFunction = Callable[[Evidence, str], _Found]

_STEPS: tuple[tuple[str, tuple[Cause, ...], _CheckFunction], ...] = (
    ("daemon", (), _daemon),
    ("libvirt", (Cause.LIBVIRT,), _libvirt),
    (
        "network",
        (Cause.NETWORK_UNKNOWN, Cause.NETWORK_INACTIVE, Cause.NETWORK_UNROUTED),
        _network,
    ),
    (
        "guest",
        (Cause.GUEST_UNKNOWN, Cause.GUEST_OFF, Cause.GUEST_PAUSED, Cause.GUEST_LEFT),
        _guest,
    ),
    ("guest's interface", (Cause.NO_INTERFACE,), _interface),
    (
        "guest's address",
        (
            *(Cause.ADDRESS_UNKNOWN, Cause.ADDRESS_IS_GATEWAY, Cause.ADDRESS_OUTSIDE_NETWORK),
            Cause.ADDRESS_OF_ANOTHER,
        ),
        _guest_address,
    ),
    ("uplink", (Cause.NO_UPLINK, Cause.UPLINK_WITHOUT_ADDRESS), _uplink),
    (
        "external address",
        (
            *(Cause.EXTERNAL_IN_GUESTS_SUBNET, Cause.EXTERNAL_IS_ROUTER, Cause.EXTERNAL_IS_OWN),
            *(Cause.EXTERNAL_OUTSIDE_SUBNET, Cause.EXTERNAL_IS_NO_HOST),
        ),
        _external,
    ),
    ("routes", (), _route),
    ("forwarding", (Cause.IP_FORWARD,), _forwarding),
    ("other hosts", (Cause.ASKING, Cause.CONFLICT), _conflict),
    (
        "our rules",
        (Cause.ACCEPT_MISSING, Cause.RULES_MISSING, Cause.REFUSED_BY_KERNEL),
        _rules,
    ),
    ("address on the uplink", (Cause.EXTERNAL_MISSING,), _address_on_uplink),
    ("other firewalls", (), _firewall),
    ("other NAT", (), _other_nat),
    ("connections", (), _tracking),
    ("guest answers ARP", (), _answers_arp),
    ("guest answers", (), _answers_packets),
    ("LAN", (), _lan),
)
