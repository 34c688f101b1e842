"""The privileges of this process."""

from pathlib import Path

from vm_onetoone_nat.errors import PrivilegeError

_CAP_NET_ADMIN = 12


def require_net_admin() -> None:
    """Raise PrivilegeError unless this process may list and change the kernel's rules."""
    status = Path("/proc/self/status").read_text()
    effective = next(int(x.split()[1], 16) for x in status.splitlines() if x.startswith("CapEff"))
    if not effective >> _CAP_NET_ADMIN & 1:
        raise PrivilegeError("this needs CAP_NET_ADMIN", hint="run it as root, with sudo")
