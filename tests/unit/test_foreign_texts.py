"""What is left of the answers of a child that crashes, or does not end."""

import subprocess
import time

import pytest
from vm_onetoone_nat.kernel import foreign
from vm_onetoone_nat.kernel.messages.nft_rules import ListedChain
from vm_onetoone_nat.model.host import ChainName

CHILD = """
import json, os, sys, time
for line in sys.stdin:
    (command, keywords), = json.loads(line)
    if command == "crash":
        print("half an answ", end="", flush=True)
        os.kill(os.getpid(), 11)
    if command == "hang":
        time.sleep(3600)
    print(json.dumps([f"{command} {keywords}"]), flush=True)
"""


@pytest.fixture(autouse=True)
def child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "_CHILD", ("-c", CHILD))
    monkeypatch.setattr(foreign, "_CHILD_SECONDS", 1.0)


@pytest.mark.parametrize("fault", ["crash", "hang"])
def test_only_what_fails_is_missing(fault: str) -> None:
    """The requests after the one that ends the child are answered by the next one."""
    asked = [fault, "a", fault, fault, "b"]
    ends = time.monotonic() + 600
    answers = foreign._ask([[(command, {"terse": True})] for command in asked], ends)
    texts = {command: f"{command} {{'terse': True}}" for command in ("a", "b")}
    assert answers == [[None], [texts["a"]], [None], [None], [texts["b"]]]


def test_nothing_is_asked() -> None:
    """Without a request no process is started."""
    assert foreign._ask([], time.monotonic() + 600) == []


def test_time_of_all_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """If no child ends, all together take no longer than the limit, and all chains are unreadable.

    Each had a minute of its own: 202 minutes for these chains.
    """
    now = 1000.0

    def run(command: list[str], *, timeout: float, **_: object) -> None:
        nonlocal now
        now += timeout
        raise subprocess.TimeoutExpired(command, timeout)

    chains = [ListedChain(ChainName("ip", f"table{n}", "forward")) for n in range(200)]
    monkeypatch.setattr(foreign, "_declared", lambda: chains)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    assert foreign.read_others().unreadable == tuple(chain.name for chain in chains)
    assert now == 1000 + foreign._SECONDS
