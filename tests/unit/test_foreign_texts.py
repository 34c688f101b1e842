"""What is left of the answers of a child that crashes, or does not end."""

import pytest
from vm_onetoone_nat.kernel import foreign

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
    monkeypatch.setattr(foreign, "_SECONDS", 1.0)


@pytest.mark.parametrize("fault", ["crash", "hang"])
def test_only_what_fails_is_missing(fault: str) -> None:
    """The requests after the one that ends the child are answered by the next one."""
    asked = [fault, "a", fault, fault, "b"]
    answers = foreign._ask([[(command, {"terse": True})] for command in asked])
    texts = {command: f"{command} {{'terse': True}}" for command in ("a", "b")}
    assert answers == [[None], [texts["a"]], [None], [None], [texts["b"]]]


def test_nothing_is_asked() -> None:
    """Without a request no process is started."""
    assert foreign._ask([]) == []
