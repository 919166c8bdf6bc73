"""
XMP packets as text: build one from properties, put properties into an existing one, read them back.

Only simple text properties are written, as elements (attributes would lose line breaks). XML cannot hold most control
characters, unpaired surrogates and two non-characters: each becomes U+FFFD.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from xml.dom import minidom
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Mapping

RDF: Final = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
MAX_EXISTING_BYTES: Final = 2**20
"""Existing packets beyond this are not taken apart."""

Properties = dict[tuple[str, str], str]
"""Text by namespace and name of the property."""

_XMLNS = "http://www.w3.org/2000/xmlns/"
_UNWRITABLE = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_BEGIN = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
_END = '<?xpacket end="w"?>'


def xml_text(text: str) -> str:
    """Keep what XML can hold of a text; the rest becomes U+FFFD, and every line ends in a line feed as XML has it."""
    return _UNWRITABLE.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n"))


def build_packet(properties: Properties, prefixes: Mapping[str, str]) -> bytes:
    """
    Write a new packet.

    :param properties: at least one
    :param prefixes: the usual prefix of each namespace
    """
    body = (
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{RDF}">\n'
        f"{_description(properties, prefixes)}\n</rdf:RDF></x:xmpmeta>"
    )
    return f"{_BEGIN}\n{body}\n{_END}".encode()


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
    return f"{_BEGIN}\n{root.toxml()}\n{_END}".encode()


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


def _description(properties: Properties, prefixes: Mapping[str, str]) -> str:
    used = {namespace for namespace, _ in properties}
    declared = "".join(f' xmlns:{prefix}="{namespace}"' for namespace, prefix in prefixes.items() if namespace in used)
    lines = "\n".join(
        f"<{prefixes[namespace]}:{name}>{escape(xml_text(text))}</{prefixes[namespace]}:{name}>"
        for (namespace, name), text in properties.items()
    )
    # rdf is declared here as well: an existing packet may know it by another prefix.
    return f'<rdf:Description xmlns:rdf="{RDF}" rdf:about=""{declared}>\n{lines}\n</rdf:Description>'


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
