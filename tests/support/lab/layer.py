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
    built = (root / "var/lib/dpkg/status").stat().st_mtime_ns
    recipe = "\0".join((Path(__file__).read_text(), root.name, str(built), script))
    kind = f"layer-{name}-{root.name}"
    directory = cache / f"{kind}-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"
    with locked(cache / f"{kind}.lock"):
        if not directory.exists():
            # Left behind by one that was killed.
            for unfinished in cache.glob(f"unfinished-{kind}.*"):
                shutil.rmtree(unfinished)
            with tempfile.TemporaryDirectory(dir=cache, prefix=f"unfinished-{kind}.") as work:
                made = Path(work) / "layer"
                _make(made, root, script)
                made.rename(directory)
        os.utime(directory)
        # Not at once: another checkout with another script may have containers on it.
        for older in cache.glob(f"layer-{name}-*/"):
            if time.time() - older.stat().st_mtime > _UNUSED_AFTER:
                shutil.rmtree(older, ignore_errors=True)
    return directory


def _make(directory: Path, root: Path, script: str) -> None:
    with Container("layer", root) as container:
        container.prepare("sh", "-ec", script)
        # With the attributes and devices by which an overlay knows what was deleted.
        subprocess.run(["cp", "-a", container.written(), directory], check=True)
