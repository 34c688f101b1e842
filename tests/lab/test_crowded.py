"""What others have costs nothing: a host with much beside an empty one, at the same time.

Another program changes a set of 100,000 elements ten times a second, 2,000 elements each time. The
bridge has learned 60,000 MACs, which a guest forges.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import pytest
from lab import EchoServer, Host, Lan, NamespaceGuest, wait_for
from lab.addresses import LIBVIRT_BRIDGE, UPLINK, external, internal
from running import Daemon, mapping

PROGRAMS = Path(sys.modules["lab"].__file__ or "").parent / "inside"
PORT = 7000
ELEMENTS, CHANGED, EVERY = 100_000, 2_000, 0.1
MACS = 60_000
SECONDS = 10.0
SHARE = 0.02
"""Of one processor, that the daemon may use meanwhile."""
MAPPINGS = 12
ACCEPT = "-m mark --mark 0x100000/0x100000 -j ACCEPT"
"""In a chain of others."""


@dataclass(frozen=True)
class Side:
    """A laptop with a guest that answers, and the daemon on it."""

    host: Host
    guest: NamespaceGuest
    daemon: Daemon

    def used(self) -> float:
        """The processor time that the daemon has used, in s."""
        assert self.daemon.process is not None
        tasks = Path(f"/proc/{self.daemon.process.inner_pid}/task")
        spent = (int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir())
        return sum(spent) / 1e9

    def passes(self) -> int:
        return self.daemon.log().count("DEBUG: pass")

    def repair(self, undo: str, done: str) -> float:
        """The time from a change until the daemon has undone it, in s."""
        script = f"{undo}; date +%s%N; until {done} >/dev/null 2>&1; do :; done; date +%s%N"
        began, ended = self.host.run("sh", "-ec", script).stdout.split()
        return (int(ended) - int(began)) / 1e9


@contextmanager
def side(directory: Path, *, bridge_netfilter: bool) -> Iterator[Side]:
    with ExitStack() as stack:
        lan = stack.enter_context(Lan())
        host = stack.enter_context(Host(lan))
        host.bridge_netfilter(bridge_netfilter)
        host.start_libvirt()
        guest = stack.enter_context(NamespaceGuest(host, "guest", internal(1)))
        stack.enter_context(EchoServer(guest, PORT))
        host.run("iptables", "-A", "FORWARD", "-s", "203.0.113.9", "-j", "REJECT")
        daemon = Daemon(host, directory)
        daemon.configure(*(mapping(n) for n in range(1, MAPPINGS + 1)))
        daemon.start()
        daemon.wait_for(external(MAPPINGS), "active")
        yield Side(host, guest, daemon)
        assert daemon.stop() == 0


@contextmanager
def churn(host: Host) -> Iterator[None]:
    """Elements of a foreign set change, many times a second."""
    numbers = (str(ELEMENTS), str(CHANGED), str(EVERY))
    program = host.python(PROGRAMS / "churn.py", *numbers)
    with host.popen(*program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield
        began = time.monotonic()
        process.stdin.close()
        print(f"{process.stdout.read().strip()} transactions, {time.monotonic() - began:.1f} s")


def forge(guest: NamespaceGuest, count: int, rate: float = 1e6) -> None:
    """The guest sends frames from so many MACs."""
    guest.run(*guest.python(PROGRAMS / "forged_macs.py", "eth0", str(count), str(rate)))


def learned(host: Host) -> int:
    """The MACs that the guests' bridge has learned."""
    return host.run("bridge", "fdb", "show", "br", LIBVIRT_BRIDGE).stdout.count("0a:00:")


@pytest.fixture(scope="module", params=[False, True], ids=["routed", "br_netfilter"])
def sides(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Side, Side]]:
    """The empty host, and the crowded one."""
    directories = (tmp_path_factory.mktemp(name) for name in ("empty", "crowded"))
    with ExitStack() as stack:
        empty, crowded = (
            stack.enter_context(side(directory, bridge_netfilter=request.param))
            for directory in directories
        )
        stack.enter_context(churn(crowded.host))
        forge(crowded.guest, MACS)
        assert learned(crowded.host) > 0.9 * MACS
        yield empty, crowded


def test_no_cost(sides: tuple[Side, Side]) -> None:
    """The daemon runs no pass for what others have, and uses less than 2 % of a processor.

    Meanwhile the guest forges other MACs.
    """
    _, crowded = sides
    wait_for(lambda: quiet(crowded), 60, "the daemon has nothing to do")
    passes, used, began = crowded.passes(), crowded.used(), time.monotonic()
    forge(crowded.guest, MACS // 10, rate=MACS / 10 / SECONDS)
    wait_for(lambda: time.monotonic() > began + SECONDS, 60, "the time is over")
    share = (crowded.used() - used) / (time.monotonic() - began)
    print(f"{100 * share:.2f} % of a processor, {crowded.passes() - passes} passes")
    assert crowded.passes() == passes
    assert share < SHARE


def quiet(at: Side) -> bool:
    """Whether no pass was made for half a second."""
    before = at.passes()
    time.sleep(0.5)
    return at.passes() == before


def test_repair(sides: tuple[Side, Side]) -> None:
    """A repair takes as long as on an empty host, of an address and of a rule of ours."""
    times: dict[str, tuple[list[float], list[float]]] = {"address": ([], []), "rule": ([], [])}
    for n in range(1, MAPPINGS + 1):
        for at, address, rule in zip(sides, times["address"], times["rule"], strict=True):
            text = f"{external(n)}/24"
            address.append(
                at.repair(
                    f"ip address del {text} dev {UPLINK}",
                    f"ip address show dev {UPLINK} | grep -qF 'inet {text}'",
                )
            )
            # Not as often that the daemon takes it for a fight.
            if n <= 3:
                rule.append(
                    at.repair(f"iptables -D FORWARD {ACCEPT}", f"iptables -C FORWARD {ACCEPT}")
                )
    for what, (empty, crowded) in times.items():
        figures = " beside ".join(f"{1000 * median(each):.0f} ms" for each in (crowded, empty))
        print(f"{what}: {figures}", times)
        # Of two that take equally long one may be twice as long on a loaded machine.
        assert median(crowded) < 2 * median(empty) + 0.01
