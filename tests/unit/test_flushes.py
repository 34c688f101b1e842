"""Which entries a flush deletes, and what another flush of the same addresses changes."""

from ipaddress import ip_address

import pytest
from lab.addresses import HOST, LAN_CLIENT, external, internal
from vm_onetoone_nat.decide.flushes import Flush, Flushes
from vm_onetoone_nat.decide.host_writes import FlushBypassing, FlushTranslated
from vm_onetoone_nat.model.flow import Flow
from vm_onetoone_nat.model.nat_table import Translation

TCP, UDP = 6, 17
ONE, TWO = (Translation(external(n), internal(n)) for n in (1, 2))
MOVED = Translation(external(1), internal(2))
"""The external address of the first guest, which the second one has now."""

NAMES = {
    "client": LAN_CLIENT.ip,
    "host": HOST.ip,
    "e1": external(1),
    "e2": external(2),
    "i1": internal(1),
    "i2": internal(2),
    "vpn": ip_address("10.8.0.2"),
}


def flow(there: str, back: str, protocol: int = UDP) -> Flow:
    """A flow from its two directions, as "source>destination"."""
    names = [*there.split(">"), *back.split(">")]
    packed = [NAMES[name].packed for name in names]
    return Flow(packed[0], packed[1], packed[2], packed[3], protocol)


def bypassing(pair: Translation, *more_hosts: str) -> FlushBypassing:
    hosts = frozenset({HOST.ip, *(external(int(name[1:])) for name in more_hosts)})
    return FlushBypassing(pair, host_sources=hosts)


def running(*flushes: Flush) -> Flushes:
    """A round with these flushes."""
    found = Flushes()
    found.add(flushes)
    found.begin()
    return found


@pytest.mark.parametrize(
    ("there", "back", "due"),
    [
        ("client>e1", "i1>client", True),
        ("i1>client", "client>e1", True),
        ("i2>e1", "i1>e2", True),
        ("i1>e2", "i2>e1", True),
        ("host>e1", "i1>host", True),
        ("i1>e1", "i1>e1", True),
        ("client>e1", "e1>client", False),
        ("client>e1", "i2>client", False),
        ("i1>client", "client>host", False),
        ("i1>client", "client>vpn", False),
        ("i1>i2", "i2>i1", False),
        ("client>e2", "i2>client", False),
        ("client>i1", "i1>client", False),
    ],
)
@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_translated(there: str, back: str, due: bool, protocol: int) -> None:
    """What a deleted translation has created is due, of any protocol, and nothing else."""
    assert running(FlushTranslated(ONE)).is_due(flow(there, back, protocol)) == due


@pytest.mark.parametrize(
    ("there", "back", "due"),
    [
        ("client>e1", "e1>client", {TCP, UDP}),
        ("client>e1", "i2>client", {TCP, UDP}),
        ("client>e1", "i1>client", set()),
        ("i1>client", "client>host", {UDP}),
        ("i1>client", "client>e1", set()),
        ("i1>client", "client>vpn", set()),
        ("i1>i2", "i2>i1", set()),
        ("i2>client", "client>host", set()),
        ("client>host", "host>client", set()),
    ],
)
@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_bypassing(there: str, back: str, due: set[int], protocol: int) -> None:
    """What bypasses a translation is due, but for the guest's own TCP connections."""
    found = running(bypassing(ONE)).is_due(flow(there, back, protocol))
    assert found == (protocol in due)


def test_external_address_of_the_host() -> None:
    """Where the host has the external address without us, the guest's flows are not flushed.

    It counts as one of the host's addresses. They were flushed at each restart.
    """
    flushes = running(bypassing(ONE, "e1"), bypassing(TWO, "e1"))
    assert not flushes.is_due(flow("i1>client", "client>e1"))
    assert flushes.is_due(flow("i2>client", "client>e1"))


def test_address_of_another_guest() -> None:
    """What went to the guest that had an address before is due, and what goes to the next is not.

    So it is for an internal address that another guest has next.
    """
    flushes = running(FlushTranslated(ONE), bypassing(MOVED))
    assert flushes.is_due(flow("client>e1", "i1>client"))
    assert not flushes.is_due(flow("client>e1", "i2>client"))
    assert flushes.is_due(flow("i1>client", "client>e1"))
    assert not flushes.is_due(flow("i2>client", "client>e1"))
    flushes = running(FlushTranslated(Translation(external(2), internal(1))), bypassing(ONE))
    assert flushes.is_due(flow("client>e2", "i1>client"))
    assert not flushes.is_due(flow("client>e1", "i1>client"))


def test_translation_that_is_back() -> None:
    """From when it is back nothing that it creates is deleted, in the middle of a round too."""
    flushes = running(FlushTranslated(ONE), FlushTranslated(TWO))
    flushes.add([bypassing(ONE)])
    for there, back in (("client>e1", "i1>client"), ("i1>client", "client>e1")):
        assert not flushes.is_due(flow(there, back))
    assert flushes.is_due(flow("client>e2", "i2>client"))
    # It waits for the next round: this one has read some entries already.
    assert not flushes.is_due(flow("client>e1", "e1>client"))
    flushes.end()
    assert flushes.left
    flushes.begin()
    assert flushes.is_due(flow("client>e1", "e1>client"))
    flushes.end()
    assert not flushes.left


@pytest.mark.parametrize("next_flush", [FlushTranslated(ONE), bypassing(MOVED)])
def test_translation_that_is_gone(next_flush: Flush) -> None:
    """When a translation is gone, no flow bypasses it: nothing is deleted for that any more."""
    flushes = running(bypassing(ONE))
    flushes.add([next_flush])
    assert not flushes.is_due(flow("client>e1", "e1>client"))
    assert not flushes.is_due(flow("i1>client", "client>host"))
    assert ONE not in flushes.flushed


def test_rounds() -> None:
    """A round ends what waited at its beginning; one that did not end is begun again with it."""
    flushes = Flushes()
    assert not flushes.left
    flushes.add([FlushTranslated(ONE)])
    flushes.begin()
    flushes.add([FlushTranslated(TWO)])
    assert flushes.destinations == {external(1).packed}
    flushes.begin()
    assert flushes.destinations == {external(1).packed, external(2).packed}
    assert flushes.sources == {internal(1).packed, internal(2).packed}
    flushes.end()
    assert not flushes.left


def test_flushed() -> None:
    """A translation counts as flushed from when its flush is added until it is forgotten.

    So a plan does not add it again while it is work.
    """
    flushes = Flushes()
    flushes.add([bypassing(ONE), FlushTranslated(TWO)])
    assert flushes.flushed == {ONE}
    flushes.begin()
    assert flushes.flushed == {ONE}
    flushes.end()
    assert flushes.flushed == {ONE}
    flushes.forget([ONE, TWO])
    assert flushes.flushed == set()


def test_again() -> None:
    """When an address has been added, what bypasses its translation is flushed once more."""
    flushes = running(bypassing(ONE), bypassing(TWO))
    flushes.end()
    flushes.again([ONE, MOVED])
    assert flushes.left
    flushes.begin()
    assert flushes.destinations == {external(1).packed}
    assert flushes.is_due(flow("client>e1", "e1>client"))
    flushes.end()
    assert not flushes.left


def test_again_in_the_middle_of_a_round() -> None:
    """A round that runs when an address is added goes on, and there is another one."""
    flushes = running(bypassing(ONE))
    flushes.again([ONE])
    assert flushes.is_due(flow("client>e1", "e1>client"))
    flushes.end()
    assert flushes.left
