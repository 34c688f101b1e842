"""From a neighbour's change to the one guest agent that it concerns."""

from socket import AF_INET
from typing import Any

from fakes import default_network
from lab.addresses import guest_name, internal, mac_of
from vm_onetoone_nat.kernel.messages.neighbour import Entry
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
