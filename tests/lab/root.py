"""Root file systems of the booted machines, made by debootstrap.

Once made they stay in the lab's cache, and no network is needed again until the recipe changes:
this file, or where this machine's apt gets its packages from.
"""

import ast
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from .image import cache_directory

Suite = Literal["bookworm", "trixie"]
Tier = Literal["bare", "host"]

_BARE = (
    "systemd",
    "systemd-sysv",
    "dbus",
    "ca-certificates",
    "curl",
    "iproute2",
    "iputils-ping",
    "kmod",
    "procps",
    "python3",
)

_HOST = (
    "libvirt-daemon-system",
    "libvirt-clients",
    "qemu-system-x86",
    "dnsmasq-base",
    "polkitd",
    "nftables",
    "iptables",
    "conntrack",
    "tcpdump",
)

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

CERTIFICATES = "/etc/lab-certificates.pem"

_UNUSED_AFTER = 14 * 86400
_PROXIES = ("http_proxy", "https_proxy", "no_proxy")


class RootError(AssertionError):
    """The root could not be made; the message says which step failed."""


def root(suite: Suite, tier: Tier = "host") -> Path:
    """A root that boots, built when it is missing. Safe to call in parallel; never write to it.

    `bare` has systemd, D-Bus and Python and nothing that the product's installer has to bring.
    `host` is a KVM host as the distribution installs it, libvirt's `default` network set to
    autostart; no Python bindings. On trixie it uses libvirt's nftables backend.
    """
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    sources, settings = _sources(suite), _apt_settings()
    recipe = hashlib.sha256("\0".join((Path(__file__).read_text(), sources, settings)).encode())
    directory = cache / f"root-{suite}-{tier}-{recipe.hexdigest()[:16]}"
    with _locked(cache / f"root-{suite}-{tier}.lock"):
        if not directory.exists():
            # Left behind by a build that was killed.
            for unfinished in cache.glob(f"root.{suite}-{tier}.*"):
                shutil.rmtree(unfinished)
            below = root(suite, "bare") if tier == "host" else None
            with tempfile.TemporaryDirectory(dir=cache, prefix=f"root.{suite}-{tier}.") as work:
                tree = Path(work) / "root"
                if below is None:
                    _build_bare(tree, suite, sources, settings)
                else:
                    _output("cp", "-a", str(below), str(tree))
                    _build_host(tree, suite)
                tree.rename(directory)
        os.utime(directory)
        # Not at once: another checkout with another recipe may have machines on it.
        for older in cache.glob(f"root-{suite}-{tier}-*"):
            if time.time() - older.stat().st_mtime > _UNUSED_AFTER:
                shutil.rmtree(older, ignore_errors=True)
    return directory


@dataclass(frozen=True)
class PipSettings:
    """How this machine's pip reaches its indexes, for a machine in the lab."""

    text: str
    """A pip.conf, valid where `folders` are in the same place."""

    folders: tuple[Path, ...]

    certificates: Path | None
    """What to copy to `CERTIFICATES`, which `text` names."""


def pip_settings() -> PipSettings:
    """The settings of this Python's pip, files and environment together."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"],
        check=False,
        capture_output=True,
        text=True,
    ).stdout
    values: dict[str, str] = {}
    # Sorted by pip: what the environment sets comes first, and wins.
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        section, _, key = name.rpartition(".")
        if section in (":env:", "global", "install"):
            values.setdefault(key, ast.literal_eval(value))
    folders: set[Path] = set()
    for value in values.values():
        for word in value.split():
            folders.update(_local(word))
    certificates = values.get("cert")
    if certificates is not None:
        values["cert"] = CERTIFICATES
    text = "".join(f"{key} = {' '.join(value.split())}\n" for key, value in values.items())
    return PipSettings(
        f"[global]\n{text}",
        tuple(sorted(folders)),
        None if certificates is None else Path(certificates),
    )


def proxies() -> dict[str, str]:
    """The proxy variables of this process's environment."""
    return {name: value for name, value in os.environ.items() if name.lower() in _PROXIES}


def _local(word: str) -> Iterator[Path]:
    """The folder that a path or a file URL in pip's settings needs."""
    if word.startswith("file:"):
        # An index refers to its files by `../`.
        yield Path(urlsplit(word).path).parent
    elif word.startswith("/") and Path(word).is_dir():
        yield Path(word)


def _build_bare(tree: Path, suite: Suite, sources: str, settings: str) -> None:
    mirror = sources.split()[1]
    _isolated(
        "debootstrap", "--variant=minbase", f"--include={','.join(_BARE)}", suite, tree, mirror
    )
    (tree / "etc/apt/sources.list").write_text(sources)
    (tree / "etc/apt/apt.conf.d/90lab").write_text(settings)
    # Each machine gets its own at its first boot; an empty file is not a "first boot" to systemd.
    (tree / "etc/machine-id").write_text("")
    (tree / "etc/hostname").unlink(missing_ok=True)
    for unit in _MASKED:
        (tree / "etc/systemd/system" / unit).symlink_to("/dev/null")
    (tree / "var/log/journal").mkdir(exist_ok=True)
    if suite == "trixie":
        wrapper = tree / "usr/local/sbin/tc"
        wrapper.write_text(_TC)
        wrapper.chmod(0o755)
    _chroot(tree, "apt-get", "update", "-qq")
    _chroot(tree, "apt-get", "dist-upgrade", "-y", "-qq", "--no-install-recommends")
    _drop_apt_cache(tree)


def _build_host(tree: Path, suite: Suite) -> None:
    _chroot(tree, "apt-get", "update", "-qq")
    _chroot(tree, "apt-get", "install", "-y", "-qq", "--no-install-recommends", *_HOST)
    networks = tree / "etc/libvirt/qemu/networks"
    (networks / "autostart").mkdir(exist_ok=True)
    (networks / "autostart/default.xml").symlink_to("/etc/libvirt/qemu/networks/default.xml")
    if suite == "trixie":
        with (tree / "etc/libvirt/network.conf").open("a") as file:
            file.write('firewall_backend = "nftables"\n')
    _drop_apt_cache(tree)


def _drop_apt_cache(tree: Path) -> None:
    _chroot(tree, "apt-get", "clean")
    for entry in (tree / "var/lib/apt/lists").iterdir():
        if entry.is_file():
            entry.unlink()


def _sources(suite: Suite) -> str:
    """A sources.list for `suite` of the Debian mirrors that this machine's apt uses."""
    configured = _output(
        *("apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)"),
        "Created-By: Packages",
    )
    ours = _os_codename()
    lines: dict[str, None] = {}
    for line in configured.splitlines():
        uri, release, component = line.split(" ")
        part = release.removeprefix(ours)
        if release.startswith(ours) and part in ("", "-updates", "-security"):
            lines[f"deb {uri} {suite}{part} {component}\n"] = None
    # debootstrap's mirror is the first.
    ordered = sorted(lines, key=lambda each: each.split(" ")[2:] != [suite, "main\n"])
    if not ordered or ordered[0].split(" ")[2:] != [suite, "main\n"]:
        raise RootError(f"this machine's apt has no source of {ours} main to derive {suite} from")
    return "".join(ordered)


def _apt_settings() -> str:
    """How this machine's apt reaches its mirrors, as an apt.conf: proxies, checks, retries."""
    wanted = ("http::", "https::", "Check-", "Retries", "ForceIPv", "Languages")
    dumped = _output("apt-config", "dump", "--no-empty", "--format", '%f "%v";%n', "Acquire")
    return "".join(
        f"{line}\n"
        for line in dumped.splitlines()
        if line.removeprefix("Acquire::").startswith(wanted)
    )


def _os_codename() -> str:
    for line in Path("/etc/os-release").read_text().splitlines():
        if line.startswith("VERSION_CODENAME="):
            return line.partition("=")[2].strip('"')
    raise RootError("/etc/os-release names no VERSION_CODENAME")


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


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
