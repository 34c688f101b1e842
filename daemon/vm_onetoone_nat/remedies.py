"""What to do about each cause for which a guest cannot be reached. Pure."""

from vm_onetoone_nat.state import Cause, Mapping

_TEXTS = {
    Cause.CONFIGURATION: "mend the file, try it with 'vm-onetoone-nat check', and reload",
    Cause.NO_MAPPING: (
        "write a [[mapping]] for it; 'vm-onetoone-nat status' lists those that there are"
    ),
    Cause.CLAIM_REFUSED: "do what the reason says, in the guest's metadata or in config.toml",
    Cause.DAEMON_STOPPED: "systemctl enable --now vm-onetoone-nat",
    Cause.DAEMON_SILENT: "systemctl restart vm-onetoone-nat, and look into its journal",
    Cause.NOT_RELOADED: "systemctl reload vm-onetoone-nat",
    Cause.LIBVIRT: (
        "systemctl start libvirtd, or virtqemud and virtnetworkd; 'settings.libvirt_uri' must be "
        "that of the guests"
    ),
    Cause.NETWORK_UNKNOWN: "'virsh net-list --all' lists the networks; mend 'network'",
    Cause.NETWORK_INACTIVE: "virsh net-start {network}; virsh net-autostart {network}",
    Cause.NETWORK_UNROUTED: "give the network an <ip> of its own: virsh net-edit {network}",
    Cause.GUEST_UNKNOWN: "'virsh list --all' lists the guests; mend 'domain'",
    Cause.GUEST_OFF: "virsh start {domain}",
    Cause.GUEST_PAUSED: "virsh resume {domain}",
    Cause.GUEST_LEFT: "it is reached by the host that it went to, if the daemon runs there",
    Cause.NO_INTERFACE: "'virsh domiflist {domain}' lists its interfaces; mend 'network' or 'mac'",
    Cause.LINK_DOWN: (
        "'virsh domif-setlink {domain} MAC up'; 'virsh domiflist {domain}' lists the MAC"
    ),
    Cause.OFF_BRIDGE: (
        "systemctl restart libvirtd, which leaves guests running; libvirt does not do it when a "
        "network is stopped and started"
    ),
    Cause.ADDRESS_UNKNOWN: (
        "let it use DHCP, make a reservation for it, or write its address as 'internal'"
    ),
    Cause.ADDRESS_IS_GATEWAY: "write the guest's own address as 'internal'",
    Cause.ADDRESS_OUTSIDE_NETWORK: "write an 'internal' of the network's subnet, or mend 'network'",
    Cause.ADDRESS_OF_ANOTHER: "give each guest an 'internal' of its own",
    Cause.ADDRESS_DIFFERS: "write that address as 'internal', or leave 'internal' out",
    Cause.NO_UPLINK: "connect the host to the LAN, or write its interface as 'settings.uplink'",
    Cause.UPLINK_DOWN: "connect the cable or the Wi-Fi; 'ip link' tells when it is up",
    Cause.UPLINK_WITHOUT_ADDRESS: "give the uplink an address on the LAN, by DHCP or by hand",
    Cause.EXTERNAL_IN_GUESTS_SUBNET: "write an 'external' that is free on the LAN",
    Cause.EXTERNAL_IS_ROUTER: "write an 'external' that is free on the LAN",
    Cause.EXTERNAL_IS_OWN: "write an 'external' that is free on the LAN",
    Cause.EXTERNAL_OUTSIDE_SUBNET: (
        "write an 'external' of the uplink's subnet; on another network than usual, wait"
    ),
    Cause.EXTERNAL_IS_NO_HOST: "write an 'external' that a host can have",
    Cause.ROUTE_TO_GUEST: "'ip route get {internal}' shows the route that is in the way; remove it",
    Cause.REVERSE_PATH: "sysctl -w net.ipv4.conf.all.rp_filter=2, or mend the route",
    Cause.IP_FORWARD: "sysctl -w net.ipv4.ip_forward=1, and find who turns it off",
    Cause.FORWARDING: "sysctl -w net.ipv4.conf.NAME.forwarding=1, and find who turns it off",
    Cause.ASKING: "wait a second",
    Cause.CONFLICT: "find that host and give it another address, or write another 'external'",
    Cause.ARP_IGNORED: "sysctl -w net.ipv4.conf.all.arp_ignore=0, and the uplink's own",
    Cause.EXTERNAL_MISSING: "'journalctl -u vm-onetoone-nat' tells why it could not be added",
    Cause.RULES_MISSING: "'journalctl -u vm-onetoone-nat' tells who removes them, or why not",
    Cause.ACCEPT_MISSING: "'journalctl -u vm-onetoone-nat' tells who removes it",
    Cause.REFUSED_BY_KERNEL: "'journalctl -xu vm-onetoone-nat' has the kernel's own words",
    Cause.FIREWALL: (
        "put at the head of that chain a rule that accepts what comes to {internal} and from it, "
        "or remove what refuses that"
    ),
    Cause.OTHER_NAT: "remove that rule, or give it a priority behind ours",
    Cause.TRACKING_FULL: "raise net.netfilter.nf_conntrack_max",
    Cause.TRACKED_ELSEWHERE: (
        "conntrack -D --orig-dst {external}; conntrack -D --orig-src {internal}"
    ),
    Cause.GUEST_SILENT: "see on the guest's console whether it is up and has {internal}",
    Cause.GUEST_TWICE: "give the guest that is not meant another address",
    Cause.GUEST_GATEWAY: (
        "in the guest, set the default route to the host's address on its network, and let its "
        "own firewall admit more than its own subnet"
    ),
    Cause.GUEST_FIREWALL: "let the guest's own firewall admit what is to reach it",
    Cause.CLIENT_ISOLATION: (
        "turn off client isolation (AP isolation, guest network) in the access point"
    ),
}


def remedy(cause: Cause, mapping: Mapping | None) -> str:
    """What to do, in the names of the mapping where there is one."""
    names = {
        "domain": mapping.domain if mapping is not None and mapping.domain else "GUEST",
        "network": mapping.network if mapping is not None else "NETWORK",
        "external": mapping.external if mapping is not None else "EXTERNAL",
        "internal": mapping.internal if mapping is not None else "INTERNAL",
    }
    return _TEXTS[cause].format(**names)
