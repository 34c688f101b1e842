"""Checks of a guest: its network, state, interface and address, and its answers. Pure."""

from vm_onetoone_nat.diagnose.check import Found, fault
from vm_onetoone_nat.diagnose.evidence import Evidence
from vm_onetoone_nat.model.guests import DomainState
from vm_onetoone_nat.model.status import Cause


def check_network(evidence: Evidence, _step: str) -> Found:
    network = evidence.network
    if network is None or not network.active:
        return None
    return f"'{network.name}' is active on bridge {network.bridge}"


def check_guest(evidence: Evidence, step: str) -> Found:
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
        return fault(evidence, step, Cause.GUEST_PAUSED, text)
    return text


def check_interface(evidence: Evidence, step: str) -> Found:
    mapping = evidence.mapping
    if not evidence.plugged:
        text = f"the link of its interface on '{mapping.network}' is set down"
        return fault(evidence, step, Cause.LINK_DOWN, text)
    if evidence.off_bridge is not None and evidence.network is not None:
        text = f"{evidence.off_bridge} of the guest is not a port of {evidence.network.bridge}"
        return fault(evidence, step, Cause.OFF_BRIDGE, text)
    if mapping.domain is None:
        return "any guest on the network"
    if not evidence.guest_macs:
        return None
    return f"{', '.join(sorted(evidence.guest_macs))} on network '{mapping.network}'"


def check_address(evidence: Evidence, step: str) -> Found:
    mapping = evidence.mapping
    if mapping.internal is None:
        return None
    answers = evidence.answers
    if evidence.elsewhere and answers is not None and not answers.guest:
        found = ", ".join(map(str, evidence.elsewhere))
        text = f"the guest has {found}, but does not answer at {mapping.internal}"
        return fault(evidence, step, Cause.ADDRESS_DIFFERS, text)
    source = f", by {mapping.source.value}" if mapping.source is not None else ""
    return f"{mapping.internal}{source}"


def check_answers_arp(evidence: Evidence, step: str) -> Found:
    answers, mapping = evidence.answers, evidence.mapping
    if answers is None:
        return None
    if not answers.guest:
        text = f"no host answers ARP for {mapping.internal} on the bridge"
        return fault(evidence, step, Cause.GUEST_SILENT, text)
    strangers = answers.guest - evidence.guest_macs if evidence.guest_macs else frozenset()
    if strangers or len(answers.guest) > 1:
        text = f"ARP for {mapping.internal} is answered by {', '.join(sorted(answers.guest))}"
        return fault(evidence, step, Cause.GUEST_TWICE, text)
    return f"{mapping.internal} is at {next(iter(answers.guest))}"


def check_answers_packets(evidence: Evidence, step: str) -> Found:
    answers = evidence.answers
    if answers is None or not answers.guest:
        return None
    if not answers.near:
        text = "it answers ARP, but neither an echo request nor a connection"
        return fault(evidence, step, Cause.GUEST_FIREWALL, text)
    if not answers.far:
        text = "it answers the bridge's own address, but no address beyond its own subnet"
        return fault(evidence, step, Cause.GUEST_GATEWAY, text)
    return "it answers, also an address beyond its own subnet"
