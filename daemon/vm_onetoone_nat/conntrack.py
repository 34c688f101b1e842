"""Ending connections in the kernel's connection tracking (pyroute2)."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from socket import IPPROTO_TCP

from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple, NFCTSocket

from vm_onetoone_nat.errors import KernelError
from vm_onetoone_nat.state import Translation
from vm_onetoone_nat.traffic import Tracked

_ENOENT = 2

_FEW = 16
"""Up to so many translations the kernel is asked for the entries of each, else for all it has."""


@dataclass(frozen=True, slots=True)
class _Entry:
    original: NFCTAttrTuple
    reply: NFCTAttrTuple


def forget(translations: tuple[Translation, ...]) -> int:
    """Delete every entry that one of these translations made; how many there were.

    Without it a peer's established flow would go on to whatever the addresses mean next.
    """

    def made(entry: _Entry, pair: Translation) -> bool:
        external, internal = str(pair.external), str(pair.internal)
        inbound = entry.original.daddr == external and entry.reply.saddr == internal
        outbound = entry.original.saddr == internal and entry.reply.daddr == external
        return bool(inbound or outbound)

    return _delete(translations, made)


def expose(translations: tuple[Translation, ...], hosts: tuple[IPv4Address, ...]) -> int:
    """Delete every entry that would keep a flow from one of these translations; how many.

    Such is a flow to the external address that goes elsewhere, and one of the guest's that still
    leaves by an address of `hosts`. Not the guest's TCP connections: they end by themselves, and
    their peers know them by the old address.
    """
    return _delete(translations, _shadows(hosts))


def track(translation: Translation, hosts: tuple[IPv4Address, ...]) -> Tracked:
    """The entries of one translation, those counted that `expose` would delete. KernelError."""
    shadows = _shadows(hosts)
    with NFCTSocket() as netlink:
        try:
            found = {str(e): shadows(e, pair) for e, pair in _entries(netlink, (translation,))}
        except NetlinkError as error:
            raise _failure(error) from error
    return Tracked(len(found), sum(found.values()))


def _shadows(hosts: tuple[IPv4Address, ...]) -> Callable[[_Entry, Translation], bool]:
    behind = {str(host) for host in hosts}

    def shadows(entry: _Entry, pair: Translation) -> bool:
        external, internal = str(pair.external), str(pair.internal)
        inbound = entry.original.daddr == external and entry.reply.saddr != internal
        outbound = entry.original.saddr == internal and entry.reply.daddr in behind
        return bool(inbound or (outbound and entry.original.proto != IPPROTO_TCP))

    return shadows


def _failure(error: NetlinkError) -> KernelError:
    return KernelError(f"connection tracking: {os.strerror(error.code)}")


def _delete(
    translations: tuple[Translation, ...], ends: Callable[[_Entry, Translation], bool]
) -> int:
    with NFCTSocket() as netlink:
        try:
            # The listing is read whole before the socket is used for deleting.
            ended = [e for e, pair in _entries(netlink, translations) if ends(e, pair)]
            for entry in ended:
                try:
                    netlink.entry("del", tuple_orig=entry.original)
                except NetlinkError as error:
                    if error.code != _ENOENT:
                        raise
        except NetlinkError as error:
            raise _failure(error) from error
    return len(ended)


def _entries(
    netlink: NFCTSocket, translations: tuple[Translation, ...]
) -> Iterator[tuple[_Entry, Translation]]:
    """Entries whose original direction goes to an external or comes from an internal address."""
    by_external = {str(pair.external): pair for pair in translations}
    by_internal = {str(pair.internal): pair for pair in translations}
    filters: list[NFCTAttrTuple | None] = [None]
    if len(translations) <= _FEW:
        filters = [NFCTAttrTuple(daddr=address) for address in by_external]
        filters += [NFCTAttrTuple(saddr=address) for address in by_internal]
    for wanted in filters:
        # Kernels before 5.8 ignore the filter of the dump, so all is compared here again.
        for message in netlink.dump(tuple_orig=wanted):
            if (original := message.get_attr("CTA_TUPLE_ORIG")) is None:
                continue
            entry = _Entry(_tuple(original), _tuple(message.get_attr("CTA_TUPLE_REPLY")))
            for pair in (
                by_external.get(entry.original.daddr),
                by_internal.get(entry.original.saddr),
            ):
                if pair is not None:
                    yield entry, pair


def _tuple(attribute: object) -> NFCTAttrTuple:
    parsed = NFCTAttrTuple.from_netlink(2, attribute)
    # from_netlink reads ports of TCP and UDP only; SCTP, DCCP and UDP-Lite have them too.
    protocol = attribute.get_attr("CTA_TUPLE_PROTO")  # type: ignore[attr-defined]
    if parsed.icmp_id is None:
        parsed.sport = protocol.get_attr("CTA_PROTO_SRC_PORT")
        parsed.dport = protocol.get_attr("CTA_PROTO_DST_PORT")
    return parsed
