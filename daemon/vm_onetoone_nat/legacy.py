"""iptables' old kernel interface, whose tables nftables does not show."""

from pathlib import Path

_TABLES = Path("/proc/net/ip_tables_names")
_MODULES = Path("/proc/modules")


def has_legacy_filter(tables: Path = _TABLES, modules: Path = _MODULES) -> bool:
    """Whether there is, or for an unprivileged process may be, a filter table of iptables-legacy.

    The list of this namespace's tables is for root only; that the module is loaded, all may know.
    """
    try:
        return "filter" in tables.read_text().split()
    except PermissionError:
        pass
    except OSError:
        return False
    try:
        loaded = modules.read_text().splitlines()
    except OSError:
        return False
    return any(line.split(" ", 1)[0] == "iptable_filter" for line in loaded)
