"""What the lab needs of this machine, and what of it is missing."""

import os
import shutil
import subprocess
from pathlib import Path

_COMMANDS = {
    "arping": "iputils-arping",
    "bridge": "iproute2",
    "busybox": "busybox-static",
    "conntrack": "conntrack",
    "cpio": "cpio",
    "curl": "curl",
    "debootstrap": "debootstrap",
    "dnsmasq": "dnsmasq-base",
    "ip": "iproute2",
    "iptables": "iptables",
    "libvirtd": "libvirt-daemon",
    "nft": "nftables",
    "nsenter": "util-linux",
    "pgrep": "procps",
    "ping": "iputils-ping",
    "qemu-system-x86_64": "qemu-system-x86",
    "setpriv": "util-linux",
    "strace": "strace",
    "sysctl": "procps",
    "systemd-nspawn": "systemd-container",
    "tcpdump": "tcpdump",
    "unshare": "util-linux",
    "virsh": "libvirt-clients",
    "virtlogd": "libvirt-daemon",
}

_FILES = {
    "/usr/share/libvirt/networks/default.xml": "libvirt-daemon-config-network",
    "/usr/lib/*/libvirt/connection-driver/libvirt_driver_qemu.so": "libvirt-daemon-driver-qemu",
    "/usr/lib/*/faketime/libfaketimeMT.so.1": "faketime",
}

# Each is tried in network and mount namespaces of its own.
_FEATURES = {
    "network and mount namespaces": "true",
    "veth and bridge interfaces (CONFIG_VETH, CONFIG_BRIDGE)": (
        "ip link add bridge0 type bridge && "
        "ip link add veth0 master bridge0 type veth peer name veth1"
    ),
    "TUN/TAP interfaces (CONFIG_TUN)": "ip tuntap add mode tap dev tap0",
    "nftables with NAT (CONFIG_NF_TABLES, CONFIG_NFT_NAT)": (
        "nft add table ip t && nft 'add chain ip t c { type nat hook postrouting priority 0; }'"
        " && nft add rule ip t c masquerade"
    ),
    "iptables over nftables (CONFIG_NFT_COMPAT)": (
        "iptables -A FORWARD -m conntrack --ctstate NEW -m comment --comment x -j REJECT"
    ),
    "connection tracking by netlink (CONFIG_NF_CT_NETLINK)": "conntrack -L",
    "room for connections: 'sysctl -w net.netfilter.nf_conntrack_max=131072'": (
        "test $(cat /proc/sys/net/netfilter/nf_conntrack_max) -ge 131072"
    ),
    "br_netfilter: 'modprobe br_netfilter' (CONFIG_BRIDGE_NETFILTER)": (
        "test -e /proc/sys/net/bridge/bridge-nf-call-iptables"
    ),
    "overlayfs (CONFIG_OVERLAY_FS)": (
        "mount -t tmpfs tmpfs /mnt && mkdir /mnt/up /mnt/work && "
        "mount -t overlay -o lowerdir=/etc,upperdir=/mnt/up,workdir=/mnt/work overlay /etc"
    ),
    "cgroup2, mounted": "grep -q ' cgroup2 ' /proc/self/mounts",
    "the scheduler's accounts (CONFIG_SCHED_INFO)": "grep -q . /proc/self/schedstat",
}

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def missing() -> list[str]:
    """Everything that the lab needs and this machine lacks, a line each; empty where it has all."""
    if os.geteuid() != 0:
        return ["root: run it with sudo"]
    packages = {
        package for command, package in _COMMANDS.items() if not shutil.which(command, path=_PATH)
    }
    packages |= {
        package
        for pattern, package in _FILES.items()
        if not any(Path("/").glob(pattern.lstrip("/")))
    }
    if packages:
        return [f"Debian's package {package}" for package in sorted(packages)]
    return [
        f"of the kernel: {feature} ({error})"
        for feature, probe in _FEATURES.items()
        if (error := _fails(probe))
    ]


def _fails(probe: str) -> str:
    """The last line of what a shell command complains about, empty where it succeeds."""
    command = ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", probe]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env={"PATH": _PATH, "LC_ALL": "C"}
    )
    if done.returncode == 0:
        return ""
    return (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
