"""libnftables, for listings.

With our table it reads no set of another. With a chain it reads all sets of its table, and before a
write the declarations of all sets. It may crash on those: 1.0.6 does on each set that 1.1.2 or
later has written. So it writes nothing, and foreign tables are listed in another process.
"""

import json
from typing import Any

import nftables

from vm_onetoone_nat.errors import KernelError
from vm_onetoone_nat.kernel.messages.nft_table import TABLE_JSON
from vm_onetoone_nat.model.nat_table import TABLE
from vm_onetoone_nat.model.traffic import Counters, parse_counters

Json = dict[str, Any]


class UnreadableListing(KernelError):
    """libnftables printed invalid JSON, as 1.0.6 does for a table with flags such as `owner`."""


class Libnftables:
    """One context. Not thread-safe. `stateless` listings have no counter values."""

    def __init__(self, *, stateless: bool) -> None:
        self._nftables = nftables.Nftables()
        self._nftables.set_handle_output(True)
        self._nftables.set_stateless_output(stateless)

    def knows_flags(self) -> bool:
        """Whether it knows the flags of tables: else it cannot list a table that has some.

        1.0.6 ignores them in a command, also one that does not exist. The command is not executed.
        """
        table = {"family": "inet", "name": f"{TABLE}_flags", "flags": ["unknown"]}
        self._nftables.set_dry_run(True)
        try:
            self.run(json.dumps({"nftables": [{"add": {"table": table}}]}))
        except KernelError:
            return True
        finally:
            self._nftables.set_dry_run(False)
        return False

    def list_table(self) -> list[Json]:
        """The objects of our table, which exists. Raises KernelError."""
        output = self.run(json.dumps({"nftables": [{"list": TABLE_JSON}]}))
        try:
            listing: list[Json] = json.loads(output)["nftables"]
        except json.JSONDecodeError as error:
            raise UnreadableListing("libnftables printed a listing that is not JSON") from error
        return listing

    def run(self, command: str, *, text: bool = False, terse: bool = False) -> str:
        """Run a command in JSON, or with `text` one as for `nft`; its output is of the same kind.

        `terse`: without the elements of named sets. Raises KernelError.
        """
        self._nftables.set_json_output(not text)
        self._nftables.set_terse_output(terse)
        code, output, error = self._nftables.cmd(command)
        if code != 0:
            raise KernelError(f"nftables cannot be listed: {_one_line(error)}")
        return str(output)


def read_counters() -> Counters | None:
    """The counters of our table; None if it does not exist. From any thread."""
    try:
        return parse_counters(Libnftables(stateless=False).list_table())
    except KernelError:
        return None


def _one_line(error: str) -> str:
    """libnftables' messages, each once, without the lines that point to the command."""
    lines = (line.partition("Error: ")[2] or line for line in error.splitlines())
    return "; ".join(dict.fromkeys(line.strip() for line in lines if line.strip())) or "no reason"
