"""The systemd units of libvirt: one monolithic daemon, or one for each part (modular)."""

from pathlib import Path

_MONOLITHIC = "libvirtd"
_MODULAR = "virtqemud virtnetworkd"


def libvirt_units(root: Path = Path("/")) -> str:
    """The units that manage guests and networks on this host, as arguments of systemctl.

    The socket that exists decides, and virtqemud's first, as libvirt's client does: virtproxyd has
    libvirtd's socket beside it. While all are stopped there is none; then the installed program.
    """
    if (root / "run/libvirt/virtqemud-sock").exists():
        return _MODULAR
    if (root / "run/libvirt/libvirt-sock").exists():
        return _MONOLITHIC
    return _MODULAR if (root / "usr/sbin/virtqemud").exists() else _MONOLITHIC
