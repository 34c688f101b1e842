"""libnftables in a process of its own, which it may end by a crash.

Each line of the input is a list of commands, in JSON: the command, and the keywords of
`Libnftables.run`. Each line of the output is the list of their outputs, null for a command that
failed.
"""

import json
import os
import sys
from collections.abc import Iterator
from typing import Any

from vm_onetoone_nat.errors import KernelError
from vm_onetoone_nat.kernel.libnftables import Libnftables


def main() -> None:
    """Answer each line of the input until its end."""
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as answers:
        # Whatever the library itself prints is no answer.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        library = Libnftables()
        for line in sys.stdin:
            print(json.dumps(list(_outputs(library, json.loads(line)))), file=answers, flush=True)


def _outputs(
    library: Libnftables, commands: list[tuple[str, dict[str, Any]]]
) -> Iterator[str | None]:
    for command, keywords in commands:
        try:
            yield library.run(command, **keywords)
        except KernelError:
            yield None


if __name__ == "__main__":
    main()
