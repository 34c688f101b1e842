"""Triggers: the public label of each, and which need a pass."""

from itertools import combinations

import pytest
from vm_onetoone_nat.model.trigger import RESYNC, Kind, Trigger, is_news, texts

WRITTEN = Trigger(Kind.NFTABLES, "nftables: written by nft (process 1)", "nft (process 1)")
LOST = Trigger(Kind.NFTABLES_LOST, "nftables: notifications were lost")


def test_labels() -> None:
    """The labels are those that dashboards use."""
    assert {kind.label for kind in Kind} == {
        *("start", "reload", "retry", "resync", "setting"),
        *("link", "address", "route", "neighbour", "bridge", "forwarding"),
        *("nftables", "ruleset", "rtnetlink", "arp"),
        *("domain", "network", "libvirt", "guest"),
    }
    shared = [{one, other} for one, other in combinations(Kind, 2) if one.label == other.label]
    assert shared == [{Kind.NFTABLES, Kind.NFTABLES_LOST}]


@pytest.mark.parametrize(
    ("triggers", "notified", "news"),
    [
        ({WRITTEN}, 7, False),
        ({WRITTEN}, 8, True),
        ({WRITTEN, RESYNC}, 7, True),
        # The generation of what was lost is not known.
        ({LOST}, 7, True),
        ({WRITTEN, LOST}, 7, True),
    ],
)
def test_news(triggers: set[Trigger], notified: int, news: bool) -> None:
    """A ruleset that the last pass has observed needs no other; everything else does.

    A notification that was lost needed none either, since its text begins with "nftables:".
    """
    assert is_news(frozenset(triggers), notified, observed=7) is news


def test_texts() -> None:
    """The log has the triggers in order."""
    assert texts(frozenset({WRITTEN, LOST})) == f"{LOST.text}, {WRITTEN.text}"
