"""Makes a program's libvirt have no networks at times, as with virtqemud without virtnetworkd.

On the path of a program by $PYTHONPATH. While the file that $NETWORKS names says `fail`, what
concerns networks fails; while it says `hang`, it does not return.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import libvirt

_WORD = Path(os.environ["NETWORKS"])


def _away(original: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: object) -> Any:
        while (word := _WORD.read_text().strip()) == "hang":
            time.sleep(0.05)
        if word == "fail":
            raise libvirt.libvirtError("Failed to connect socket to virtnetworkd-sock")
        return original(*arguments)

    return call


for name in ("listAllNetworks", "networkEventRegisterAny"):
    setattr(libvirt.virConnect, name, _away(getattr(libvirt.virConnect, name)))
