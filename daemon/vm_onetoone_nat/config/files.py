"""Loads the configuration: config.toml and its drop-ins, merged and checked together.

A message has the file, the key path, the value, and what to write instead. All faults of all files
are reported at once.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from errno import ENOENT
from pathlib import Path

from vm_onetoone_nat.config.schema import (
    File,
    MappingTable,
    PoolTable,
    Settings,
    mapping_of,
    parse_text,
)
from vm_onetoone_nat.errors import ConfigError
from vm_onetoone_nat.model.configuration import Configuration, Pool, Range
from vm_onetoone_nat.model.family import IPAddress, IPNetwork
from vm_onetoone_nat.model.host import Address

DROP_INS = "conf.d"


def load(path: Path) -> Configuration:
    """Load a file and conf.d/*.toml beside it, which need not exist.

    Drop-ins follow the file, sorted bytewise by name: a later [settings] key overrides an earlier
    one, mappings are appended. A link to /dev/null is an empty drop-in, as in systemd. Raises
    ConfigError with a line for each fault of each file.
    """
    files: list[tuple[Path, File]] = []
    problems: list[str] = []
    sources = [path]
    try:
        sources += _drop_ins(path.parent / DROP_INS)
    except ConfigError as error:
        problems += error.problems
    for source in sources:
        try:
            text = _main_text(source) if source is path else _drop_in_text(source)
            files.append((source, parse_text(text)))
        except ConfigError as error:
            problems += (f"{_shown(source)}: {problem}" for problem in error.problems)
    written = [
        _Written(source, index, table)
        for source, file in files
        for index, table in enumerate(file.mapping)
    ]
    problems += _contradictions(written)
    if problems:
        raise ConfigError(tuple(problems))
    settings = _overridden(file.settings for _, file in files)
    pools = [table for _, file in files for table in file.pool]
    return Configuration(
        mappings=tuple(mapping_of(w.table, settings.network) for w in written),
        uplink=None if settings.uplink == "auto" else settings.uplink,
        libvirt_uri=settings.libvirt_uri,
        fwmark=settings.fwmark,
        conflict_detection=settings.conflict_detection,
        network=settings.network,
        guest_agent=settings.guest_agent,
        metadata=settings.metadata,
        metadata_external=tuple(settings.metadata_external),
        pools=_pools(pools, settings.network),
        origins=tuple(w.place(w.file.relative_to(path.parent)) for w in written),
    )


def check_host(path: Path, configuration: Configuration, addresses: Iterable[Address]) -> None:
    """Check a configuration from `path` against this host's addresses. Raises ConfigError.

    Not a part of `load`, since a host's addresses change: at startup the daemon reports such faults
    as the state of a mapping, and runs.
    """
    problems = []
    known = tuple(addresses)
    for mapping, origin in zip(configuration.mappings, configuration.origins, strict=True):
        where = f"{_shown(path.parent / origin)}.external: '{mapping.external}'"
        for address in known:
            network = address.interface.network
            if address.primary and address.interface.ip == mapping.external:
                problems.append(
                    f"{where} is this host's own address on {address.ifname}; "
                    f"write a free address of the LAN"
                )
            elif (
                mapping.internal is not None
                and mapping.external in network
                and mapping.internal in network
            ):
                problems.append(
                    f"{where} lies in the libvirt network's subnet {network} "
                    f"({address.ifname}); write an address of the LAN"
                )
    if problems:
        raise ConfigError(tuple(problems))


def _drop_ins(folder: Path) -> list[Path]:
    """The drop-ins in a folder, in order. Raises ConfigError if it exists but is unreadable."""
    try:
        found = list(folder.iterdir())
    except OSError as error:
        if error.errno == ENOENT and not folder.is_symlink():
            return []
        problem = f"{_shown(folder)}: cannot be read: {error.strerror}; correct or remove it"
        raise ConfigError((problem,)) from error
    named = (f for f in found if f.name.endswith(".toml") and not f.name.startswith("."))
    return sorted(named, key=os.fsencode)


def _main_text(path: Path) -> str:
    try:
        return _decoded(path.read_bytes())
    except OSError as error:
        hint = "; write it, starting from config.example.toml" if error.errno == ENOENT else ""
        raise ConfigError((f"cannot be read: {error.strerror}{hint}",)) from error


def _drop_in_text(path: Path) -> str:
    try:
        # Opening a pipe waits for its writer, and reading a device may never end.
        if not (path.is_file() or path.is_dir() or path.samefile(os.devnull)):
            raise ConfigError(("is neither a file nor a link to one; remove it",))
        return _decoded(path.read_bytes())
    except OSError as error:
        dangling = error.errno == ENOENT and path.is_symlink()
        reason = "the target of the link does not exist" if dangling else error.strerror
        raise ConfigError((f"cannot be read: {reason}; correct or remove it",)) from error


def _decoded(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ConfigError((f"byte {error.start}: not UTF-8 text",)) from error


def _shown(path: Path) -> str:
    """A path as one line of text, with unprintable characters escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(path))


@dataclass(frozen=True, slots=True)
class _Written:
    """A mapping's table, and its place."""

    file: Path
    index: int
    table: MappingTable

    def place(self, file: Path) -> str:
        return f"{_shown(file)}: mapping[{self.index}]"

    def elsewhere(self, here: "_Written") -> str:
        """The suffix that names the file, if it is not that of `here`."""
        return "" if self.file == here.file else f" in {_shown(self.file)}"


def _contradictions(written: list[_Written]) -> Iterator[str]:
    """Contradictions between mappings."""
    first: dict[tuple[str, IPAddress], _Written] = {}
    for here in written:
        external, internal = here.table.external, here.table.internal
        for key, address in (("external", external.ip), ("internal", internal)):
            if address is None:
                continue
            other = first.setdefault((key, address), here)
            if other is not here:
                yield (
                    f"{here.place(here.file)}.{key}: '{address}' is already used by "
                    f"mapping[{other.index}]{other.elsewhere(here)}; write another address"
                )
    internals = [(w, w.table.internal) for w in written if w.table.internal is not None]
    inside: dict[IPNetwork, tuple[_Written, IPAddress] | None] = {}
    for here in written:
        external, lan = here.table.external, here.table.external.lan
        if lan not in inside:
            inside[lan] = next(((w, a) for w, a in internals if a in lan), None)
        if (found := inside[lan]) is not None:
            other, address = found
            yield (
                f"{here.place(here.file)}.external: '{external}' is in the same subnet {lan} as "
                f"mapping[{other.index}].internal '{address}'{other.elsewhere(here)}; write an "
                f"address of the LAN, with its prefix if that is longer than /{lan.prefixlen}"
            )


def _overridden(tables: Iterable[Settings]) -> Settings:
    """The settings of all files; the last value of each key wins."""
    settings = Settings()
    for table in tables:
        written = {key: getattr(table, key) for key in table.model_fields_set}
        settings = settings.model_copy(update=written)
    return settings


def _pools(tables: Iterable[PoolTable], network: str) -> tuple[Pool, ...]:
    """One pool for each network, in the order of the files."""
    ranges: dict[str, list[Range]] = {}
    for table in tables:
        ranges.setdefault(table.network or network, []).extend(table.external)
    return tuple(Pool(name, tuple(parts)) for name, parts in ranges.items())
