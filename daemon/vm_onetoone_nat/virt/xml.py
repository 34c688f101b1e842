"""libvirt's XML of domains and networks, as values. Pure."""

from dataclasses import dataclass
from xml.etree.ElementTree import Element, ParseError, fromstring

from vm_onetoone_nat.config import metadata
from vm_onetoone_nat.model.family import FAMILIES, IPV4, IPAddress, IPInterface, address
from vm_onetoone_nat.model.guests import Interface
from vm_onetoone_nat.model.mapping import Mapping


@dataclass(frozen=True, slots=True)
class Definition:
    """The parts of a domain's XML that are used."""

    interfaces: tuple[Interface, ...] = ()
    claims: tuple[Mapping, ...] = ()
    fault: str = ""
    agent: bool = False


def parse_domain(text: str) -> Definition:
    """Parse a domain's XML. What is unreadable is a fault of that guest only."""
    try:
        root = fromstring(text)
    except ParseError as error:
        return Definition(fault=f"its definition cannot be read: {error}")
    interfaces = tuple(map(_interface, root.iterfind("devices/interface[mac]")))
    try:
        claims, fault = metadata.claims(root.iterfind("metadata/*")), ""
    except metadata.MetadataError as error:
        claims, fault = (), f"metadata: {'; '.join(error.problems)}"
    channel = root.find("devices/channel/target[@name='org.qemu.guest_agent.0']")
    agent = channel is not None and channel.get("state") == "connected"
    return Definition(interfaces, claims, fault, agent)


def _interface(element: Element) -> Interface:
    mac, source, link, target = map(element.find, ("mac", "source", "link", "target"))
    assert mac is not None
    place = {} if source is None else source.attrib
    return Interface(
        mac.attrib["address"].lower(),
        place.get("network"),
        place.get("bridge"),
        plugged=link is None or link.get("state") != "down",
        tap=target.get("dev") if target is not None else None,
    )


@dataclass(frozen=True, slots=True)
class NetworkDefinition:
    """The parts of a network's XML that are used."""

    bridge: str | None
    gateways: tuple[IPInterface, ...]
    reservations: tuple[tuple[str, IPAddress], ...]


def parse_network(text: str) -> NetworkDefinition:
    """Parse a network's XML. Raises ParseError."""
    root = fromstring(text)
    bridge = root.find("bridge")
    subnets = [
        (family, element)
        for element in root.findall("ip")
        for family in FAMILIES
        if family.name == element.get("family", IPV4.name)  # libvirt's default
    ]
    gateways = tuple(
        family.interface((gateway, element.get("prefix") or element.get("netmask") or family.bits))
        for family, element in subnets
        if (gateway := element.get("address"))
    )
    reservations = tuple(
        (mac.lower(), address(reserved))
        for _, element in subnets
        for host in element.iterfind("dhcp/host")
        if (mac := host.get("mac")) and (reserved := host.get("ip"))
    )
    name = bridge.get("name") if bridge is not None else None
    return NetworkDefinition(name, gateways, reservations)
