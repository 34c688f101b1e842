"""libvirt's XML of domains and networks, as values. Pure."""

from dataclasses import dataclass
from xml.etree.ElementTree import Element, ParseError, fromstring

from vm_onetoone_nat.config import metadata
from vm_onetoone_nat.model.family import IPAddress, IPInterface
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
    """The parts of a network's XML that are used. The gateways and reservations are IPv4."""

    bridge: str | None
    gateways: tuple[IPInterface, ...]
    reservations: tuple[tuple[str, IPAddress], ...]


def parse_network(text: str) -> NetworkDefinition:
    """Parse a network's XML. Raises ParseError."""
    root = fromstring(text)
    bridge = root.find("bridge")
    subnets = [e for e in root.findall("ip") if e.get("family", "ipv4") == "ipv4"]
    gateways = tuple(
        IPInterface((address, element.get("prefix") or element.get("netmask") or 32))
        for element in subnets
        if (address := element.get("address"))
    )
    reservations = tuple(
        (mac.lower(), IPAddress(address))
        for element in subnets
        for host in element.iterfind("dhcp/host")
        if (mac := host.get("mac")) and (address := host.get("ip"))
    )
    name = bridge.get("name") if bridge is not None else None
    return NetworkDefinition(name, gateways, reservations)
