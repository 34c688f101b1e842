"""What is concluded from evidence, where the lab cannot cause it; and how it is shown."""

import json
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from fakes import FORWARD, FakeKernel, FakeStore, laptop, running_guests
from lab.addresses import LIBVIRT_BRIDGE, UPLINK, external, guest_name, internal, mac_of
from vm_onetoone_nat.decide.plan import Plan
from vm_onetoone_nat.decide.reconcile import look, reconcile, settled
from vm_onetoone_nat.diagnose.check import Check, Diagnosis, Verdict, failed
from vm_onetoone_nat.diagnose.evidence import Answers, Daemon, Evidence, Routes, Sysctls
from vm_onetoone_nat.diagnose.remedies import remedy
from vm_onetoone_nat.diagnose.render import diagnoses_to_json, render_diagnosis
from vm_onetoone_nat.diagnose.steps import diagnose
from vm_onetoone_nat.model.configuration import Configuration
from vm_onetoone_nat.model.host import ChainName
from vm_onetoone_nat.model.mapping import AllowedService, Mapping
from vm_onetoone_nat.model.status import Cause, MappingState, MappingStatus
from vm_onetoone_nat.model.traffic import Tracked, Traffic
from vm_onetoone_nat.virt.units import libvirt_units

GUEST = Mapping(external(1), "default", internal=internal(1), domain=guest_name(1))
MAC = mac_of(internal(1))


def evidence(kernel: FakeKernel | None = None) -> Evidence:
    """Of guest 1, with which nothing is wrong but for what is wrong with the kernel."""
    libvirt = running_guests(1)
    if kernel is None:
        kernel = installed()
    seen = look(Configuration((GUEST,)), libvirt, kernel, FakeStore())
    (status,) = settled(seen)
    return Evidence(
        look=seen,
        status=status,
        daemon=Daemon.RUNNING,
        reloaded=True,
        guest_macs=frozenset({MAC}),
        plugged=True,
        off_bridge=None,
        elsewhere=(),
        uplink_runs=True,
        wireless=False,
        sysctls=Sysctls(),
        answers=Answers(guest=frozenset({MAC}), near=True, far=True, router=True),
        routes=Routes(LIBVIRT_BRIDGE, IPv4Address("192.168.1.1"), UPLINK),
        tracked=Tracked(3, 0),
        traffic=(Traffic(2, 20, 2000), Traffic(1, 10, 1000)),
    )


def installed() -> FakeKernel:
    """A kernel in which guest 1 is active."""
    kernel = laptop()
    reconcile(Configuration((GUEST,)), running_guests(1), kernel, FakeStore())
    return kernel


def cause(found: Evidence) -> Cause | None:
    first = diagnose(found).first
    return None if first is None else first.cause


def test_nothing_is_wrong() -> None:
    """With all in place every check is good."""
    assert {check.verdict for check in diagnose(evidence()).checks} == {Verdict.OK}


def without_forwarding(kernel: FakeKernel) -> None:
    kernel.ip_forward = False


def without_accept(kernel: FakeKernel) -> None:
    kernel.chains[FORWARD] = kernel.chains[FORWARD][1:]


def without_table(kernel: FakeKernel) -> None:
    kernel.table = None


def without_address(kernel: FakeKernel) -> None:
    kernel.addresses = [a for a in kernel.addresses if not a.owned]


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (without_forwarding, Cause.IP_FORWARD),
        (without_accept, Cause.ACCEPT_MISSING),
        (without_table, Cause.RULES_MISSING),
        (without_address, Cause.EXTERNAL_MISSING),
    ],
)
def test_part_is_missing_in_the_kernel(damage: object, expected: Cause) -> None:
    """What somebody keeps taking away is named for what it is."""
    kernel = installed()
    assert callable(damage)
    damage(kernel)
    assert cause(evidence(kernel)) is expected


def test_limits_are_told() -> None:
    """What the mapping itself leaves out is no fault, and is said where it is in force."""
    found = evidence()
    limited = replace(
        GUEST,
        allow=(
            AllowedService("icmp"),
            AllowedService("tcp", 22, 22),
            AllowedService("udp", 53, 60),
        ),
        allowed_sources=(IPv4Network("10.0.0.0/8"),),
    )
    found = replace(found, status=replace(found.status, mapping=limited))
    (rules,) = (check for check in diagnose(found).checks if check.step == "our rules")
    assert rules.verdict is Verdict.OK
    assert rules.text.endswith("; only icmp, tcp/22, udp/53-60 to the guest; only from 10.0.0.0/8")


@pytest.mark.parametrize(
    ("count", "names"),
    [
        (1, "chain ip t c0"),
        (3, "chain ip t c0, chain ip t c1, chain ip t c2"),
        (5, "chain ip t c0, chain ip t c1, chain ip t c2 and 2 more"),
    ],
)
def test_chains_that_cannot_be_listed(count: int, names: str) -> None:
    """A chain that libnftables cannot list is named, and is no fault of the path."""
    chains = tuple(ChainName("ip", "t", f"c{n}") for n in range(count))
    diagnosis = diagnose(replace(evidence(), unreadable=chains))
    (firewalls,) = (check for check in diagnosis.checks if check.step == "other firewalls")
    assert firewalls.verdict is Verdict.UNKNOWN
    assert firewalls.text.endswith(f", but libnftables cannot list {names}")
    assert diagnosis.first is None


def test_table_of_connections_is_full() -> None:
    """A full connection tracking table is named."""
    assert cause(replace(evidence(), sysctls=Sysctls(tracking_full=True))) is Cause.TRACKING_FULL


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (Answers(guest=frozenset(), near=False), Cause.GUEST_SILENT),
        (Answers(guest=frozenset({MAC, "52:54:00:00:00:99"}), near=True, far=True), "guest-twice"),
        (Answers(guest=frozenset({"52:54:00:00:00:99"}), near=True, far=True), "guest-twice"),
        (Answers(guest=frozenset({MAC})), Cause.GUEST_FIREWALL),
        (Answers(guest=frozenset({MAC}), near=True), Cause.GUEST_GATEWAY),
        (Answers(frozenset({"52:54:00:00:00:99"}), frozenset({MAC}), True, True), Cause.CONFLICT),
    ],
)
def test_answers(answers: Answers, expected: str) -> None:
    """What guest and LAN answer, and what they do not, tells where it ends."""
    assert cause(replace(evidence(), answers=answers)) == expected


@pytest.mark.parametrize(
    ("wireless", "router", "answered", "isolated"),
    [
        (True, True, (False, False), True),
        (True, True, (False, True), False),
        (True, False, (False,), False),
        (True, None, (False,), False),
        (True, True, (), False),
        (False, True, (False,), False),
    ],
)
def test_client_isolation(
    wireless: bool, router: bool | None, answered: tuple[bool, ...], isolated: bool
) -> None:
    """Suspected on Wi-Fi alone, where the router answers and nobody else does."""
    neighbours = tuple((IPv4Address(f"192.168.1.{50 + n}"), a) for n, a in enumerate(answered))
    heard = Answers(frozenset(), frozenset({MAC}), True, True, router, neighbours)
    found = diagnose(replace(evidence(), wireless=wireless, answers=heard))
    assert (found.first is not None) == isolated
    if found.first is not None:
        assert (found.first.verdict, found.first.cause) == (
            Verdict.SUSPECT,
            Cause.CLIENT_ISOLATION,
        )


def test_certain_before_suspected() -> None:
    """What is certain is named before what is suspected, wherever it is on the path."""
    suspect = Check("LAN", Verdict.SUSPECT, "perhaps", Cause.CLIENT_ISOLATION)
    certain = failed("guest", Cause.GUEST_OFF, "it is off")
    assert Diagnosis("x", (suspect, certain)).first is certain
    assert Diagnosis("x", (suspect,)).first is suspect
    assert Diagnosis("x", (Check("guest", Verdict.UNKNOWN, ""),)).first is None


def test_first_on_the_path_is_named() -> None:
    """Of several faults the first on the path is named, and all are shown."""
    found = diagnose(
        replace(
            evidence(),
            daemon=Daemon.STOPPED,
            uplink_runs=False,
            sysctls=Sysctls(unrouted=(UPLINK,)),
        )
    )
    assert found.first is not None
    assert found.first.cause is Cause.DAEMON_STOPPED
    shown = [check.cause for check in found.checks if check.verdict is Verdict.FAILED]
    assert shown == [Cause.DAEMON_STOPPED, Cause.UPLINK_DOWN, Cause.FORWARDING]


def test_what_cannot_be_seen() -> None:
    """Where a mapping is not active, what would need it is unknown, not wrong and not right."""
    libvirt = running_guests()
    seen = look(Configuration((GUEST,)), libvirt, laptop(), FakeStore())
    bare = replace(
        evidence(),
        look=seen,
        status=settled(seen)[0],
        answers=None,
        routes=None,
        tracked=None,
        traffic=None,
    )
    found = diagnose(bare)
    assert found.first is not None
    assert found.first.cause is Cause.GUEST_UNKNOWN
    verdicts = {check.step: check.verdict for check in found.checks}
    for step in ("routes", "our rules", "address on the uplink", "other firewalls", "connections"):
        assert verdicts[step] is Verdict.UNKNOWN
    for step in ("daemon", "libvirt", "network", "uplink"):
        assert verdicts[step] is Verdict.OK


@pytest.mark.parametrize("cause", Cause)
def test_each_cause_has_a_remedy(cause: Cause) -> None:
    """There is something to do about each, in the mapping's own names, or in plain ones."""
    for mapping in (GUEST, replace(GUEST, domain=None), None):
        text = remedy(cause, mapping)
        assert text and "{" not in text and "None" not in text
        assert not text.endswith(".")


@pytest.mark.parametrize("units", ["libvirtd", "virtqemud virtnetworkd"])
def test_units_of_libvirt(units: str) -> None:
    """Remedies name the units that this host has, also where the mapping's own state is the cause.

    libvirtd's unit conflicts with those of modular daemons: starting it would stop them.
    """
    found = replace(evidence(), libvirt_units=units)
    unreachable = replace(found, look=replace(found.look, guests=None))
    state = MappingStatus(GUEST, MappingState.INACTIVE, "libvirt cannot be reached", Cause.LIBVIRT)
    for each in (unreachable, replace(found, status=state), replace(found, off_bridge="vnet0")):
        first = diagnose(each).first
        assert first is not None
        assert f"systemctl restart {units}" in first.remedy
        assert first.remedy.count("libvirtd") == units.count("libvirtd")


@pytest.mark.parametrize(
    ("present", "units"),
    [
        ((), "libvirtd"),
        (("run/libvirt/libvirt-sock",), "libvirtd"),
        (("run/libvirt/virtqemud-sock",), "virtqemud virtnetworkd"),
        (("run/libvirt/virtqemud-sock", "run/libvirt/libvirt-sock"), "virtqemud virtnetworkd"),
        (("usr/sbin/virtqemud",), "virtqemud virtnetworkd"),
        (("usr/sbin/virtqemud", "run/libvirt/libvirt-sock"), "libvirtd"),
    ],
)
def test_which_units(tmp_path: Path, present: tuple[str, ...], units: str) -> None:
    """The socket that exists shows which units these are; without one the installed program."""
    for name in present:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert libvirt_units(tmp_path) == units


def test_shown_to_a_person() -> None:
    """Marks, what is wrong, what to do; in colour only where that is asked for."""
    found = diagnose(replace(evidence(), answers=Answers(guest=frozenset({MAC}), near=True)))
    lines = render_diagnosis(found)
    assert lines[0] == "el7-x86_64-101 (192.168.1.101):"
    shown = "\n".join(lines)
    assert "\n✗ guest answers          it answers the bridge's own address, but no" in shown
    assert "\n✓ LAN                    no fault is visible\n\n" in shown
    assert "\nwrong: it answers the bridge's own address, but no address beyond" in shown
    assert "\nremedy: in the guest, set the default route" in shown
    assert max(map(len, lines)) <= 80
    assert all("\033" not in line for line in lines)
    coloured = render_diagnosis(found, colour=True)
    assert [
        line.replace("\033[32m", "").replace("\033[31m", "").replace("\033[0m", "")
        for line in coloured
    ] == lines
    assert "\033[31m✗\033[0m guest answers " in "\n".join(coloured)


def test_names_cannot_harm_a_terminal() -> None:
    """No escape sequence in a guest's name, or in what another program wrote, is printed."""
    check = failed("guest", Cause.GUEST_OFF, "domain '\033[2J' is not running")
    shown = "\n".join(render_diagnosis(Diagnosis("\033]0;x\007", (check,))))
    assert "\033" not in shown and "\007" not in shown


def test_as_json() -> None:
    """The document has the outcome at the top, and every check below its mapping."""
    wrong = diagnose(replace(evidence(), uplink_runs=False))
    right = diagnose(evidence())
    document = json.loads(diagnoses_to_json("web", [right, wrong]))
    assert (document["target"], document["healthy"]) == ("web", False)
    assert document["cause"] == "uplink-down"
    assert document["remedy"] == remedy(Cause.UPLINK_DOWN, GUEST)
    assert [len(m["checks"]) for m in document["mappings"]] == [19, 19]
    assert document["mappings"][0]["checks"][0] == {
        "step": "daemon",
        "verdict": "ok",
        "text": "running, with this mapping loaded",
        "cause": None,
        "remedy": "",
    }
    healthy = json.loads(diagnoses_to_json("web", [right]))
    assert (healthy["healthy"], healthy["cause"]) == (True, None)


def test_fake_is_whole() -> None:
    """The kernel that the evidence is taken from has nothing left to write."""
    assert evidence().look.plan == Plan()
