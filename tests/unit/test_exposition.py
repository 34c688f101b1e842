"""Metrics: what they say of a report."""

from dataclasses import replace

import pytest
from exposition import exposed, samples
from lab.addresses import external, guest_name
from reports import DAY, entry
from vm_onetoone_nat.errors import PrivilegeError
from vm_onetoone_nat.model.status import MappingState
from vm_onetoone_nat.report.report import BOUNDS, Report
from vm_onetoone_nat.service.metrics import exposition

NONE: dict[str, float] = dict.fromkeys(MappingState, 0)


def test_daemon() -> None:
    """What the daemon has done is told as it is in the report."""
    seen = exposed(libvirt=False)
    assert seen["vm_onetoone_nat_up"] == 1
    assert seen['vm_onetoone_nat_info{version="1.2.3"}'] == 1
    assert seen["vm_onetoone_nat_uptime_seconds"] == DAY
    assert seen["vm_onetoone_nat_libvirt_connected"] == 0
    assert seen["vm_onetoone_nat_passes_total"] == 20
    assert seen["vm_onetoone_nat_passes_failed_total"] == 2
    assert seen["vm_onetoone_nat_passes_wrote_total"] == 5
    assert seen['vm_onetoone_nat_repairs_total{cause="nftables"}'] == 3
    assert seen['vm_onetoone_nat_repairs_total{cause="address"}'] == 1
    duration = "vm_onetoone_nat_pass_duration_seconds"
    assert seen[f"{duration}_count"] == 20
    assert seen[f"{duration}_sum"] == 0.75
    buckets = [seen[f'{duration}_bucket{{le="{bound}"}}'] for bound in (*BOUNDS, "+Inf")]
    assert buckets == [2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 20]


def test_mappings() -> None:
    """Every state is counted, also where there is none; each mapping is in exactly one."""
    seen = exposed(entry(1), entry(2), entry(3, MappingState.CONFLICT, "another host has it"))
    counted = {
        state: seen[f'vm_onetoone_nat_mappings{{state="{state}"}}'] for state in MappingState
    }
    assert counted == {**NONE, "active": 2, "conflict": 1}
    for n, state in ((1, "active"), (3, "conflict")):
        labels = f'domain="{guest_name(n)}",external="{external(n)}"'
        states = {
            each: seen[f'vm_onetoone_nat_mapping_state{{{labels},state="{each}"}}']
            for each in MappingState
        }
        assert states == {**NONE, state: 1}


def test_traffic() -> None:
    """What a mapping carries is told by who began the connection; nothing where it is unknown."""
    seen = exposed(entry(1), replace(entry(2), inbound=None, outbound=None))
    of = f'domain="{guest_name(1)}",external="{external(1)}"'
    figures = {
        (figure, side): seen[f'vm_onetoone_nat_mapping_{figure}_total{{{of},initiator="{side}"}}']
        for figure in ("connections", "packets", "bytes", "dropped_packets")
        for side in ("lan", "guest")
    }
    assert figures == {
        ("connections", "lan"): 101,
        ("connections", "guest"): 201,
        ("packets", "lan"): 2_000,
        ("packets", "guest"): 4_000,
        ("bytes", "lan"): 3_000_000,
        ("bytes", "guest"): 5_000_000,
        ("dropped_packets", "lan"): 6,
        ("dropped_packets", "guest"): 7,
    }
    assert [key for key in seen if "_total" in key and guest_name(2) in key] == []


def test_no_series_twice() -> None:
    """A claim that repeats another's address adds no second series, but is counted."""
    claim = replace(entry(1), state=MappingState.ERROR, inbound=None, outbound=None)
    seen = exposed(entry(1), claim, replace(claim, external=None), replace(claim, external=None))
    labels = f'domain="{guest_name(1)}",external="{external(1)}"'
    assert seen[f'vm_onetoone_nat_mapping_state{{{labels},state="active"}}'] == 1
    assert seen['vm_onetoone_nat_mappings{state="error"}'] == 3


def test_any_name() -> None:
    """A guest's name, whatever is in it, is read as it was."""
    name = 'a "guest"\\ of\nmine, ünïcode'
    seen = exposed(replace(entry(1), domain=name))
    key = (
        f'vm_onetoone_nat_mapping_state{{domain="{name}",external="{external(1)}",state="active"}}'
    )
    assert seen[key] == 1


def test_nobody_answers() -> None:
    """Without a daemon there is one metric, that says so."""
    assert samples(exposition(lambda: None)) == {"vm_onetoone_nat_up": 0}


def test_refusal() -> None:
    """What the daemon refuses to tell is an error, not a daemon that is down."""

    def ask() -> Report | None:
        raise PrivilegeError("not you")

    with pytest.raises(PrivilegeError):
        exposition(ask)
