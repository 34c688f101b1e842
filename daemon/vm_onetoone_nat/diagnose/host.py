"""Checks of the host and its LAN, between the guest and other hosts. Pure."""

from vm_onetoone_nat.diagnose.check import Check, Found, Verdict, fault
from vm_onetoone_nat.diagnose.evidence import Evidence
from vm_onetoone_nat.diagnose.remedies import remedy
from vm_onetoone_nat.model.family import family_of
from vm_onetoone_nat.model.mapping import AllowedService, Mapping
from vm_onetoone_nat.model.status import Cause, MappingState


def check_uplink(evidence: Evidence, step: str) -> Found:
    uplink = evidence.uplink
    if uplink is None:
        return None
    if not evidence.uplink_runs:
        text = f"{uplink.name} is down, or has no carrier"
        return fault(evidence, step, Cause.UPLINK_DOWN, text)
    return f"{uplink.name} is up"


def check_external(evidence: Evidence, _step: str) -> Found:
    if evidence.uplink is None:
        return None
    return f"{evidence.mapping.external} can be an address of the uplink"


def check_route(evidence: Evidence, step: str) -> Found:
    routes, network = evidence.routes, evidence.network
    uplink, internal = evidence.uplink, evidence.mapping.internal
    if routes is None or network is None or uplink is None:
        return None
    if routes.to_guest != network.bridge:
        way = f"through {routes.to_guest}" if routes.to_guest else "nowhere"
        text = f"the host sends to {internal} {way}, not through bridge {network.bridge}"
        return fault(evidence, step, Cause.ROUTE_TO_GUEST, text)
    if (
        routes.lan_host is not None
        and routes.to_lan != uplink.name
        and uplink.name in evidence.sysctls.strict
    ):
        text = (
            f"rp_filter of {uplink.name} is strict, and the host sends to {routes.lan_host} "
            f"through {routes.to_lan or 'no interface'}: packets from the LAN to guests are dropped"
        )
        return fault(evidence, step, Cause.REVERSE_PATH, text)
    return f"to {internal} through {network.bridge}"


def check_forwarding(evidence: Evidence, step: str) -> Found:
    if not evidence.look.observed.ip_forward:
        name = family_of(evidence.mapping.external).forwarding
        return fault(evidence, step, Cause.IP_FORWARD, f"{name} is off")
    if evidence.sysctls.unrouted:
        names = ", ".join(evidence.sysctls.unrouted)
        text = f"forwarding is off on {names}"
        return fault(evidence, step, Cause.FORWARDING, text)
    return "on"


def check_conflict(evidence: Evidence, step: str) -> Found:
    answers, external = evidence.answers, evidence.mapping.external
    if answers is None:
        return None
    if answers.conflicts:
        macs = ", ".join(sorted(answers.conflicts))
        text = f"another host on the LAN has {external} too: its MAC is {macs}"
        return fault(evidence, step, Cause.CONFLICT, text)
    return f"no other host has {external}"


def check_address_on_uplink(evidence: Evidence, step: str) -> Found:
    uplink, external = evidence.uplink, evidence.mapping.external
    if uplink is None or not _active(evidence):
        return None
    if external not in uplink.ips:
        text = f"{external} is not on {uplink.name}"
        return fault(evidence, step, Cause.EXTERNAL_MISSING, text)
    if evidence.sysctls.arp_ignore > _HARMLESS_ARP_IGNORE:
        text = f"arp_ignore of {uplink.name} is {evidence.sysctls.arp_ignore}: ARP is not answered"
        return fault(evidence, step, Cause.ARP_IGNORED, text)
    return f"{external} is on {uplink.name}"


_HARMLESS_ARP_IGNORE = 2
"""Up to this value, ARP from the uplink's own subnet is answered for addresses of the uplink."""


def check_rules(evidence: Evidence, _step: str) -> Found:
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


def check_firewall(evidence: Evidence, step: str) -> Found:
    if evidence.routes is None:
        return None
    for each in evidence.obstructions:
        if not each.verdict.translated:
            text = f"{each.packets} are refused by {each.verdict}"
            return fault(evidence, step, Cause.FIREWALL, text)
    text = "no rule of another program refuses all of its packets"
    if evidence.unreadable:
        names = ", ".join(f"chain {name}" for name in evidence.unreadable[:_NAMED])
        more = len(evidence.unreadable) - _NAMED
        names += f" and {more} more" if more > 0 else ""
        return Check(step, Verdict.UNKNOWN, f"{text}, but libnftables cannot list {names}")
    return text


_NAMED = 3
"""At most so many chains are named that cannot be listed."""


def check_other_nat(evidence: Evidence, step: str) -> Found:
    if evidence.routes is None:
        return None
    for each in evidence.obstructions:
        if each.verdict.translated:
            text = f"{each.packets} are translated before our rules, by {each.verdict}"
            return fault(evidence, step, Cause.OTHER_NAT, text)
    return "none comes before our rules"


def check_tracking(evidence: Evidence, step: str) -> Found:
    if evidence.sysctls.tracking_full:
        text = "the connection tracking table is full: new connections are dropped"
        return fault(evidence, step, Cause.TRACKING_FULL, text)
    tracked = evidence.tracked
    if tracked is None:
        return None
    if tracked.elsewhere:
        text = f"{tracked.elsewhere} flows from before the mapping still bypass it"
        return fault(evidence, step, Cause.TRACKED_ELSEWHERE, text)
    return f"{tracked.entries} connections now, all through the mapping"


def check_lan(evidence: Evidence, step: str) -> Found:
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
