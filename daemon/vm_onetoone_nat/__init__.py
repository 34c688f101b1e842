"""1:1 NAT between libvirt's NAT networks and the LAN: each guest has its own LAN address."""

__version__ = "0.2.0"
