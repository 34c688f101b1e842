"""From a neighbour's change to the one guest agent that it concerns."""

import errno
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from socket import AF_INET
from typing import Any

import pytest
from fakes import default_network
from lab.addresses import guest_name, internal, mac_of
from vm_onetoone_nat.kernel.messages.neighbour import Entry
from vm_onetoone_nat.kernel.socket_filter import bridges_only_for
from vm_onetoone_nat.kernel.watch import Watch
from vm_onetoone_nat.model.guests import Domain, DomainState, Guests, Interface
from vm_onetoone_nat.model.trigger import Kind, Trigger, macs, texts
from vm_onetoone_nat.virt.source import LibvirtSource

ONE, TWO = mac_of(internal(1)), mac_of(internal(2))


def test_trigger_has_the_mac() -> None:
    """A new neighbour, another MAC at its address, and its loss are triggers with the MAC."""
    watch = Watch(lambda _trigger: None, lambda _address, _mac: True, 0, 0)
    for mac, gone, expected in (
        (ONE, False, ONE),
        (ONE, False, None),
        (TWO, False, TWO),
        (TWO, True, TWO),
        (None, True, None),
    ):
        entry = Entry(AF_INET, ifindex=3, state=2, address=internal(1), mac=mac)
        trigger = watch._moved(entry, gone=gone)
        assert (trigger and trigger.mac) == expected
        assert trigger is None or trigger.kind is Kind.NEIGHBOUR
    for listener in watch._listeners:
        listener._socket.close()


@dataclass
class Filtered:
    """A socket whose filters may have so many instructions, the old and the new one together."""

    room: int
    filters: list[int] = field(default_factory=lambda: [0])

    def setsockopt(self, _level: int, option: int, value: bytes | int) -> None:
        if option == 27:  # SO_DETACH_FILTER
            if self.filters[-1] == 0:
                raise FileNotFoundError(errno.ENOENT, "No such file or directory")
            self.filters.append(0)
            return
        assert option == 26 and isinstance(value, bytes)
        length = int.from_bytes(value[:2], sys.byteorder)
        if self.filters[-1] + length > self.room:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        self.filters.append(length)


@pytest.fixture
def triggers() -> list[Trigger]:
    return []


@pytest.fixture
def watch(triggers: list[Trigger]) -> Iterator[Watch]:
    """Not started."""
    watch = Watch(triggers.append, lambda _address, _mac: False, 0, 0)
    yield watch
    for listener in watch._listeners:
        listener._socket.close()


def follow(watch: Watch, room: int, *sets: set[str]) -> int:
    """The length of the filter after these MACs were followed one after the other; 0: none."""
    before = watch._neighbours._socket
    filtered = Filtered(room)
    watch._neighbours._socket = filtered  # type: ignore[assignment]
    try:
        for macs in sets:
            watch.follow(macs)
    finally:
        watch._neighbours._socket = before
    return filtered.filters[-1]


def learned(watch: Watch, mac: str) -> bool:
    """Whether it is a trigger that a bridge has learned a port for the MAC."""
    return watch._moved(Entry(7, ifindex=3, state=2, mac=mac), gone=False) is not None


MANY = {f"52:54:00:00:{n >> 8:02x}:{n & 255:02x}" for n in range(400)}


def test_filter_that_fits_once(watch: Watch) -> None:
    """The longest filter is replaced, though the kernel has no room for the old one beside it."""
    length = len(bridges_only_for(MANY))
    others = {*sorted(MANY)[1:], "52:54:00:00:02:00"}
    assert follow(watch, length, MANY, others) == len(bridges_only_for(others)) == length
    assert learned(watch, "52:54:00:00:02:00")


def test_filter_that_is_refused(watch: Watch, triggers: list[Trigger]) -> None:
    """All comes through, and a guest that moves is noticed: one that was followed, and a new one.

    Before, the pass raised, and the new guest was never followed.
    """
    few = len(bridges_only_for({ONE}))
    assert follow(watch, few, {ONE}, {ONE, TWO}) == 0
    assert learned(watch, ONE)
    assert learned(watch, TWO)
    assert [trigger.kind for trigger in triggers] == 2 * [Kind.BRIDGE]


def test_macs_of_triggers() -> None:
    """The MACs of all triggers that have one; the log names each text once."""
    triggers = frozenset(Trigger(Kind.NEIGHBOUR, "neighbour", mac=mac) for mac in (ONE, TWO))
    assert macs(triggers | {Trigger(Kind.LINK, "link virbr0")}) == {ONE, TWO}
    assert texts(triggers) == "neighbour"


class Recorded:
    """Agents of which only is known which were to be asked again."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def ask_again(self, uuid: str) -> None:
        self.asked.append(uuid)


def test_only_its_guest_is_asked(monkeypatch: Any) -> None:
    """The agents of the guests with these MACs are asked again, and no others.

    Before, one neighbour had all of them asked.
    """
    domains = tuple(
        Domain(guest_name(n), f"uuid-{n}", DomainState.RUNNING, (Interface(mac_of(internal(n))),))
        for n in (1, 2, 3)
    )
    source, agents = LibvirtSource("test:///default", lambda _trigger: None), Recorded()
    monkeypatch.setattr(source, "_agents", agents)
    source.ask_agents_again({ONE})
    monkeypatch.setattr(source, "_known", Guests(domains, (default_network(),)))
    assert agents.asked == []
    for asked, expected in ((set(), []), ({TWO}, ["uuid-2"]), ({"52:54:00:00:00:00"}, [])):
        source.ask_agents_again(asked)
        assert agents.asked == expected
        agents.asked.clear()
