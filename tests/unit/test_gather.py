"""Who gets which external address: configuration, metadata, pools, and what is recorded."""

import time
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest
from fakes import FakeStore, default_network, laptop
from lab.addresses import HOST, LAN_CLIENT, LIBVIRT_BRIDGE, external, internal
from vm_onetoone_nat.decide.desired import desire
from vm_onetoone_nat.decide.gather import gather
from vm_onetoone_nat.decide.plan import Plan, plan
from vm_onetoone_nat.model.configuration import Configuration, Pool, Range
from vm_onetoone_nat.model.desired import Desired, Gathered
from vm_onetoone_nat.model.guests import Domain, DomainState, Guests, Interface
from vm_onetoone_nat.model.host import Neighbour, Unavailable
from vm_onetoone_nat.model.mapping import AddressSource, AllowedService, Mapping, Origin
from vm_onetoone_nat.model.status import MappingState
from vm_onetoone_nat.model.store import Allocation, Stored

NIC = (Interface("52:54:00:00:00:01", "default"),)
LAN = IPv4Network("192.168.1.0/24")
CLAIMING = Configuration(metadata_external=(LAN,))


def uuid(n: int) -> str:
    return f"00000000-0000-4000-8000-{n:012}"


def mac(n: int) -> str:
    return f"52:54:00:00:00:{n:02x}"


def domain(n: int, *claims: Mapping, **more: object) -> Domain:
    nics = (Interface(mac(n), "default"),)
    made = Domain(f"guest{n}", uuid(n), DomainState.RUNNING, nics, claims)
    return replace(made, **more)  # type: ignore[arg-type]


def claim(n: int, **more: object) -> Mapping:
    made = Mapping(external(n), "", origin=Origin.METADATA)
    return replace(made, **more)  # type: ignore[arg-type]


def guests(*domains: Domain) -> Guests:
    return Guests(domains, (default_network(),))


def pool(first: int, last: int) -> Configuration:
    return Configuration(pools=(Pool("default", (Range(external(first), external(last)),)),))


class Host:
    """The kernel of the scenario's host, and what its daemon remembers."""

    def __init__(self) -> None:
        self.kernel = laptop()
        self.store = FakeStore()


def gathered(
    configuration: Configuration, known: Guests | None, host: Host | None = None
) -> Gathered:
    host = host or Host()
    observed = host.kernel.observe(configuration)
    return gather(configuration, known, observed, host.store.observe())


def given(result: Gathered) -> dict[str | None, IPv4Address]:
    return {m.domain: m.external for m in result.mappings}


def run(configuration: Configuration, known: Guests, host: Host) -> Desired:
    """What a pass wants, and leaves recorded."""
    observed = host.kernel.observe(configuration)
    desired = desire(configuration, known, observed, host.store.observe())
    host.store.record(desired.allocations)
    return desired


class TestMetadata:
    """What guests claim for themselves."""

    def test_claim(self) -> None:
        """A good claim is a mapping of that guest, with what it allows, and is recorded."""
        allow = (AllowedService("tcp", 22, 22),)
        result = gathered(CLAIMING, guests(domain(1, claim(1, allow=allow))))
        assert result.mappings == (
            Mapping(external(1), "default", domain="guest1", allow=allow, origin=Origin.METADATA),
        )
        assert result.unmapped == ()
        assert result.allocations == {Allocation(external(1), uuid(1), "default", Origin.METADATA)}

    def test_nothing_may_be_claimed_by_default(self) -> None:
        """Without prefixes a claim is refused, with what to write."""
        result = gathered(Configuration(), guests(domain(1, claim(1))))
        assert result.mappings == ()
        (refused,) = result.unmapped
        assert refused.domain == "guest1"
        assert refused.external == str(external(1))
        assert "settings.metadata_external allows nothing" in refused.reason

    def test_switched_off(self) -> None:
        """Switched off, metadata is not even looked at."""
        off = replace(CLAIMING, metadata=False)
        result = gathered(off, guests(domain(1, claim(1)), domain(2, fault="metadata: bad")))
        assert (result.mappings, result.unmapped) == ((), ())

    def test_configuration_wins(self) -> None:
        """A guest that the configuration maps is not asked; its address is nobody else's."""
        mapping = Mapping(external(1), "default", domain="guest1", internal=internal(1))
        configuration = replace(CLAIMING, mappings=(mapping,))
        result = gathered(configuration, guests(domain(1, claim(5)), domain(2, claim(1))))
        assert result.mappings == (mapping,)
        (refused,) = result.unmapped
        assert refused.domain == "guest2"
        assert "the configuration gives to another guest" in refused.reason

    def test_first_claim_stays(self) -> None:
        """Who has an address keeps it against a later claim, also while it does not run."""
        host = Host()
        run(CLAIMING, guests(domain(2, claim(1))), host)
        both = guests(domain(1, claim(1)), domain(2, claim(1), state=DomainState.OFF))
        result = gathered(CLAIMING, both, host)
        assert given(result) == {"guest2": external(1)}
        (refused,) = result.unmapped
        assert refused.domain == "guest1"
        assert refused.reason.endswith("is already used by domain 'guest2'")
        gone = gathered(CLAIMING, guests(domain(1, claim(1)), domain(2)), host)
        assert given(gone) == {"guest1": external(1)}

    def test_unread(self) -> None:
        """The address of a guest whose claim cannot be read now stays recorded, and nobody's."""
        host = Host()
        run(CLAIMING, guests(domain(1, claim(1))), host)
        before = host.store.written
        unread = domain(1, interfaces=(), fault="it does not answer", unread=True)
        known = guests(unread, domain(2, claim(1)))
        assert run(CLAIMING, known, host).allocations == before
        assert gathered(CLAIMING, known, host).mappings == ()
        pools = replace(pool(1, 1), metadata_external=CLAIMING.metadata_external)
        assert gathered(pools, guests(unread, domain(2)), host).mappings == ()
        assert given(gathered(CLAIMING, guests(domain(1, claim(1))), host)) == {
            "guest1": external(1)
        }

    @pytest.mark.parametrize(
        ("claimed", "reason"),
        [
            (claim(1, external=IPv4Address("10.9.9.9")), "allows 192.168.1.0/24"),
            (claim(1, network="nowhere"), "libvirt has no network 'nowhere'"),
            (claim(1, mac=mac(9)), "has no such interface on network 'default'"),
            (claim(1, internal=internal(2)), "is the address of another guest"),
            (claim(1, internal=internal(3)), "is the address of another guest"),
            (claim(1, internal=internal(4)), "is the address of another guest"),
            (claim(2), "the configuration gives to another guest"),
        ],
        ids=["prefix", "network", "MAC", "configured", "leased", "heard", "external"],
    )
    def test_refused(self, claimed: Mapping, reason: str) -> None:
        """A claim for what is not the guest's is refused, and nothing else changes."""
        mapping = Mapping(external(2), "default", domain="guest2", internal=internal(2))
        configuration = replace(CLAIMING, mappings=(mapping,))
        known = guests(domain(1, claimed), domain(2), domain(3), domain(4))
        (network,) = known.networks
        known = replace(known, networks=(replace(network, leases=((mac(3), internal(3)),)),))
        host = Host()
        host.kernel.neighbours = [Neighbour(LIBVIRT_BRIDGE, internal(4), mac(4))]
        result = gathered(configuration, known, host)
        assert result.mappings == (mapping,)
        (refused,) = result.unmapped
        assert reason in refused.reason

    @pytest.mark.parametrize(
        "address",
        [LAN_CLIENT.ip, HOST.ip, LAN.network_address, LAN.broadcast_address],
        ids=["router", "host", "network", "broadcast"],
    )
    def test_address_of_the_lan_itself(self, address: IPv4Address) -> None:
        """Inside the prefix, what no guest may have is an error still."""
        host = Host()
        host.kernel.routers = {LAN_CLIENT.ip}
        claimed = claim(1, external=address, internal=internal(1))
        desired = run(CLAIMING, guests(domain(1, claimed)), host)
        (status,) = desired.statuses
        assert status.state is MappingState.ERROR
        assert desired.elements == frozenset()

    def test_bad_metadata_is_that_guests_alone(self) -> None:
        """Metadata that cannot be read is said of its guest; others are as they were."""
        known = guests(domain(1, fault="metadata: bad"), domain(2, claim(2)))
        result = gathered(CLAIMING, known)
        assert given(result) == {"guest2": external(2)}
        assert [(u.domain, u.reason) for u in result.unmapped] == [("guest1", "metadata: bad")]


class TestPool:
    """Addresses for those that have none."""

    def test_each_gets_one(self) -> None:
        """In the order of names, the same after a restart and when others come and go."""
        host = Host()
        first = run(pool(50, 52), guests(domain(1), domain(2)), host)
        assert [(s.mapping.domain, s.mapping.external) for s in first.statuses] == [
            ("guest1", external(50)),
            ("guest2", external(51)),
        ]
        later = gathered(pool(50, 52), guests(domain(0), domain(2)), host)
        assert given(later) == {"guest2": external(51), "guest0": external(52)}

    def test_only_those_that_need_one(self) -> None:
        """Guests with a mapping of any kind, and those that never ran, get none."""
        configuration = replace(
            pool(50, 52),
            metadata_external=(LAN,),
            mappings=(
                Mapping(external(1), "default", domain="guest1"),
                Mapping(external(4), "default", internal=internal(4)),
            ),
        )
        host = Host()
        host.kernel.neighbours = [Neighbour(LIBVIRT_BRIDGE, internal(4), mac(4))]
        known = guests(
            domain(1),
            domain(2, claim(2)),
            domain(3, state=DomainState.OFF),
            domain(4),
            domain(5, interfaces=()),
        )
        result = gathered(configuration, known, host)
        assert given(result) == {
            "guest1": external(1),
            None: external(4),
            "guest2": external(2),
        }

    def test_what_is_taken_is_passed_over(self) -> None:
        """Addresses of mappings, of this host, of the router and of other hosts are not given."""
        host = Host()
        host.kernel.routers = {external(51)}
        host.kernel.squatters = {external(52): "02:00:00:00:00:09"}
        host.kernel.probed = frozenset({external(52)})
        configuration = replace(
            pool(50, 53), mappings=(Mapping(external(50), "default", internal=internal(9)),)
        )
        result = gathered(configuration, guests(domain(1)), host)
        assert given(result)["guest1"] == external(53)

    def test_moves_on_after_a_conflict(self) -> None:
        """An address that another host has turns up is exchanged, and stays exchanged."""
        host = Host()
        known = guests(domain(1))
        run(pool(50, 52), known, host)
        host.kernel.squatters = {external(50): "02:00:00:00:00:09"}
        host.kernel.probed = frozenset({external(50)})
        run(pool(50, 52), known, host)
        host.kernel.squatters = {}
        assert given(gathered(pool(50, 52), known, host)) == {"guest1": external(51)}

    def test_exhausted(self) -> None:
        """The one too many is told what to do; only a guest that is gone makes room."""
        host = Host()
        run(pool(50, 51), guests(domain(1), domain(2)), host)
        off = domain(2, state=DomainState.OFF)
        result = gathered(pool(50, 51), guests(domain(1), off, domain(3)), host)
        assert given(result) == {"guest1": external(50), "guest2": external(51)}
        (refused,) = result.unmapped
        assert refused.domain == "guest3"
        assert refused.reason.startswith("all addresses of the pool of network 'default'")
        room = gathered(pool(50, 51), guests(domain(1), domain(3)), host)
        assert given(room) == {"guest1": external(50), "guest3": external(51)}
        assert room.allocations == {
            Allocation(external(50), uuid(1), "default", Origin.POOL),
            Allocation(external(51), uuid(3), "default", Origin.POOL),
        }

    def test_needs_none_for_a_while(self) -> None:
        """A guest that is mapped otherwise, or whose network is gone, finds its address again."""
        host = Host()
        run(pool(50, 52), guests(domain(1), domain(2)), host)
        written = Mapping(external(1), "default", domain="guest1", internal=internal(1))
        run(replace(pool(50, 52), mappings=(written,)), guests(domain(1), domain(3)), host)
        run(pool(50, 52), replace(guests(domain(1)), networks=()), host)
        result = gathered(pool(50, 52), guests(domain(1), domain(2), domain(3)), host)
        assert given(result) == {
            "guest1": external(50),
            "guest2": external(51),
            "guest3": external(52),
        }

    def test_thousand(self) -> None:
        """A thousand guests of a pool are no matter of seconds."""
        wide = Configuration(
            pools=(Pool("default", (Range(IPv4Address("10.0.0.1"), IPv4Address("10.0.16.0")),)),)
        )
        many = guests(*(domain(1000 + n, interfaces=NIC) for n in range(1000)))
        host = Host()
        began = time.thread_time()
        for _ in range(2):
            desired = run(wide, many, host)
        assert len({s.mapping.external for s in desired.statuses}) == 1000
        assert time.thread_time() - began < 2

    def test_no_other_is_left_after_a_conflict(self) -> None:
        """Where another host has the only address, that is the state of the mapping."""
        host = Host()
        known = guests(domain(1))
        run(pool(50, 50), known, host)
        host.kernel.squatters = {external(50): "02:00:00:00:00:09"}
        host.kernel.probed = frozenset({external(50)})
        host.kernel.neighbours = [Neighbour(LIBVIRT_BRIDGE, internal(1), mac(1))]
        (status,) = run(pool(50, 50), known, host).statuses
        assert status.state is MappingState.CONFLICT

    def test_network_and_broadcast_address(self) -> None:
        """A pool that spans the whole subnet gives no address that no host can have."""
        configuration = Configuration(
            pools=(Pool("default", (Range(LAN.network_address, LAN[1]),)),)
        )
        assert given(gathered(configuration, guests(domain(1)))) == {"guest1": LAN[1]}


class TestWithoutLibvirt:
    """A daemon that starts while libvirt is away."""

    def test_what_the_kernel_has_stays(self) -> None:
        """Allocated mappings that are active go on as they are, restricted ones too."""
        host = Host()
        allow = (AllowedService("tcp", 22, 22),)
        known = guests(domain(1, claim(1, allow=allow, internal=internal(1))), domain(2))
        host.kernel.neighbours = [Neighbour(LIBVIRT_BRIDGE, internal(2), mac(2))]
        configuration = replace(pool(50, 52), metadata_external=(LAN,))
        for _ in range(2):
            seen = host.kernel.observe(configuration)
            host.kernel.apply(plan(seen, run(configuration, known, host)))
        host.kernel.neighbours = []
        seen = host.kernel.observe(configuration)
        blind = desire(configuration, None, seen, host.store.observe())
        assert plan(seen, blind) == Plan()
        assert {(s.mapping.internal, s.mapping.source, s.state) for s in blind.statuses} == {
            (internal(1), AddressSource.KEPT, MappingState.ACTIVE),
            (internal(2), AddressSource.KEPT, MappingState.ACTIVE),
        }


def test_two_mappings_of_one_address() -> None:
    """The second external address of one guest's address is an error, and the first works."""
    mappings = tuple(Mapping(external(n), "default", domain="guest1") for n in (1, 2))
    host = Host()
    host.kernel.neighbours = [Neighbour(LIBVIRT_BRIDGE, internal(1), mac(1))]
    desired = run(Configuration(mappings), guests(domain(1)), host)
    assert [s.state for s in desired.statuses] == [MappingState.ACTIVE, MappingState.ERROR]
    assert "is already used by external 192.168.1.101" in desired.statuses[1].reason


def test_unasked_address() -> None:
    """Where the LAN is to be asked, an address that was not is not taken before."""
    mapping = Mapping(external(1), "default", internal=internal(1))
    configuration = Configuration((mapping,))
    observed = laptop().observe(configuration)
    states = {}
    for name, unavailable, probed in (
        ("unasked", (), frozenset[IPv4Address]()),
        ("free", (), frozenset({external(1)})),
        ("no need", (), None),
        ("asked", (Unavailable(external(1)),), frozenset({external(1)})),
        ("taken", (Unavailable(external(1), "02:00:00:00:00:09"),), frozenset({external(1)})),
    ):
        seen = replace(observed, unavailable=unavailable, probed=probed)
        states[name] = desire(configuration, guests(), seen, Stored()).statuses[0].state
    assert states == {
        "unasked": MappingState.PENDING,
        "free": MappingState.ACTIVE,
        "no need": MappingState.ACTIVE,
        "asked": MappingState.PENDING,
        "taken": MappingState.CONFLICT,
    }
