"""Checks the whole path to a guest, from the configuration to the guest's own answer.

Pure. A failed check has a cause. The first failed check is the one to correct first, since later
failures may follow from it.
"""

from collections.abc import Callable, Iterator

from vm_onetoone_nat.diagnose import guest, host
from vm_onetoone_nat.diagnose.check import Check, Diagnosis, Found, Verdict, fault
from vm_onetoone_nat.diagnose.evidence import Daemon, Evidence
from vm_onetoone_nat.model.status import Cause


def diagnose(evidence: Evidence) -> Diagnosis:
    """Check each part of the path."""
    subject = f"{evidence.mapping.subject} ({evidence.mapping.external})"
    return Diagnosis(subject, tuple(_walk(evidence)))


def _walk(evidence: Evidence) -> Iterator[Check]:
    status = evidence.status
    for step, causes, look in _STEPS:
        if status.cause in causes:
            yield fault(evidence, step, status.cause, status.reason)
            continue
        found = look(evidence, step)
        if isinstance(found, Check):
            yield found
        elif found is None:
            yield Check(step, Verdict.UNKNOWN, "unknown, because of a failure above")
        else:
            yield Check(step, Verdict.OK, found)


def _daemon(evidence: Evidence, step: str) -> Found:
    if evidence.daemon is Daemon.STOPPED:
        return fault(evidence, step, Cause.DAEMON_STOPPED, "the daemon is not running")
    if evidence.daemon is Daemon.SILENT:
        return fault(
            evidence, step, Cause.DAEMON_SILENT, "the daemon is running but does not answer"
        )
    if not evidence.reloaded:
        text = "the daemon is running, but has not loaded this mapping yet"
        return fault(evidence, step, Cause.NOT_RELOADED, text)
    return "running, with this mapping loaded"


def _libvirt(evidence: Evidence, step: str) -> Found:
    if not evidence.look.libvirt:
        return fault(evidence, step, Cause.LIBVIRT, "libvirt cannot be reached")
    return "connected"


_CheckFunction = Callable[[Evidence, str], Found]

_STEPS: tuple[tuple[str, tuple[Cause, ...], _CheckFunction], ...] = (
    ("daemon", (), _daemon),
    ("libvirt", (Cause.LIBVIRT,), _libvirt),
    (
        "network",
        (Cause.NETWORK_UNKNOWN, Cause.NETWORK_INACTIVE, Cause.NETWORK_UNROUTED),
        guest.check_network,
    ),
    (
        "guest",
        (Cause.GUEST_UNKNOWN, Cause.GUEST_OFF, Cause.GUEST_PAUSED, Cause.GUEST_LEFT),
        guest.check_guest,
    ),
    ("guest's interface", (Cause.NO_INTERFACE,), guest.check_interface),
    (
        "guest's address",
        (
            Cause.ADDRESS_UNKNOWN,
            Cause.ADDRESS_IS_GATEWAY,
            Cause.ADDRESS_OUTSIDE_NETWORK,
            Cause.ADDRESS_OF_ANOTHER,
        ),
        guest.check_address,
    ),
    ("uplink", (Cause.NO_UPLINK, Cause.UPLINK_WITHOUT_ADDRESS), host.check_uplink),
    (
        "external address",
        (
            Cause.EXTERNAL_IN_GUESTS_SUBNET,
            Cause.EXTERNAL_IS_ROUTER,
            Cause.EXTERNAL_IS_OWN,
            Cause.EXTERNAL_OUTSIDE_SUBNET,
            Cause.EXTERNAL_IS_NO_HOST,
        ),
        host.check_external,
    ),
    ("routes", (), host.check_route),
    ("forwarding", (Cause.IP_FORWARD,), host.check_forwarding),
    ("other hosts", (Cause.ASKING, Cause.CONFLICT), host.check_conflict),
    (
        "our rules",
        (Cause.ACCEPT_MISSING, Cause.RULES_MISSING, Cause.REFUSED_BY_KERNEL),
        host.check_rules,
    ),
    ("address on the uplink", (Cause.EXTERNAL_MISSING,), host.check_address_on_uplink),
    ("other firewalls", (), host.check_firewall),
    ("other NAT", (), host.check_other_nat),
    ("connections", (), host.check_tracking),
    ("guest answers ARP", (), guest.check_answers_arp),
    ("guest answers", (), guest.check_answers_packets),
    ("LAN", (), host.check_lan),
)
