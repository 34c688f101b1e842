"""Ending a mapping's connections in the kernel's connection tracking (pyroute2)."""

import os
from collections.abc import Iterator
from ipaddress import IPv4Address

from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple, NFCTSocket

from vm_onetoone_nat.errors import KernelError
from vm_onetoone_nat.plan import Translation

_ENOENT = 2


def forget(translations: tuple[Translation, ...]) -> int:
    """Delete every entry that one of these translations made; how many there were.

    Without it a peer's established flow would go on to whatever the addresses mean next.
    """
    with NFCTSocket() as netlink:
        try:
            return sum(_forget(netlink, translation) for translation in translations)
        except NetlinkError as error:
            raise KernelError(f"connection tracking: {os.strerror(error.code)}") from error


def _forget(netlink: NFCTSocket, translation: Translation) -> int:
    external, internal = translation.external, translation.internal
    inbound = _entries(netlink, NFCTAttrTuple(daddr=str(external)), reply_source=internal)
    outbound = _entries(netlink, NFCTAttrTuple(saddr=str(internal)), reply_destination=external)
    # Both lists are read whole before the socket is used for deleting.
    entries = [*inbound, *outbound]
    for entry in entries:
        try:
            netlink.entry("del", tuple_orig=entry)
        except NetlinkError as error:
            if error.code != _ENOENT:
                raise
    return len(entries)


def _entries(
    netlink: NFCTSocket,
    original: NFCTAttrTuple,
    reply_source: IPv4Address | None = None,
    reply_destination: IPv4Address | None = None,
) -> Iterator[NFCTAttrTuple]:
    """Entries with that original direction whose answers have that address.

    Kernels before 5.8 ignore the filter of the dump, so the original direction is compared here
    again.
    """
    for message in netlink.dump(tuple_orig=original):
        forward = _tuple(message.get_attr("CTA_TUPLE_ORIG"))
        reply = _tuple(message.get_attr("CTA_TUPLE_REPLY"))
        if original.saddr not in (None, forward.saddr) or original.daddr not in (
            None,
            forward.daddr,
        ):
            continue
        if reply_source is not None and reply.saddr != str(reply_source):
            continue
        if reply_destination is not None and reply.daddr != str(reply_destination):
            continue
        yield forward


def _tuple(attribute: object) -> NFCTAttrTuple:
    parsed = NFCTAttrTuple.from_netlink(2, attribute)
    # from_netlink reads ports of TCP and UDP only; SCTP, DCCP and UDP-Lite have them too.
    protocol = attribute.get_attr("CTA_TUPLE_PROTO")  # type: ignore[attr-defined]
    if parsed.icmp_id is None:
        parsed.sport = protocol.get_attr("CTA_PROTO_SRC_PORT")
        parsed.dport = protocol.get_attr("CTA_PROTO_DST_PORT")
    return parsed
