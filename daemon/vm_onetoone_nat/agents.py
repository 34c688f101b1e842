"""What guest agents tell of their guests' addresses (libvirt).

To ask an agent needs a connection that may write, with which one may do everything to every guest;
so it is only made where the administrator has said so.
"""

import logging
import threading
from collections.abc import Callable
from ipaddress import IPv4Address

import libvirt

log = logging.getLogger(__name__)

AddressesByMac = dict[str, tuple[IPv4Address, ...]]
"""A guest's IPv4 addresses by MAC."""


class Agents:
    """Asks each agent in a thread of its own, since one that hangs may never answer.

    `answered` is called, in that thread, when an agent has told something new.
    """

    def __init__(self, uri: str, answered: Callable[[], None]) -> None:
        self._uri = uri
        self._answered = answered
        self._known: dict[str, AddressesByMac] = {}
        self._asked: set[str] = set()
        self._lock = threading.Lock()

    def addresses(self, uuid: str) -> AddressesByMac:
        """What the agent of that guest has told; it is asked if it was not."""
        with self._lock:
            known, asked = self._known.get(uuid, {}), uuid in self._asked
            self._asked.add(uuid)
        if not asked:
            threading.Thread(target=self._ask, args=(uuid,), name="agent", daemon=True).start()
        return known

    def forget(self, uuid: str) -> None:
        """The agent of that guest is gone, or another one."""
        with self._lock:
            self._known.pop(uuid, None)
            self._asked.discard(uuid)

    def ask_again(self) -> None:
        """Some guest has shown a new address: what was told may be outdated."""
        with self._lock:
            self._asked &= self._asked - self._known.keys()

    def _ask(self, uuid: str) -> None:
        try:
            connection = libvirt.open(self._uri)
            try:
                domain = connection.lookupByUUIDString(uuid)
                told = domain.interfaceAddresses(libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT)
            finally:
                connection.close()
        except libvirt.libvirtError as error:
            log.warning("guest agent of %s: %s", uuid, error.get_error_message())
            return
        found = {
            interface["hwaddr"].lower(): tuple(
                IPv4Address(each["addr"])
                for each in interface["addrs"] or ()
                if each["type"] == libvirt.VIR_IP_ADDR_TYPE_IPV4
            )
            for interface in told.values()
            if interface["hwaddr"]
        }
        with self._lock:
            before, self._known[uuid] = self._known.get(uuid), found
        if found != before:
            self._answered()
