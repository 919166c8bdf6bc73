"""
Take existing XMP packets apart: put properties into one, read them back.

Needs an XML parser, which few tasks do, so import this module when a picture has a packet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from xml.dom import minidom

from airflow_provider_imagen.storage.xmp import BEGIN, END, RDF, build_packet

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_provider_imagen.storage.xmp import Properties

MAX_EXISTING_BYTES: Final = 2**20
"""Existing packets beyond this are not taken apart."""

_XMLNS = "http://www.w3.org/2000/xmlns/"


def merge_packet(existing: bytes, properties: Properties, prefixes: Mapping[str, str]) -> bytes | None:
    """
    Put properties into an existing packet; same-named ones are replaced, everything else stays.

    :returns: the new packet; ``None`` when the existing one cannot be taken apart (broken, huge, or with a document
        type, which could hide entity bombs)
    """
    document = _parse(existing)
    if document is None:
        return None
    rdf = _rdf_of(document)
    if rdf is None:
        return None
    for description in _descriptions(rdf):
        for node in list(description.childNodes):
            if node.nodeType == node.ELEMENT_NODE and (node.namespaceURI, node.localName) in properties:
                description.removeChild(node)
        for attribute in list((description.attributes or {}).values()):
            if (attribute.namespaceURI, attribute.localName) in properties:
                description.removeAttributeNode(attribute)
    own = minidom.parseString(build_packet(properties, prefixes))  # noqa: S318 - written a line above
    own_rdf = _rdf_of(own)
    assert own_rdf is not None  # noqa: S101 - for the type checker
    for description in _descriptions(own_rdf):
        rdf.appendChild(document.importNode(description, deep=True))
    root = document.documentElement
    assert root is not None  # noqa: S101 - for the type checker
    return f"{BEGIN}\n{root.toxml()}\n{END}".encode()


def read_packet(packet: bytes) -> Properties:
    """Read the simple text properties of a packet; what cannot be read is left out."""
    document = _parse(packet)
    rdf = _rdf_of(document) if document is not None else None
    if rdf is None:
        return {}
    found: Properties = {}
    for description in _descriptions(rdf):
        for attribute in (description.attributes or {}).values():
            if attribute.namespaceURI not in (None, RDF, _XMLNS):
                found[attribute.namespaceURI, attribute.localName] = attribute.value
        for node in description.childNodes:
            if node.nodeType != node.ELEMENT_NODE:
                continue
            texts = [child.data for child in node.childNodes if isinstance(child, minidom.Text)]
            if len(texts) == len(node.childNodes):
                text = "".join(texts)
                found[node.namespaceURI or "", node.localName] = text or node.getAttributeNS(RDF, "resource")
    return found


def _parse(packet: bytes) -> minidom.Document | None:
    if len(packet) > MAX_EXISTING_BYTES:
        return None
    try:
        text = packet.decode("utf-8-sig").strip("\0 \t\r\n")
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            return None
        return minidom.parseString(text.encode())  # noqa: S318 - no document type, so no entities
    except Exception:  # expat's errors, and minidom's own for odd namespaces
        return None


def _rdf_of(document: minidom.Document) -> minidom.Element | None:
    found = document.getElementsByTagNameNS(RDF, "RDF")
    return found[0] if found else None


def _descriptions(rdf: minidom.Element) -> list[minidom.Element]:
    return [
        node
        for node in rdf.childNodes
        if isinstance(node, minidom.Element) and (node.namespaceURI, node.localName) == (RDF, "Description")
    ]
