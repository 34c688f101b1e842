"""libnftables. It neither reads nor writes the ruleset in the daemon's process.

With a chain it reads all sets of its table, and before a write the declarations of all sets. It may
crash on those: 1.0.6 does on each set that 1.1.2 or later has written. It begins to read again
whenever another program has written meanwhile, so it may never end.
"""

import json

import nftables

from vm_onetoone_nat.errors import KernelError
from vm_onetoone_nat.model.nat_table import TABLE


class Libnftables:
    """One context. Not thread-safe. Its listings have no counter values."""

    def __init__(self) -> None:
        self._nftables = nftables.Nftables()
        self._nftables.set_handle_output(True)
        self._nftables.set_stateless_output(True)

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

    def run(self, command: str, *, text: bool = False, terse: bool = False) -> str:
        """Run a command in JSON, or with `text` one as for `nft`; its output is of the same kind.

        `terse`: without the elements of named sets. Raises KernelError.
        """
        self._nftables.set_json_output(not text)
        self._nftables.set_terse_output(terse)
        try:
            code, output, error = self._nftables.cmd(command)
        except UnicodeError as undecodable:
            raise KernelError(f"libnftables' answer cannot be read: {undecodable}") from undecodable
        if code != 0:
            raise KernelError(f"nftables cannot be listed: {_one_line(error)}")
        return str(output)


def _one_line(error: str) -> str:
    """libnftables' messages, each once, without the lines that point to the command."""
    lines = (line.partition("Error: ")[2] or line for line in error.splitlines())
    return "; ".join(dict.fromkeys(line.strip() for line in lines if line.strip())) or "no reason"
