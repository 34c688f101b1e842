"""The store side of a pass: what is remembered between runs, in files of the state directory."""

import json
import logging
import os
from pathlib import Path

from vm_onetoone_nat.errors import StoreError
from vm_onetoone_nat.events import Event
from vm_onetoone_nat.internal_errors import Work, contain
from vm_onetoone_nat.journal import entry
from vm_onetoone_nat.model.family import address
from vm_onetoone_nat.model.mapping import Origin
from vm_onetoone_nat.model.store import Allocation, Stored
from vm_onetoone_nat.store.text import read_text, replace_text

log = logging.getLogger(__name__)

DEFAULT_DIRECTORY = Path("/var/lib/vm-onetoone-nat")


def state_directory() -> Path:
    """systemd's $STATE_DIRECTORY, or the default for a daemon started by hand."""
    return Path(os.environ.get("STATE_DIRECTORY", DEFAULT_DIRECTORY))


class FileStore:
    """The allocations, in the file `allocations.json`; in memory while it cannot be written.

    `directory` None is `state_directory()`. It is created by the first `record`.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._path = (directory or state_directory()) / "allocations.json"
        self._unwritten: frozenset[Allocation] | None = None
        self._logged = False

    def observe(self) -> Stored:
        """What was recorded last; empty if the file is missing or unreadable."""
        if self._unwritten is not None:
            return Stored(self._unwritten, recorded=False)
        try:
            return Stored(_from_json(read_text(self._path)))
        except FileNotFoundError:
            return Stored()
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
            return Stored()

    def record(self, allocations: frozenset[Allocation]) -> None:
        """Replace the recorded allocations; a crash leaves the old file or the new one.

        Raises StoreError; `observe` then has them in memory, until they can be written.
        """
        self._unwritten = allocations
        with contain(Work.STORE, raises=StoreError):
            self._record(allocations)
        self._unwritten = None

    def _record(self, allocations: frozenset[Allocation]) -> None:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_text(self._path, _to_json(allocations))
        except OSError as error:
            raise StoreError(
                f"{self._path}: cannot be written: {error.strerror}",
                hint="until it is written, a restart may change the addresses of guests of pools",
            ) from error


def _from_json(text: str) -> frozenset[Allocation]:
    """Raises ValueError, KeyError, TypeError or AttributeError if `_to_json` did not write it."""
    return frozenset(
        Allocation(address(external), e["uuid"], e["network"], Origin(e["origin"]))
        for external, e in json.loads(text).items()
    )


def _to_json(allocations: frozenset[Allocation]) -> str:
    return json.dumps(
        {
            str(a.external): {"uuid": a.uuid, "network": a.network, "origin": a.origin}
            for a in sorted(allocations)
        },
        indent=1,
    )
