"""The desired state: what becomes of each mapping, and what the kernel should then hold."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest
from fakes import default_network, domain, observed_on, own_address
from lab.addresses import (
    HOST,
    LIBVIRT_BRIDGE,
    LIBVIRT_GATEWAY,
    UPLINK,
    external,
    guest_name,
    internal,
)
from vm_onetoone_nat.decide.desired import desire, mapping_elements, without
from vm_onetoone_nat.model import nat_table
from vm_onetoone_nat.model.configuration import Configuration
from vm_onetoone_nat.model.guests import DomainState, Guests, Network
from vm_onetoone_nat.model.host import Address, Observed
from vm_onetoone_nat.model.mapping import AllowedService, Mapping
from vm_onetoone_nat.model.nat_table import ADMIT, RESTRICT, Table, element
from vm_onetoone_nat.model.status import MappingState
from vm_onetoone_nat.model.store import Stored

ACTIVE, INACTIVE, PENDING, ERROR = (
    MappingState.ACTIVE,
    MappingState.INACTIVE,
    MappingState.PENDING,
    MappingState.ERROR,
)

GUEST = Mapping(external(1), "default", internal=internal(1), domain=guest_name(1))
GUESTS = Guests((domain(guest_name(1)),), (default_network(),))
HOST_ADDRESS = Address(UPLINK, HOST, HOST.network.broadcast_address, primary=True)
BRIDGE_ADDRESS = Address(LIBVIRT_BRIDGE, LIBVIRT_GATEWAY, primary=True)
OBSERVED = observed_on(UPLINK, HOST_ADDRESS, BRIDGE_ADDRESS)
TRANSLATING = replace(OBSERVED, table=Table(True, frozenset(mapping_elements(GUEST))))


def with_addresses(*addresses: Address) -> Observed:
    return observed_on(UPLINK, *addresses)


def with_domain(state: DomainState) -> Guests:
    return replace(GUESTS, domains=(domain(guest_name(1), state),))


def with_network(**changed: object) -> Guests:
    network = replace(default_network(), **changed)  # type: ignore[arg-type]
    return replace(GUESTS, networks=(network,))


def outcome(
    mapping: Mapping,
    guests: Guests | None = GUESTS,
    observed: Observed = OBSERVED,
    uplink: str | None = None,
) -> tuple[MappingState, str]:
    """State and reason; what is not active must leave nothing to be put into the kernel."""
    desired = desire(Configuration((mapping,), uplink=uplink), guests, observed, Stored())
    (status,) = desired.statuses
    assert status.mapping == mapping
    if status.state is not ACTIVE:
        assert (desired.active, desired.addresses, desired.elements) == ((), (), frozenset())
        assert status.reason
    return status.state, status.reason


GUEST_STATES = [
    ("running", GUEST, GUESTS, OBSERVED, ACTIVE, ""),
    (
        "by UUID",
        replace(GUEST, domain=domain(guest_name(1)).uuid),
        GUESTS,
        OBSERVED,
        ACTIVE,
        "",
    ),
    (
        "by UUID in capitals",
        replace(GUEST, domain="ABCDEF00-0000-4000-8000-000000000001"),
        replace(
            GUESTS,
            domains=(replace(domain("g"), uuid="abcdef00-0000-4000-8000-000000000001"),),
        ),
        OBSERVED,
        ACTIVE,
        "",
    ),
    (
        "unknown",
        replace(GUEST, domain="el8"),
        GUESTS,
        OBSERVED,
        INACTIVE,
        "libvirt has no domain 'el8'",
    ),
    (
        "off",
        GUEST,
        with_domain(DomainState.OFF),
        TRANSLATING,
        INACTIVE,
        "domain 'el7-x86_64-101' is not running",
    ),
    (
        "off, by UUID",
        replace(GUEST, domain=domain(guest_name(1)).uuid),
        with_domain(DomainState.OFF),
        OBSERVED,
        INACTIVE,
        "domain 'el7-x86_64-101' is not running",
    ),
    (
        "paused before it was ever active",
        GUEST,
        with_domain(DomainState.PAUSED),
        OBSERVED,
        INACTIVE,
        "domain 'el7-x86_64-101' is paused",
    ),
    ("paused while active", GUEST, with_domain(DomainState.PAUSED), TRANSLATING, ACTIVE, ""),
    (
        "network unknown",
        replace(GUEST, network="lab"),
        GUESTS,
        TRANSLATING,
        INACTIVE,
        "libvirt has no network 'lab'",
    ),
    (
        "network inactive",
        GUEST,
        with_network(active=False),
        TRANSLATING,
        INACTIVE,
        "network 'default' is not active",
    ),
    (
        "no domain, network active",
        replace(GUEST, domain=None),
        replace(GUESTS, domains=()),
        OBSERVED,
        ACTIVE,
        "",
    ),
    (
        "no domain, network inactive",
        replace(GUEST, domain=None),
        with_network(active=False),
        TRANSLATING,
        INACTIVE,
        "network 'default' is not active",
    ),
    (
        "libvirt away, not active before",
        GUEST,
        None,
        OBSERVED,
        INACTIVE,
        "libvirt cannot be reached, so it is not known whether the guest runs",
    ),
    ("libvirt away, active before", GUEST, None, TRANSLATING, ACTIVE, ""),
    (
        "libvirt away, another active before",
        replace(GUEST, external=external(2)),
        None,
        TRANSLATING,
        INACTIVE,
        "libvirt cannot be reached, so it is not known whether the guest runs",
    ),
]


@pytest.mark.parametrize(
    ("mapping", "guests", "observed", "state", "reason"),
    [case[1:] for case in GUEST_STATES],
    ids=[case[0] for case in GUEST_STATES],
)
def test_guest(
    mapping: Mapping,
    guests: Guests | None,
    observed: Observed,
    state: MappingState,
    reason: str,
) -> None:
    """A mapping is active while its guest runs, or as the kernel has it while that is unknown."""
    assert outcome(mapping, guests, observed) == (state, reason)


def test_name_wins_over_uuid() -> None:
    """A domain whose name is another's UUID is the one that is meant, as in virsh."""
    uuid = domain(guest_name(1)).uuid
    named = domain(uuid, DomainState.OFF)
    guests = replace(GUESTS, domains=(domain(guest_name(1)), named))
    assert outcome(replace(GUEST, domain=uuid), guests)[0] is INACTIVE


SECOND_GATEWAY = IPv4Interface("10.0.0.1/24")


@pytest.mark.parametrize(
    ("address", "guests", "state", "reason"),
    [
        (
            None,
            GUESTS,
            PENDING,
            "domain 'el7-x86_64-101' has no interface on network 'default'",
        ),
        (
            LIBVIRT_GATEWAY.ip,
            GUESTS,
            ERROR,
            "internal 192.168.122.1 is the gateway of network 'default'",
        ),
        (
            IPv4Address("192.168.123.5"),
            GUESTS,
            ERROR,
            "internal 192.168.123.5 is no host address of network 'default' (192.168.122.0/24)",
        ),
        (
            IPv4Address("192.168.122.255"),
            GUESTS,
            ERROR,
            "internal 192.168.122.255 is no host address of network 'default' (192.168.122.0/24)",
        ),
        (
            IPv4Address("192.168.122.0"),
            GUESTS,
            ERROR,
            "internal 192.168.122.0 is no host address of network 'default' (192.168.122.0/24)",
        ),
        (
            IPv4Address("10.0.1.5"),
            with_network(gateways=(LIBVIRT_GATEWAY, SECOND_GATEWAY)),
            ERROR,
            "internal 10.0.1.5 is no host address of network 'default' "
            "(192.168.122.0/24, 10.0.0.0/24)",
        ),
        (
            IPv4Address("10.0.0.5"),
            with_network(gateways=(LIBVIRT_GATEWAY, SECOND_GATEWAY)),
            ACTIVE,
            "",
        ),
        (
            SECOND_GATEWAY.ip,
            with_network(gateways=(LIBVIRT_GATEWAY, SECOND_GATEWAY)),
            ERROR,
            "internal 10.0.0.1 is the gateway of network 'default'",
        ),
        (
            internal(1),
            with_network(gateways=()),
            ERROR,
            "network 'default' has no IPv4 address of its own to route from",
        ),
    ],
)
def test_internal(
    address: IPv4Address | None, guests: Guests, state: MappingState, reason: str
) -> None:
    """A guest's address must be known, and one that a host in its network can have."""
    assert outcome(replace(GUEST, internal=address), guests) == (state, reason)


def test_stopped_guest_without_address_is_inactive() -> None:
    """A guest that does not run is inactive, whether or not its address is known."""
    mapping = replace(GUEST, internal=None)
    assert outcome(mapping, with_domain(DomainState.OFF))[0] is INACTIVE


@pytest.mark.parametrize(
    ("configured", "reason"),
    [
        (None, "there is no uplink: the host has no IPv4 default route"),
        ("wlan9", "there is no uplink: interface 'wlan9' does not exist"),
    ],
)
def test_no_uplink(configured: str | None, reason: str) -> None:
    """Without an uplink no mapping is active, and the reason tells which one was looked for."""
    observed = replace(OBSERVED, uplink=None)
    assert outcome(GUEST, GUESTS, observed, configured) == (ERROR, reason)


def test_uplink_without_address() -> None:
    """An uplink that has no address but ours has no subnet to take an external address from."""
    reason = f"uplink {UPLINK} has no IPv4 address"
    assert outcome(GUEST, observed=with_addresses(BRIDGE_ADDRESS)) == (ERROR, reason)
    ours = with_addresses(own_address(external(1)), BRIDGE_ADDRESS)
    assert outcome(GUEST, observed=ours) == (ERROR, reason)


WIDE = with_addresses(replace(HOST_ADDRESS, interface=IPv4Interface("192.168.1.100/16")))


@pytest.mark.parametrize(
    ("address", "prefixlen", "observed", "reason"),
    [
        ("192.168.2.5", None, OBSERVED, "is outside the uplink's subnet 192.168.1.0/24"),
        ("192.168.2.5", 24, OBSERVED, "is outside the uplink's subnet 192.168.1.0/24"),
        ("192.168.1.255", None, OBSERVED, "is no host address of 192.168.1.0/24"),
        ("192.168.1.0", 24, OBSERVED, "is no host address of 192.168.1.0/24"),
        ("192.168.1.128", 25, OBSERVED, "is no host address of 192.168.1.128/25"),
        ("192.168.255.255", None, WIDE, "is no host address of 192.168.0.0/16"),
        (
            "192.168.122.7",
            None,
            OBSERVED,
            "lies in 192.168.122.0/24, the subnet of libvirt network 'default'",
        ),
        (
            "192.168.122.7",
            32,
            OBSERVED,
            "lies in 192.168.122.0/24, the subnet of libvirt network 'default'",
        ),
        ("192.168.1.100", None, OBSERVED, f"is the host's own address on {UPLINK}"),
        ("192.168.1.100", 32, OBSERVED, f"is the host's own address on {UPLINK}"),
        (
            "192.168.1.9",
            None,
            with_addresses(HOST_ADDRESS, Address("eth1", IPv4Interface("192.168.1.9/24"))),
            "is the host's own address on eth1",
        ),
    ],
)
def test_external_refused(
    address: str, prefixlen: int | None, observed: Observed, reason: str
) -> None:
    """An external address that the uplink cannot carry is an error that says why."""
    mapping = replace(GUEST, external=IPv4Address(address), prefixlen=prefixlen)
    assert outcome(mapping, observed=observed) == (ERROR, f"external {address} {reason}")


def test_external_in_an_inactive_network() -> None:
    """The subnet of a libvirt network is off limits while that network is not active, too."""
    other = Network("lab", False, "virbr9", (IPv4Interface("192.168.1.1/28"),))
    guests = replace(GUESTS, networks=(default_network(), other))
    mapping = replace(GUEST, external=IPv4Address("192.168.1.5"))
    assert outcome(mapping, guests) == (
        ERROR,
        "external 192.168.1.5 lies in 192.168.1.0/28, the subnet of libvirt network 'lab'",
    )


@pytest.mark.parametrize(
    ("address", "prefixlen", "observed", "interface", "broadcast"),
    [
        ("192.168.1.101", None, OBSERVED, "192.168.1.101/24", "192.168.1.255"),
        ("192.168.1.101", 24, OBSERVED, "192.168.1.101/24", "192.168.1.255"),
        ("192.168.1.101", 25, OBSERVED, "192.168.1.101/25", "192.168.1.127"),
        ("192.168.1.101", 32, OBSERVED, "192.168.1.101/32", None),
        ("10.9.8.7", 32, OBSERVED, "10.9.8.7/32", None),
        ("192.168.1.101", 31, OBSERVED, "192.168.1.101/31", None),
        ("192.168.7.255", None, WIDE, "192.168.7.255/16", "192.168.255.255"),
        (
            "10.0.0.5",
            None,
            with_addresses(HOST_ADDRESS, Address(UPLINK, IPv4Interface("10.0.0.1/8"))),
            "10.0.0.5/8",
            "10.255.255.255",
        ),
    ],
)
def test_address(
    address: str, prefixlen: int | None, observed: Observed, interface: str, broadcast: str | None
) -> None:
    """An active mapping's address is on the uplink, with its own prefix or its subnet's."""
    mapping = replace(GUEST, external=IPv4Address(address), prefixlen=prefixlen)
    desired = desire(Configuration((mapping,)), GUESTS, observed, Stored())
    assert desired.addresses == (
        Address(
            UPLINK,
            IPv4Interface(interface),
            None if broadcast is None else IPv4Address(broadcast),
            owned=True,
        ),
    )


def test_address_of_31_bits_uplink() -> None:
    """On a point-to-point uplink both addresses are hosts', and there is no broadcast."""
    peer = replace(HOST_ADDRESS, interface=IPv4Interface("192.168.1.100/31"))
    mapping = replace(GUEST, external=IPv4Address("192.168.1.101"))
    desired = desire(
        Configuration((mapping,)), GUESTS, with_addresses(peer, BRIDGE_ADDRESS), Stored()
    )
    assert desired.addresses == (own_address(IPv4Address("192.168.1.101"), 31),)


@pytest.mark.parametrize("prefixlen", [24, 32])
def test_secondary_address_that_was_there_before(prefixlen: int) -> None:
    """An external address that an administrator put on the uplink as a secondary one is used."""
    before = Address(UPLINK, IPv4Interface((external(1), prefixlen)))
    observed = with_addresses(HOST_ADDRESS, before, BRIDGE_ADDRESS)
    assert outcome(GUEST, observed=observed) == (ACTIVE, "")


def test_configured_uplink_is_used() -> None:
    """Addresses and the uplink's element are of the interface that carries them."""
    observed = observed_on("wlan9", replace(HOST_ADDRESS, ifname="wlan9"))
    desired = desire(Configuration((GUEST,), uplink="wlan9"), GUESTS, observed, Stored())
    assert desired.addresses == (own_address(external(1), ifname="wlan9"),)
    assert element(nat_table.UPLINK, ("wlan9",)) in desired.elements


def test_refused_mapping() -> None:
    """A mapping that the kernel refused is an error with its reason; the others are not touched."""
    other = Mapping(external(2), "default", internal=internal(2))
    configuration = Configuration((GUEST, other))
    both = desire(configuration, GUESTS, OBSERVED, Stored())
    desired = without(both, {external(1): "Invalid argument"}, OBSERVED)
    assert [(s.state, s.reason) for s in desired.statuses] == [
        (ERROR, "Invalid argument"),
        (ACTIVE, ""),
    ]
    assert desired == replace(
        desire(Configuration((other,)), GUESTS, OBSERVED, Stored()),
        statuses=desired.statuses,
        wanted=frozenset({external(1), external(2)}),
    )


def test_open_mapping_elements() -> None:
    """A mapping without restrictions is six elements, and the uplink is one more for all."""
    desired = desire(Configuration((GUEST,)), GUESTS, OBSERVED, Stored())
    assert desired.elements == {
        element(nat_table.EXTERNAL, ("192.168.1.101",), "192.168.122.101"),
        element(nat_table.INTERNAL, ("192.168.122.101",), "192.168.1.101"),
        element(nat_table.INBOUND, ("192.168.1.101",), ADMIT),
        element(nat_table.OUTBOUND, ("192.168.122.101",)),
        element(nat_table.UNTRANSLATED_IN, ("192.168.1.101",)),
        element(nat_table.UNTRANSLATED_OUT, ("192.168.122.101",)),
        element(nat_table.UPLINK, (UPLINK,)),
    }


@pytest.mark.parametrize(
    ("allow", "sources", "keys"),
    [
        (
            (AllowedService("icmp"), AllowedService("tcp", 22, 22)),
            None,
            {"0.0.0.0/0 . icmp . 0-65535", "0.0.0.0/0 . tcp . 22-22"},
        ),
        (
            None,
            (IPv4Network("10.0.0.0/8"), IPv4Network("192.168.1.7/32")),
            {"10.0.0.0/8 . any . 0-65535", "192.168.1.7/32 . any . 0-65535"},
        ),
        (
            (AllowedService("tcp", 80, 90), AllowedService("udp")),
            (IPv4Network("10.0.0.0/8"), IPv4Network("192.168.1.0/24")),
            {
                "10.0.0.0/8 . tcp . 80-90",
                "10.0.0.0/8 . udp . 0-65535",
                "192.168.1.0/24 . tcp . 80-90",
                "192.168.1.0/24 . udp . 0-65535",
            },
        ),
    ],
)
def test_restricted_mapping_elements(
    allow: tuple[AllowedService, ...] | None,
    sources: tuple[IPv4Network, ...] | None,
    keys: set[str],
) -> None:
    """A restricted mapping goes to `restrict`, and `allowed` has each source with each service."""
    mapping = replace(GUEST, allow=allow, allowed_sources=sources)
    elements = set(mapping_elements(mapping))
    assert {e for e in elements if e.container is nat_table.INBOUND} == {
        element(nat_table.INBOUND, ("192.168.1.101",), RESTRICT)
    }
    assert {e for e in elements if e.container is nat_table.ALLOWED} == {
        element(nat_table.ALLOWED, ("192.168.1.101", *key.split(" . "))) for key in keys
    }
    assert elements - set(mapping_elements(GUEST)) == {
        e for e in elements if e.container in (nat_table.INBOUND, nat_table.ALLOWED)
    }


@pytest.mark.parametrize(
    ("bridge_netfilter", "guests", "hairpins"),
    [
        (True, GUESTS, {"vnet0"}),
        (False, GUESTS, set()),
        (True, with_domain(DomainState.OFF), set()),
    ],
)
def test_hairpins(bridge_netfilter: bool, guests: Guests, hairpins: set[str]) -> None:
    """Ports of active mappings' guests, and only those, need the flag where br_netfilter is on."""
    observed = replace(
        OBSERVED,
        ports=((internal(1), "vnet0"), (internal(9), "vnet9")),
        bridge_netfilter=bridge_netfilter,
    )
    assert desire(Configuration((GUEST,)), guests, observed, Stored()).hairpins == hairpins


def test_mark_is_the_configured_one() -> None:
    """The desired mark is the configuration's, whatever the kernel's table sets."""
    observed = replace(OBSERVED, table=Table(True, fwmark=0x2))
    assert desire(Configuration((), fwmark=0x4), GUESTS, observed, Stored()).fwmark == 0x4


def test_nothing_is_remembered() -> None:
    """The same arguments give the same answer, and none is changed by asking."""
    configuration = Configuration((GUEST,))
    first = desire(configuration, GUESTS, OBSERVED, Stored())
    desire(configuration, None, TRANSLATING, Stored())
    assert desire(configuration, GUESTS, OBSERVED, Stored()) == first
