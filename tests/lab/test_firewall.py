"""What rules of others do with a packet: certain verdicts, and no others, from the kernel's own."""

import pickle
import subprocess
import sys
from dataclasses import replace
from ipaddress import IPv4Network

import pytest
from lab.addresses import LAN_NETWORK, LIBVIRT_BRIDGE, UPLINK, external, internal
from vm_onetoone_nat.diagnose.firewall import Packet, judge
from vm_onetoone_nat.diagnose.hooks import Endpoints, obstructions
from vm_onetoone_nat.kernel.messages.nft_foreign import Chain, Ruleset
from vm_onetoone_nat.model.configuration import DEFAULT_FWMARK
from vm_onetoone_nat.model.host import ChainName

PACKET = Packet(
    iifname=UPLINK,
    oifname=LIBVIRT_BRIDGE,
    saddr=LAN_NETWORK,
    daddr=IPv4Network(internal(1)),
    mark=DEFAULT_FWMARK,
    status=frozenset({"dnat"}),
)
ENDPOINTS = Endpoints(UPLINK, LIBVIRT_BRIDGE, LAN_NETWORK, external(1), internal(1), DEFAULT_FWMARK)
CHAIN = ChainName("inet", "t", "c")

_LOAD = """
import pickle, subprocess, sys
for command in sys.argv[2:]:
    subprocess.run(command.split(), check=True)
subprocess.run(["nft", "-f", "-"], input=sys.argv[1], text=True, check=True)
from vm_onetoone_nat.kernel.foreign import read_others
sys.stdout.buffer.write(pickle.dumps(read_others()))
"""


def load(text: str, *commands: str) -> Ruleset:
    """The ruleset that a network namespace of its own has after these commands and rules."""
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", _LOAD, text, *commands],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    ruleset = pickle.loads(done.stdout)
    assert isinstance(ruleset, Ruleset)
    return ruleset


def chain_with(*rules: str, policy: str = "accept", more: str = "") -> str:
    """A table with one chain at the hook forward."""
    body = "\n".join(rules)
    return (
        f"table inet t {{\n{more}\nchain c {{\ntype filter hook forward priority 10;"
        f" policy {policy};\n{body}\n}}\n}}\n"
    )


def verdict(text: str, packet: Packet = PACKET) -> str | None:
    """The rule at which a packet certainly ends."""
    ruleset = load(text)
    found = judge(ruleset, ruleset.chains[CHAIN], packet)
    return None if found is None else found.rule


REFUSING = [
    "drop",
    "counter packets 0 bytes 0 drop",
    "reject with icmp host-unreachable",
    'iifname "wlp0s20f3" drop',
    'iifname "wlp*" drop',
    'iifname != "eth0" drop',
    'iifname { "eth0", "wlp0s20f3" } drop',
    "ip daddr 192.168.122.0/24 drop",
    "ip daddr 192.168.122.101 drop",
    "ip daddr 192.168.122.100-192.168.122.110 ip saddr 192.168.0.0/16 drop",
    "ip daddr != 10.0.0.0/8 drop",
    "ct state new drop",
    "ct state { established, new } drop",
    "ct status dnat drop",
    "meta mark 0x00100000 drop",
    "meta mark & 0x00100000 == 0x00100000 drop",
    "meta nfproto ipv4 drop",
    "ip saddr 192.168.1.0/24 ip daddr 192.168.122.101 counter packets 0 bytes 0 drop",
]
PASSING = [
    "accept",
    'iifname "eth0" drop',
    'oifname "wlp0s20f3" drop',
    'iifname != "wlp*" drop',
    "ip daddr 192.168.122.102 drop",
    "ip daddr != 192.168.122.0/24 drop",
    "ip6 daddr fe80::1 drop",
    "ct state established drop",
    "ct state invalid,untracked drop",
    "ct status snat drop",
    "meta mark 0x00000001 drop",
    "meta nfproto ipv6 drop",
]
DEPENDING = [
    "tcp dport 22 drop",
    "meta l4proto udp drop",
    "ip saddr 192.168.1.7 drop",
    "limit rate 10/second drop",
    "fib saddr . iif oif missing drop",
    "ip ttl 1 drop",
    "meta skuid 0 drop",
]


@pytest.mark.parametrize("rule", REFUSING)
def test_refuses(rule: str) -> None:
    """A rule that every such packet meets is its end, and is named in nft's words."""
    found = verdict(chain_with(rule))
    # libnftables names an interval of two addresses, and an order of flags, in its own way.
    assert found is not None
    assert found.split()[-1] == rule.rsplit(maxsplit=1)[-1]


@pytest.mark.parametrize("rule", [*PASSING, *DEPENDING])
def test_does_not_certainly_refuse(rule: str) -> None:
    """A rule that none, or only some of them meet is no end."""
    assert verdict(chain_with(rule)) is None


@pytest.mark.parametrize("rule", PASSING[1:])
def test_policy_after_what_does_not_match(rule: str) -> None:
    """Behind rules that others meet, the policy decides."""
    assert verdict(chain_with(rule, policy="drop")) == "policy drop"


@pytest.mark.parametrize(
    "rule",
    [
        "accept",
        "ct status dnat accept",
        "meta mark & 0x00100000 == 0x00100000 accept",
        "ct state new,established accept",
        "tcp dport 22 accept",
        "ip saddr 192.168.1.7 accept",
        "tcp dport { 22, 80 } return",
    ],
)
def test_what_accepts_or_may_accept(rule: str) -> None:
    """Behind a rule that accepts, or may, nothing is certain any more."""
    assert verdict(chain_with(rule, "drop", policy="drop")) is None


def test_sets_and_maps() -> None:
    """Named sets, intervals and verdict maps are looked up as the kernel does."""
    more = """
        set some { type ipv4_addr; flags interval; elements = { 192.168.122.96/28, 10.0.0.1 }; }
        set none { type ipv4_addr; }
        map where { type ifname : verdict; elements = { "wlp0s20f3" : jump sub, "eth0" : accept }; }
        chain sub { ip daddr @some reject with icmp admin-prohibited; }
    """
    assert verdict(chain_with("ip daddr @some drop", more=more)) == "ip daddr @some drop"
    assert verdict(chain_with("ip daddr @none drop", more=more)) is None
    jumped = verdict(chain_with("iifname vmap @where", more=more))
    assert jumped == "ip daddr @some reject with icmp admin-prohibited"
    other = replace(PACKET, iifname="eth0")
    assert verdict(chain_with("iifname vmap @where", "drop", more=more), other) is None


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (("jump sub", "drop"), "drop"),
        (("goto sub", "drop"), None),
        (("jump out", "accept"), "drop"),
        (("tcp dport 22 jump out",), None),
        (("tcp dport 22 jump sub", "drop"), "drop"),
        (("tcp dport 22 goto sub", "drop"), None),
        (("jump in", "drop"), None),
        (("tcp dport 22 jump in", "drop"), None),
    ],
    ids=str,
)
def test_jumps(rules: tuple[str, ...], expected: str | None) -> None:
    """What comes back goes on after a jump, and not after a goto."""
    more = "chain sub { counter; }\nchain out { drop; }\nchain in { accept; }\n"
    assert verdict(chain_with(*rules, more=more)) == expected


def test_jumps_in_a_circle() -> None:
    """Chains that cannot be followed to an end, here one that is missing, are not followed."""
    chain = Chain(CHAIN, load(chain_with("jump x", more="chain x { drop; }")).chains[CHAIN].rules)
    assert judge(Ruleset({CHAIN: chain}, {}), chain, PACKET) is None


def found(text: str, *commands: str) -> list[tuple[str, str, bool]]:
    """What is in the way of the mapping: which packets, in which chain, or translated."""
    return [
        (o.packets, str(o.verdict.chain), o.verdict.translated)
        for o in obstructions(load(text, *commands), ENDPOINTS)
    ]


def hooked(hook: str, rule: str, family: str = "ip", kind: str = "filter") -> str:
    """A chain at a hook, with its priority."""
    return f"table {family} t {{\nchain c {{\ntype {kind} hook {hook};\n{rule}\n}}\n}}\n"


INBOUND, ANSWERS = "packets from the LAN", "the guest's answers"
OWN = "the guest's own packets"


@pytest.mark.parametrize(
    ("text", "packets"),
    [
        (hooked("prerouting priority -300", f"ip daddr {external(1)} drop"), [INBOUND]),
        (hooked("prerouting priority -300", f"ip daddr {internal(1)} drop"), []),
        (hooked("prerouting priority -100", f"ip daddr {internal(1)} drop"), [INBOUND]),
        (hooked("prerouting priority -100", f"ip daddr {external(1)} drop"), []),
        (hooked("prerouting priority 0", f"ip saddr {internal(1)} drop"), [ANSWERS, OWN]),
        (hooked("forward priority 0", "ct state established drop"), [ANSWERS]),
        (hooked("forward priority 0", "ct state new drop"), [INBOUND, OWN]),
        (hooked("forward priority 0", f'oifname "{UPLINK}" drop'), [ANSWERS, OWN]),
        (hooked("forward priority 0", "meta mark & 0x100000 == 0 drop"), []),
        (hooked("forward priority -10", "meta mark & 0x100000 == 0 drop"), [INBOUND, ANSWERS, OWN]),
        (hooked("postrouting priority 0", f'oifname "{LIBVIRT_BRIDGE}" drop'), [INBOUND]),
        (hooked("input priority 0", "drop"), []),
        (hooked("output priority 0", "drop"), []),
        (hooked("output priority 0", f"ip daddr {internal(1)} drop", "bridge"), [INBOUND]),
        (hooked("input priority 0", f"ip saddr {internal(1)} drop", "bridge"), [ANSWERS]),
        (hooked("forward priority 0", "drop", "bridge"), []),
        (hooked("forward priority 0", "drop", "ip6"), []),
    ],
)
def test_way(text: str, packets: list[str]) -> None:
    """Each hook sees the packets that pass it, with the addresses and the mark of that place."""
    assert [p for p, _, _ in found(text)] == packets


@pytest.mark.parametrize(
    ("hook", "rule", "packets"),
    [
        ("prerouting priority -110", f"ip daddr {external(1)} dnat to 10.0.0.1", [INBOUND]),
        ("prerouting priority -100", f"ip daddr {internal(1)} dnat to 10.0.0.1", []),
        ("postrouting priority 90", f'oifname "{UPLINK}" masquerade', [ANSWERS, OWN]),
        ("postrouting priority 100", f'oifname "{UPLINK}" masquerade', []),
    ],
)
def test_other_translations(hook: str, rule: str, packets: list[str]) -> None:
    """The NAT of others is in the way where it comes before ours, and nowhere else."""
    assert found(hooked(hook, rule, kind="nat")) == [(p, "ip t c", True) for p in packets]


def test_iptables() -> None:
    """Rules of iptables are read as far as they are nftables' own, with the rest unknown."""
    command = "iptables -t mangle -A FORWARD"
    text = "table ip t\n"
    (refused, *_) = found(text, f"{command} -d {internal(1)} -j DROP")
    assert refused == (INBOUND, "ip mangle FORWARD", False)
    assert found(text, f"{command} -m statistic --mode random --probability 0.1 -j DROP") == []
    assert found(text, f"{command} -d {internal(2)} -j DROP") == []


@pytest.mark.parametrize(("name", "packets"), [(UPLINK, [INBOUND]), ("eth9", [])])
def test_ingress(name: str, packets: list[str]) -> None:
    """A chain at the uplink's own ingress is on the way, one at another interface's is not."""
    text = (
        f"table netdev t {{\nchain c {{\ntype filter hook ingress device {name} priority 0;\n"
        f"ip daddr {external(1)} drop\n}}\n}}\n"
    )
    assert [p for p, _, _ in found(text, f"ip link add name {name} type veth")] == packets
