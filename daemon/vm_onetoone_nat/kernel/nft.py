"""nftables, by libnftables' JSON interface. The only module that writes rules."""

import json
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress

import nftables
from pyroute2.netlink import NETLINK_NETFILTER, NLM_F_REQUEST
from pyroute2.netlink.nfnetlink.nftsocket import nft_gen_msg
from pyroute2.netlink.nlsocket import NetlinkSocket

from vm_onetoone_nat.decide.writes import NftWrite
from vm_onetoone_nat.errors import KernelError, TransactionRefused
from vm_onetoone_nat.kernel.classify import kernel_errors
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
from vm_onetoone_nat.kernel.messages.nft_table import TABLE_JSON, parse_table
from vm_onetoone_nat.kernel.messages.ruleset import Json, transaction_commands
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
    """One libnftables context. Not thread-safe. `stateless` listings have no counter values."""

    def __init__(self, *, stateless: bool) -> None:
        self._nftables = nftables.Nftables()
        self._nftables.set_json_output(True)
        self._nftables.set_handle_output(True)
        self._nftables.set_stateless_output(stateless)

    def list(self, what: Json) -> list[Json]:
        """The objects of a listing. Raises KernelError."""
        code, error, output = self.run([{"list": what}])
        if code != 0:
            raise KernelError(f"nftables cannot be listed: {_one_line(error)}")
        if not output:
            return []
        try:
            listing: list[Json] = json.loads(output)["nftables"]
        except (ValueError, LookupError, TypeError) as error:
            raise _UnreadableListing("libnftables printed a listing that is not JSON") from error
        return listing

    def text(self, what: Json) -> str:
        """The same listing as `nft` prints it, with handles. Raises KernelError."""
        self._nftables.set_json_output(False)
        ((kind, value),) = what.items()
        command = f"list {kind} {value['family']} {value['table']} {value['name']}"
        try:
            with kernel_errors("nftables cannot be listed"):
                code, output, error = self._nftables.cmd(command)
        finally:
            self._nftables.set_json_output(True)
        if code != 0:
            raise KernelError(f"nftables cannot be listed: {_one_line(error)}")
        return str(output)

    def run(self, commands: Sequence[Json]) -> tuple[int, str, str]:
        """Exit code, errors, output. Raises KernelError if these are not UTF-8."""
        with kernel_errors("libnftables' answer cannot be read"):
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


class Nft:
    """The whole ruleset. Not thread-safe: use it from the thread that reconciles."""

    def __init__(self) -> None:
        self._context = _Context(stateless=True)
        self._netlink = NetlinkSocket(family=NETLINK_NETFILTER)
        self._netlink.register_policy({_NEW_GENERATION: nft_gen_msg})
        self._netlink.bind()
        self.generation = 0
        """The ruleset generation with which `observe` began; it may miss later changes."""
        self._listed: tuple[int, Table] | None = None
        self._batches = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)

    def close(self) -> None:
        """Close the sockets."""
        self._netlink.close()
        self._batches.close()

    def observe(
        self, fwmark: int
    ) -> tuple[Table | None, tuple[ForeignChain, ...], tuple[Obstacle, ...]]:
        """Our table if it exists, the foreign chains that need an accept, and obstacles.

        `fwmark` is the mark bit of admitted packets, for the remedies of obstacles.
        """
        self.generation = self._generation()
        if self._listed is None or self._listed[0] != self.generation:
            self._wait_for_writer()
        # Not `list tables`: libnftables 1.0.6 prints invalid JSON for tables with flags.
        chains = parse_chains(self._context.list({"chains": None}))
        ours = any((chain.family, chain.table) == ("inet", TABLE) for chain in chains)
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
            self._table() if ours else None,
            foreign,
            tuple(o for o in obstacles if o is not None),
        )

    def apply(self, writes: Sequence[NftWrite]) -> None:
        """Write all in one transaction, or nothing.

        Raises TransactionRefused with libnftables' message; nothing has changed then.
        """
        code, error, _ = self._context.run(transaction_commands(writes))
        if code != 0:
            raise TransactionRefused(
                f"nftables refused a transaction: {_one_line(error)}",
                hint="the daemon retries; 'nft monitor' shows what other programs write",
            )

    def _table(self) -> Table:
        """Our table; not listed again while the ruleset generation is the same.

        Every transaction in this network namespace begins a new generation, and only a transaction
        changes our table: its elements have no timeout, no rule adds any, and it has no owner with
        which it would disappear. `observe` has just listed that it exists, after the transaction
        that began this generation was complete.
        """
        if self._listed is not None and self._listed[0] == self.generation:
            return self._listed[1]
        self._listed = None
        try:
            table = parse_table(self._context.list(TABLE_JSON))
        except (_UnreadableListing, ValueError, LookupError, TypeError, AttributeError):
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
        with kernel_errors("nftables' generation cannot be read"):
            answers = self._netlink.nlm_request(nft_gen_msg(), _GET_GENERATION, NLM_F_REQUEST)
            generations = [answer.get_attr("NFTA_GEN_ID") for answer in answers]
        if len(generations) != 1 or generations[0] is None:
            raise KernelError("nftables' generation cannot be read: no answer")
        return int(generations[0])


def _one_line(error: str) -> str:
    """libnftables' messages, each once: it repeats them for every command of a transaction."""
    lines = (line.partition("Error: ")[2] or line for line in error.splitlines())
    return "; ".join(dict.fromkeys(line.strip() for line in lines if line.strip())) or "no reason"
