"""Deletes and counts entries of the kernel's connection tracking (pyroute2)."""

import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from socket import IPPROTO_TCP

from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple, NFCTSocket

from vm_onetoone_nat.errors import KernelError
from vm_onetoone_nat.model.family import FAMILIES, Family, IPAddress, family_of
from vm_onetoone_nat.model.nat_table import Translation
from vm_onetoone_nat.model.traffic import Tracked

_ENOENT = 2

_FEW = 16
"""Up to this many translations, one filtered dump for each address; above, one dump of all."""


@dataclass(frozen=True, slots=True)
class _Flow:
    original: NFCTAttrTuple
    reply: NFCTAttrTuple


def flush_translated(translations: tuple[Translation, ...]) -> None:
    """Delete every entry that one of these translations created. Raises KernelError.

    Otherwise an established flow of a peer continues to whichever guest has the address next.
    """

    def created(entry: _Flow, pair: Translation) -> bool:
        external, internal = str(pair.external), str(pair.internal)
        inbound = entry.original.daddr == external and entry.reply.saddr == internal
        outbound = entry.original.saddr == internal and entry.reply.daddr == external
        return bool(inbound or outbound)

    _delete(translations, created)


def flush_bypassing(
    translations: tuple[Translation, ...], host_sources: Collection[IPAddress]
) -> None:
    """Delete every entry by which a flow bypasses one of these translations. Raises KernelError.

    These are flows to the external address that go elsewhere, and flows of the guest that leave
    with one of `host_sources`. TCP connections of the guest are kept: they end by themselves, and
    their peers know them by the old address.
    """
    _delete(translations, _bypasses(host_sources))


def track(translation: Translation, host_sources: Collection[IPAddress]) -> Tracked:
    """Count the entries of one translation, and those that bypass it. Raises KernelError."""
    bypasses = _bypasses(host_sources)
    family = family_of(translation.external)
    with NFCTSocket(family.number) as netlink:
        try:
            entries = _entries(netlink, family, (translation,))
            found = {str(entry): bypasses(entry, pair) for entry, pair in entries}
        except NetlinkError as error:
            raise _failure(error) from error
    return Tracked(len(found), sum(found.values()))


def _bypasses(host_sources: Collection[IPAddress]) -> Callable[[_Flow, Translation], bool]:
    sources = {str(host) for host in host_sources}

    def bypasses(entry: _Flow, pair: Translation) -> bool:
        external, internal = str(pair.external), str(pair.internal)
        inbound = entry.original.daddr == external and entry.reply.saddr != internal
        outbound = entry.original.saddr == internal and entry.reply.daddr in sources
        return bool(inbound or (outbound and entry.original.proto != IPPROTO_TCP))

    return bypasses


def _failure(error: NetlinkError) -> KernelError:
    return KernelError(f"connection tracking: {os.strerror(error.code)}")


def _delete(
    translations: tuple[Translation, ...], matches: Callable[[_Flow, Translation], bool]
) -> None:
    for family in FAMILIES:
        pairs = tuple(pair for pair in translations if family_of(pair.external) is family)
        if pairs:
            _delete_of(family, pairs, matches)


def _delete_of(
    family: Family,
    translations: tuple[Translation, ...],
    matches: Callable[[_Flow, Translation], bool],
) -> None:
    with NFCTSocket(family.number) as netlink:
        try:
            # Read the whole dump before the socket is used to delete.
            entries = _entries(netlink, family, translations)
            matching = [entry for entry, pair in entries if matches(entry, pair)]
            for entry in matching:
                try:
                    netlink.entry("del", tuple_orig=entry.original)
                except NetlinkError as error:
                    if error.code != _ENOENT:
                        raise
        except NetlinkError as error:
            raise _failure(error) from error


def _entries(
    netlink: NFCTSocket, family: Family, translations: tuple[Translation, ...]
) -> Iterator[tuple[_Flow, Translation]]:
    """Entries whose original direction goes to an external or comes from an internal address."""
    by_external = {str(pair.external): pair for pair in translations}
    by_internal = {str(pair.internal): pair for pair in translations}
    filters: list[NFCTAttrTuple | None] = [None]
    if len(translations) <= _FEW:
        filters = [NFCTAttrTuple(family=family.number, daddr=address) for address in by_external]
        filters += [NFCTAttrTuple(family=family.number, saddr=address) for address in by_internal]
    for wanted in filters:
        # Kernels before 5.8 ignore the filter of the dump, so each entry is compared here again.
        for message in netlink.dump(tuple_orig=wanted):
            if (original := message.get_attr("CTA_TUPLE_ORIG")) is None:
                continue
            reply = message.get_attr("CTA_TUPLE_REPLY")
            entry = _Flow(_tuple(original, family), _tuple(reply, family))
            for pair in (
                by_external.get(entry.original.daddr),
                by_internal.get(entry.original.saddr),
            ):
                if pair is not None:
                    yield entry, pair


def _tuple(attribute: object, family: Family) -> NFCTAttrTuple:
    parsed = NFCTAttrTuple.from_netlink(family.number, attribute)
    # from_netlink reads ports of TCP and UDP only; SCTP, DCCP and UDP-Lite have ports too.
    protocol = attribute.get_attr("CTA_TUPLE_PROTO")  # type: ignore[attr-defined]
    if parsed.icmp_id is None:
        parsed.sport = protocol.get_attr("CTA_PROTO_SRC_PORT")
        parsed.dport = protocol.get_attr("CTA_PROTO_DST_PORT")
    return parsed
