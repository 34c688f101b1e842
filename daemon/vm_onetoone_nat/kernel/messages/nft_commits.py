"""Notifications of nftables: which transactions may concern us. Pure.

The kernel sends a transaction's messages in the order of its commands, several in one datagram, and
the new generation at the end, in a datagram of its own (nf_tables_commit). One transaction is
complete before the next begins.

Sets of other programs may change a thousand times a second. Neither our table nor what is read of
foreign chains depends on their sets, so a transaction of nothing else is not reported. A
transaction with a message of another kind is, and so is one that cannot be read.

A pass may observe such a transaction before its notification arrives. It then began with that
generation, or a later one, and `is_news` ignores the trigger. If it began with an earlier one, it
may have missed the transaction, and the trigger starts another pass. So it is enough that
`generation` is the last one that concerns us.

If the kernel drops notifications, all that is waiting is discarded, and a pass observes everything
after that. A transaction of which messages were dropped has begun its generation before they were
sent; the pass waits until it is complete. Its generation's own message may arrive later, and is no
news then.
"""

from vm_onetoone_nat.kernel.messages import nftables
from vm_onetoone_nat.kernel.messages.nftables import read, read_number, read_text
from vm_onetoone_nat.kernel.messages.rtnetlink import notifications
from vm_onetoone_nat.model.nat_table import TABLE
from vm_onetoone_nat.model.trigger import Kind, Trigger

_TABLE_NAME = nftables.MESSAGE_SIZE + 4  # NFTA_*_TABLE is the first attribute of each message
_OURS = TABLE.encode() + b"\0"
_ID, _PID, _PROGRAM = 1, 2, 3  # NFTA_GEN_*
_WRITTEN_BY_US = Trigger(Kind.NFTABLES, "nftables: written by the daemon")


class Commits:
    """Reads the notifications in their order. `own` is the netlink port by which we write."""

    def __init__(self, own: int) -> None:
        self._own = own
        self.generation = 0
        """The generation of the last transaction that may concern us."""
        self._concerns_us = False

    def read(self, data: bytes) -> Trigger | None:
        """The trigger, if a datagram ends a transaction that may concern us."""
        for kind, port, start, end in notifications(data):
            if kind == nftables.NEW_GENERATION:
                return self._ended(port, data, start, end)
            if kind not in nftables.OF_SETS or data.startswith(_OURS, start + _TABLE_NAME):
                self._concerns_us = True
                return None
        return None

    def _ended(self, port: int, data: bytes, start: int, end: int) -> Trigger | None:
        if not self._concerns_us:
            return None
        self._concerns_us = False
        found = read(data, start + nftables.MESSAGE_SIZE, end)
        self.generation = read_number(found.get(_ID)) & 0xFFFFFFFF
        if port == self._own:
            return _WRITTEN_BY_US
        writer = f"{read_text(found.get(_PROGRAM, b''))} (process {read_number(found.get(_PID))})"
        return Trigger(Kind.NFTABLES, f"nftables: written by {writer}", writer)
