"""The host's network interfaces, in one dump."""

from vm_onetoone_nat.kernel.messages import link
from vm_onetoone_nat.kernel.netlink import Netlink
from vm_onetoone_nat.model.links import Link


def links(netlink: Netlink) -> dict[int, Link]:
    """Every interface by its index. Raises KernelError."""
    return {
        each.index: each for answer in netlink.dump(link.listing()) for each in link.links(answer)
    }
