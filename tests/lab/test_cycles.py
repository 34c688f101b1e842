"""Random cycles in the real namespace: whatever happens, in any order, all is right after it."""

import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from lab import CommandError, Host, IdleDomain, Lan, NamespaceGuest, wait_for
from lab.addresses import HOST, LAN_CLIENT, UPLINK, external, internal
from running import Daemon, mapping

DOMAINS = {2: "cycling-2", 3: "cycling-3"}
BY_NETWORK = (1, 4)
CHOICES = ((1, 2, 3, 4), (1, 2), (2, 3, 4), ())
MARK = "-m mark --mark 0x100000/0x100000 -j ACCEPT"
SENTINEL_ADDRESS = "192.168.1.77/24"
SENTINEL_RULE = "-A FORWARD -s 10.99.0.0/16 -j DROP"


@dataclass
class World:
    """What was done, as far as it decides which mappings are to be active."""

    lan: Lan
    host: Host
    daemon: Daemon
    domains: dict[int, IdleDomain]
    configured: tuple[int, ...] = CHOICES[0]
    running: set[int] = field(default_factory=set)
    network: bool = True
    at_home: bool = True
    history: list[str] = field(default_factory=list)

    def active(self) -> set[int]:
        if not (self.network and self.at_home):
            return set()
        return {n for n in self.configured if n in BY_NETWORK or n in self.running}

    # Guests, networks, libvirt.

    def guest_starts_or_stops(self, random: random.Random) -> None:
        n = random.choice(sorted(self.domains))
        if n in self.running:
            random.choice((self.domains[n].destroy, self.domains[n].kill))()
            wait_for(lambda: self.domains[n].state() == "shut off", 60, "libvirt has noticed")
        else:
            self.domains[n].start()
        self.running ^= {n}

    def network_stops_or_starts(self, random: random.Random) -> None:
        (self.host.stop_network if self.network else self.host.start_network)()
        self.network = not self.network

    def libvirt_restarts(self, random: random.Random) -> None:
        self.host.libvirtd.restart()

    # The uplink.

    def lease_is_renewed(self, random: random.Random) -> None:
        self.host.lease()
        self.host.run("ip", "address", "add", SENTINEL_ADDRESS, "dev", UPLINK)
        self.at_home = True

    def another_network(self, random: random.Random) -> None:
        self.host.run("ip", "-4", "address", "flush", "dev", UPLINK)
        self.host.run("ip", "address", "add", "10.9.9.9/24", "brd", "+", "dev", UPLINK)
        self.host.run("ip", "address", "add", "10.9.9.77/24", "dev", UPLINK)
        self.host.run("ip", "route", "replace", "default", "via", "10.9.9.1", "dev", UPLINK)
        self.at_home = False

    def uplink_flaps(self, random: random.Random) -> None:
        gateway = str(LAN_CLIENT.ip) if self.at_home else "10.9.9.1"
        self.host.run("ip", "link", "set", UPLINK, "down")
        self.host.run("ip", "link", "set", UPLINK, "up")
        self.host.run("ip", "route", "replace", "default", "via", gateway, "dev", UPLINK)

    # Hands and other programs.

    def address_is_deleted(self, random: random.Random) -> None:
        ours = [a for a in self.addresses() if a not in self.foreign_addresses()]
        if ours:
            address = random.choice(sorted(ours))
            self.host.run("ip", "address", "del", address, "dev", UPLINK, check=False)

    def rules_are_changed(self, random: random.Random) -> None:
        table = "inet vm_onetoone_nat"
        command = random.choice(
            (
                f"nft delete table {table}",
                f"nft flush table {table}",
                f"nft flush map {table} external",
                f"nft add element {table} external '{{ 192.168.1.199 : 192.168.122.199 }}'",
                f"nft add chain {table} stray",
                f"iptables -D FORWARD {MARK}",
                f"iptables -I FORWARD {MARK}",
                "iptables -I FORWARD -j ACCEPT; iptables -D FORWARD -j ACCEPT",
                "iptables-save -t filter | iptables-restore",
                "iptables-save -t filter | grep -v 0x100000 | iptables-restore",
                "sysctl -qw net.ipv4.ip_forward=0",
            )
        )
        self.history.append(command)
        self.host.run("sh", "-c", command, check=False)

    # The daemon.

    def configuration_changes(self, random: random.Random) -> None:
        self.configured = random.choice(CHOICES)
        self.write()
        self.daemon.reload()

    def daemon_is_killed(self, random: random.Random) -> None:
        self.daemon.kill()
        if random.random() < 0.5:
            # While it is away.
            random.choice((self.rules_are_changed, self.address_is_deleted))(random)
        self.daemon.start()

    def daemon_restarts(self, random: random.Random) -> None:
        # Before that it has no handler of the signal yet, nor anything to clean up.
        wait_for(lambda: self.daemon.has_begun, 60, "it has begun")
        assert self.daemon.stop() == 0
        self.daemon.start()

    def write(self) -> None:
        domains = {n: {"domain": name} for n, name in DOMAINS.items()}
        self.daemon.configure(*(mapping(n, **domains.get(n, {})) for n in self.configured))

    # What is.

    def addresses(self) -> set[str]:
        listed = self.host.run("ip", "-4", "-o", "address", "show", "dev", UPLINK).stdout
        return set(re.findall(r" inet (\S+)", listed))

    def foreign_addresses(self) -> set[str]:
        if self.at_home:
            return {str(HOST), SENTINEL_ADDRESS}
        return {"10.9.9.9/24", "10.9.9.77/24"}

    def translations(self) -> dict[str, str]:
        """The map of our table that is there."""
        table = ("inet", "vm_onetoone_nat")
        listed = self.host.run("nft", "-j", "list", "map", *table, "external", check=False).stdout
        objects = json.loads(listed)["nftables"] if listed else []
        elements = [e for each in objects for e in each.get("map", {}).get("elem", [])]
        return {key["elem"]["val"]: value for key, value in elements}

    def is_right(self) -> bool:
        active = self.active()
        chain = self.host.run("iptables", "-S", "FORWARD").stdout.splitlines()
        return (
            self.addresses() == self.foreign_addresses() | {f"{external(n)}/24" for n in active}
            and self.translations() == {str(external(n)): str(internal(n)) for n in active}
            and [i for i, rule in enumerate(chain) if MARK in rule] == [1]
            and SENTINEL_RULE in chain
            and (not active or self.host.sysctl("net.ipv4.ip_forward") == "1")
            and self.daemon.command("plan").returncode == 0
        )


EVENTS: dict[Callable[[World, random.Random], None], int] = {
    World.guest_starts_or_stops: 6,
    World.network_stops_or_starts: 1,
    World.libvirt_restarts: 1,
    World.lease_is_renewed: 2,
    World.another_network: 1,
    World.uplink_flaps: 2,
    World.address_is_deleted: 3,
    World.rules_are_changed: 6,
    World.configuration_changes: 3,
    World.daemon_is_killed: 2,
    World.daemon_restarts: 1,
}


@pytest.fixture
def world(lan: Lan, host: Host, daemon: Daemon) -> Iterator[World]:
    domains = {n: IdleDomain(host, name) for n, name in DOMAINS.items()}
    for domain in domains.values():
        domain.define()
    host.run("ip", "address", "add", SENTINEL_ADDRESS, "dev", UPLINK)
    host.run("iptables", *SENTINEL_RULE.split())
    world = World(lan, host, daemon, domains)
    world.write()
    daemon.start()
    yield world
    for n in world.running:
        domains[n].destroy()
    for domain in domains.values():
        domain.undefine()


def test_cycles(world: World, at_length: bool) -> None:
    """After one to three events at once, the kernel is as they leave it to be, time after time."""
    seed = random.SystemRandom().randrange(1 << 32) if at_length else 5
    cycles = 200 if at_length else 10
    print(f"{cycles} cycles of seed {seed}")
    draw = random.Random(seed)
    with NamespaceGuest(world.host, "bystander", internal(1), wait=False):
        for _ in range(cycles):
            for event in draw.choices(list(EVENTS), list(EVENTS.values()), k=draw.randint(1, 3)):
                world.history.append(event.__name__)
                event(world, draw)
            try:
                wait_for(world.is_right, 30, "all is right")
            except (AssertionError, CommandError) as error:
                raise AssertionError(
                    f"{error}\n{world}\n{world.addresses()}\n{world.translations()}\n"
                    f"{world.daemon.command('plan').stdout}\n{world.daemon.log()[-4000:]}"
                ) from error
            world.history.append("-")
