"""config.toml and its drop-ins: what loads, and how each fault is refused."""

import os
from collections.abc import Callable, Iterator
from datetime import datetime
from errno import EACCES
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lab.addresses import (
    HOST,
    LIBVIRT_BRIDGE,
    LIBVIRT_GATEWAY,
    UPLINK,
    external,
    guest_name,
    internal,
)
from vm_onetoone_nat.config import files as config
from vm_onetoone_nat.errors import ConfigError
from vm_onetoone_nat.model.configuration import DEFAULT_FWMARK, Configuration, Pool, Range
from vm_onetoone_nat.model.host import Address
from vm_onetoone_nat.model.mapping import AddressSource, AllowedService, Mapping

EXAMPLE = Path(__file__).parents[2] / "config.example.toml"
BOUNDED = settings(
    max_examples=40_000 if settings().max_examples > 150 else 150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def load(folder: Path, document: str | bytes) -> Configuration:
    path = folder / "config.toml"
    path.write_bytes(document if isinstance(document, bytes) else document.encode())
    return config.load(path)


def problems(folder: Path, document: str | bytes) -> tuple[str, ...]:
    """The refusal's lines without the file name, which each must begin with."""
    with pytest.raises(ConfigError) as caught:
        load(folder, document)
    return without_file_name(folder, caught.value)


def without_file_name(folder: Path, error: ConfigError) -> tuple[str, ...]:
    prefix = f"{folder / 'config.toml'}: "
    assert error.problems
    assert all(line.startswith(prefix) for line in error.problems), error.problems
    return tuple(line.removeprefix(prefix) for line in error.problems)


def mapping(**changed: str | None) -> str:
    """A mapping that loads but for what is changed, in TOML; None leaves a key out."""
    keys = {
        "domain": f'"{guest_name(1)}"',
        "external": '"192.168.1.101"',
        "internal": '"192.168.122.101"',
        **changed,
    }
    lines = [f"{key} = {value}" for key, value in keys.items() if value is not None]
    return "\n".join(["[[mapping]]", *lines, ""])


def test_example_is_the_scenario() -> None:
    """The example in the repository loads, and is the three guests of the scenario."""
    assert config.load(EXAMPLE) == Configuration(
        mappings=tuple(
            Mapping(
                external(n),
                "default",
                internal=internal(n),
                domain=guest_name(n),
                source=AddressSource.CONFIGURATION,
            )
            for n in (1, 2, 3)
        )
    )


def test_empty_file_is_the_defaults(tmp_path: Path) -> None:
    """An empty file loads: no mappings, and the defaults that the example shows."""
    assert load(tmp_path, "") == Configuration(
        mappings=(), uplink=None, libvirt_uri="qemu:///system", fwmark=DEFAULT_FWMARK
    )


def test_every_key_arrives(tmp_path: Path) -> None:
    """Each key of the file ends up in the value that it names."""
    document = """
[settings]
uplink = "wlan0"
network = "lab"
libvirt_uri = "test:///default"
fwmark = "0x80000000"
conflict_detection = false
metadata = false
metadata_external = ["192.168.1.128/25"]

[[pool]]
external = ["192.168.1.200-192.168.1.220", "192.168.1.7"]

[[pool]]
network = "other"
external = ["192.168.1.8"]

[[pool]]
network = "lab"
external = ["192.168.1.9"]

[[mapping]]
domain = "guest"
external = "192.168.1.101/25"
internal = "192.168.122.101"
mac = "52:54:00:AA:BB:CC"
allow = ["icmp", "tcp/22", "udp", "tcp/8000-8100"]
allowed_sources = ["192.168.1.0/24", "10.1.2.3"]

[[mapping]]
external = "192.168.1.102/32"
network = "other"
"""
    assert load(tmp_path, document) == Configuration(
        mappings=(
            Mapping(
                external=IPv4Address("192.168.1.101"),
                network="lab",
                prefixlen=25,
                internal=IPv4Address("192.168.122.101"),
                source=AddressSource.CONFIGURATION,
                domain="guest",
                mac="52:54:00:aa:bb:cc",
                allow=(
                    AllowedService("icmp"),
                    AllowedService("tcp", 22, 22),
                    AllowedService("tcp", 8000, 8100),
                    AllowedService("udp"),
                ),
                allowed_sources=(IPv4Network("10.1.2.3/32"), IPv4Network("192.168.1.0/24")),
            ),
            Mapping(external=IPv4Address("192.168.1.102"), network="other", prefixlen=32),
        ),
        uplink="wlan0",
        libvirt_uri="test:///default",
        fwmark=0x80000000,
        conflict_detection=False,
        network="lab",
        metadata=False,
        metadata_external=(IPv4Network("192.168.1.128/25"),),
        pools=(
            Pool("lab", (addresses("200", "220"), addresses("7", "7"), addresses("9", "9"))),
            Pool("other", (addresses("8", "8"),)),
        ),
    )


def addresses(first: str, last: str) -> Range:
    return Range(IPv4Address(f"192.168.1.{first}"), IPv4Address(f"192.168.1.{last}"))


LAN_ADVICE = 'write an IPv4 address such as "192.168.1.101", or "192.168.1.101/24" with a prefix'
GUEST_ADVICE = 'write an IPv4 address such as "192.168.122.101"'
NO_HOST = "no host can have this address; write an address of the LAN"
PREFIX_ADVICE = "a LAN's prefix is a number from 8 to 32"
ALLOW_ADVICE = 'write "icmp", "tcp/22", "udp/53" or a range such as "tcp/8000-8100"'
PORT_ADVICE = "ports go from 1 to 65535, the lower first"
MARK_ADVICE = 'write one bit as hexadecimal text, such as "0x00100000"'
QUOTES = "write text in quotes"

EXTERNALS = [
    ("5", QUOTES),
    ("1.5", QUOTES),
    ('["192.168.1.101"]', QUOTES),
    ('"fe80::1"', LAN_ADVICE),
    ('"::ffff:192.168.1.101"', LAN_ADVICE),
    ('"192.168.1.300"', LAN_ADVICE),
    ('"192.168.1"', LAN_ADVICE),
    ('"192.168.001.101"', LAN_ADVICE),
    ('""', LAN_ADVICE),
    ('" 192.168.1.101"', LAN_ADVICE),
    ('"el7"', LAN_ADVICE),
    ('"192.168.1.101/33"', PREFIX_ADVICE),
    ('"192.168.1.101/7"', PREFIX_ADVICE),
    ('"192.168.1.101/0"', PREFIX_ADVICE),
    ('"192.168.1.101/"', PREFIX_ADVICE),
    ('"192.168.1.101/-1"', PREFIX_ADVICE),
    ('"192.168.1.101/255.255.255.0"', PREFIX_ADVICE),
    ('"192.168.1.101/024"', PREFIX_ADVICE),
    ('"192.168.1.0"', "is the network or broadcast address of 192.168.1.0/24; write another"),
    ('"192.168.1.255"', "is the network or broadcast address of 192.168.1.0/24; write another"),
    ('"192.168.1.0/24"', "is the network or broadcast address of 192.168.1.0/24; write another"),
    ('"192.168.1.127/25"', "is the network or broadcast address of 192.168.1.0/25; write another"),
    ('"192.168.1.128/25"', "is the network or broadcast address of 192.168.1.128/25; write"),
    ('"224.0.0.5"', NO_HOST),
    ('"127.0.0.1"', NO_HOST),
    ('"0.0.0.0"', NO_HOST),
    ('"0.1.2.3"', NO_HOST),
    ('"240.0.0.1"', NO_HOST),
    ('"255.255.255.255"', NO_HOST),
]

INTERNALS = [
    ("5", QUOTES),
    ('"192.168.122.101/24"', GUEST_ADVICE),
    ('"192.168.122.0101"', GUEST_ADVICE),
    ('"fe80::1"', GUEST_ADVICE),
    ('""', GUEST_ADVICE),
    ('"239.1.1.1"', NO_HOST),
    ('"127.0.0.53"', NO_HOST),
]

ALLOWS = [
    ('"sctp/22"', ALLOW_ADVICE),
    ('"TCP/22"', ALLOW_ADVICE),
    ('"icmp/8"', ALLOW_ADVICE),
    ('"tcp/"', ALLOW_ADVICE),
    ('"tcp/ssh"', ALLOW_ADVICE),
    ('"tcp/22,23"', ALLOW_ADVICE),
    ('"tcp/22-"', ALLOW_ADVICE),
    ('"tcp/-22"', ALLOW_ADVICE),
    ('"tcp/²"', ALLOW_ADVICE),
    ('""', ALLOW_ADVICE),
    ("22", QUOTES),
    ('"tcp/0"', PORT_ADVICE),
    ('"tcp/65536"', PORT_ADVICE),
    ('"tcp/100-22"', PORT_ADVICE),
    ('"udp/1-65536"', PORT_ADVICE),
]

SOURCES = [
    ('"192.168.1.5/24"', 'has bits set past its prefix; write "192.168.1.0/24"'),
    ('"192.168.1.0/33"', 'write a prefix such as "192.168.1.0/24"'),
    ('"192.168.1/24"', 'write an IPv4 prefix such as "192.168.1.0/24"'),
    ('"fe80::/64"', 'write an IPv4 prefix such as "192.168.1.0/24"'),
    ('"lan"', 'write an IPv4 prefix such as "192.168.1.0/24"'),
    ("24", QUOTES),
]

RANGES = [
    ('"192.168.1.9-192.168.1.8"', "the lower address comes first"),
    ('"192.168.1.8-"', 'write addresses such as "192.168.1.200-192.168.1.220"'),
    ('"192.168.1.0/24"', 'write addresses such as "192.168.1.200-192.168.1.220"'),
    ('"10.0.0.1-10.9.0.1"', "a pool has 65,536 addresses at most"),
    ('"224.0.0.1"', NO_HOST),
    ("7", QUOTES),
]

MAC_ADVICE = "write a MAC as in 'virsh domiflist'"

MARKS = ['"0x3"', '"0x0"', '"0x100000000"', '"1048576"', '"bit 20"', '"-0x1"', '""']

NAMES = ['""', '" default"', '"default "', '"a\\nb"', '"\\u001b[31m"']

INTERFACES = ['"wlan0/1"', '"a-name-too-long0"', '"wlan 0"', '"."', '".."']


def _cases() -> Iterator[tuple[str, str, str, str]]:
    """A document, the key path, the value as written, and the advice."""
    for value, advice in EXTERNALS:
        yield mapping(external=value), "mapping[0].external", value, advice
    for value, advice in INTERNALS:
        yield mapping(internal=value), "mapping[0].internal", value, advice
    for value, advice in ALLOWS:
        document = mapping(allow=f'["tcp/22", {value}]')
        yield document, "mapping[0].allow[1]", value, advice
    for value, advice in SOURCES:
        yield mapping(allowed_sources=f"[{value}]"), "mapping[0].allowed_sources[0]", value, advice
        document = f"[settings]\nmetadata_external = [{value}]\n"
        yield document, "settings.metadata_external[0]", value, advice
    for value, advice in RANGES:
        yield f"[[pool]]\nexternal = [{value}]\n", "pool[0].external[0]", value, advice
    for value in ('"52:54:00:aa:bb"', '"52-54-00-aa-bb-cc"', '"eth0"'):
        yield mapping(mac=value), "mapping[0].mac", value, MAC_ADVICE
    yield "[settings]\nmetadata = 'on'\n", "settings.metadata", "'on'", "write true or false"
    for key in ("allow", "allowed_sources"):
        path = f"mapping[0].{key}"
        yield mapping(**{key: "[]"}), path, "[]", "leave the key out, or name at least one"
        yield mapping(**{key: '"tcp/22"'}), path, "tcp/22", "write a list in square brackets"
    for value in MARKS:
        yield f"[settings]\nfwmark = {value}\n", "settings.fwmark", value, MARK_ADVICE
    yield "[settings]\nfwmark = 0x100000\n", "settings.fwmark", "1048576", QUOTES
    for value in NAMES:
        advice = "write a name without spaces around it"
        yield f"[settings]\nnetwork = {value}\n", "settings.network", value, advice
        yield f"[settings]\nuplink = {value}\n", "settings.uplink", value, advice
        yield mapping(domain=value), "mapping[0].domain", value, advice
        yield mapping(network=value), "mapping[0].network", value, advice
    for value in INTERFACES:
        advice = 'write the name of an interface as in "ip link"'
        yield f"[settings]\nuplink = {value}\n", "settings.uplink", value, advice
    yield mapping(domain='"a/b"'), "mapping[0].domain", "a/b", "virsh list --all --name"
    for value in ('"system"', '"qemu:///a b"', '""'):
        document = f"[settings]\nlibvirt_uri = {value}\n"
        yield document, "settings.libvirt_uri", value, 'write a libvirt URI such as "qemu:'
    yield "settings = 5\n", "settings", "5", "write a table headed [settings]"
    yield "mapping = [5]\n", "mapping[0]", "5", "write a table headed [[mapping]]"
    yield "mapping = 5\n", "mapping", "5", "write each mapping as a table headed [[mapping]]"
    yield (
        mapping().replace("[[mapping]]", "[mapping]"),
        "mapping",
        guest_name(1),
        "write each mapping as a table headed [[mapping]]",
    )


CASES = tuple(_cases())


@pytest.mark.parametrize(
    ("document", "key", "value", "advice"), CASES, ids=[f"{case[1]}={case[2]}" for case in CASES]
)
def test_refused(tmp_path: Path, document: str, key: str, value: str, advice: str) -> None:
    """A fault is refused in one line, with its file, key path, value and what to write instead."""
    (line,) = problems(tmp_path, document)
    assert line.startswith(f"{key}: ")
    assert value.strip('"[]') in line.replace("\\x1b", "\\u001b")
    assert advice in line


@pytest.mark.parametrize(
    ("document", "line"),
    [
        ("sttings = 1\n", "sttings: unknown key; write 'settings'?"),
        ("[settings]\nupling = 'x'\n", "settings.upling: unknown key; write 'uplink'?"),
        (mapping(intrnal='"x"'), "mapping[0].intrnal: unknown key; write 'internal'?"),
        (
            mapping(xyz="1"),
            "mapping[0].xyz: unknown key; write one of: "
            "external, internal, domain, network, mac, allow, allowed_sources",
        ),
        (
            mapping(external=None),
            'mapping[0].external: the key is missing; write it, such as external = "192.168.1.101"',
        ),
        (
            "[[pool]]\n",
            "pool[0].external: the key is missing; write it, such as "
            'external = ["192.168.1.200-192.168.1.220"]',
        ),
        (
            "pool = 7\n",
            "pool: 7: write each pool as a table headed [[pool]]",
        ),
    ],
)
def test_key_that_does_not_fit(tmp_path: Path, document: str, line: str) -> None:
    """An unknown key is refused with the key that was meant, a missing one with an example."""
    assert problems(tmp_path, document) == (line,)


@pytest.mark.parametrize(
    ("second", "line"),
    [
        (
            mapping(internal='"192.168.122.102"'),
            "mapping[1].external: '192.168.1.101' is already used by mapping[0]; "
            "write another address",
        ),
        (
            mapping(internal=None, external='"192.168.1.101/25"'),
            "mapping[1].external: '192.168.1.101' is already used by mapping[0]; "
            "write another address",
        ),
        (
            mapping(external='"192.168.1.102"'),
            "mapping[1].internal: '192.168.122.101' is already used by mapping[0]; "
            "write another address",
        ),
        (
            mapping(external='"192.168.122.5"', internal=None),
            "mapping[1].external: '192.168.122.5' is in the same subnet 192.168.122.0/24 "
            "as mapping[0].internal '192.168.122.101'; write an address of the LAN, "
            "with its prefix if that is longer than /24",
        ),
        (
            mapping(external='"192.168.3.4/16"', internal=None),
            "mapping[1].external: '192.168.3.4/16' is in the same subnet 192.168.0.0/16 "
            "as mapping[0].internal '192.168.122.101'; write an address of the LAN, "
            "with its prefix if that is longer than /16",
        ),
    ],
)
def test_contradiction(tmp_path: Path, second: str, line: str) -> None:
    """Two mappings that exclude each other are refused, and the later one is named."""
    assert problems(tmp_path, mapping() + second) == (line,)


def test_close_subnets_told_apart_by_prefix(tmp_path: Path) -> None:
    """A LAN and a libvirt network in one /24 are accepted where the prefix tells them apart."""
    document = mapping(external='"192.168.122.20/26"')
    assert load(tmp_path, document).mappings[0].prefixlen == 26


@pytest.mark.parametrize(
    "refused", ["192.168.1.0", "192.168.1.255", "192.168.2.0", "192.168.2.255"]
)
def test_suggested_prefix_is_accepted(tmp_path: Path, refused: str) -> None:
    """The external address that a refusal suggests is not itself refused."""
    (line,) = problems(tmp_path, mapping(external=f'"{refused}"'))
    _, such_as, rest = line.partition("such as ")
    if such_as:
        assert load(tmp_path, mapping(external=rest)).mappings[0].external == IPv4Address(refused)
    else:
        assert line.endswith("write another address")


def test_all_faults_at_once(tmp_path: Path) -> None:
    """A file with several faults is refused with a line for each."""
    document = (
        "[settings]\nfwmark = '0x3'\nnope = 1\n"
        + mapping(external='"x"', internal='"y"')
        + mapping(allow='["tcp/0", "tcp/1", "z"]')
    )
    assert [line.partition(": ")[0] for line in problems(tmp_path, document)] == [
        "settings.fwmark",
        "settings.nope",
        "mapping[0].external",
        "mapping[0].internal",
        "mapping[1].allow[0]",
        "mapping[1].allow[2]",
    ]


def test_every_line_names_the_file(tmp_path: Path) -> None:
    """The error in text is its lines, and its exit code systemd's for a bad configuration."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "a = 1\nb = 2\n")
    assert caught.value.exit_code == 78
    assert str(caught.value).splitlines() == list(caught.value.problems)
    assert len(without_file_name(tmp_path, caught.value)) == 2


def test_long_value_is_cut(tmp_path: Path) -> None:
    """A value of any length makes a line that can be read."""
    (line,) = problems(tmp_path, mapping(external='"' + "x" * 5000 + '"'))
    assert len(line) < 250
    assert "xxx...: " in line


@pytest.mark.parametrize(
    ("document", "key"),
    [
        ("[settings]\nfwmark = 0x" + "f" * 5000 + "\n", "settings.fwmark"),
        ("[settings]\nfwmark = " + "9" * 5000 + "\n", ""),
    ],
    ids=["hexadecimal", "decimal"],
)
def test_number_of_thousands_of_digits(tmp_path: Path, document: str, key: str) -> None:
    """A number longer than Python reads or prints (4,300 digits) is refused as any other value."""
    (line,) = problems(tmp_path, document)
    assert line.startswith(key)


def test_key_with_a_line_break(tmp_path: Path) -> None:
    """A key that holds a line break or a terminal's control code still makes one plain line."""
    (line,) = problems(tmp_path, '"a\\nb\\u001b" = 1\n')
    assert line.isprintable()


@pytest.mark.parametrize(
    ("document", "start"),
    [
        (b"[settings]\nuplink = \n", "not valid TOML: Invalid value (at line 2, column "),
        (b"a = 1\na = 2\n", "not valid TOML: Cannot overwrite a value (at line 2, column "),
        (b"[settings]\n\xff\n", "byte 11: not UTF-8 text"),
        (b"a = " + b"[" * 100_000, "not valid TOML: "),
    ],
    ids=["syntax", "twice", "not UTF-8", "nested without end"],
)
def test_not_toml(tmp_path: Path, document: bytes, start: str) -> None:
    """A file that is no TOML is refused with the line, or byte, at which it ceases to be."""
    (line,) = problems(tmp_path, document)
    assert line.startswith(start)


def test_missing_file(tmp_path: Path) -> None:
    """A file that is not there is refused with where to start from."""
    with pytest.raises(ConfigError) as caught:
        config.load(tmp_path / "config.toml")
    assert without_file_name(tmp_path, caught.value) == (
        "cannot be read: No such file or directory; write it, starting from config.example.toml",
    )


def test_directory_for_a_file(tmp_path: Path) -> None:
    """A directory in place of the file is refused, not a crash."""
    (tmp_path / "config.toml").mkdir()
    with pytest.raises(ConfigError) as caught:
        config.load(tmp_path / "config.toml")
    assert without_file_name(tmp_path, caught.value) == ("cannot be read: Is a directory",)


@pytest.mark.parametrize(
    ("written", "merged"),
    [
        ('["tcp/22", "tcp/22"]', (AllowedService("tcp", 22, 22),)),
        ('["tcp/10-20", "tcp/15-30"]', (AllowedService("tcp", 10, 30),)),
        ('["tcp/21-30", "tcp/10-20"]', (AllowedService("tcp", 10, 30),)),
        ('["tcp/10-40", "tcp/15-30"]', (AllowedService("tcp", 10, 40),)),
        (
            '["tcp/10-20", "tcp/22-30"]',
            (AllowedService("tcp", 10, 20), AllowedService("tcp", 22, 30)),
        ),
        ('["tcp/22", "tcp"]', (AllowedService("tcp"),)),
        ('["udp/53", "tcp/53"]', (AllowedService("tcp", 53, 53), AllowedService("udp", 53, 53))),
        ('["icmp", "icmp"]', (AllowedService("icmp"),)),
        (
            '["tcp/65535", "tcp/1"]',
            (AllowedService("tcp", 1, 1), AllowedService("tcp", 65535, 65535)),
        ),
    ],
)
def test_allow_is_merged(tmp_path: Path, written: str, merged: tuple[AllowedService, ...]) -> None:
    """Ranges that overlap or touch become one, and those of different protocols do not."""
    assert load(tmp_path, mapping(allow=written)).mappings[0].allow == merged


@pytest.mark.parametrize(
    ("written", "merged"),
    [
        (["10.0.0.0/8", "10.1.2.0/24"], ["10.0.0.0/8"]),
        (["10.0.0.0/25", "10.0.0.128/25"], ["10.0.0.0/24"]),
        (["10.0.0.1", "10.0.0.1/32"], ["10.0.0.1/32"]),
        (["10.0.1.0/24", "10.0.2.0/24"], ["10.0.1.0/24", "10.0.2.0/24"]),
        (["10.0.0.0/8", "0.0.0.0/0"], ["0.0.0.0/0"]),
    ],
)
def test_sources_are_merged(tmp_path: Path, written: list[str], merged: list[str]) -> None:
    """Prefixes that overlap or make up a shorter one become one."""
    loaded = load(tmp_path, mapping(allowed_sources=str(written))).mappings[0].allowed_sources
    assert loaded == tuple(IPv4Network(network) for network in merged)


def host(*more: Address) -> tuple[Address, ...]:
    return (
        Address(UPLINK, HOST, HOST.network.broadcast_address, primary=True),
        Address(LIBVIRT_BRIDGE, LIBVIRT_GATEWAY, primary=True),
        *more,
    )


def test_host_without_fault() -> None:
    """The example suits the laptop of the scenario, and its own addresses when they are there."""
    configuration = config.load(EXAMPLE)
    taken = IPv4Interface((external(1), 24))
    config.check_host(EXAMPLE, configuration, host())
    config.check_host(EXAMPLE, configuration, host(Address(UPLINK, taken, owned=True)))
    config.check_host(EXAMPLE, configuration, host(Address(UPLINK, taken)))


@pytest.mark.parametrize(
    ("document", "fault"),
    [
        (
            mapping(external=f'"{HOST.ip}"'),
            f"'192.168.1.100' is this host's own address on {UPLINK}; "
            "write a free address of the LAN",
        ),
        (
            # The prefix hides the overlap from the file alone.
            mapping(external='"192.168.122.20/26"'),
            "'192.168.122.20' lies in the libvirt network's subnet 192.168.122.0/24 (virbr0); "
            "write an address of the LAN",
        ),
    ],
)
def test_host_that_does_not_suit(tmp_path: Path, document: str, fault: str) -> None:
    """An address of the host itself, and one of libvirt's subnet, are refused for this host."""
    configuration = load(tmp_path, document)
    with pytest.raises(ConfigError) as caught:
        config.check_host(tmp_path / "config.toml", configuration, host())
    assert without_file_name(tmp_path, caught.value) == (f"mapping[0].external: {fault}",)


MAIN = "config.toml"
Files = dict[str, str | bytes]


def write(folder: Path, files: Files) -> Path:
    """Write files, named from the folder of config.toml, which is empty if not among them."""
    for name, content in {MAIN: "", **files}.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder / MAIN


def refusals(folder: Path) -> list[str]:
    """The refusal's lines without the folder, with which each must begin."""
    with pytest.raises(ConfigError) as caught:
        config.load(folder / MAIN)
    prefix = f"{folder}/"
    assert all(line.startswith(prefix) and line.isprintable() for line in caught.value.problems)
    return [line.removeprefix(prefix) for line in caught.value.problems]


def nth(number: int, **changed: str | None) -> str:
    """A mapping as `mapping` makes it, for one guest of several."""
    return mapping(
        external=f'"{external(number)}"', **{"internal": f'"{internal(number)}"', **changed}
    )


@pytest.mark.parametrize(
    ("files", "numbers", "origins"),
    [
        ({}, [], []),
        ({"conf.d/README": "no TOML"}, [], []),
        ({"conf.d/a.toml": nth(1)}, [1], ["conf.d/a.toml: mapping[0]"]),
        (
            {"conf.d/a.toml": nth(2), MAIN: nth(3) + nth(1)},
            [3, 1, 2],
            ["config.toml: mapping[0]", "config.toml: mapping[1]", "conf.d/a.toml: mapping[0]"],
        ),
        (
            {"conf.d/20-b.toml": nth(1) + nth(3), "conf.d/10-z.toml": nth(2)},
            [2, 1, 3],
            [
                "conf.d/10-z.toml: mapping[0]",
                "conf.d/20-b.toml: mapping[0]",
                "conf.d/20-b.toml: mapping[1]",
            ],
        ),
        (
            # Neither as numbers, nor as a locale orders letters.
            {f"conf.d/{name}.toml": nth(n) for name, n in [("é", 1), ("a", 2), ("B", 3), ("9", 4)]}
            | {"conf.d/10.toml": nth(5)},
            [5, 4, 3, 2, 1],
            [f"conf.d/{name}.toml: mapping[0]" for name in ("10", "9", "B", "a", "é")],
        ),
        (
            {
                "conf.d/.hidden.toml": "[",
                "conf.d/.toml": "[",
                "conf.d/a.toml.dpkg-new": "[",
                "conf.d/a.toml~": "[",
                "conf.d/a.TOML": "[",
                "conf.d/atoml": "[",
                "conf.d/a.toml": "",
                "config.toml.d": "[",
            },
            [],
            [],
        ),
    ],
    ids=["none", "no TOML", "one", "after the main file", "by name", "by byte", "ignored"],
)
def test_mappings_of_drop_ins(
    tmp_path: Path, files: Files, numbers: list[int], origins: list[str]
) -> None:
    """Mappings append in the order of the files' names, and each is known by its own file."""
    loaded = config.load(write(tmp_path, files))
    assert [m.external for m in loaded.mappings] == [external(n) for n in numbers]
    assert list(loaded.origins) == origins


def test_empty_folder_of_drop_ins(tmp_path: Path) -> None:
    """A folder without any drop-in changes nothing."""
    (tmp_path / "conf.d").mkdir()
    assert load(tmp_path, nth(1)).mappings[0].external == external(1)


@pytest.mark.parametrize(
    ("main", "first", "second", "expected"),
    [
        ("", "", "", Configuration()),
        ("uplink = 'a'", "", "", Configuration(uplink="a")),
        ("uplink = 'a'", "uplink = 'b'", "", Configuration(uplink="b")),
        ("uplink = 'a'", "uplink = 'b'", "uplink = 'c'", Configuration(uplink="c")),
        ("uplink = 'a'", "", "uplink = 'auto'", Configuration()),
        ("fwmark = '0x4'", "", f"fwmark = '{DEFAULT_FWMARK:#x}'", Configuration()),
        (
            "fwmark = '0x4'\nuplink = 'a'",
            "libvirt_uri = 'test:///default'",
            "uplink = 'b'",
            Configuration(uplink="b", libvirt_uri="test:///default", fwmark=4),
        ),
    ],
)
def test_settings_of_drop_ins(
    tmp_path: Path, main: str, first: str, second: str, expected: Configuration
) -> None:
    """A key of a later file overrides that of an earlier one, to the default too; no other key."""
    written = {MAIN: main, "conf.d/1.toml": first, "conf.d/2.toml": second}
    files: Files = {name: f"[settings]\n{keys}\n" for name, keys in written.items()}
    assert config.load(write(tmp_path, files)) == expected


@pytest.mark.parametrize(
    "files",
    [
        {MAIN: "[settings]\nnetwork = 'lab'\n" + nth(1), "conf.d/a.toml": nth(2)},
        {MAIN: nth(1), "conf.d/a.toml": "[settings]\nnetwork = 'lab'\n" + nth(2)},
        {MAIN: nth(1), "conf.d/a.toml": nth(2), "conf.d/b.toml": "settings.network = 'lab'\n"},
    ],
    ids=["main", "drop-in", "last"],
)
def test_network_is_that_of_the_whole(tmp_path: Path, files: Files) -> None:
    """The network of mappings that name none is the same for the mappings of all files."""
    loaded = config.load(write(tmp_path, files))
    assert [m.network for m in loaded.mappings] == ["lab", "lab"]


def test_origin_is_no_part_of_the_value(tmp_path: Path) -> None:
    """Mappings that move to another file make the same configuration, to the daemon unchanged."""
    before = config.load(write(tmp_path, {MAIN: nth(1) + nth(2)}))
    after = config.load(write(tmp_path, {MAIN: nth(1), "conf.d/a.toml": nth(2)}))
    assert before.origins != after.origins
    assert before == after


@pytest.mark.parametrize(
    ("files", "line"),
    [
        (
            {MAIN: nth(2) + nth(3) + nth(1), "conf.d/b.toml": nth(1, internal=None)},
            "conf.d/b.toml: mapping[0].external: '192.168.1.101' is already used by "
            "mapping[2] in {folder}/config.toml; write another address",
        ),
        (
            {
                "conf.d/a.toml": nth(2) + nth(1),
                "conf.d/b.toml": nth(3) + nth(4, internal='"192.168.122.101"'),
            },
            "conf.d/b.toml: mapping[1].internal: '192.168.122.101' is already used by "
            "mapping[1] in {folder}/conf.d/a.toml; write another address",
        ),
        (
            {MAIN: nth(1), "conf.d/b.toml": nth(2) + nth(3) + nth(2, internal=None)},
            "conf.d/b.toml: mapping[2].external: '192.168.1.102' is already used by "
            "mapping[0]; write another address",
        ),
        (
            {
                MAIN: nth(1),
                "conf.d/b.toml": nth(2) + mapping(external='"192.168.122.5"', internal=None),
            },
            "conf.d/b.toml: mapping[1].external: '192.168.122.5' is in the same subnet "
            "192.168.122.0/24 as mapping[0].internal '192.168.122.101' in {folder}/config.toml; "
            "write an address of the LAN, with its prefix if that is longer than /24",
        ),
        (
            {
                MAIN: mapping(external='"192.168.122.5"', internal=None),
                "conf.d/b.toml": nth(2, internal=None) + nth(1),
            },
            "config.toml: mapping[0].external: '192.168.122.5' is in the same subnet "
            "192.168.122.0/24 as mapping[1].internal '192.168.122.101' in "
            "{folder}/conf.d/b.toml; write an address of the LAN, with its prefix if that is "
            "longer than /24",
        ),
        (
            {
                MAIN: nth(1),
                "conf.d/b.toml": nth(2) + mapping(external='"10.0.0.5"', internal='"10.0.0.6"'),
            },
            "conf.d/b.toml: mapping[1].external: '10.0.0.5' is in the same subnet "
            "10.0.0.0/24 as mapping[1].internal '10.0.0.6'; write an address of the LAN, "
            "with its prefix if that is longer than /24",
        ),
    ],
    ids=["external", "internal", "within one", "subnet", "subnet of a later one", "subnet in one"],
)
def test_contradiction_across_files(tmp_path: Path, files: Files, line: str) -> None:
    """Mappings that exclude each other are named by file and index in it, the same file once."""
    write(tmp_path, files)
    assert refusals(tmp_path) == [line.format(folder=tmp_path)]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("sttings = 1\n", "sttings: unknown key; write 'settings'?"),
        ("[settings]\nupling = 'x'\n", "settings.upling: unknown key; write 'uplink'?"),
        (
            "[settings]\nfwmark = '0x3'\n",
            f"settings.fwmark: '0x3': {MARK_ADVICE}",
        ),
        (
            nth(2) + mapping(external=None),
            'mapping[1].external: the key is missing; write it, such as external = "192.168.1.101"',
        ),
        ("a = 1\nb = \n", "not valid TOML: Invalid value (at line 2, column 5)"),
        (b"\xff\n", "byte 0: not UTF-8 text"),
    ],
)
def test_fault_in_a_drop_in(tmp_path: Path, content: str | bytes, fault: str) -> None:
    """Each file is checked strictly by itself, and a fault is that of its file."""
    write(tmp_path, {MAIN: nth(1), "conf.d/a.toml": nth(3), "conf.d/b.toml": content})
    assert refusals(tmp_path) == [f"conf.d/b.toml: {fault}"]


def test_override_does_not_hide_a_fault(tmp_path: Path) -> None:
    """A bad value is refused although a later file overrides it."""
    write(
        tmp_path,
        {
            MAIN: "[settings]\nfwmark = '0x3'\n",
            "conf.d/a.toml": "[settings]\nfwmark = '0x4'\n",
        },
    )
    assert refusals(tmp_path) == [f"config.toml: settings.fwmark: '0x3': {MARK_ADVICE}"]


def test_all_faults_of_all_files(tmp_path: Path) -> None:
    """Files with faults of any kind hide neither each other's nor those between the good ones."""
    write(
        tmp_path,
        {
            MAIN: "[settings]\nnope = 1\nuplink = ''\n",
            "conf.d/10.toml": "[",
            "conf.d/20.toml": nth(1),
            "conf.d/30.toml": b"\xff",
            "conf.d/50.toml": mapping(external='"x"', internal='"y"'),
            "conf.d/60.toml": nth(1),
        },
    )
    (tmp_path / "conf.d/40.toml").mkdir()
    assert [": ".join(line.split(": ")[:2]) for line in refusals(tmp_path)] == [
        "config.toml: settings.uplink",
        "config.toml: settings.nope",
        "conf.d/10.toml: not valid TOML",
        "conf.d/30.toml: byte 0",
        "conf.d/40.toml: cannot be read",
        "conf.d/50.toml: mapping[0].external",
        "conf.d/50.toml: mapping[0].internal",
        "conf.d/60.toml: mapping[0].external",
        "conf.d/60.toml: mapping[0].internal",
    ]


def test_drop_ins_without_the_file(tmp_path: Path) -> None:
    """Drop-ins do not stand in for config.toml, and their faults are told with its absence."""
    write(tmp_path, {"conf.d/a.toml": nth(1), "conf.d/b.toml": "x = 1\n"}).unlink()
    missing, unknown = refusals(tmp_path)
    assert missing == (
        "config.toml: cannot be read: No such file or directory; "
        "write it, starting from config.example.toml"
    )
    assert unknown.startswith("conf.d/b.toml: x: unknown key")


@pytest.mark.parametrize("target", ["/dev/null", "../null"])
def test_masked_drop_in(tmp_path: Path, target: str) -> None:
    """A link to /dev/null, or to a link to it, is an empty drop-in."""
    write(tmp_path, {MAIN: nth(1), "conf.d/b.toml": nth(2)})
    (tmp_path / "null").symlink_to("/dev/null")
    (tmp_path / "conf.d/a.toml").symlink_to(target)
    loaded = config.load(tmp_path / MAIN)
    assert loaded.origins == ("config.toml: mapping[0]", "conf.d/b.toml: mapping[0]")


def test_linked_drop_in(tmp_path: Path) -> None:
    """A link to a file is read, and known by the link's name."""
    write(tmp_path, {"elsewhere": nth(1), "conf.d/b.toml": nth(2)})
    (tmp_path / "conf.d/a.toml").symlink_to("../elsewhere")
    assert config.load(tmp_path / MAIN).origins[0] == "conf.d/a.toml: mapping[0]"


def test_drop_ins_are_beside_the_link(tmp_path: Path) -> None:
    """Where config.toml is a link, the drop-ins are those beside the link, not its target."""
    write(tmp_path, {"kept/config.toml": nth(1), "conf.d/b.toml": nth(2)})
    (tmp_path / "kept/conf.d").mkdir()
    (tmp_path / "kept/conf.d/c.toml").write_text(nth(3))
    (tmp_path / MAIN).unlink()
    (tmp_path / MAIN).symlink_to("kept/config.toml")
    loaded = config.load(tmp_path / MAIN)
    assert [m.external for m in loaded.mappings] == [external(1), external(2)]


def _no_file(path: Path) -> None:
    path.symlink_to("nowhere")


def _own_link(path: Path) -> None:
    path.symlink_to(path.name)


def _zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


NEITHER = "is neither a file nor a link to one; remove it"


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (Path.mkdir, "cannot be read: Is a directory; correct or remove it"),
        (_no_file, "cannot be read: the target of the link does not exist; correct or remove it"),
        (_own_link, "cannot be read: Too many levels of symbolic links; correct or remove it"),
        (os.mkfifo, NEITHER),
        (_zeros, NEITHER),
    ],
    ids=["directory", "dangling link", "link to itself", "pipe", "device"],
)
def test_drop_in_that_is_no_file(tmp_path: Path, make: Callable[[Path], None], fault: str) -> None:
    """What is no file is refused by name, and never waited for."""
    write(tmp_path, {MAIN: nth(1), "conf.d/b.toml": "x = 1\n"})
    make(tmp_path / "conf.d/a.toml")
    first, second = refusals(tmp_path)
    assert first == f"conf.d/a.toml: {fault}"
    assert second.startswith("conf.d/b.toml: x: unknown key")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Path.touch, "Not a directory"),
        (_no_file, "No such file or directory"),
        (_own_link, "Too many levels of symbolic links"),
    ],
    ids=["file", "dangling link", "link to itself"],
)
def test_folder_that_cannot_be_read(
    tmp_path: Path, make: Callable[[Path], None], reason: str
) -> None:
    """A conf.d that is there but cannot be read is refused, with the faults of config.toml."""
    write(tmp_path, {MAIN: "x = 1\n"})
    make(tmp_path / "conf.d")
    folder, main = refusals(tmp_path)
    assert folder == f"conf.d: cannot be read: {reason}; correct or remove it"
    assert main.startswith("config.toml: x: unknown key")


@pytest.mark.parametrize("name", ["conf.d", "conf.d/a.toml"])
def test_may_not_be_read(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder or drop-in that this user may not read is refused, not passed over."""
    write(tmp_path, {"conf.d/a.toml": nth(1)})
    refused = PermissionError(EACCES, "Permission denied")
    listing, reading = Path.iterdir, Path.read_bytes

    def iterdir(path: Path) -> Iterator[Path]:
        if path == tmp_path / name:
            raise refused
        return iter(list(listing(path)))

    def read_bytes(path: Path) -> bytes:
        if path == tmp_path / name:
            raise refused
        return reading(path)

    # Patched, since root may read everything and the tests run as root too.
    monkeypatch.setattr(Path, "iterdir", iterdir)
    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    assert refusals(tmp_path) == [
        f"{name}: cannot be read: Permission denied; correct or remove it"
    ]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"a\nb.toml", "a\\nb.toml"),
        (b"\x1b[31m.toml", "\\x1b[31m.toml"),
        (b"\xff.toml", "\\udcff.toml"),
        (b"\xc3\xa9 b.toml", "é b.toml"),
        (b"{0}%s.toml", "{0}%s.toml"),
    ],
)
def test_name_of_a_drop_in_makes_one_line(tmp_path: Path, name: bytes, shown: str) -> None:
    """Whatever bytes are in a file's name, its faults are lines of text that name it."""
    path = write(tmp_path, {"conf.d/a.toml": mapping(external=f'"{HOST.ip}"')})
    (tmp_path / "conf.d/a.toml").rename(tmp_path / "conf.d" / os.fsdecode(name))
    with pytest.raises(ConfigError) as caught:
        config.check_host(path, config.load(path), host())
    (line,) = caught.value.problems
    assert line.startswith(f"{tmp_path}/conf.d/{shown}: mapping[0].external: ")
    assert line.isprintable()


def test_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path from the working directory has its drop-ins, and names files in the same way."""
    write(
        tmp_path, {MAIN: nth(1), "conf.d/a.toml": mapping(external=f'"{HOST.ip}"', internal=None)}
    )
    monkeypatch.chdir(tmp_path)
    loaded = config.load(Path(MAIN))
    with pytest.raises(ConfigError) as caught:
        config.check_host(Path(MAIN), loaded, host())
    (line,) = caught.value.problems
    assert line.startswith("conf.d/a.toml: mapping[0].external: '192.168.1.100' is this host's own")


def test_host_that_does_not_suit_a_drop_in(tmp_path: Path) -> None:
    """What this host refuses is named by the file and the index in it."""
    path = write(
        tmp_path,
        {
            MAIN: nth(1) + mapping(external=f'"{HOST.ip}"', internal=None),
            "conf.d/a.toml": nth(3),
            "conf.d/b.toml": nth(4)
            + mapping(external='"192.168.122.20/26"', internal='"192.168.122.105"'),
        },
    )
    with pytest.raises(ConfigError) as caught:
        config.check_host(path, config.load(path), host())
    assert [line.partition(".external: ")[0] for line in caught.value.problems] == [
        f"{path}: mapping[1]",
        f"{tmp_path}/conf.d/b.toml: mapping[1]",
    ]


def _toml(value: Any) -> str:
    """Any value that TOML has, in TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(c):08X}" for c in value) + '"'
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    return value.isoformat() if isinstance(value, datetime) else repr(value)


ADDRESSES = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.builds(lambda ip, length: f"{ip}/{length}", st.ip_addresses(v=4), st.integers(0, 33)),
    st.sampled_from(["192.168.1.101", "192.168.1.101/24", "192.168.122.101", "fe80::1"]),
)
TEXT = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])),
    ADDRESSES,
    st.from_regex(r"(tcp|udp|icmp)(/[0-9]{1,6}(-[0-9]{1,6})?)?", fullmatch=True),
    st.from_regex(r"0x[0-9a-f]{1,9}", fullmatch=True),
)
SCALARS = st.one_of(
    TEXT,
    st.booleans(),
    st.integers(-(2**63), 2**63),
    st.floats(),
    st.datetimes(),
)
KEY_NAMES = """
    settings mapping uplink network libvirt_uri fwmark upling
    external internal domain allow allowed_sources externl
"""
KEYS = st.one_of(
    st.sampled_from(KEY_NAMES.split()),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)
SETTINGS = st.dictionaries(st.sampled_from(["uplink", "network", "fwmark", "x"]), VALUES)
MAPPINGS = st.lists(
    st.fixed_dictionaries(
        {"external": ADDRESSES},
        optional={
            "internal": ADDRESSES,
            "domain": TEXT,
            "network": VALUES,
            "allow": st.lists(TEXT) | VALUES,
            "allowed_sources": st.lists(ADDRESSES) | VALUES,
            "extern": VALUES,
        },
    ),
    max_size=3,
)
DOCUMENTS = st.one_of(
    st.fixed_dictionaries({}, optional={"settings": SETTINGS, "mapping": MAPPINGS}),
    st.dictionaries(KEYS, VALUES, max_size=4),
).map(lambda document: "".join(f"{_toml(k)} = {_toml(v)}\n" for k, v in document.items()))
PIECES = r'''
    [[mapping]] [settings] external = "192.168.1.101" [ ] " """ { } , . 0x 1e400 \u # allow
    1979-05-27
'''
FRAGMENTS = st.lists(st.sampled_from([*PIECES.split(), "'", "\n", "\r", "\t"])).map("".join)


def _loads_or_refuses(folder: Path, document: str | bytes) -> bool:
    try:
        loaded = load(folder, document)
    except ConfigError as error:
        assert without_file_name(folder, error)
        return False
    assert isinstance(loaded, Configuration)
    return True


@BOUNDED
@given(document=DOCUMENTS)
def test_any_document(tmp_path: Path, document: str) -> None:
    """Any TOML either loads, and then a second time to the same, or is refused as ConfigError."""
    assert _loads_or_refuses(tmp_path, document) == _loads_or_refuses(tmp_path, document)


@BOUNDED
@given(main=DOCUMENTS, drop_in=DOCUMENTS | st.binary())
def test_any_document_as_drop_in(tmp_path: Path, main: str, drop_in: str | bytes) -> None:
    """Whatever the two files are, they load or are refused, each line naming one of them."""
    path = write(tmp_path, {MAIN: main, "conf.d/a.toml": drop_in})
    try:
        loaded = config.load(path)
    except ConfigError as error:
        files = (f"{path}: ", f"{tmp_path}/conf.d/a.toml: ")
        assert all(line.startswith(files) for line in error.problems)
    else:
        assert len(loaded.origins) == len(loaded.mappings)


@BOUNDED
@given(document=st.one_of(st.binary(), FRAGMENTS.map(str.encode)))
def test_any_bytes(tmp_path: Path, document: bytes) -> None:
    """Any bytes in the file either load or are refused as ConfigError, never anything else."""
    assert _loads_or_refuses(tmp_path, document) == _loads_or_refuses(tmp_path, document)
