"""Guest agents: which are asked, how often, and what becomes of what they answer."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from ipaddress import IPv4Address
from itertools import pairwise

import libvirt
import pytest
from lab import wait_for
from vm_onetoone_nat.errors import LibvirtUnavailable
from vm_onetoone_nat.virt import agents as module
from vm_onetoone_nat.virt.agents import AT_ONCE, MOST_ADDRESSES, Agents, reported_addresses

URI = "test:///default"
MAC = "52:54:00:aa:00:01"
MACS = frozenset({MAC})
ADDRESS = IPv4Address("192.168.122.101")
GOOD = {"eth0": {"hwaddr": MAC, "addrs": [{"type": 0, "addr": str(ADDRESS), "prefix": 24}]}}
KNOWN = {MAC: (ADDRESS,)}


class Guests:
    """Agents behind libvirt: `answers` has what each does when it is asked."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[], object]] = {}
        self.asked: Counter[str] = Counter()
        self.at_once = self.most = 0
        self._lock = threading.Lock()

    def ask(self, _uri: str, uuid: str) -> object:
        with self._lock:
            self.asked[uuid] += 1
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        try:
            return self.answers.get(uuid, lambda: GOOD)()
        finally:
            with self._lock:
                self.at_once -= 1


@pytest.fixture
def guests(monkeypatch: pytest.MonkeyPatch) -> Guests:
    guests = Guests()
    monkeypatch.setattr(module, "ask_agent", guests.ask)
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.1)
    return guests


@pytest.fixture
def agents(guests: Guests) -> Iterator[Agents]:
    """Agents that ask `guests`; all their threads have ended when the test is over."""
    yield Agents(URI, lambda: None)
    wait_for(nobody_asks, 60, "all threads have ended")


@pytest.fixture
def never() -> Iterator[Callable[[], object]]:
    """An agent that answers only when the test is over."""
    over = threading.Event()

    def hang() -> object:
        over.wait()
        return GOOD

    yield hang
    over.set()


def nobody_asks() -> bool:
    return "agent" not in {thread.name for thread in threading.enumerate()}


def has_answered(agents: Agents, uuid: str) -> Callable[[], bool]:
    return lambda: agents.addresses(uuid, MACS) == KNOWN


def test_of_libvirt() -> None:
    """libvirt's own test driver answers in the form that is expected."""
    answered = threading.Event()
    agents = Agents(URI, answered.set)
    connection = libvirt.open(URI)
    uuid = connection.lookupByName("test").UUIDString()
    connection.close()
    mac = "aa:bb:cc:dd:ee:ff"
    assert agents.addresses(uuid, frozenset({mac})) == {}
    assert answered.wait(60)
    assert agents.addresses(uuid, frozenset({mac})) == {mac: (IPv4Address("192.168.122.3"),)}


def test_asked_once(guests: Guests, agents: Agents) -> None:
    """An agent is asked once, however often its answer is read, and again after an event."""
    wait_for(has_answered(agents, "a"), 60, "the answer")
    for _ in range(10):
        agents.addresses("a", MACS)
    assert guests.asked["a"] == 1
    agents.ask_again("a")
    assert agents.addresses("a", MACS) == KNOWN
    wait_for(lambda: guests.asked["a"] == 2, 60, "it is asked again")
    assert agents.addresses("a", MACS) == KNOWN
    agents.invalidate("a")
    assert agents.addresses("a", MACS) == {}
    wait_for(has_answered(agents, "a"), 60, "the answer of the new agent")


def test_only_the_guest_concerned(guests: Guests, agents: Agents) -> None:
    """One guest's event asks that guest's agent, and no other; an unknown guest's none."""
    for uuid in "abc":
        wait_for(has_answered(agents, uuid), 60, "the answer")
    agents.ask_again("b")
    agents.ask_again("unknown")
    for uuid in "abc":
        agents.addresses(uuid, MACS)
    wait_for(lambda: guests.asked["b"] == 2, 60, "it is asked again")
    assert guests.asked == {"a": 1, "b": 2, "c": 1}


def test_pause(guests: Guests, agents: Agents) -> None:
    """However many events a guest causes, its agent is asked once in each pause, and at last."""
    times: list[float] = []

    def answer() -> object:
        times.append(time.monotonic())
        return GOOD

    guests.answers["a"] = answer
    wait_for(has_answered(agents, "a"), 60, "the answer")
    until = time.monotonic() + 1.0
    last = 0.0
    while last < until:
        last = time.monotonic()
        agents.ask_again("a")
        agents.addresses("a", MACS)
        time.sleep(0.001)
    wait_for(lambda: times[-1] > last, 60, "the last event is answered")
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert min(pauses) >= 0.1
    assert len(times) <= 13


def test_not_asked_without_need(guests: Guests, agents: Agents) -> None:
    """An agent that has disconnected is not asked, whatever its guest does: it would be a fault."""
    wait_for(has_answered(agents, "a"), 60, "the answer")
    agents.invalidate("a")
    agents.ask_again("a")
    wait_for(nobody_asks, 60, "nobody asks")
    assert guests.asked["a"] == 1


def test_hanging(
    guests: Guests, agents: Agents, never: Callable[[], object], caplog: pytest.LogCaptureFixture
) -> None:
    """An agent that hangs has one thread, is not asked again, and delays no other."""
    guests.answers["hangs"] = never
    agents.addresses("hangs", MACS)
    wait_for(lambda: guests.at_once == 1, 60, "it is asked")
    for _ in range(20):
        agents.invalidate("hangs")
        agents.keep(set())
        agents.addresses("hangs", MACS)
    wait_for(has_answered(agents, "other"), 60, "another's answer")
    assert guests.asked["hangs"] == 1
    assert guests.at_once == 1
    assert agents.addresses("hangs", MACS) == {}
    assert not caplog.records


def test_bounded(guests: Guests, agents: Agents, never: Callable[[], object]) -> None:
    """Of a thousand guests AT_ONCE are asked at once, all of them in the end."""
    for n in range(1000):
        agents.addresses(str(n), MACS)
    wait_for(lambda: all(guests.asked[str(n)] for n in range(1000)), 60, "all are asked")
    assert 1 <= guests.most <= AT_ONCE
    for n in range(AT_ONCE + 5):
        guests.answers[f"hangs{n}"] = never
        agents.addresses(f"hangs{n}", MACS)
    wait_for(lambda: guests.at_once == AT_ONCE, 60, "all threads hang")
    running = [thread.name for thread in threading.enumerate()].count("agent")
    assert running == AT_ONCE


def test_all_held(
    guests: Guests,
    agents: Agents,
    never: Callable[[], object],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While queries that do not end hold all threads for long, that is logged, once."""
    names = [f"hangs{n}" for n in range(AT_ONCE)]
    for name in names[1:]:
        guests.answers[name] = never
        agents.addresses(name, MACS)
    wait_for(lambda: guests.at_once == AT_ONCE - 1, 60, "all but one are asked")
    monkeypatch.setattr(module, "HELD_SECONDS", 0.0)
    agents.keep(names)
    assert not caplog.records
    guests.answers[names[0]] = never
    agents.addresses(names[0], MACS)
    wait_for(lambda: guests.at_once == AT_ONCE, 60, "all threads hang")
    monkeypatch.setattr(module, "HELD_SECONDS", 3600.0)
    agents.keep(names)
    assert not caplog.records
    monkeypatch.setattr(module, "HELD_SECONDS", 0.0)
    agents.keep(names)
    agents.keep(())
    (record,) = caplog.records
    assert record.getMessage().startswith("guest agents: all 8 queries wait for more than ")


@pytest.mark.parametrize("answers", [True, False])
def test_response_timeout(answers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """libvirt waits 5 s for the answer, and for those to other programs without limit again."""
    calls: list[object] = []

    def answer(_: object, source: int) -> object:
        calls.append("query")
        if not answers:
            raise libvirt.libvirtError("the agent does not answer")
        return GOOD

    limit = "agentSetResponseTimeout"
    monkeypatch.setattr(libvirt.virDomain, limit, lambda _, seconds: calls.append(seconds))
    monkeypatch.setattr(libvirt.virDomain, "interfaceAddresses", answer)
    connection = libvirt.open(URI)
    uuid = connection.lookupByName("test").UUIDString()
    connection.close()
    with nullcontext() if answers else pytest.raises(LibvirtUnavailable):
        assert module.ask_agent(URI, uuid) == GOOD
    assert calls == [5, "query", libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK]


def test_threads_end(guests: Guests, agents: Agents) -> None:
    """When no agent is to be asked there is no thread."""
    wait_for(has_answered(agents, "a"), 60, "the answer")
    wait_for(nobody_asks, 60, "it has ended")


JUNK: dict[str, object] = {
    "nothing": None,
    "a list": [GOOD],
    "an interface that is none": {"eth0": "up"},
    "no hwaddr": {"eth0": {"addrs": []}},
    "no addrs": {"eth0": {"hwaddr": MAC}},
    "hwaddr of another type": {"eth0": {"hwaddr": 7, "addrs": []}},
    "addrs of another type": {"eth0": {"hwaddr": MAC, "addrs": {"type": 0}}},
    "an address of another type": {"eth0": {"hwaddr": MAC, "addrs": [7]}},
    "no addr": {"eth0": {"hwaddr": MAC, "addrs": [{"type": 0}]}},
    "no type": {"eth0": {"hwaddr": MAC, "addrs": [{"addr": "192.168.122.101"}]}},
    "a type that is none": {"eth0": {"hwaddr": MAC, "addrs": [{"type": [], "addr": "1.2.3.4"}]}},
    "a bad address": {"eth0": {"hwaddr": MAC, "addrs": [{"type": 0, "addr": "300.1.1.1"}]}},
    "no text": {"eth0": {"hwaddr": MAC, "addrs": [{"type": 0, "addr": None}]}},
}


@pytest.mark.parametrize("junk", JUNK.values(), ids=JUNK)
def test_junk(
    guests: Guests, agents: Agents, junk: object, caplog: pytest.LogCaptureFixture
) -> None:
    """Junk counts as no address, is logged once, and neither other guests nor later answers suffer.

    Before, the thread ended with a traceback, and the agent was never asked again.
    """
    guests.answers["a"] = lambda: junk
    wait_for(has_answered(agents, "b"), 60, "another's answer")
    for _ in range(3):
        asked = guests.asked["a"]
        agents.ask_again("a")
        agents.addresses("a", MACS)
        wait_for(lambda asked=asked: guests.asked["a"] > asked, 60, "it is asked")  # type: ignore[misc]
    assert agents.addresses("a", MACS) == {}
    assert agents.addresses("b", MACS) == KNOWN
    guests.answers["a"] = lambda: GOOD
    agents.ask_again("a")
    wait_for(has_answered(agents, "a"), 60, "a good answer")
    (record,) = (r for r in caplog.records if r.levelno >= logging.WARNING)
    assert record.getMessage().startswith("guest agent of a: ")


@pytest.mark.internal_errors
@pytest.mark.parametrize("error", [LibvirtUnavailable("agent is not connected"), OSError("odd")])
def test_errors(
    guests: Guests, agents: Agents, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """An error of libvirt's, and one that nobody expects, are logged once each, and asked again."""

    def fail() -> object:
        raise error

    guests.answers["a"] = fail
    agents.addresses("a", MACS)
    for n in range(1, 4):
        wait_for(lambda n=n: guests.asked["a"] == n, 60, "it is asked")  # type: ignore[misc]
        agents.ask_again("a")
        agents.addresses("a", MACS)
    guests.answers["a"] = lambda: GOOD
    agents.ask_again("a")
    wait_for(has_answered(agents, "a"), 60, "a good answer")
    assert [r.levelno for r in caplog.records].count(logging.WARNING) == 1


def test_huge() -> None:
    """Of a huge report only the guest's own interfaces count, with so many addresses at most."""
    many = [{"type": 0, "addr": f"10.0.{n // 256}.{n % 256}", "prefix": 8} for n in range(60_000)]
    others = {
        f"veth{n}": {"hwaddr": f"02:00:00:00:{n // 256:02x}:{n % 256:02x}", "addrs": many}
        for n in range(2000)
    }
    began = time.process_time()
    found = reported_addresses({**others, "eth0": {"hwaddr": MAC, "addrs": many}}, MACS)
    assert time.process_time() - began < 1
    assert found.keys() == MACS
    assert len(found[MAC]) == MOST_ADDRESSES


def test_one_mac_twice() -> None:
    """The addresses of two interfaces with one MAC are joined, of the known families only."""
    second = IPv4Address("192.168.122.102")
    reported = {
        "lo": {"hwaddr": None, "addrs": [{"type": 0, "addr": "127.0.0.1", "prefix": 8}]},
        **GOOD,
        "eth0.7": {
            "hwaddr": MAC.upper(),
            "addrs": [
                {"type": 1, "addr": "fe80::1%eth0", "prefix": 64},
                {"type": 0, "addr": str(second), "prefix": 24},
            ],
        },
        "eth1": {"hwaddr": MAC, "addrs": None},
    }
    assert reported_addresses(reported, MACS) == {MAC: (ADDRESS, second)}
