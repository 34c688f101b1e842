"""Root file systems of the booted machines, made by debootstrap.

Once made they stay in the lab's cache, and no network is needed again until the recipe changes:
this file, or where this machine's apt gets its packages from.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Literal

from .cache import cache_directory, locked
from .registry import apt_settings, apt_sources, proxies

Suite = Literal["bookworm", "trixie"]

# A KVM host as the distribution installs it, with none of what the product's installer brings.
_PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "polkitd", "python3", "procps", "kmod", "iproute2"),
    *("libvirt-daemon-system", "libvirt-clients", "qemu-system-x86", "dnsmasq-base"),
    *("nftables", "iptables", "ca-certificates", "curl", "iputils-ping", "conntrack", "tcpdump"),
)

# Other firewalls, to be installed by a test: they lie in FIREWALLS, with all that they need.
_FIREWALLS = ("firewalld", "ufw")
FIREWALLS = "/var/cache/lab-firewalls"

# Background work that would hold apt's lock, or keep the machine busy, while a test runs.
_MASKED = ("apt-daily.timer", "apt-daily-upgrade.timer")

# libvirt's nftables backend has tc correct checksums of DHCP answers for old clients, and its
# network fails to start in a kernel without that action. Nothing in the lab needs it.
_TC = """#!/bin/sh
case " $* " in
*" action csum "*) exit 0 ;;
esac
exec /usr/sbin/tc "$@"
"""

# All mounts go with the mount namespace. What a package's script may do to the machine outside
# is taken away: the sysctls are not writable, and the capability for its network is dropped.
_CHROOT = """
set -e
tree=$1
shift
mount -t proc proc "$tree/proc"
mount --bind "$tree/proc/sys" "$tree/proc/sys"
mount -o remount,bind,ro "$tree/proc/sys"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$tree/dev/pts"
for name in resolv.conf hosts; do
    mount --bind -o ro /etc/$name "$tree/etc/$name"
done
exec setpriv --bounding-set=-net_admin,-sys_module,-sys_time,-sys_boot chroot "$tree" "$@"
"""

_UNUSED_AFTER = 14 * 86400


class RootError(AssertionError):
    """The root could not be made; the message says which step failed."""


def root(suite: Suite) -> Path:
    """A root that boots, built when it is missing. Safe to call in parallel; never write to it.

    A KVM host as the distribution installs it, libvirt's `default` network set to autostart; no
    Python bindings. On trixie it uses libvirt's nftables backend.
    """
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    sources, settings = apt_sources(suite), apt_settings()
    recipe = hashlib.sha256("\0".join((Path(__file__).read_text(), sources, settings)).encode())
    directory = cache / f"root-{suite}-{recipe.hexdigest()[:16]}"
    with locked(cache / f"root-{suite}.lock"):
        if not directory.exists():
            # Left behind by a build that was killed.
            for unfinished in cache.glob(f"root.{suite}.*"):
                shutil.rmtree(unfinished)
            with tempfile.TemporaryDirectory(dir=cache, prefix=f"root.{suite}.") as work:
                tree = Path(work) / "root"
                _build(tree, suite, sources, settings)
                tree.rename(directory)
        os.utime(directory)
        # Not at once: another checkout with another recipe may have machines on it.
        for older in cache.glob(f"root-{suite}-*"):
            if time.time() - older.stat().st_mtime > _UNUSED_AFTER:
                shutil.rmtree(older, ignore_errors=True)
    return directory


def _build(tree: Path, suite: Suite, sources: str, settings: str) -> None:
    mirror = sources.split()[1]
    _isolated("debootstrap", "--variant=minbase", suite, tree, mirror)
    (tree / "etc/apt/sources.list").write_text(sources)
    (tree / "etc/apt/apt.conf.d/90lab").write_text(settings)
    _chroot(tree, "apt-get", "update", "-qq")
    _chroot(tree, "apt-get", "dist-upgrade", "-y", "-qq", "--no-install-recommends")
    _chroot(tree, "apt-get", "install", "-y", "-qq", "--no-install-recommends", *_PACKAGES)
    # Each machine gets its own at its first boot; an empty file is not a "first boot" to systemd.
    (tree / "etc/machine-id").write_text("")
    (tree / "etc/hostname").unlink(missing_ok=True)
    for unit in _MASKED:
        (tree / "etc/systemd/system" / unit).symlink_to("/dev/null")
    (tree / "var/log/journal").mkdir(exist_ok=True)
    networks = tree / "etc/libvirt/qemu/networks"
    (networks / "autostart").mkdir(exist_ok=True)
    (networks / "autostart/default.xml").symlink_to("/etc/libvirt/qemu/networks/default.xml")
    if suite == "trixie":
        with (tree / "etc/libvirt/network.conf").open("a") as file:
            file.write('firewall_backend = "nftables"\n')
        wrapper = tree / "usr/local/sbin/tc"
        wrapper.write_text(_TC)
        wrapper.chmod(0o755)
    _chroot(tree, "apt-get", "clean")
    fetch = ("apt-get", "install", "-y", "-qq", "--no-install-recommends", "--download-only")
    _chroot(tree, *fetch, *_FIREWALLS)
    (tree / FIREWALLS.lstrip("/")).mkdir()
    for package in (tree / "var/cache/apt/archives").glob("*.deb"):
        package.rename(tree / FIREWALLS.lstrip("/") / package.name)
    for entry in (tree / "var/lib/apt/lists").iterdir():
        if entry.is_file():
            entry.unlink()


def _chroot(tree: Path, *argv: str) -> None:
    # No service of the tree is ever started by what is installed into it.
    policy = tree / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    # Mount points for the machine's own.
    for name in ("resolv.conf", "hosts"):
        (tree / "etc" / name).touch()
    try:
        _isolated("sh", "-c", _CHROOT, "chroot", tree, *argv)
    finally:
        policy.unlink()


def _isolated(*argv: str | os.PathLike[str]) -> None:
    """Run to the end; its processes and mounts end with this process, SIGKILL included."""
    _output(
        *("setpriv", "--pdeathsig", "KILL"),
        *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
        *("--propagation", "private", "--"),
        *(os.fspath(argument) for argument in argv),
    )


def _output(*argv: str) -> str:
    environment = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LC_ALL": "C.UTF-8",
        "DEBIAN_FRONTEND": "noninteractive",
        **proxies(),
    }
    done = subprocess.run(argv, check=False, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        tail = "\n".join(f"{done.stdout}\n{done.stderr}".splitlines()[-30:])
        raise RootError(f"{' '.join(argv)}: exit {done.returncode}\n{tail}")
    return done.stdout
