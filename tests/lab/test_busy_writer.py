"""Another program writes its own rules all the time: how long it takes to read ours meanwhile."""

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from ipaddress import IPv4Address
from itertools import count
from statistics import median

from own_network import in_own_network
from vm_onetoone_nat.decide.desired import mapping_elements
from vm_onetoone_nat.decide.nft_writes import AddElement, InstallTable
from vm_onetoone_nat.model.configuration import DEFAULT_FWMARK
from vm_onetoone_nat.model.mapping import Mapping

MARK = DEFAULT_FWMARK
MAPPINGS = 1000
PAUSE, NO_PAUSE = 0.005, 0.0
"""Between two foreign transactions, in seconds."""
TIMES = 20
LIMIT = 5
"""So many times as long as alone. libnftables, which begins again, took 12 times."""


@contextmanager
def writer(pause: float) -> Iterator[None]:
    """A program with a transaction each so many seconds."""
    over = threading.Event()

    def write() -> None:
        assert process.stdin is not None
        for n in count():
            if over.wait(pause):
                return
            verb = "delete" if n % 2 else "add"
            process.stdin.write(f"{verb} element ip other addresses {{ 203.0.113.1 }}\n")
            process.stdin.flush()

    with subprocess.Popen(["nft", "-i"], stdin=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        process.stdin.write("add table ip other\n")
        process.stdin.write("add set ip other addresses { type ipv4_addr; }\n")
        thread = threading.Thread(target=write)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            process.stdin.close()


def child_busy_writer() -> None:
    from vm_onetoone_nat.kernel.counters import read_counters
    from vm_onetoone_nat.kernel.nft import Nft

    mappings = [
        Mapping(IPv4Address("172.16.0.0") + n, "default", internal=IPv4Address("10.0.0.0") + n)
        for n in range(1, MAPPINGS + 1)
    ]
    elements = frozenset(each for mapping in mappings for each in mapping_elements(mapping))

    def read() -> float:
        began = time.monotonic()
        with closing(Nft()) as nft:
            table, _, _ = nft.observe(MARK)
        counters = read_counters()
        assert table is not None and table.elements == elements
        assert counters is not None and len(counters.inbound) == MAPPINGS
        return time.monotonic() - began

    with closing(Nft()) as nft:
        nft.apply((InstallTable(MARK), *map(AddElement, sorted(elements))))
        read()
        alone = [read() for _ in range(TIMES)]
        with writer(PAUSE):
            before = nft._generation()
            beside = [read() for _ in range(TIMES)]
            written = nft._generation() - before
        with writer(NO_PAUSE):
            # Each dump is interrupted, and none fails.
            for _ in range(TIMES):
                read()
    assert written > TIMES, written
    assert median(beside) < LIMIT * median(alone), (alone, beside)


def test_busy_writer() -> None:
    """Our table and its counters are complete, and read about as soon as alone."""
    in_own_network(child_busy_writer)
