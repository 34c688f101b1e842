"""Metadata as libvirt hands it out: read whole, or refused with what to write."""

from collections.abc import Iterable
from ipaddress import IPv4Network
from xml.etree import ElementTree

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lab.addresses import external, internal
from vm_onetoone_nat.config.metadata import NAMESPACE, MetadataError, claims
from vm_onetoone_nat.model.mapping import AddressSource, AllowedService, Mapping, Origin

BOUNDED = settings(max_examples=150, derandomize=True, deadline=None, database=None)


def read(*elements: str) -> tuple[Mapping, ...]:
    """The claims in a <metadata> with these elements, where `n:` is our namespace."""
    text = f'<metadata xmlns:n="{NAMESPACE}">{"".join(elements)}</metadata>'
    return claims(ElementTree.fromstring(text))


def problems(*elements: str) -> Iterable[str]:
    with pytest.raises(MetadataError) as refusal:
        read(*elements)
    return refusal.value.problems


def test_every_key() -> None:
    """Attributes are the keys of a mapping; lists have spaces between their parts."""
    assert read(
        '<n:mapping external="192.168.1.101/24" internal="192.168.122.101" network="default" '
        'mac="52:54:00:AA:BB:CC" allow="tcp/22 tcp/23 icmp" allowed_sources="10.0.0.0/8"/>'
    ) == (
        Mapping(
            external(1),
            "default",
            prefixlen=24,
            internal=internal(1),
            mac="52:54:00:aa:bb:cc",
            allow=(AllowedService("icmp"), AllowedService("tcp", 22, 23)),
            allowed_sources=(IPv4Network("10.0.0.0/8"),),
            origin=Origin.METADATA,
            source=AddressSource.METADATA,
        ),
    )


def test_least() -> None:
    """One address is enough."""
    (mapping,) = read('<n:mapping external="192.168.1.101"/>')
    assert mapping == Mapping(external(1), "", origin=Origin.METADATA)


def test_several() -> None:
    """Several mappings stand below one element, with a prefix or, as virsh has it, without."""
    one, two = (f'mapping external="{external(n)}"' for n in (1, 2))
    for text in (
        f"<n:mappings><n:{one}/><n:{two}/></n:mappings>",
        f"<n:mappings> <{one}/> <{two}/> </n:mappings>",
        f"<n:{one}/><n:{two}/>",
    ):
        assert [m.external for m in read(text)] == [external(1), external(2)]


def test_other_programs_metadata() -> None:
    """What is in another namespace, or in none, is another program's."""
    assert (
        read('<mapping external="x"/>', '<o:mapping xmlns:o="http://other/" external="x"/>') == ()
    )


@pytest.mark.parametrize(
    ("element", "problem"),
    [
        ("<n:mapping/>", "mapping[0].external: the key is missing"),
        ('<n:mapping external="x"/>', "mapping[0].external: 'x': write an IPv4 address"),
        ('<n:mapping external="192.168.1.0"/>', "is the network or broadcast address"),
        ('<n:mapping external="224.0.0.1"/>', "no host can have this address"),
        ('<n:mapping external="192.168.1.7" internel="1"/>', "write 'internal'?"),
        ('<n:mapping external="192.168.1.7" domain="other"/>', "is for itself alone"),
        ('<n:mapping external="192.168.1.7" allow=""/>', "name at least one"),
        ('<n:mapping external="192.168.1.7" allow="tcp/0"/>', "ports go from 1 to 65535"),
        ('<n:mapping external="192.168.1.7" n:allow="icmp"/>', "unknown key"),
        ('<n:mapping external="192.168.1.7">text</n:mapping>', "has nothing inside"),
        ('<n:mapping external="192.168.1.7"><n:mapping/></n:mapping>', "has nothing inside"),
        ('<n:maping external="192.168.1.7"/>', "unknown element <maping>"),
        ("<n:mappings><n:other/></n:mappings>", "unknown element"),
        ('<n:mappings domain="x"/>', "unknown element <mappings>"),
        (
            '<o:mapping xmlns:o="urn:vm-onetoone-nat:2" external="192.168.1.7"/>',
            "unknown namespace 'urn:vm-onetoone-nat:2'; write 'urn:vm-onetoone-nat:1'",
        ),
        (f'<n:mapping external="{"1" * 5000}"/>', "external has 5,000 characters"),
        ("<n:mappings>" + '<n:mapping external="192.168.1.7"/>' * 33 + "</n:mappings>", "33 map"),
    ],
)
def test_refused(element: str, problem: str) -> None:
    """What makes no sense is refused whole, and the refusal is short whatever was written."""
    (said,) = problems(element)
    assert problem in said
    assert len(said) < 400


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=40)


@BOUNDED
@given(st.dictionaries(st.sampled_from(["external", "internal", "mac", "allow", "x"]), TEXT))
@example({"external": "192.168.1.101"})
def test_any_text(attributes: dict[str, str]) -> None:
    """Whatever the attributes hold, there is a mapping or an error of ours."""
    element = ElementTree.Element(f"{{{NAMESPACE}}}mapping", attributes)
    try:
        assert len(claims([element])) == 1
    except MetadataError as error:
        assert all("\n" not in problem for problem in error.problems)
