"""Runs a function of a test module in a process with a network namespace of its own. Needs root."""

import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

# Nothing is written to the root; all mounts go with the process. What is outside is in /host.
_CHROOT = """
set -e
mount -t tmpfs tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay -o "lowerdir=$1,upperdir=/mnt/upper,workdir=/mnt/work" overlay /mnt/root
mkdir /mnt/root/host
mount --rbind / /mnt/root/host
mount --rbind /proc /mnt/root/proc
mount --rbind /dev /mnt/root/dev
shift
exec chroot /mnt/root "$@"
"""


def in_own_network(child: Callable[..., None], *arguments: str, root: Path | None = None) -> None:
    """Call a function of a module in a new process with a new network namespace.

    It gets the arguments as text. With a `root` it runs there, with the root's own Python, programs
    and libraries; Python finds this process's modules too, of which it can use those that are not
    compiled. The test fails with what the process wrote if it fails.
    """
    module, name = child.__module__, child.__name__
    code = f"import {module} as module; module.{name}(*sys.argv[1:])"
    if root is None:
        command = ["unshare", "--net", sys.executable]
        code = f"import sys; sys.path[:] = {sys.path!r}\n{code}"
    else:
        chroot = ("sh", "-c", _CHROOT, "chroot", str(root))
        command = ["unshare", "--net", "--mount", "--propagation", "private", *chroot, "python3"]
        standard = sysconfig.get_path("stdlib")
        outside = [f"/host{path}" for path in sys.path if not path.startswith(standard)]
        code = f"import sys; sys.path += {outside!r}\n{code}"
    done = subprocess.run(
        [*command, "-W", "error", "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
