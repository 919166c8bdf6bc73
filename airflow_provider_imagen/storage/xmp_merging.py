"""
Parse existing XMP packets: merge properties into them and read properties back.

A packet is parsed as a stream and never re-serialized: replaced properties are cut out of its text and new ones
inserted, so the rest stays unchanged. Import this module only when an image has a packet: it loads an XML parser, which
few tasks need.
"""

from __future__ import annotations

import codecs
import re
from typing import TYPE_CHECKING, Final
from xml.parsers import expat

from msgspec import Struct, field

from airflow_provider_imagen.storage.containers import MAX_PACKET
from airflow_provider_imagen.storage.xmp import BEGIN, END, RDF, describe

if TYPE_CHECKING:
    from collections.abc import Mapping

from airflow_provider_imagen.storage.xmp import Properties

_MAX_EVENTS: Final = 100_000  # tags, texts and comments; bounds the parsing time
_SEPARATOR: Final = "\x01"  # between namespace, name and prefix; cannot occur in XML
_ENCODINGS: Final = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (b"<\0\0\0", "utf-32-le"),
    (b"\0\0\0<", "utf-32-be"),
    (b"<\0", "utf-16-le"),
    (b"\0<", "utf-16-be"),
)

_Key = tuple[str, str]


class _UnreadableError(Exception):
    """A packet cannot, or must not, be parsed."""


class _Found(Struct):
    """
    A property of a packet.

    :param key: its namespace and name
    :param begin: byte offset of its element or, for an attribute, of the tag that contains it
    :param end: byte offset where that ends
    :param text: its value, ``None`` if that is not plain text
    :param attribute: for an attribute, its name as written, with prefix
    """

    key: _Key
    begin: int
    end: int = 0
    text: str | None = ""
    attribute: str | None = None


class _Packet(Struct):
    """
    A parsed packet: its text and byte offsets in it.

    :param text: the packet in UTF-8
    :param begin: start of the root element
    :param end: end of the root element
    :param rdf_end: start of the end tag of ``rdf:RDF``
    :param found: its properties
    """

    text: bytes
    begin: int = -1
    end: int = -1
    rdf_end: int = -1
    found: list[_Found] = field(default_factory=list)


def merge_packet(existing: bytes, properties: Properties, prefixes: Mapping[str, str]) -> bytes | None:
    """
    Return an existing packet with properties added; those of the same name are replaced, everything else stays.

    :returns: ``None`` if the packet cannot be parsed safely (malformed, too large, or with a document type, which could
        hide entity bombs)
    """
    packet = _read(existing)
    if packet is None:
        return None
    text, done, parts = packet.text, packet.begin, []
    cuts = [cut for found in packet.found if found.key in properties for cut in _places(text, found)]
    for begin, end in sorted(cuts):
        parts.append(text[done:begin])
        done = end
    parts += [text[done : packet.rdf_end], describe(properties, prefixes).encode(), b"\n"]
    parts.append(text[packet.rdf_end : packet.end])
    return b"\n".join((BEGIN.encode(), b"".join(parts), END.encode()))


def read_packet(packet: bytes) -> Properties:
    """Return the plain-text properties of a packet; empty if it cannot be parsed."""
    found = _read(packet)
    return {part.key: part.text for part in found.found if part.text is not None} if found is not None else {}


def _places(text: bytes, found: _Found) -> list[tuple[int, int]]:
    """Return the byte range of a property, an element or an attribute within its tag; empty if not found."""
    if found.attribute is None:
        return [(found.begin, found.end)]
    attribute = rb"\s" + re.escape(found.attribute.encode()) + rb"\s*=\s*(\"[^\"]*\"|'[^']*')"
    # Also match quoted values, so that text inside one is not mistaken for an attribute.
    for match in re.finditer(rb"(?P<it>" + attribute + rb")|\"[^\"]*\"|'[^']*'", text[found.begin : found.end]):
        if match["it"]:
            return [(found.begin + match.start(), found.begin + match.end())]
    return []


def _read(packet: bytes) -> _Packet | None:
    try:
        return _Reader(_to_utf8(packet)).read()
    except (_UnreadableError, UnicodeError, expat.ExpatError):
        return None


def _to_utf8(packet: bytes) -> bytes:
    if len(packet) > MAX_PACKET:
        raise _UnreadableError
    encoding = next((name for start, name in _ENCODINGS if packet.startswith(start)), "utf-8-sig")
    return packet.decode(encoding).strip("\ufeff\0 \t\r\n").encode()


class _Reader:
    """A streaming parser that collects a packet's properties and their byte offsets."""

    def __init__(self, text: bytes) -> None:
        self._packet = _Packet(text)
        self._path: list[_Key] = []
        self._rdf_depth = 0  # depth of rdf:RDF, counting from 1 at the root; 0 until found
        self._rdf_name = ""
        self._events = 0
        self._unended: list[_Found] = []  # their tag has been read and ends where the next event begins
        self._property: _Found | None = None
        self._resource = ""  # rdf:resource of the current property
        self._parser = parser = expat.ParserCreate("utf-8", _SEPARATOR)
        parser.namespace_prefixes = True
        parser.StartDoctypeDeclHandler = self._refuse
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text
        parser.DefaultHandler = lambda _: self._event()

    def read(self) -> _Packet:
        self._parser.Parse(self._packet.text, True)
        self._event(len(self._packet.text))
        if self._packet.rdf_end < 0:
            raise _UnreadableError
        return self._packet

    def _refuse(self, *_: object) -> None:
        raise _UnreadableError

    def _event(self, place: int | None = None) -> int:
        """Count an event and return its byte offset, which is also where the previous tag ended."""
        self._events += 1
        if self._events > _MAX_EVENTS:
            raise _UnreadableError
        place = self._parser.CurrentByteIndex if place is None else place
        if self._unended:
            for found in self._unended:
                found.end = place
            self._unended.clear()
        if not self._path and self._packet.begin >= 0 > self._packet.end:
            self._packet.end = place
        return place

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        place = self._event()
        key, written = _split(name)
        if not self._path:
            self._packet.begin = place
        self._path.append(key)
        if not self._rdf_depth and key == (RDF, "RDF"):
            self._rdf_depth, self._rdf_name = len(self._path), written
        level = len(self._path) - self._rdf_depth if self._rdf_depth and self._packet.rdf_end < 0 else 0
        if level == 1 and key == (RDF, "Description"):
            for attribute, value in attributes.items():
                attribute_key, attribute_name = _split(attribute)
                if attribute_key[0] not in ("", RDF):
                    self._packet.found.append(_Found(attribute_key, place, text=value, attribute=attribute_name))
                    self._unended.append(self._packet.found[-1])
        elif level == 2 and self._path[-2] == (RDF, "Description"):
            by_key = {_split(attribute)[0]: value for attribute, value in attributes.items()}
            self._resource = by_key.get((RDF, "resource"), "")
            self._property = _Found(key, place)
            self._packet.found.append(self._property)
        elif level > 2 and self._property is not None:
            self._property.text = None

    def _end(self, _: str) -> None:
        place = self._event()
        if len(self._path) == self._rdf_depth and self._packet.rdf_end < 0:
            if not self._packet.text.startswith(
                f"</{self._rdf_name}".encode(), place
            ):  # an empty element has no end tag
                raise _UnreadableError
            self._packet.rdf_end = place
        if self._property is not None and len(self._path) == self._rdf_depth + 2:
            if self._property.text == "":
                self._property.text = self._resource
            self._unended.append(self._property)
            self._property = None
        self._path.pop()

    def _text(self, text: str) -> None:
        self._event()
        if self._property is not None and self._property.text is not None and len(self._path) == self._rdf_depth + 2:
            self._property.text += text


def _split(name: str) -> tuple[_Key, str]:
    """Return the key (namespace, local name) and the name as written, with its prefix."""
    *namespace, local = name.split(_SEPARATOR)[:2]
    prefix = name.split(_SEPARATOR)[2:]
    return ("".join(namespace), local), ":".join((*prefix, local))
