"""For which neighbours a bridge is asked for the port: a guest may forge any number of them."""

from collections.abc import Iterator, Set
from contextlib import closing
from ipaddress import IPv4Address
from pathlib import Path
from types import SimpleNamespace

import pytest
from fakes import FakeKernel, FakeStore
from lab.addresses import LIBVIRT_BRIDGE, external, internal, mac_of
from vm_onetoone_nat.decide.reconcile import look
from vm_onetoone_nat.kernel import kernel as module
from vm_onetoone_nat.kernel.kernel import Kernel
from vm_onetoone_nat.kernel.messages import neighbour, rtnetlink
from vm_onetoone_nat.model.configuration import Configuration
from vm_onetoone_nat.model.guests import Domain, DomainState, Guests, Interface
from vm_onetoone_nat.model.host import Neighbour, Observed
from vm_onetoone_nat.model.links import Link
from vm_onetoone_nat.model.mapping import Mapping
from vm_onetoone_nat.model.nat_table import EXTERNAL, Table, element

BRIDGE, PORT = Link(3, LIBVIRT_BRIDGE, kind="bridge"), Link(4, "vnet0", master=3)
GUEST, OF_CONFIGURATION, TRANSLATED = (mac_of(internal(n)) for n in (1, 2, 3))
FORGED = [f"52:54:01:00:{n >> 8:02x}:{n & 255:02x}" for n in range(1000)]
NEIGHBOURS = (
    Neighbour(LIBVIRT_BRIDGE, internal(1), GUEST),
    Neighbour(LIBVIRT_BRIDGE, internal(2), OF_CONFIGURATION),
    Neighbour(LIBVIRT_BRIDGE, internal(3), TRANSLATED),
    *(Neighbour(LIBVIRT_BRIDGE, IPv4Address(0x0A000000 + n), m) for n, m in enumerate(FORGED)),
)


class Learned:
    """The bridge has learned the same port for every MAC."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def ask(self, requests: bytes, _count: int) -> Iterator[rtnetlink.Answer]:
        answer = rtnetlink.parse_answer(requests)
        for entry in neighbour.entries(answer):
            assert entry.mac is not None
            self.asked.append(entry.mac)
            yield rtnetlink.parse_answer(_entry(entry.mac))

    def close(self) -> None: ...


def _entry(mac: str) -> bytes:
    body = neighbour._MESSAGE.pack(neighbour.BRIDGE, PORT.index, 2, 0, 0)
    body += rtnetlink.attribute(2, bytes.fromhex(mac.replace(":", "")))
    return rtnetlink.request(neighbour.NEW, body)


def test_forged_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only guests, and addresses that are configured or translated, are looked up, each once."""
    table = Table(True, frozenset({element(EXTERNAL, (str(external(3)),), str(internal(3)))}))
    links = {link.index: link for link in (BRIDGE, PORT)}
    monkeypatch.setattr(module, "bridge_netfilter", lambda: True)
    monkeypatch.setattr(module, "has_legacy_filter", lambda: False)
    monkeypatch.setattr(module, "links", lambda _: links)
    configuration = Configuration((Mapping(external(2), "default", internal=internal(2)),))
    with closing(Kernel(tmp_path)) as kernel:
        learned = Learned()
        kernel._bridge.close()
        monkeypatch.setattr(kernel._bridge, "_netlink", learned)
        monkeypatch.setattr(kernel._bridge, "neighbours", lambda _: NEIGHBOURS)
        monkeypatch.setattr(kernel._nft, "observe", lambda _: (table, (), ()))
        observed = kernel.observe(configuration, {GUEST})
    assert sorted(learned.asked) == sorted({GUEST, OF_CONFIGURATION, TRANSLATED})
    assert dict(observed.ports) == {internal(n): PORT.name for n in (1, 2, 3)}
    assert observed.neighbours == NEIGHBOURS


def test_guests_of_the_last_report() -> None:
    """A pass looks up the MACs of all guests that libvirt has reported."""
    asked: list[Set[str]] = []

    class Recording(FakeKernel):
        def observe(self, configuration: Configuration, macs: Set[str] = frozenset()) -> Observed:
            asked.append(macs)
            return super().observe(configuration, macs)

    nics = (Interface(GUEST, "default"), Interface(TRANSLATED, bridge=LIBVIRT_BRIDGE))
    guests = Guests(tuple(Domain(n.mac, n.mac, DomainState.OFF, (n,)) for n in nics))
    look(Configuration(), SimpleNamespace(observe=lambda: guests), Recording(), FakeStore())
    assert asked == [{GUEST, TRANSLATED}]
