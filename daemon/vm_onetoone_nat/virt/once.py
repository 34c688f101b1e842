"""libvirt for one command: a connection without events."""

import threading
from typing import Any

from vm_onetoone_nat.errors import LibvirtUnavailable
from vm_onetoone_nat.internal_errors import Work, contain
from vm_onetoone_nat.model.guests import Guests
from vm_onetoone_nat.virt.agents import Agents
from vm_onetoone_nat.virt.answers import ANSWER_SECONDS, BoundedCalls
from vm_onetoone_nat.virt.connection import connect, silence
from vm_onetoone_nat.virt.read import Definitions, read_domains, read_networks


class LibvirtOnce:
    """A connection for one command: opened by the first `observe`, without events."""

    def __init__(self, uri: str, *, guest_agent: bool = False) -> None:
        silence()
        self._uri = uri
        self._connection: Any = None
        self._agent_answered = threading.Event()
        self._agents = Agents(uri, self._agent_answered.set) if guest_agent else None
        self._calls = BoundedCalls(lambda: None, ANSWER_SECONDS[1])

    def observe(self) -> Guests:
        """All domains and networks. Raises LibvirtUnavailable."""
        with contain(Work.GUESTS, raises=LibvirtUnavailable):
            guests = self._observe()
        return guests

    def _observe(self) -> Guests:
        if self._connection is None:
            self._connection = self._calls.call(lambda: connect(self._uri))
        guests = self._calls.call(self._read)
        if self._agents is not None and self._agent_answered.wait(ANSWER_SECONDS[0]):
            guests = self._calls.call(self._read)
        return guests

    def _read(self) -> Guests:
        domains = read_domains(self._connection, Definitions(), self._agents)
        return Guests(domains, read_networks(self._connection))
