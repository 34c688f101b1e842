"""What `status` tells, as JSON and back, and the figures in it."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from lab.addresses import external, guest_name, internal
from reports import CONTRACT, DAY, PASSES, entry, report, reports
from vm_onetoone_nat.errors import VmNatError
from vm_onetoone_nat.model.mapping import AddressSource, Mapping
from vm_onetoone_nat.model.nat_table import (
    EXTERNAL,
    INBOUND,
    INTERNAL,
    OUTBOUND,
    UNTRANSLATED_IN,
    UNTRANSLATED_OUT,
)
from vm_onetoone_nat.model.status import MappingState, MappingStatus, Unmapped
from vm_onetoone_nat.model.traffic import Counters, Traffic, counters
from vm_onetoone_nat.report.report import (
    Report,
    UnreadableReport,
    mapped,
    report_from_json,
    report_to_json,
    unmapped,
)


@given(reports)
def test_round_trip(told: Report) -> None:
    """A report is the same after it was written and read."""
    assert report_from_json(report_to_json(told)) == told


def test_shape() -> None:
    """The document has what other programs rely on, by these names."""
    document = json.loads(report_to_json(report(entry(1), entry(2, MappingState.CONFLICT, "so"))))
    assert document["uplink"] == "wlp0s20f3"
    assert document["libvirt"] == "connected"
    first, second = document["mappings"]
    assert {name: first[name] for name in CONTRACT} == {
        "external": str(external(1)),
        "internal": str(internal(1)),
        "domain": guest_name(1),
        "network": "default",
        "state": "active",
        "reason": "",
    }
    assert (second["state"], second["reason"]) == ("conflict", "so")
    away = json.loads(report_to_json(replace(report(), libvirt=False, daemon=None)))
    assert away == {
        "uplink": "wlp0s20f3",
        "libvirt": "disconnected",
        "daemon": None,
        "mappings": [],
    }


def broken() -> dict[str, str]:
    """Documents that are none of ours, by what is wrong with them."""

    def changed(**changes: object) -> str:
        return json.dumps({**json.loads(report_to_json(report(entry(1)))), **changes})

    daemon = json.loads(report_to_json(report()))["daemon"]
    (mapping,) = json.loads(report_to_json(report(entry(1))))["mappings"]
    return {
        "nothing": "",
        "half": report_to_json(report(entry(1)))[:100],
        "no JSON": "active",
        "null": "null",
        "list": "[]",
        "nested": "[" * 100_000,
        "no mappings": '{"uplink": "", "libvirt": "connected", "daemon": null}',
        "no mapping": changed(mappings=[None]),
        "unknown key": changed(mappings=[{**mapping, "more": 1}]),
        "unknown state": changed(mappings=[{**mapping, "state": "well"}]),
        "key missing": changed(mappings=[{k: v for k, v in mapping.items() if k != "network"}]),
        "no daemon": changed(daemon=4711),
        "other bounds": changed(daemon={**daemon, "passes": {**daemon["passes"], "within": [1]}}),
    }


@pytest.mark.parametrize("text", broken().values(), ids=broken())
def test_unreadable(text: str) -> None:
    """A document of another version, or none at all, is an error that says what to do."""
    with pytest.raises(UnreadableReport) as caught:
        report_from_json(text)
    assert isinstance(caught.value, VmNatError)
    assert "systemctl restart vm-onetoone-nat" in str(caught.value)


def test_mapped() -> None:
    """An entry has what a mapping carries in both directions; nothing where it is unknown."""
    mapping = Mapping(
        external(1), "default", internal=internal(1), domain="a", source=AddressSource.LEASE
    )
    status = MappingStatus(mapping, MappingState.ACTIVE)
    came, went = Traffic(1, 2, 3), Traffic(4, 5, 6)
    counters = Counters({external(1): came}, {internal(1): went})
    told = mapped(status, DAY, counters)
    assert (told.inbound, told.outbound, told.seconds) == (came, went, DAY)
    assert (told.origin, told.source) == ("configuration", "lease")
    assert mapped(status, None, Counters({}, {})).inbound == Traffic()
    assert mapped(status, None, None).inbound is None
    pending = replace(mapping, internal=None, source=None)
    told = mapped(MappingStatus(pending, MappingState.PENDING, "no address"), None, counters)
    assert (told.internal, told.source, told.outbound) == (None, None, Traffic())


def test_unmapped() -> None:
    """A guest that gets no address is an entry in state error, with what it asked for."""
    told = unmapped(Unmapped("a", "default", "not allowed", str(external(1))))
    assert (told.external, told.state, told.reason, told.origin) == (
        str(external(1)),
        MappingState.ERROR,
        "not allowed",
        "metadata",
    )
    assert report(told).count(MappingState.ERROR) == 1
    assert PASSES.within[-1] == PASSES.total


def test_counters() -> None:
    """Connections are those of the NAT maps, packets and bytes those of what is forwarded.

    Dropped packets have sets of their own.
    """
    own = internal(1)
    found = counters(
        {
            EXTERNAL: {external(1): (3, 180)},
            INTERNAL: {own: (5, 300)},
            INBOUND: {own: (1, 1)},
            OUTBOUND: {own: (50, 5000)},
            UNTRANSLATED_IN: {own: (7, 280)},
            UNTRANSLATED_OUT: {own: (8, 320)},
        }
    )
    assert found.outbound == {own: Traffic(5, 50, 5000, 8)}
    assert found.inbound == {own: Traffic(0, 1, 1, 7)}


def test_no_counters() -> None:
    """A table whose elements count nothing has no traffic."""
    assert counters({EXTERNAL: {}}) == Counters({}, {})


def test_traffic_adds_up() -> None:
    """Two directions are added figure by figure."""
    assert Traffic(1, 2, 3, 4) + Traffic(10, 20, 30, 40) == Traffic(11, 22, 33, 44)
