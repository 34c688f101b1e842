"""Addresses that guest agents report (libvirt).

A query to an agent needs a read-write connection, which gives full control of every guest; it is
opened only if the configuration enables it.
"""

import logging
import threading
from collections.abc import Callable

import libvirt

from vm_onetoone_nat.internal_errors import Work, contain
from vm_onetoone_nat.model.family import LIBVIRT_TYPES, IPAddress, address

log = logging.getLogger(__name__)

AddressesByMac = dict[str, tuple[IPAddress, ...]]
"""A guest's addresses by MAC."""


class Agents:
    """Queries each agent in a thread of its own, since an agent that hangs may never answer.

    `answered` is called in that thread when an agent reports a change.
    """

    def __init__(self, uri: str, answered: Callable[[], None]) -> None:
        self._uri = uri
        self._answered = answered
        self._known: dict[str, AddressesByMac] = {}
        self._asked: set[str] = set()
        self._lock = threading.Lock()

    def addresses(self, uuid: str) -> AddressesByMac:
        """The addresses that this guest's agent has reported; the first call starts the query."""
        with self._lock:
            known, asked = self._known.get(uuid, {}), uuid in self._asked
            self._asked.add(uuid)
        if not asked:
            threading.Thread(target=self._ask, args=(uuid,), name="agent", daemon=True).start()
        return known

    def invalidate(self, uuid: str) -> None:
        """The agent of this guest has connected or disconnected."""
        with self._lock:
            self._known.pop(uuid, None)
            self._asked.discard(uuid)

    def ask_again(self) -> None:
        """Query all again at the next call: some guest has shown a new address."""
        with self._lock:
            self._asked &= self._asked - self._known.keys()

    @contain(Work.AGENT)
    def _ask(self, uuid: str) -> None:
        try:
            connection = libvirt.open(self._uri)
            try:
                domain = connection.lookupByUUIDString(uuid)
                reported = domain.interfaceAddresses(
                    libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT
                )
            finally:
                connection.close()
        except libvirt.libvirtError as error:
            log.warning("guest agent of %s: %s", uuid, error.get_error_message())
            return
        found = {
            interface["hwaddr"].lower(): tuple(
                address(each["addr"])
                for each in interface["addrs"] or ()
                if each["type"] in LIBVIRT_TYPES
            )
            for interface in reported.values()
            if interface["hwaddr"]
        }
        with self._lock:
            before, self._known[uuid] = self._known.get(uuid), found
        if found != before:
            self._answered()
