"""libvirt's XML of domains and networks, as values. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree.ElementTree import Element, ParseError, fromstring

from vm_onetoone_nat.config import metadata
from vm_onetoone_nat.model.family import FAMILIES, IPV4, Family, IPAddress, IPInterface, address
from vm_onetoone_nat.model.guests import Interface
from vm_onetoone_nat.model.mapping import Mapping


@dataclass(frozen=True, slots=True)
class Definition:
    """The parts of a domain's XML that are used; `unread` is as in `Domain`."""

    interfaces: tuple[Interface, ...] = ()
    claims: tuple[Mapping, ...] = ()
    fault: str = ""
    agent: bool = False
    unread: bool = False


def parse_domain(text: str) -> Definition:
    """Parse a domain's XML. What is unreadable is a fault of that guest only."""
    try:
        root = fromstring(text)
    except (ParseError, ValueError) as error:
        return Definition(fault=f"its definition cannot be read: {error}")
    try:
        claims, fault = metadata.claims(root.iterfind("metadata/*")), ""
    except metadata.MetadataError as error:
        claims, fault = (), f"metadata: {'; '.join(error.problems)}"
    channel = root.find("devices/channel/target[@name='org.qemu.guest_agent.0']")
    agent = channel is not None and channel.get("state") == "connected"
    return Definition(tuple(_interfaces(root)), claims, fault, agent)


def _interfaces(root: Element) -> Iterator[Interface]:
    """The interfaces that have a MAC."""
    for element in root.iterfind("devices/interface"):
        mac, source, link, target = map(element.find, ("mac", "source", "link", "target"))
        written = mac.get("address") if mac is not None else None
        place = {} if source is None else source.attrib
        if written:
            yield Interface(
                written.lower(),
                place.get("network"),
                place.get("bridge"),
                plugged=link is None or link.get("state") != "down",
                tap=target.get("dev") if target is not None else None,
            )


@dataclass(frozen=True, slots=True)
class NetworkDefinition:
    """The parts of a network's XML that are used; what cannot be read is as in `Network`."""

    bridge: str | None = None
    gateways: tuple[IPInterface, ...] = ()
    reservations: tuple[tuple[str, IPAddress], ...] = ()
    unreadable: tuple[tuple[str, str], ...] = ()
    fault: str = ""


def _subnets(root: Element) -> Iterator[tuple[Family, Element]]:
    for element in root.iterfind("ip"):
        for family in FAMILIES:
            if family.name == element.get("family", IPV4.name):  # libvirt's default
                yield family, element


def _gateway(family: Family, element: Element) -> tuple[IPInterface, ...]:
    """The address of the bridge in a subnet, if it has one. Raises ValueError."""
    gateway = element.get("address")
    if not gateway:
        return ()
    return (
        family.interface((gateway, element.get("prefix") or element.get("netmask") or family.bits)),
    )


def parse_network(text: str) -> NetworkDefinition:
    """Parse a network's XML. What is unreadable costs no more than itself."""
    try:
        root = fromstring(text)
    except (ParseError, ValueError) as error:
        return NetworkDefinition(fault=f"its definition cannot be read: {error}")
    gateways: list[IPInterface] = []
    reservations: list[tuple[str, IPAddress]] = []
    unreadable: list[tuple[str, str]] = []
    faults: list[str] = []
    for family, element in _subnets(root):
        try:
            gateways.extend(_gateway(family, element))
        except ValueError as error:
            faults.append(f"its address cannot be read: {error}")
        for host in element.iterfind("dhcp/host"):
            mac, reserved = host.get("mac"), host.get("ip")
            if not mac or not reserved:
                continue
            try:
                reservations.append((mac.lower(), address(reserved)))
            except ValueError as error:
                unreadable.append((mac.lower(), f"its reservation cannot be read: {error}"))
    bridge = root.find("bridge")
    return NetworkDefinition(
        bridge.get("name") if bridge is not None else None,
        tuple(gateways),
        tuple(reservations),
        tuple(unreadable),
        "; ".join(faults),
    )
