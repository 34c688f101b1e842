"""Who reaches whom, and from which address: the matrix of directions, for any host of guests."""

import pytest
from lab import (
    Answer,
    Failure,
    Lan,
    Namespace,
    NamespaceGuest,
    icmp,
    icmp_source,
    tcp,
    udp,
    wait_for,
)
from lab.addresses import HOST, LAN_CLIENT, external, internal
from running import Product

PORT = 7000
ASK = {"tcp": tcp, "udp": udp}


class Laptop:
    """Everybody who takes part, each with an echo server on PORT, and the daemon running."""

    def __init__(
        self, lan: Lan, host: Namespace, guests: list[NamespaceGuest], daemon: Product
    ) -> None:
        self.lan, self.host, self.guests, self.daemon = lan, host, guests, daemon


class Directions:
    """Every direction by every protocol, for mappings 1 and 2."""

    @pytest.mark.parametrize("protocol", ["tcp", "udp"])
    def test_lan_reaches_guest(self, laptop: Laptop, protocol: str) -> None:
        """The LAN reaches a guest by its external address, and the guest sees the LAN's own."""
        for n, guest in enumerate(laptop.guests, start=1):
            answer = ASK[protocol](laptop.lan, external(n), PORT)
            assert answer == Answer(LAN_CLIENT.ip, guest.name)

    def test_lan_pings_guest(self, laptop: Laptop) -> None:
        """An echo request of the LAN arrives at the guest with its source untouched."""
        assert icmp_source(laptop.lan, external(1), laptop.guests[0]) == LAN_CLIENT.ip

    @pytest.mark.parametrize("protocol", ["tcp", "udp"])
    def test_guest_reaches_lan(self, laptop: Laptop, protocol: str) -> None:
        """Each guest's own connections arrive on the LAN from its external address."""
        for n, guest in enumerate(laptop.guests, start=1):
            answer = ASK[protocol](guest, LAN_CLIENT.ip, PORT)
            assert answer == Answer(external(n), laptop.lan.name)

    def test_guest_pings_lan(self, laptop: Laptop) -> None:
        """A guest's echo request arrives on the LAN from its external address."""
        assert icmp_source(laptop.guests[1], LAN_CLIENT.ip, laptop.lan) == external(2)

    @pytest.mark.parametrize("protocol", ["tcp", "udp"])
    def test_host_reaches_guest(self, laptop: Laptop, protocol: str) -> None:
        """The host reaches a guest by its external address, with its own LAN address."""
        answer = ASK[protocol](laptop.host, external(1), PORT)
        assert answer == Answer(HOST.ip, laptop.guests[0].name)

    def test_host_pings_guest(self, laptop: Laptop) -> None:
        """The host's echo request by the external address arrives at the guest."""
        assert icmp_source(laptop.host, external(1), laptop.guests[0]) == HOST.ip

    @pytest.mark.parametrize("protocol", ["tcp", "udp"])
    def test_guest_reaches_other_guest(self, laptop: Laptop, protocol: str) -> None:
        """One guest reaches another by external address, and is seen with its own external one."""
        one, other = laptop.guests
        assert ASK[protocol](one, external(2), PORT) == Answer(external(1), other.name)

    def test_guest_pings_other_guest(self, laptop: Laptop) -> None:
        """An echo request from guest to guest by external address carries external addresses."""
        assert icmp_source(laptop.guests[0], external(2), laptop.guests[1]) == external(1)

    @pytest.mark.parametrize("protocol", ["tcp", "udp"])
    def test_guest_reaches_itself(self, laptop: Laptop, protocol: str) -> None:
        """A guest reaches itself by its own external address."""
        guest = laptop.guests[0]
        # Where bridged frames pass the IP hooks, the guest has to be heard of once before.
        wait_for(lambda: icmp(guest, external(1), timeout=1), 60, "an answer from itself")
        assert ASK[protocol](guest, external(1), PORT) == Answer(external(1), guest.name)

    @pytest.mark.parametrize("protocol", ["tcp", "udp"])
    def test_guest_reaches_other_guest_inside(self, laptop: Laptop, protocol: str) -> None:
        """Inside the bridge guests see each other's internal addresses."""
        one, other = laptop.guests
        assert ASK[protocol](one, internal(2), PORT) == Answer(internal(1), other.name)

    def test_guest_pings_other_guest_inside(self, laptop: Laptop) -> None:
        """An echo request inside the bridge keeps its source."""
        assert icmp_source(laptop.guests[0], internal(2), laptop.guests[1]) == internal(1)

    @pytest.mark.parametrize("protocol", ["tcp", "udp"])
    def test_guest_reaches_host(self, laptop: Laptop, protocol: str) -> None:
        """A guest reaches its host by the host's LAN address."""
        answer = ASK[protocol](laptop.guests[0], HOST.ip, PORT)
        assert answer == Answer(internal(1), laptop.host.name)

    def test_internal_address_is_not_exposed(self, laptop: Laptop) -> None:
        """A LAN host that routes to the internal address is rejected, as libvirt alone would do."""
        route = ("ip", "route", "replace", f"{internal(1)}/32", "via", str(HOST.ip))
        laptop.lan.run(*route)
        try:
            assert tcp(laptop.lan, internal(1), PORT) is Failure.REFUSED
        finally:
            laptop.lan.run("ip", "route", "del", f"{internal(1)}/32")
