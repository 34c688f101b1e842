"""The counters of our table, from any thread."""

from contextlib import closing

from vm_onetoone_nat.errors import KernelError
from vm_onetoone_nat.kernel.messages import nft_listing
from vm_onetoone_nat.kernel.netlink import NETFILTER, Netlink
from vm_onetoone_nat.model.family import IPAddress, address
from vm_onetoone_nat.model.nat_table import CONTAINERS, Container
from vm_onetoone_nat.model.traffic import Counters, counters


def read_counters() -> Counters | None:
    """The counters of our table; None if it does not exist, or without the privilege to read it."""
    counted = [each for each in CONTAINERS if each.counted]
    try:
        with closing(Netlink(NETFILTER, "nftables")) as netlink:
            declared = netlink.dump(nft_listing.list_sets())
            if not any(any(nft_listing.of_our_table(answer)) for answer in declared):
                return None
            return counters({each: _counts(netlink, each) for each in counted})
    except KernelError:
        return None


def _counts(netlink: Netlink, container: Container) -> dict[IPAddress, tuple[int, int]]:
    return {
        address(each.element.key[0]): (each.packets, each.bytes)
        for answer in netlink.dump(nft_listing.list_elements(container))
        for each in nft_listing.counted(container, nft_listing.elements(answer))
    }
