"""iptables-legacy, whose tables are not visible through nftables."""

from pathlib import Path

_TABLES = Path("/proc/net/ip_tables_names")
_MODULES = Path("/proc/modules")


def has_legacy_filter(tables: Path = _TABLES, modules: Path = _MODULES) -> bool:
    """Whether iptables-legacy has a filter table, or may have one if the process is unprivileged.

    Only root may read this namespace's list of tables; any process sees that the module is loaded.
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
