"""All kinds of sets and maps that another program may have, for nft of either release."""

_SETS = [
    "type ipv4_addr;",
    "type ipv4_addr; flags interval; auto-merge; elements = { 10.0.0.0/8, 192.168.0.1 };",
    "type ipv4_addr; flags timeout; timeout 1h; elements = { 10.0.0.1 timeout 5m };",
    "type ipv4_addr; flags dynamic,timeout; timeout 1m; size 100; counter;",
    "type ipv4_addr; counter; elements = { 10.0.0.1 counter packets 3 bytes 4 };",
    'type ipv4_addr; comment "of mine"; elements = { 10.0.0.1 comment "hers" };',
    "type ipv4_addr . inet_service; elements = { 10.0.0.1 . 22 };",
    "type ipv4_addr . inet_proto . inet_service; flags interval; "
    "elements = { 10.0.0.0/8 . tcp . 20-22 };",
    "type ifname . ether_addr; flags constant; elements = { eth0 . 02:00:00:00:00:01 };",
    "type ipv4_addr; flags dynamic; limit rate 10/second burst 5 packets;",
    "type ipv4_addr; flags dynamic; ct count over 20;",
    "type ipv4_addr; quota 5 mbytes;",
    "typeof ip saddr . tcp dport; elements = { 10.0.0.1 . 22 };",
    "typeof fib daddr type; elements = { local };",
    "typeof jhash ip saddr mod 4;",
    "typeof meta mark; elements = { 0x1 };",
    "typeof vlan id;",
    "typeof ct zone . ct mark;",
    "typeof rt ip nexthop; flags interval;",
]
"""Declarations of sets that both releases take."""
_MAPS = [
    "type ipv4_addr : ipv4_addr; elements = { 10.0.0.1 : 10.0.0.2 };",
    "type ipv4_addr : verdict; elements = { 10.0.0.1 : drop };",
    "type inet_service : ipv4_addr . inet_service; elements = { 22 : 10.0.0.1 . 2222 };",
    "typeof ip saddr : meta mark; elements = { 10.0.0.1 : 0x2 };",
    "type ipv4_addr : counter;",
]

_CHAIN = "chain c { type filter hook forward priority 3; ip saddr 203.0.113.1 drop; }"

TABLES = [
    f"table ip {kind}{number} {{\n{kind} x {{ {declaration} }}\n{_CHAIN}\n}}\n"
    for kind, declarations in (("set", _SETS), ("map", _MAPS))
    for number, declaration in enumerate(declarations)
]
"""Each in a table with a chain: `ip set0`, …, `ip map0`, …"""
