"""Our table on Debian 13, where nftables knows tables that outlive their owner.

Each test runs in a child process with Debian 13's libraries, which calls the function named
`child_…` of this module, in a network namespace of its own.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from signal import SIGKILL

from lab.addresses import UPLINK, external, internal
from lab.root import root
from own_network import in_own_network
from vm_onetoone_nat.decide.desired import mapping_elements
from vm_onetoone_nat.decide.nft_writes import (
    AddElement,
    AdoptTable,
    InstallTable,
    RemoveTable,
)
from vm_onetoone_nat.decide.writes import NftWrite
from vm_onetoone_nat.errors import TransactionRefused
from vm_onetoone_nat.model import nat_table
from vm_onetoone_nat.model.configuration import DEFAULT_FWMARK
from vm_onetoone_nat.model.mapping import AllowedService, Mapping
from vm_onetoone_nat.model.nat_table import Element, Table, element

MARK = DEFAULT_FWMARK
NAME = "inet vm_onetoone_nat"
MAPPED = (
    Mapping(external(1), "default", internal=internal(1)),
    Mapping(
        external(2),
        "default",
        internal=internal(2),
        allow=(AllowedService("icmp"), AllowedService("tcp", 8000, 8100), AllowedService("udp")),
    ),
)
ELEMENTS: frozenset[Element] = frozenset(
    {e for m in MAPPED for e in mapping_elements(m)} | {element(nat_table.UPLINK, (UPLINK,))}
)
WHOLE = Table(True, ELEMENTS, MARK, persistent=True, owned=True)
ORPHAN = Table(True, ELEMENTS, MARK, persistent=True, owned=False)


def in_debian_13(child: Callable[[], None]) -> None:
    in_own_network(child, root=root("trixie"))


def install(*, persistent: bool = True) -> list[NftWrite]:
    return [InstallTable(MARK, persistent), *map(AddElement, sorted(ELEMENTS))]


def _run(command: str) -> str:
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _fails(command: str) -> str:
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    return done.stderr


def owner() -> int | None:
    """The netlink port of the owner of our table."""
    from vm_onetoone_nat.kernel.messages import nft_rules
    from vm_onetoone_nat.kernel.netlink import NETFILTER, Netlink

    with closing(Netlink(NETFILTER, "nftables")) as netlink:
        answers = netlink.dump(nft_rules.list_tables())
    tables = (table for answer in answers for table in nft_rules.tables(answer))
    return next(table.owner for table in tables if " ".join(table.name) == NAME)


@contextmanager
def another_daemon() -> Iterator[subprocess.Popen[str]]:
    """A process that has installed our table and goes on; killed in the end."""
    code = (
        f"import sys; sys.path[:] = {sys.path!r}\n"
        "import test_persistent_table as here, time\n"
        "from vm_onetoone_nat.kernel.nft import Nft\n"
        "nft = Nft(owner=True)\n"
        "nft.apply(here.install())\n"
        "print('installed', flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "installed\n"
        try:
            yield other
        finally:
            other.send_signal(SIGKILL)


def child_flush() -> None:
    from vm_onetoone_nat.kernel.nft import Nft

    nft = Nft(owner=True)
    generation = nft.observe(MARK) and nft.generation
    assert nft.persistent
    assert (nft.observe(MARK)[0], nft.generation) == (None, generation), "a test writes nothing"
    for _ in range(2):
        # Twice: the second writes over the table of the first.
        nft.apply(install())
        assert nft.observe(MARK)[0] == WHOLE
        assert Nft().observe(MARK)[0] == WHOLE
    before = _run(f"nft -a list table {NAME}")
    _run("nft add table ip other")
    _run("nft flush ruleset")
    assert _run("nft list tables").split() == ["table", *NAME.split()]
    assert _run(f"nft -a list table {NAME}") == before
    for command in ("delete table", "flush table", "add chain", "flush map"):
        more = {"add chain": " more", "flush map": " external"}.get(command, "")
        assert "Operation not permitted" in _fails(f"nft {command} {NAME}{more}")
    assert nft.observe(MARK)[0] == WHOLE


def test_flush() -> None:
    """No other program can change the table, nor delete it with `nft flush ruleset`."""
    in_debian_13(child_flush)


def child_orphan() -> None:
    from vm_onetoone_nat.kernel.nft import Nft

    with closing(Nft(owner=True)) as nft, closing(Nft()) as reader:
        with another_daemon():
            assert reader.observe(MARK)[0] == WHOLE
            before = _run(f"nft -a list table {NAME}").splitlines()[2:]
        assert nft.observe(MARK)[0] == reader.observe(MARK)[0] == ORPHAN
        nft.apply([AdoptTable()])
        assert nft.observe(MARK)[0] == reader.observe(MARK)[0] == WHOLE
        assert _run(f"nft -a list table {NAME}").splitlines()[2:] == before
        _run("nft flush ruleset")
        assert nft.observe(MARK)[0] == WHOLE
        nft.apply([RemoveTable()])
    with another_daemon():
        pass
    with closing(Nft()) as cleanup:
        assert cleanup.observe(MARK)[0] == ORPHAN
        cleanup.apply([RemoveTable()])
        assert cleanup.observe(MARK)[0] is None


def test_orphan() -> None:
    """After its owner is killed, the next process adopts the table as it is, or deletes it."""
    in_debian_13(child_orphan)


def child_rival() -> None:
    from vm_onetoone_nat.kernel.nft import Nft

    with closing(Nft(owner=True)) as nft:
        with another_daemon():
            assert nft.observe(MARK)[0] == ORPHAN, "it has to belong to this process"
            for writes in ([AdoptTable()], install(), [RemoveTable()]):
                try:
                    nft.apply(writes)
                except TransactionRefused as error:
                    assert "belongs to another process, netlink port " in str(error)
                    assert f"'nft list table {NAME}' names" in str(error)
                else:
                    raise AssertionError(writes)
            assert "progname python3" in _run(f"nft list table {NAME}").splitlines()[0]
        nft.apply([AdoptTable()])
        assert nft.observe(MARK)[0] == WHOLE


def test_rival() -> None:
    """A table of another process that lives is a refusal that says whose it is."""
    in_debian_13(child_rival)


def child_earlier_version() -> None:
    from vm_onetoone_nat.kernel.nft import Nft

    with closing(Nft(owner=True)) as nft:
        nft.apply(install(persistent=False))
        assert nft.observe(MARK)[0] == Table(True, ELEMENTS, MARK)
        nft.apply(install())
        assert nft.observe(MARK)[0] == WHOLE


def test_earlier_version() -> None:
    """A table without an owner is replaced by one with an owner."""
    in_debian_13(child_earlier_version)


def child_busy() -> None:
    from vm_onetoone_nat.kernel.nft import Nft

    loop = "while :; do nft 'add table ip other; delete table ip other'; done"
    others = [subprocess.Popen(["sh", "-c", loop]) for _ in range(2)]
    try:
        with closing(Nft(owner=True)) as nft:
            nft.apply(install())
            first = owner()
            assert first is not None
            for _ in range(100):
                nft.apply(install())
                assert nft.observe(MARK)[0] == WHOLE
                assert owner() == first
    finally:
        for other in others:
            other.kill()
            other.wait()


def test_busy() -> None:
    """The owner stays the same socket while others write at the same time."""
    in_debian_13(child_busy)


def child_changed_flags() -> None:
    from vm_onetoone_nat.kernel.nft import Nft

    with closing(Nft(owner=True)) as nft:
        for flags in ("dormant", "persist, dormant"):
            _run(f"nft 'add table {NAME} {{ flags {flags}; }}'")
            found = nft.observe(MARK)[0]
            assert found is not None
            assert not found.intact
            nft.apply(install())
            assert nft.observe(MARK)[0] == WHOLE
            nft.apply([RemoveTable()])


def test_changed_flags() -> None:
    """A table with other flags is not intact, and is replaced."""
    in_debian_13(child_changed_flags)
