"""Kernel and initramfs of the lab's domains, made of the distribution's own packages.

Once made they stay in `$VMNAT_LAB_CACHE`, or `~/.cache/vm-onetoone-nat`, and no network is
needed again until the recipe changes: this file, the guest's init, or busybox.
"""

import hashlib
import lzma
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .cache import cache_directory, locked

_BUSYBOX = Path("/bin/busybox")
_INIT = Path(__file__).with_name("init.sh")
_PACKAGE = "linux-image-cloud-amd64"

# What the guest needs; a kernel may have any of them built in.
_MODULES = ("virtio_pci", "virtio_net", "virtio_console", "evdev", "button")

# Names the guest, and the peer that it sees: what a NAT test has to know of a connection.
_PEER_PAGE = """#!/bin/sh
echo "Content-Type: text/plain"
echo
echo "$REMOTE_ADDR $lab_name"
"""

# The protocol of the lab's echo server; nc does not tell who the peer is.
_ECHO_LINES = """#!/bin/sh
while read -r line; do
    echo "0.0.0.0 $lab_name $line"
done
"""

# What libvirt needs of the QEMU guest agent to be told addresses.
_AGENT = """#!/bin/sh
mac=$(cat /sys/class/net/eth0/address)
exec 3<>"$1"
while :; do
    while read -r request <&3; do
        case "$request" in
        *guest-sync*)
            id=${request##*:}
            echo "{\\"return\\":${id%%\\}*}}" >&3
            ;;
        *guest-network-get-interfaces*)
            address=$(ip -4 -o address show dev eth0 | sed 's/.* inet //; s/ .*//')
            echo "{\\"return\\":[{\\"name\\":\\"eth0\\",\\"hardware-address\\":\\"$mac\\",\\
\\"ip-addresses\\":[{\\"ip-address-type\\":\\"ipv4\\",\\"ip-address\\":\\"${address%/*}\\",\\
\\"prefix\\":${address#*/}}]}]}" >&3
            ;;
        *) echo '{"error":{"class":"CommandNotFound","desc":"not in this one"}}' >&3 ;;
        esac
    done
    sleep 1
done
"""


class ImageError(AssertionError):
    """The image could not be made; the message says which step failed."""


@dataclass(frozen=True)
class Image:
    """What a domain boots from."""

    kernel: Path
    initramfs: Path


def image() -> Image:
    """The image, built when it is missing or its recipe has changed. Safe to call in parallel."""
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    directory = cache / f"image-{_recipe()}"
    with locked(cache / "image.lock"):
        if not directory.exists():
            kernel = _downloaded_kernel(cache)
            with tempfile.TemporaryDirectory(dir=cache, prefix="image.") as work:
                made = Path(work) / "image"
                _build(kernel, made)
                made.rename(directory)
            for older in cache.glob("image-*"):
                if older != directory:
                    shutil.rmtree(older, ignore_errors=True)
    return Image(directory / "vmlinuz", directory / "initramfs")


def _recipe() -> str:
    digest = hashlib.sha256()
    for part in (Path(__file__), _INIT, _BUSYBOX):
        digest.update(part.read_bytes())
    return digest.hexdigest()[:16]


def _downloaded_kernel(cache: Path) -> Path:
    """The unpacked kernel package, downloaded unless the cache has one."""
    present = sorted(cache.glob("kernel-*"))
    if present:
        return present[-1]
    depends = _output("apt-cache", "show", "--no-all-versions", _PACKAGE)
    match = re.search(r"^Depends: (linux-image-[^\s,]+)", depends, re.MULTILINE)
    if match is None:
        raise ImageError(f"{_PACKAGE} depends on no kernel; is `apt-get update` needed?")
    package = match.group(1)
    with tempfile.TemporaryDirectory(dir=cache, prefix="download.") as work:
        # The sandbox user of apt cannot write below another user's home.
        _output("apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", package, cwd=work)
        (archive,) = Path(work).glob("*.deb")
        unpacked = Path(work) / "kernel"
        _output("dpkg-deb", "-x", str(archive), str(unpacked))
        destination = cache / f"kernel-{package}"
        unpacked.rename(destination)
    return destination


def _build(kernel: Path, destination: Path) -> None:
    destination.mkdir()
    (vmlinuz,) = (kernel / "boot").glob("vmlinuz-*")
    shutil.copy(vmlinuz, destination / "vmlinuz")
    tree = destination / "tree"
    for folder in ("bin", "dev", "proc", "sys", "modules", "www/cgi-bin"):
        (tree / folder).mkdir(parents=True)
    _copy_executable(_BUSYBOX.read_bytes(), tree / "bin/busybox")
    _copy_executable(_INIT.read_bytes(), tree / "init")
    _copy_executable(_PEER_PAGE.encode(), tree / "www/cgi-bin/peer")
    _copy_executable(_ECHO_LINES.encode(), tree / "bin/echo-lines")
    _copy_executable(_AGENT.encode(), tree / "bin/guest-agent")
    modules = _modules(kernel)
    for name, content in modules.items():
        (tree / f"modules/{name}.ko").write_bytes(content)
    (tree / "modules/order").write_text("".join(f"{name}.ko\n" for name in modules))
    names = "\0".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
    archive = subprocess.run(
        ["cpio", "--null", "-o", "-H", "newc", "-R", "0:0", "--quiet"],
        input=names.encode(),
        stdout=subprocess.PIPE,
        cwd=tree,
        check=True,
    )
    # Not compressed: unpacking under software emulation costs more than reading does.
    (destination / "initramfs").write_bytes(archive.stdout)
    shutil.rmtree(tree)


def _modules(kernel: Path) -> dict[str, bytes]:
    """The modules and what they depend on, in the order in which they have to be loaded.

    The package has no modules.dep, its installation makes it: each module names what it needs.
    """
    files = {
        path.name.split(".")[0].replace("-", "_"): path
        for path in kernel.rglob("*.ko*")
        if path.suffix in (".ko", ".xz")
    }
    loaded: dict[str, bytes] = {}

    def load(name: str) -> None:
        if name in loaded or name not in files:
            return
        content = files[name].read_bytes()
        if files[name].suffix == ".xz":
            content = lzma.decompress(content)
        depends = re.search(rb"\0depends=([^\0]*)\0", content)
        for needed in depends.group(1).decode().split(",") if depends else []:
            load(needed.replace("-", "_"))
        loaded[name] = content

    for name in _MODULES:
        load(name)
    return loaded


def _copy_executable(content: bytes, destination: Path) -> None:
    destination.write_bytes(content)
    destination.chmod(0o755)


def _output(*argv: str, cwd: str | None = None) -> str:
    done = subprocess.run(argv, check=False, cwd=cwd, capture_output=True, text=True)
    if done.returncode != 0:
        raise ImageError(f"{' '.join(argv)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout
