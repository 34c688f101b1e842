"""Where the lab keeps what it downloads and builds."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_directory() -> Path:
    """Where the lab keeps what it downloads and builds."""
    chosen = os.environ.get("VMNAT_LAB_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "vm-onetoone-nat"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file, against others who build the same."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
