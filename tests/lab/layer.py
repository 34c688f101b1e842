"""What a script adds to a root, made once, for the containers that start with it.

It stays in the lab's cache: no network is needed again until the script or the root changes.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from .cache import cache_directory, locked
from .container import Container

_UNUSED_AFTER = 14 * 86400


def layer(name: str, root: Path, script: str) -> Path:
    """The changes that a shell script makes to a root, run as `Container.prepare` does.

    For `layers` of a Container on the same root; never write to it. Safe to call in parallel, from
    main threads.
    """
    cache = cache_directory()
    # The same recipe may have made the root anew, of newer packages.
    made = (root / "var/lib/dpkg/status").stat().st_mtime_ns
    recipe = "\0".join((Path(__file__).read_text(), root.name, str(made), script))
    kind = f"layer-{name}-{root.name}"
    directory = cache / f"{kind}-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"
    with locked(cache / f"{kind}.lock"):
        if not directory.exists():
            _make(directory, root, script)
        os.utime(directory)
        # Not at once: another checkout with another script may have containers on it.
        for older in cache.glob(f"layer-{name}-*/"):
            if time.time() - older.stat().st_mtime > _UNUSED_AFTER:
                shutil.rmtree(older, ignore_errors=True)
    return directory


def _make(directory: Path, root: Path, script: str) -> None:
    with (
        tempfile.TemporaryDirectory(dir=directory.parent, prefix="unfinished-layer.") as work,
        Container("layer", root) as container,
    ):
        container.prepare("sh", "-ec", script)
        made = Path(work) / "layer"
        # With the attributes and devices by which an overlay knows what was deleted.
        subprocess.run(["cp", "-a", container.written(), made], check=True)
        made.rename(directory)
