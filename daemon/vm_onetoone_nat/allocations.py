"""The record of which guest has which external address: a file in the state directory."""

import json
import logging
import os
from ipaddress import IPv4Address
from pathlib import Path

from vm_onetoone_nat.errors import KernelError
from vm_onetoone_nat.events import Event
from vm_onetoone_nat.files import replace_text
from vm_onetoone_nat.journal import entry
from vm_onetoone_nat.state import Allocation, Origin

log = logging.getLogger(__name__)

DEFAULT_DIRECTORY = Path("/var/lib/vm-onetoone-nat")


def state_directory() -> Path:
    """systemd's $STATE_DIRECTORY, or the default for a daemon started by hand."""
    return Path(os.environ.get("STATE_DIRECTORY", DEFAULT_DIRECTORY))


class Allocations:
    """The recorded allocations; in memory while they cannot be written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._unwritten: frozenset[Allocation] | None = None
        self._logged = False

    @property
    def recorded(self) -> bool:
        """Whether the file has what `read` returns."""
        return self._unwritten is None

    def read(self) -> frozenset[Allocation]:
        """What was written last; empty if the file is missing or unreadable."""
        if self._unwritten is not None:
            return self._unwritten
        try:
            entries = json.loads(self._path.read_text())
            return frozenset(
                Allocation(IPv4Address(external), e["uuid"], e["network"], Origin(e["origin"]))
                for external, e in entries.items()
            )
        except FileNotFoundError:
            return frozenset()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            # Mappings of the configuration do not depend on it.
            if not self._logged:
                log.warning(
                    "%s cannot be read: guests of pools may get other addresses: %s",
                    self._path,
                    error,
                    extra=entry(Event.ALLOCATIONS_LOST, reason=error),
                )
            self._logged = True
            return frozenset()

    def write(self, allocations: frozenset[Allocation]) -> None:
        """Write all, so that a crash leaves the old file or the new one. Raises KernelError."""
        self._unwritten = allocations
        text = json.dumps(
            {
                str(a.external): {"uuid": a.uuid, "network": a.network, "origin": a.origin}
                for a in sorted(allocations)
            },
            indent=1,
        )
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_text(self._path, text)
        except OSError as error:
            raise KernelError(
                f"{self._path}: cannot be written: {error.strerror}",
                hint="until it is written, a restart may change the addresses of guests of pools",
            ) from error
        self._unwritten = None
