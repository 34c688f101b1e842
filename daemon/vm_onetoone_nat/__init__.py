"""1:1 NAT between libvirt's NAT networks and the LAN: every guest with an address of its own."""

__version__ = "0.1.0"
