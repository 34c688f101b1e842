"""The host's addresses and default routes, by rtnetlink."""

import json
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from errno import EADDRNOTAVAIL, EEXIST, ENODEV
from itertools import groupby, islice
from operator import attrgetter
from pathlib import Path
from typing import TypeVar

from vm_onetoone_nat.errors import KernelError
from vm_onetoone_nat.kernel.classify import kernel_errors
from vm_onetoone_nat.kernel.links import links
from vm_onetoone_nat.kernel.messages import ifaddr, routes, rtnetlink
from vm_onetoone_nat.kernel.netlink import ROUTE, Netlink
from vm_onetoone_nat.kernel.release import kernel_release
from vm_onetoone_nat.model.family import FAMILIES, IPV4, Family, IPInterface, family_of_text
from vm_onetoone_nat.model.host import Address
from vm_onetoone_nat.model.links import DefaultRoute, Link
from vm_onetoone_nat.store.text import read_text, replace_text

T = TypeVar("T")

PROTOCOL = 118
"""Our number in IFA_PROTO, which records who added an address; the kernel uses 1 to 3."""

_MOST_AT_ONCE = 128
"""Messages in one datagram: the errors of all of them fit into the socket's buffer."""


def host_addresses() -> tuple[Address, ...]:
    """All addresses of this host, for a process without privileges; `owned` is not determined."""
    netlink = Netlink(ROUTE, "rtnetlink")
    addresses = Addresses(Path(os.devnull), protocol_kept=True)
    with closing(netlink), closing(addresses):
        return addresses.observe(links(netlink))


class Addresses:
    """Reads and writes addresses in the network namespace in which it was created.

    Our addresses carry our protocol number. A kernel before 5.18 drops the number silently: there
    the file `record` lists our addresses, and is written before they are added.
    """

    def __init__(self, record: Path, *, protocol_kept: bool | None = None) -> None:
        self._netlink = Netlink(ROUTE, "rtnetlink")
        self._record = record
        self._protocol_kept = (
            kernel_release() >= (5, 18) if protocol_kept is None else protocol_kept
        )

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()

    @property
    def portid(self) -> int:
        """The netlink port that changes addresses: the sender of notifications about them."""
        return self._netlink.portid

    def observe(self, interfaces: Mapping[int, Link]) -> tuple[Address, ...]:
        """All addresses on these interfaces, in the kernel's order."""
        recorded = set() if self._protocol_kept else self._recorded()
        found: list[Address] = []
        with_primary: set[str] = set()
        for entry in self._list(ifaddr.listing, ifaddr.listed_addresses):
            link = interfaces.get(entry.ifindex)
            if link is None:
                continue
            ifname = link.name
            owned = entry.protocol == PROTOCOL or (ifname, entry.interface) in recorded
            found.append(
                Address(
                    ifname,
                    entry.interface,
                    entry.broadcast,
                    owned=owned,
                    primary=not owned and ifname not in with_primary,
                )
            )
            if not owned:
                with_primary.add(ifname)
        return tuple(found)

    def default_routes(self) -> tuple[DefaultRoute, ...]:
        """The default routes of the main table."""
        return self._list(routes.listing, routes.default_routes)

    def add(self, addresses: Iterable[Address]) -> None:
        """Add addresses as ours, in this order; one that exists already is not an error.

        Raises KernelError after all others have been added.
        """
        wanted = tuple(addresses)
        if not self._protocol_kept:
            self._write_record(self._recorded() | _records(wanted))
        failures: list[str] = []
        for ifname, batch in _batches(wanted):
            try:
                index = socket.if_nametoindex(ifname)
            except OSError:
                failures.append(f"interface {ifname} is gone")
                continue
            messages = ifaddr.additions(
                index, ((a.interface, a.broadcast) for a in batch), PROTOCOL
            )
            failures += self._change("added", messages, batch, EEXIST)
        _raise_any(failures)

    def delete(self, addresses: Iterable[Address]) -> None:
        """Delete addresses; a missing one is not an error. Raises KernelError as `add`.

        Other addresses of their subnets stay, even if the first of a subnet is deleted.
        """
        # In reverse order: when the first of a subnet is deleted, the kernel promotes the next and
        # adds the routes of all others again (net/ipv4/devinet.c).
        unwanted = tuple(addresses)[::-1]
        failures: list[str] = []
        for ifname, batch in _batches(unwanted):
            with _promote_secondaries(ifname):
                try:
                    index = socket.if_nametoindex(ifname)
                except OSError:
                    continue  # the interface is gone, and its addresses too
                messages = ifaddr.deletions(index, (a.interface for a in batch))
                failures += self._change("deleted", messages, batch, EADDRNOTAVAIL)
        if not self._protocol_kept:
            self._write_record(self._recorded() - _records(unwanted))
        _raise_any(failures)

    def _change(
        self, verb: str, messages: bytes, batch: tuple[Address, ...], already: int
    ) -> Iterator[str]:
        """Send the messages for these addresses; yield the errors."""
        results: dict[int, int] = {}
        try:
            with kernel_errors(f"addresses could not be {verb}"):
                self._netlink.send(messages)
                while len(batch) - 1 not in results:
                    results.update(self._netlink.receive().results)
        except KernelError as error:
            yield str(error)
        for number, error_number in results.items():
            # An interface that disappears meanwhile has its own notification.
            gone = error_number == ENODEV and verb == "deleted"
            if error_number not in (0, already) and not gone:
                yield f"address {batch[number]} could not be {verb}: {os.strerror(error_number)}"

    def _list(
        self,
        request: Callable[[Family], bytes],
        read: Callable[[rtnetlink.Answer], Iterator[T]],
    ) -> tuple[T, ...]:
        """A dump of each family. Raises KernelError."""
        dumps = (self._netlink.dump(request(family)) for family in FAMILIES)
        return tuple(found for dump in dumps for answer in dump for found in read(answer))

    def _recorded(self) -> set[tuple[str, IPInterface]]:
        try:
            entries = json.loads(read_text(self._record))
        except FileNotFoundError:
            return set()
        except (OSError, ValueError) as error:
            raise KernelError(
                f"{self._record}: cannot be read: {error}",
                hint="remove the file, and by hand the addresses that the daemon has added",
            ) from error
        return {(ifname, family_of_text(written).interface(written)) for ifname, written in entries}

    def _write_record(self, entries: set[tuple[str, IPInterface]]) -> None:
        text = json.dumps(sorted((ifname, str(interface)) for ifname, interface in entries))
        try:
            replace_text(self._record, text)
        except OSError as error:
            raise KernelError(f"{self._record}: cannot be written: {error}") from error


@contextmanager
def _promote_secondaries(ifname: str) -> Iterator[None]:
    """Set promote_secondaries: without it, deleting the primary address deletes its whole subnet.

    systemd sets it permanently; where it was off, it is restored. IPv4 only: a subnet of IPv6 has
    no primary address.
    """
    setting = Path("/proc/sys", IPV4.setting(ifname, "promote_secondaries"))
    try:
        off = setting.read_text().strip() == "0"
        if off:
            setting.write_text("1\n")
    except FileNotFoundError:
        off = False  # the interface is gone
    except OSError as error:
        raise KernelError(f"{setting}: cannot be set: {error.strerror}") from error
    try:
        yield
    finally:
        if off:
            with suppress(OSError):
                setting.write_text("0\n")


def _batches(addresses: tuple[Address, ...]) -> Iterator[tuple[str, tuple[Address, ...]]]:
    """The addresses in their order, in batches of one interface that fit into one datagram."""
    for ifname, each in groupby(addresses, attrgetter("ifname")):
        while batch := tuple(islice(each, _MOST_AT_ONCE)):
            yield ifname, batch


def _raise_any(failures: list[str]) -> None:
    if failures:
        raise KernelError("; ".join(failures))


def _records(addresses: tuple[Address, ...]) -> set[tuple[str, IPInterface]]:
    return {(a.ifname, a.interface) for a in addresses}
