"""nftables, by libnftables' JSON interface. The only module that writes rules."""

import json
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property

import nftables
from pyroute2.netlink import NETLINK_NETFILTER, NLM_F_REQUEST
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nfnetlink.nftsocket import nft_gen_msg
from pyroute2.netlink.nlsocket import NetlinkSocket

from vm_onetoone_nat.decide.nft_writes import AdoptTable, InstallTable
from vm_onetoone_nat.decide.writes import NftWrite
from vm_onetoone_nat.errors import KernelError, TransactionRefused
from vm_onetoone_nat.kernel.messages.nft_accept import (
    FORWARD_CHAINS,
    parse_chains,
    parse_foreign_chain,
    parse_obstacle,
)
from vm_onetoone_nat.kernel.messages.nft_foreign import (
    Ruleset,
    lookups,
    parse_chain,
    parse_collection,
)
from vm_onetoone_nat.kernel.messages.nft_owner import Ownership
from vm_onetoone_nat.kernel.messages.nft_table import PERSISTENT_JSON, TABLE_JSON, parse_table
from vm_onetoone_nat.kernel.messages.ruleset import Json, transaction_commands
from vm_onetoone_nat.kernel.ownership import OwnershipSocket
from vm_onetoone_nat.model.family import FAMILIES
from vm_onetoone_nat.model.host import ChainName, ForeignChain, Obstacle
from vm_onetoone_nat.model.nat_table import TABLE, Table
from vm_onetoone_nat.model.traffic import Counters, parse_counters

_ROUTED = (*(family.nft for family in FAMILIES), "inet")
"""The families of tables that packets of guests pass as IP."""

# NFNL_SUBSYS_NFTABLES; NFT_MSG_NEWGEN, NFT_MSG_GETGEN.
_NEW_GENERATION, _GET_GENERATION = 10 << 8 | 15, 10 << 8 | 16

# NFNL_MSG_BATCH_BEGIN and NFNL_MSG_BATCH_END, each with an nfgenmsg that names the subsystem.
_EMPTY_TRANSACTION = b"".join(
    struct.pack("=IHHIIBB", 20, kind, NLM_F_REQUEST, 0, 0, 0, 0) + struct.pack("!H", 10)
    for kind in (0x10, 0x11)
)


class _UnreadableListing(KernelError):
    """libnftables printed invalid JSON, as 1.0.6 does for a table with flags such as `owner`."""


class _Context:
    """One libnftables context. Not thread-safe. `stateless` listings have no counter values.

    `dry_run`: commands are checked by the kernel and not executed.
    """

    def __init__(self, *, stateless: bool, dry_run: bool = False) -> None:
        self._nftables = nftables.Nftables()
        self._nftables.set_json_output(True)
        self._nftables.set_handle_output(True)
        self._nftables.set_stateless_output(stateless)
        self._nftables.set_dry_run(dry_run)

    def list(self, what: Json) -> list[Json]:
        """The objects of a listing. Raises KernelError."""
        code, error, output = self.run([{"list": what}])
        if code != 0:
            raise KernelError(f"nftables cannot be listed: {_one_line(error)}")
        if not output:
            return []
        try:
            listing: list[Json] = json.loads(output)["nftables"]
        except json.JSONDecodeError as error:
            raise _UnreadableListing("libnftables printed a listing that is not JSON") from error
        return listing

    def text(self, what: Json) -> str:
        """The same listing as `nft` prints it, with handles. Raises KernelError."""
        self._nftables.set_json_output(False)
        try:
            ((kind, value),) = what.items()
            code, output, error = self._nftables.cmd(
                f"list {kind} {value['family']} {value['table']} {value['name']}"
            )
        finally:
            self._nftables.set_json_output(True)
        if code != 0:
            raise KernelError(f"nftables cannot be listed: {_one_line(error)}")
        return str(output)

    def run(self, commands: Sequence[Json]) -> tuple[int, str, str]:
        """Exit code, errors, output."""
        code, output, error = self._nftables.cmd(json.dumps({"nftables": commands}))
        return code, error, output


def read_counters() -> Counters | None:
    """The counters of our table; None if it does not exist. From any thread."""
    try:
        return parse_counters(_Context(stateless=False).list(TABLE_JSON))
    except KernelError:
        return None


def read_others() -> Ruleset:
    """The chains of foreign tables that guests' packets may pass. Raises KernelError."""
    context = _Context(stateless=True)
    names = parse_chains(context.list({"chains": None}))
    chains, sets = {}, {}
    for name in names:
        if name.table == TABLE or name.family not in (*_ROUTED, "bridge", "netdev"):
            continue
        reference = {"family": name.family, "table": name.table, "name": name.name}
        try:
            chain = parse_chain(
                name, context.list({"chain": reference}), context.text({"chain": reference})
            )
        except _UnreadableListing:
            continue
        chains[name] = chain
        for looked_up in sorted(s for rule in chain.rules for s in lookups(rule.expression)):
            for kind in ("set", "map"):
                with suppress(KernelError):
                    listing = context.list({kind: {**reference, "name": looked_up}})
                    sets[name.family, name.table, looked_up] = parse_collection(listing)
    return Ruleset(chains, sets)


def _knows_owners() -> bool:
    """Whether libnftables and the kernel know tables that outlive their owner. Writes nothing.

    libnftables 1.0.6 ignores the flags of a table, whatever they are.
    """
    context = _Context(stateless=True, dry_run=True)

    def takes(flags: Sequence[str]) -> bool:
        table = {"family": "inet", "name": f"{TABLE}_flags", "flags": flags}
        code, _, _ = context.run([{"add": {"table": table}}])
        return code == 0

    return takes(PERSISTENT_JSON["table"]["flags"]) and not takes(["unknown"])


class Nft:
    """The whole ruleset. Not thread-safe: use it from the thread that reconciles.

    `owner`: where nftables knows tables with an owner, ours has to belong to this process.
    """

    def __init__(self, *, owner: bool = False) -> None:
        self._context = _Context(stateless=True)
        # The owner of a table is a socket, which a context keeps while it exists (nftables 0.9.9).
        self._writer = _Context(stateless=True)
        self._owner = owner
        self._port: int | None = None
        self._netlink = NetlinkSocket(family=NETLINK_NETFILTER)
        self._netlink.register_policy({_NEW_GENERATION: nft_gen_msg})
        self._netlink.bind()
        self.generation = 0
        """The ruleset generation with which `observe` began; it may miss later changes."""
        self._listed: tuple[int, Table] | None = None
        self._batches = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        self._ownership = OwnershipSocket()

    def close(self) -> None:
        """Close the sockets."""
        self._netlink.close()
        self._batches.close()
        self._ownership.close()

    @cached_property
    def persistent(self) -> bool:
        """Whether nftables knows tables that only their owner writes, and that outlive it."""
        return _knows_owners()

    def observe(
        self, fwmark: int
    ) -> tuple[Table | None, tuple[ForeignChain, ...], tuple[Obstacle, ...]]:
        """Our table if it exists, the foreign chains that need an accept, and obstacles.

        `fwmark` is the mark bit of admitted packets, for the remedies of obstacles.
        """
        self.generation = self._generation()
        if self._listed is None or self._listed[0] != self.generation:
            self._wait_for_writer()
        ownership = self._ownership.read()
        # Not `list tables`: libnftables 1.0.6 prints invalid JSON for tables with flags.
        chains = parse_chains(self._context.list({"chains": None}))
        hooks = {chain: chains[chain] for chain in chains if chains[chain] is not None}
        foreign = tuple(
            parse_foreign_chain(name, self._chain(name)) for name in FORWARD_CHAINS if name in hooks
        )
        obstacles = (
            parse_obstacle(name, self._chain(name), fwmark)
            for name, hook in hooks.items()
            if hook == "forward" and name not in FORWARD_CHAINS and name.family in _ROUTED
            if name.table != TABLE
        )
        return (
            self._with_owner(self._table(), ownership) if ownership is not None else None,
            foreign,
            tuple(o for o in obstacles if o is not None),
        )

    def apply(self, writes: Sequence[NftWrite]) -> None:
        """Write all in one transaction, or nothing.

        Raises TransactionRefused with libnftables' message; nothing has changed then.
        """
        code, error, _ = self._writer.run(transaction_commands(writes))
        if code != 0:
            raise self._refusal(error)
        if any(isinstance(write, AdoptTable | InstallTable) for write in writes):
            ownership = self._ownership.read()
            self._port = ownership.owner if ownership is not None else None

    def _refusal(self, error: str) -> TransactionRefused:
        ownership = self._ownership.read()
        if ownership is not None and ownership.owner not in (None, self._port):
            table = f"table inet {TABLE}"
            return TransactionRefused(
                f"nftables refused a transaction: {table} belongs to another process, "
                f"netlink port {ownership.owner}",
                hint=f"end the program that 'nft list {table}' names in its first line",
            )
        return TransactionRefused(
            f"nftables refused a transaction: {_one_line(error)}",
            hint="the daemon retries; 'nft monitor' shows what other programs write",
        )

    def _with_owner(self, table: Table, ownership: Ownership) -> Table:
        owner = ownership.owner
        owned = owner is not None and (owner == self._port or not self._owner)
        return replace(
            table,
            persistent=ownership.persistent,
            owned=owned or not ownership.persistent,
        )

    def _table(self) -> Table:
        """Our table; not listed again while the ruleset generation is the same.

        Every transaction in this network namespace begins a new generation, and only a transaction
        changes our table, apart from its owner: its elements have no timeout, no rule adds any, and
        it outlives an owner. `observe` has just read that it exists, after the transaction that
        began this generation was complete.
        """
        if self._listed is not None and self._listed[0] == self.generation:
            return self._listed[1]
        self._listed = None
        try:
            table = parse_table(self._context.list(TABLE_JSON))
        except _UnreadableListing:
            # We did not write it like that: it is replaced.
            return Table(intact=False)
        if table.intact and self._generation() == self.generation:
            self._listed = self.generation, table
        return table

    def _chain(self, name: ChainName) -> list[Json]:
        reference = {"family": name.family, "table": name.table, "name": name.name}
        return self._context.list({"chain": reference})

    def _wait_for_writer(self) -> None:
        """Wait until the transaction that began the current generation is complete.

        The kernel increments the generation before all of it can be listed: interval sets come last
        (nf_tables_commit). An empty transaction waits for the writers' mutex, and writes nothing.
        """
        with suppress(OSError):
            self._batches.send(_EMPTY_TRANSACTION)

    def _generation(self) -> int:
        try:
            (answer,) = self._netlink.nlm_request(nft_gen_msg(), _GET_GENERATION, NLM_F_REQUEST)
        except NetlinkError as error:
            raise KernelError(f"nftables' generation cannot be read: {error}") from error
        return int(answer.get_attr("NFTA_GEN_ID"))


def _one_line(error: str) -> str:
    """libnftables' messages, each once: it repeats them for every command of a transaction."""
    lines = (line.partition("Error: ")[2] or line for line in error.splitlines())
    return "; ".join(dict.fromkeys(line.strip() for line in lines if line.strip())) or "no reason"
