"""Which entries of connection tracking have to be deleted, until all of them have been. Pure.

Entries are deleted in rounds. A round reads all entries, for all flushes that waited when it began.
Passes come between its steps: a flush that they add waits for the next round, and one that is no
longer right ends at once, in the middle of a round.
"""

from collections.abc import Iterable, Set

from vm_onetoone_nat.decide.host_writes import FlushBypassing, FlushTranslated
from vm_onetoone_nat.model.family import Family, family_of
from vm_onetoone_nat.model.flow import Flow
from vm_onetoone_nat.model.nat_table import Translation

_TCP = 6  # IPPROTO_TCP

Flush = FlushTranslated | FlushBypassing


class Flushes:
    """The flushes that wait, and those of the round that runs."""

    def __init__(self) -> None:
        self._waiting: dict[Translation, Flush] = {}
        self._running: dict[Translation, Flush] = {}
        self._serving: dict[Translation, FlushBypassing] = {}
        self._due = _Due(())

    def add(self, flushes: Iterable[Flush]) -> None:
        """Add flushes, after their translations have been added to our table or deleted.

        A translation that is back is no longer flushed for its deletion: a packet of its earlier
        flows goes where it would go without them. Of a translation that is deleted, or whose
        external address has another one, nothing is flushed that bypasses it.
        """
        added = {flush.translation: flush for flush in flushes}
        serving = {p: f for p, f in added.items() if isinstance(f, FlushBypassing)}
        served = {pair.external for pair in serving}
        for held in (self._waiting, self._running, self._serving):
            for pair, flush in tuple(held.items()):
                bypassing = isinstance(flush, FlushBypassing)
                if pair in added or (bypassing and pair.external in served):
                    del held[pair]
        self._waiting.update(added)
        self._serving.update(serving)
        self._due = _Due(self._running.values())

    def again(self, pairs: Iterable[Translation]) -> None:
        """Flush once more what bypasses these translations: their addresses have been added.

        A packet that was on its way during the first round may have made an entry after it.
        """
        self._waiting.update({pair: self._serving[pair] for pair in pairs if pair in self._serving})

    def forget(self, pairs: Iterable[Translation]) -> None:
        """These translations are going to be added: they are no longer flushed."""
        for pair in pairs:
            self._serving.pop(pair, None)

    def begin(self) -> frozenset[Family]:
        """Begin a round; return the families whose entries it reads.

        It has all flushes that wait, and those of a round that did not end.
        """
        self._running, self._waiting = {**self._running, **self._waiting}, {}
        self._due = _Due(self._running.values())
        return frozenset(family_of(pair.external) for pair in self._running)

    def end(self) -> None:
        """The round has read all entries, and deleted those that were due."""
        self._running = {}

    @property
    def left(self) -> bool:
        """Whether there is a flush that has not ended."""
        return bool(self._waiting or self._running)

    @property
    def flushed(self) -> frozenset[Translation]:
        """The translations of which what bypasses them has been deleted, or is going to be."""
        return frozenset(self._serving)

    @property
    def sources(self) -> Set[bytes]:
        """The source addresses, packed, of what this round deletes."""
        return self._due.sources

    @property
    def destinations(self) -> Set[bytes]:
        """The destination addresses, packed, of what this round deletes."""
        return self._due.destinations

    def is_due(self, flow: Flow) -> bool:
        """Whether this round deletes such an entry."""
        return self._due.has(flow)


class _Due:
    """What a round deletes, by packed addresses."""

    def __init__(self, flushes: Iterable[Flush]) -> None:
        self._deleted: set[tuple[bytes, bytes]] = set()
        self._internal: dict[bytes, bytes] = {}
        self._hosts: dict[bytes, frozenset[bytes]] = {}
        sources, destinations = set(), set()
        for flush in flushes:
            external = flush.translation.external.packed
            internal = flush.translation.internal.packed
            sources.add(internal)
            destinations.add(external)
            if isinstance(flush, FlushTranslated):
                self._deleted.add((external, internal))
                continue
            self._internal[external] = internal
            # The host may have the external address without us: it is then one of its sources.
            hosts = frozenset(host.packed for host in flush.host_sources) - {external}
            self._hosts[internal] = self._hosts.get(internal, hosts) & hosts
        self.sources: Set[bytes] = frozenset(sources)
        self.destinations: Set[bytes] = frozenset(destinations)

    def has(self, flow: Flow) -> bool:
        """Whether a deleted translation created the flow, or it bypasses one that exists.

        TCP connections of a guest from before its translation are kept: they end by themselves,
        and their peers know them by the old address.
        """
        inbound = flow.destination, flow.reply_source
        outbound = flow.reply_destination, flow.source
        if inbound in self._deleted or outbound in self._deleted:
            return True
        if self._internal.get(flow.destination, flow.reply_source) != flow.reply_source:
            return True
        return flow.protocol != _TCP and flow.reply_destination in self._hosts.get(flow.source, ())
