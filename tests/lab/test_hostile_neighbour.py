"""A program of the host that does to the kernel what it can, at random, while guests are served."""

import json
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pytest
from faults import Site, fault, in_the_way
from lab import EchoServer, Host, Lan, NamespaceGuest
from lab.addresses import LAN_CLIENT, UPLINK, external, internal
from lab.run_queue import RunQueue
from running import Daemon, mapping

PORT = 7000
GUESTS = (1, 2, 3)
SECONDS = 120.0
"""How long it goes on; an hour at length."""
BURST_SECONDS = 8.0
"""At the end it does the same thing twice a second for so long."""

MEMORY = 60 << 20
"""By so many bytes the daemon may grow."""

RATE = 50
"""Messages per second to each guest."""

ELEMENTS = 100_000
TABLE = "inet vm_onetoone_nat"
ODD_NAMES = ("reject", "~log0", "22", "drop", "accept-all", "a.b", "policy")

# Of what it undoes more often than five times in 30 s, repairs pause: that is a fight.
_PAUSE = 12.0


class Act(Protocol):
    def __call__(self, chance: random.Random) -> None: ...


@dataclass
class Neighbour:
    """What it does. Each act is named by the object that the daemon then repairs; "" is none."""

    lan: Lan
    host: Host
    scratch: Path
    _done_at: dict[str, float] = field(default_factory=dict)

    def next(self, chance: random.Random) -> tuple[str, Act]:
        """Something that is no fight yet."""
        now = time.monotonic()
        free = [
            (what, act)
            for what, act in self.acts()
            if not what or now - self._done_at.get(what, -_PAUSE) >= _PAUSE
        ]
        what, act = chance.choice(free)
        self._done_at[what] = now
        return act.__name__ if hasattr(act, "__name__") else what, act

    def acts(self) -> tuple[tuple[str, Act], ...]:
        return (
            ("table", self.flush_ruleset),
            ("table", self.delete_table),
            ("table", self.empty_table),
            ("table", self.add_a_rule),
            ("element", self.delete_element),
            ("other element", self.add_element),
            ("accept", self.flush_forward),
            ("accept", self.refuse_first),
            ("address", self.delete_address),
            ("forwarding", self.stop_forwarding),
            ("", self.replace_big_set),
            ("", self.add_odd_names),
            ("", self.add_many_rules),
            ("", self.flood_connections),
            ("", self.flood_macs),
        )

    def flush_ruleset(self, chance: random.Random) -> None:
        self.host.run("nft", "flush", "ruleset")

    def delete_table(self, chance: random.Random) -> None:
        self.host.run("nft", f"delete table {TABLE}")

    def empty_table(self, chance: random.Random) -> None:
        self.host.run("nft", f"flush table {TABLE}")

    def add_a_rule(self, chance: random.Random) -> None:
        self.host.run("nft", f"insert rule {TABLE} forward drop")

    def delete_element(self, chance: random.Random) -> None:
        n = chance.choice(GUESTS)
        self.host.run("nft", f"delete element {TABLE} external {{ {external(n)} }}")

    def add_element(self, chance: random.Random) -> None:
        element = f"192.168.1.250 : {internal(chance.choice(GUESTS))}"
        self.host.run("nft", f"add element {TABLE} external {{ {element} }}")

    def flush_forward(self, chance: random.Random) -> None:
        self.host.run("sh", "-ec", "iptables -P FORWARD DROP; iptables -F FORWARD")

    def refuse_first(self, chance: random.Random) -> None:
        self.host.run("sh", "-ec", "iptables -I FORWARD -j REJECT; iptables -D FORWARD 1")

    def delete_address(self, chance: random.Random) -> None:
        address = f"{external(chance.choice(GUESTS))}/24"
        self.host.run("ip", "address", "del", address, "dev", UPLINK)

    def stop_forwarding(self, chance: random.Random) -> None:
        self.host.sysctl("net.ipv4.ip_forward", 0)

    def replace_big_set(self, chance: random.Random) -> None:
        first = chance.randrange(1 << 24)
        elements = ",".join(
            f"{10 + (n >> 24)}.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}"
            for n in range(first, first + ELEMENTS)
        )
        self._nft(
            "add table inet bans\n"
            "add set inet bans banned { type ipv4_addr; }\n"
            "add chain inet bans forward { type filter hook forward priority -300; }\n"
            "flush chain inet bans forward\n"
            "add rule inet bans forward ip saddr @banned drop\n"
            f"flush set inet bans banned\nadd element inet bans banned {{ {elements} }}\n"
        )

    def add_odd_names(self, chance: random.Random) -> None:
        place = {"family": chance.choice(("ip", "inet", "bridge")), "table": "odd"}
        add: list[object] = [{"add": {"table": {"family": place["family"], "name": "odd"}}}]
        for name in chance.sample(ODD_NAMES, 3):
            add.append({"add": {"chain": {**place, "name": name}}})
            rule = {**place, "chain": name, "expr": [{"counter": None}, {"return": None}]}
            add.append({"add": {"rule": rule}})
        self._nft(json.dumps({"nftables": add}), "-j")

    def add_many_rules(self, chance: random.Random) -> None:
        rules = "".join(
            f"add rule inet rules forward ip saddr 10.9.{n >> 8}.{n & 255} drop\n"
            for n in range(2000)
        )
        self._nft(
            "add table inet rules\n"
            "add chain inet rules forward { type filter hook forward priority -200; }\n"
            f"flush chain inet rules forward\n{rules}"
        )

    def flood_connections(self, chance: random.Random) -> None:
        program = Path(__file__).parents[1] / "support/lab/inside/udp_flood.py"
        guest = external(chance.choice(GUESTS))
        ends = (str(LAN_CLIENT.ip), str(guest), str(chance.randrange(9000, 60000)))
        self.lan.run(*self.lan.python(program, *ends, "20000"))

    def flood_macs(self, chance: random.Random) -> None:
        port = f"lab{int(internal(chance.choice(GUESTS))):08x}"
        macs = (chance.randbytes(5).hex(":") for _ in range(2000))
        batch = "".join(f"fdb replace 02:{mac} dev {port} master dynamic\n" for mac in macs)
        self.host.run("bridge", "-batch", "-", input=batch)

    def _nft(self, commands: str, *options: str) -> None:
        self.scratch.write_text(commands)
        self.host.run("nft", *options, "-f", str(self.scratch))


@pytest.fixture
def sites(lan: Lan, host: Host, daemon: Daemon) -> Iterator[tuple[Site, ...]]:
    """Three guests that are served."""
    with ExitStack() as stack:
        found = []
        for n in GUESTS:
            guest = stack.enter_context(NamespaceGuest(host, f"guest{n}", internal(n)))
            stack.enter_context(EchoServer(guest, PORT))
            found.append(Site(lan, guest, daemon, PORT, n))
        daemon.configure(*map(mapping, GUESTS))
        daemon.start()
        for n in GUESTS:
            daemon.wait_for(external(n), "active")
        yield tuple(found)


def resident(daemon: Daemon) -> int:
    """Its memory in bytes."""
    assert daemon.process is not None
    text = Path(f"/proc/{daemon.process.inner_pid}/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in text.splitlines() if "VmRSS" in line)


@pytest.mark.minutes
def test_hostile(
    lan: Lan,
    host: Host,
    daemon: Daemon,
    sites: tuple[Site, ...],
    tmp_path: Path,
    at_length: bool,
) -> None:
    """Each guest is served again within the limit of a repair, whatever the neighbour did.

    The daemon is the same process to the end, and its memory is bounded. After a fight, which
    makes repairs pause, all is as before.
    """
    assert daemon.process is not None
    process, before = daemon.process.inner_pid, resident(daemon)
    neighbour = Neighbour(lan, host, tmp_path / "commands.nft")
    seed = random.randrange(1 << 32) if at_length else 16
    print(f"seed {seed}")
    chance = random.Random(seed)
    most = before
    until = time.monotonic() + (3600 if at_length else SECONDS)
    while time.monotonic() < until:
        name, act = neighbour.next(chance)
        with ExitStack() as stack:
            queue = stack.enter_context(RunQueue(lambda: in_the_way(host)))
            streams = [
                stack.enter_context(
                    fault(f"{name}, guest {n}", site, listed=False, rate=RATE, queue=queue)
                )
                for n, site in zip(GUESTS, sites, strict=True)
            ]
            act(chance)
            for stream in streams:
                stream.settled()
        assert daemon.process.inner_pid == process, daemon.log()
        most = max(most, resident(daemon))
    over = time.monotonic() + BURST_SECONDS
    while time.monotonic() < over:
        neighbour.flush_ruleset(chance)
        time.sleep(0.5)
    # A pause after a fight is at most a minute.
    daemon.wait_until_converged(timeout=120)
    for n in GUESTS:
        daemon.wait_for(external(n), "active")
    most = max(most, resident(daemon))
    print(f"memory: {before / 1e6:.1f} MB, at most {most / 1e6:.1f} MB")
    assert most - before < MEMORY
    assert daemon.process.inner_pid == process
    assert "Traceback" not in daemon.log()
