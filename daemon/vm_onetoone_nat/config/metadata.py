"""Mappings in a domain's metadata: one XML element in a namespace of ours, or several.

    <mapping xmlns="urn:vm-onetoone-nat:1" external="192.168.1.101" allow="tcp/22 icmp"/>

The attributes are the keys of [[mapping]] except `domain`; lists are separated by spaces. Several
mappings are children of one <mappings>. Anyone who may edit a guest can write this, so it is not
trusted.
"""

from collections.abc import Iterable
from xml.etree.ElementTree import Element

from vm_onetoone_nat.config.schema import mapping_of, validated
from vm_onetoone_nat.errors import ConfigError
from vm_onetoone_nat.model.mapping import Mapping, Origin

NAMESPACE = "urn:vm-onetoone-nat:1"
_FAMILY = "urn:vm-onetoone-nat"
_LISTS = ("allow", "allowed_sources")
_MOST = 32
"""The most mappings in one domain's metadata."""
_LONGEST = 4096
"""The most characters in one attribute."""


class MetadataError(ConfigError):
    """The metadata of one guest cannot be used."""


def claims(elements: Iterable[Element]) -> tuple[Mapping, ...]:
    """The mappings in a domain's <metadata>; elements of other programs are ignored.

    `network` is empty if none is named. Raises MetadataError.
    """
    tables = [_table(element) for each in elements for element in _mappings(each)]
    if len(tables) > _MOST:
        raise MetadataError((f"{len(tables)} mappings; write {_MOST} at most",))
    try:
        file = validated({"mapping": tables})
    except ConfigError as error:
        raise MetadataError(error.problems) from error
    return tuple(mapping_of(table, "", Origin.METADATA) for table in file.mapping)


def _mappings(element: Element) -> tuple[Element, ...]:
    """The <mapping> elements of a child of <metadata>: itself, or its children."""
    namespace, name = _name(element)
    if namespace != NAMESPACE:
        if namespace.startswith(_FAMILY):
            raise MetadataError((f"unknown namespace '{namespace[:80]}'; write '{NAMESPACE}'",))
        return ()
    if name == "mapping":
        return (element,)
    if name != "mappings" or element.attrib or _text(element):
        raise MetadataError((f"unknown element <{name[:80]}>; write <mapping external=...>",))
    for child in element:
        if _name(child) not in ((NAMESPACE, "mapping"), ("", "mapping")):
            raise MetadataError((f"unknown element <{child.tag[:80]}>; write <mapping>",))
    return tuple(element)


def _table(element: Element) -> dict[str, object]:
    if len(element) or _text(element):
        raise MetadataError(("<mapping> has nothing inside; write attributes",))
    for key, value in element.attrib.items():
        if len(value) > _LONGEST:
            raise MetadataError(
                (f"{key[:80]} has {len(value):,} characters, more than {_LONGEST:,}",)
            )
    if "domain" in element.attrib:
        raise MetadataError(("domain: a guest's metadata is for itself alone; leave it out",))
    return {key: value.split() if key in _LISTS else value for key, value in element.attrib.items()}


def _name(element: Element) -> tuple[str, str]:
    """Namespace (empty if none) and local name."""
    namespace, brace, name = element.tag.rpartition("}")
    return (namespace.removeprefix("{"), name) if brace else ("", element.tag)


def _text(element: Element) -> str:
    return (element.text or "").strip() + "".join((c.tail or "").strip() for c in element)
