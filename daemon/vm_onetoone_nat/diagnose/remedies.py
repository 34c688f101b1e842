"""The remedy for each cause of an unreachable guest. Pure."""

from vm_onetoone_nat.model.family import FAMILIES, family_of
from vm_onetoone_nat.model.mapping import Mapping
from vm_onetoone_nat.model.status import Cause

_TEXTS = {
    Cause.CONFIGURATION: "correct the file, test it with 'vm-onetoone-nat check', and reload",
    Cause.NO_MAPPING: (
        "write a [[mapping]] for it; 'vm-onetoone-nat status' lists the existing ones"
    ),
    Cause.CLAIM_REFUSED: "correct the guest's metadata or config.toml as the reason says",
    Cause.DAEMON_STOPPED: "systemctl enable --now vm-onetoone-nat",
    Cause.DAEMON_SILENT: "systemctl restart vm-onetoone-nat, and read its journal",
    Cause.NOT_RELOADED: "systemctl reload vm-onetoone-nat",
    Cause.LIBVIRT: (
        "systemctl restart {libvirt}; 'settings.libvirt_uri' must be that of the guests"
    ),
    Cause.NETWORK_UNKNOWN: "'virsh net-list --all' lists the networks; correct 'network'",
    Cause.NETWORK_INACTIVE: "virsh net-start {network}; virsh net-autostart {network}",
    Cause.NETWORK_UNROUTED: "give the network an <ip> of its own: virsh net-edit {network}",
    Cause.GUEST_UNKNOWN: "'virsh list --all' lists the guests; correct 'domain'",
    Cause.GUEST_OFF: "virsh start {domain}",
    Cause.GUEST_PAUSED: "virsh resume {domain}",
    Cause.GUEST_LEFT: "it is reachable through its new host, if the daemon runs there",
    Cause.NO_INTERFACE: (
        "'virsh domiflist {domain}' lists its interfaces; correct 'network' or 'mac'"
    ),
    Cause.LINK_DOWN: (
        "'virsh domif-setlink {domain} MAC up'; 'virsh domiflist {domain}' lists the MAC"
    ),
    Cause.OFF_BRIDGE: (
        "systemctl restart {libvirt}, which leaves guests running and attaches them again; a "
        "restart of the network does not"
    ),
    Cause.ADDRESS_UNKNOWN: (
        "let it use DHCP, make a reservation for it, or write its address as 'internal'"
    ),
    Cause.ADDRESS_IS_GATEWAY: "write the guest's own address as 'internal'",
    Cause.ADDRESS_OUTSIDE_NETWORK: (
        "write an 'internal' in the network's subnet, or correct 'network'"
    ),
    Cause.ADDRESS_OF_ANOTHER: "give each guest an 'internal' of its own",
    Cause.ADDRESS_DIFFERS: "write that address as 'internal', or leave 'internal' out",
    Cause.NO_UPLINK: "connect the host to the LAN, or write its interface as 'settings.uplink'",
    Cause.UPLINK_DOWN: "connect the cable or the Wi-Fi; 'ip link' shows when it is up",
    Cause.UPLINK_WITHOUT_ADDRESS: "give the uplink an address on the LAN, by DHCP or by hand",
    Cause.EXTERNAL_IN_GUESTS_SUBNET: "write an 'external' that is free on the LAN",
    Cause.EXTERNAL_IS_ROUTER: "write an 'external' that is free on the LAN",
    Cause.EXTERNAL_IS_OWN: "write an 'external' that is free on the LAN",
    Cause.EXTERNAL_OUTSIDE_SUBNET: (
        "write an 'external' in the uplink's subnet, or connect the host to the usual network"
    ),
    Cause.EXTERNAL_IS_NO_HOST: "write an 'external' that is a host address",
    Cause.ROUTE_TO_GUEST: "'ip route get {internal}' shows the route that is in the way; remove it",
    Cause.REVERSE_PATH: "sysctl -w net.ipv4.conf.all.rp_filter=2, or correct the route",
    Cause.IP_FORWARD: "sysctl -w {forwarding}=1, and find what turns it off",
    Cause.FORWARDING: "sysctl -w net.{family}.conf.NAME.forwarding=1, and find what turns it off",
    Cause.ASKING: "wait a second",
    Cause.CONFLICT: "find that host and give it another address, or write another 'external'",
    Cause.ARP_IGNORED: "sysctl -w net.ipv4.conf.all.arp_ignore=0, and the uplink's own",
    Cause.EXTERNAL_MISSING: "'journalctl -u vm-onetoone-nat' shows why it could not be added",
    Cause.RULES_MISSING: (
        "'journalctl -u vm-onetoone-nat' shows what removes them, or why they were refused"
    ),
    Cause.ACCEPT_MISSING: "'journalctl -u vm-onetoone-nat' shows what removes it",
    Cause.REFUSED_BY_KERNEL: "'journalctl -xu vm-onetoone-nat' shows the kernel's message",
    Cause.FIREWALL: (
        "insert at the head of that chain a rule that accepts packets to and from {internal}, or "
        "remove the rule that refuses them"
    ),
    Cause.OTHER_NAT: "remove that rule, or give it a priority after ours",
    Cause.TRACKING_FULL: "raise net.netfilter.nf_conntrack_max",
    Cause.TRACKED_ELSEWHERE: (
        "conntrack -D --orig-dst {external}; conntrack -D --orig-src {internal}"
    ),
    Cause.GUEST_SILENT: "check on the guest's console that it is up and has {internal}",
    Cause.GUEST_TWICE: "give the other guest another address",
    Cause.GUEST_GATEWAY: (
        "in the guest, set the default route to the host's address on its network, and make "
        "its own firewall accept other subnets"
    ),
    Cause.GUEST_FIREWALL: "make the guest's own firewall accept the traffic",
    Cause.CLIENT_ISOLATION: (
        "turn off client isolation (AP isolation, guest network) in the access point"
    ),
}


def remedy(cause: Cause, mapping: Mapping | None, libvirt_units: str = "libvirtd") -> str:
    """The remedy, with the names of the mapping if there is one, and of libvirt's units."""
    family = family_of(mapping.external) if mapping is not None else FAMILIES[0]
    names = {
        "libvirt": libvirt_units,
        "family": family.name,
        "forwarding": family.forwarding,
        "domain": mapping.domain if mapping is not None and mapping.domain else "GUEST",
        "network": mapping.network if mapping is not None else "NETWORK",
        "external": mapping.external if mapping is not None else "EXTERNAL",
        "internal": mapping.internal if mapping is not None else "INTERNAL",
    }
    return _TEXTS[cause].format(**names)
