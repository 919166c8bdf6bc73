"""
Build XMP packets, merge properties into existing ones, and read properties back.

A property is text, or text with translations ("language alternatives"), of which only the default is read and written.
Properties are written as elements, because attributes would lose line breaks. An existing packet is parsed as a stream
and never re-serialized: replaced properties are cut out of its text and new ones inserted, so the rest stays unchanged.
"""

from __future__ import annotations

import re
from html import escape
from json import detect_encoding
from typing import TYPE_CHECKING, Final
from xml.parsers import expat

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

MAX_PACKET_BYTES: Final = 2**20
"""Maximum size of a packet that is parsed."""

PropertyKey = tuple[str, str]
"""Namespace and name of a property."""

Properties = dict[PropertyKey, str]
"""Property values by namespace and name."""

_RDF: Final = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_XML: Final = "http://www.w3.org/XML/1998/namespace"
_BEGIN: Final = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'.encode()
_END: Final = b'<?xpacket end="w"?>'
_INVALID_CHARACTERS: Final = "[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"  # XML 1.0, 2.2
_MAX_EVENTS: Final = 100_000  # tags, texts and comments; bounds the parsing time
_SEPARATOR: Final = "\x01"  # between namespace, name and prefix; cannot occur in XML


def build_packet(
    properties: Properties,
    prefixes: Mapping[str, str],
    *,
    alternatives: Collection[PropertyKey] = (),
    superseded: Collection[PropertyKey] = (),
    existing: bytes | None = None,
) -> bytes:
    """
    Return a packet with the properties.

    :param properties: at least one property
    :param prefixes: the usual prefix of each namespace
    :param alternatives: the properties that are language alternatives
    :param superseded: properties to remove from the existing packet
    :param existing: a packet to add the properties to, in which they replace all of the same name, with translations.
        It is ignored if it cannot be parsed safely (malformed, too large, or with a document type, which could hide
        entity bombs)
    """
    description = _describe(properties, prefixes, alternatives).encode()
    packet = _parse(existing) if existing else None
    if packet is None:
        start = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{_RDF}">'.encode()
        return b"\n".join((_BEGIN, start, description, b"</rdf:RDF></x:xmpmeta>", _END))
    parts = []
    position = packet.begin
    removed = {*properties, *superseded}
    for begin, end in sorted(packet.range_of(found) for found in packet.properties if found.key in removed):
        parts.append(packet.text[position:begin])
        position = end
    parts += [packet.text[position : packet.rdf_end], description, b"\n", packet.text[packet.rdf_end : packet.end]]
    return b"\n".join((_BEGIN, b"".join(parts), _END))


def read_packet(packet: bytes) -> Properties:
    """Return a packet's plain texts and the defaults of its language alternatives; empty if it cannot be parsed."""
    parsed = _parse(packet)
    return {found.key: found.text for found in parsed.properties if found.text is not None} if parsed else {}


def _describe(properties: Properties, prefixes: Mapping[str, str], alternatives: Collection[PropertyKey]) -> str:
    """Return the properties as an ``rdf:Description`` that fits into any packet."""
    used = {namespace for namespace, _ in properties}
    declared = "".join(f' xmlns:{prefix}="{namespace}"' for namespace, prefix in prefixes.items() if namespace in used)
    # rdf is declared here too, because an existing packet may use another prefix for it.
    lines = [f'<rdf:Description xmlns:rdf="{_RDF}" rdf:about=""{declared}>']
    for (namespace, name), text in properties.items():
        tag, value = f"{prefixes[namespace]}:{name}", _to_xml(text)
        if (namespace, name) in alternatives:
            value = f'<rdf:Alt><rdf:li xml:lang="x-default">{value}</rdf:li></rdf:Alt>'
        lines.append(f"<{tag}>{value}</{tag}>")
    return "\n".join([*lines, "</rdf:Description>"])


def _to_xml(text: str) -> str:
    """Return escaped text in which invalid characters are U+FFFD and line ends are line feeds."""
    if not (text.isascii() and text.isprintable()):  # for most texts, saves compiling the pattern: milliseconds
        text = re.sub(_INVALID_CHARACTERS, "\ufffd", text.replace("\r\n", "\n").replace("\r", "\n"))
    return escape(text, quote=False)


def _parse(packet: bytes) -> _Packet | None:
    try:
        return _Packet(packet)
    except (ValueError, expat.ExpatError):
        return None


class _Property(Struct):
    """
    A property of a packet.

    :param key: its namespace and name
    :param begin: byte offset of its element or, for an attribute, of the tag that contains it
    :param end: byte offset where that ends
    :param text: its value or the default of its alternatives, ``None`` if it has neither
    :param attribute: for an attribute, its name as written, with prefix
    """

    key: PropertyKey
    begin: int
    end: int = 0
    text: str | None = ""
    attribute: str | None = None


class _Packet:
    """
    A parsed packet: its properties and the byte offsets in its text.

    :raises ValueError, ~xml.parsers.expat.ExpatError: the packet cannot be parsed safely
    """

    def __init__(self, packet: bytes) -> None:
        if len(packet) > MAX_PACKET_BYTES:
            raise ValueError("too large")
        self.text: Final = packet.decode(detect_encoding(packet)).strip("\ufeff\0 \t\r\n").encode()
        self.begin = self.end = -1  # of the root element
        self.rdf_end = -1  # start of the end tag of rdf:RDF
        self.properties: list[_Property] = []
        self._path: list[PropertyKey] = []
        self._rdf_depth = 0  # depth of rdf:RDF, counting from 1 at the root; 0 until found
        self._rdf_name = ""
        self._events = 0
        self._open_ended: list[_Property] = []  # their last tag ends where the next event begins
        self._current: _Property | None = None
        self._resource = ""  # rdf:resource of the current property
        self._text_depth = 0  # depth of the element whose text is the value of the current property
        self._parser = parser = expat.ParserCreate("utf-8", _SEPARATOR)
        parser.namespace_prefixes = True
        parser.StartDoctypeDeclHandler = self._refuse
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._finish
        parser.CharacterDataHandler = self._add_text
        parser.DefaultHandler = lambda _: self._count_event()
        parser.Parse(self.text, True)
        self._count_event(len(self.text))
        if self.rdf_end < 0:
            raise ValueError("no rdf:RDF")

    def range_of(self, found: _Property) -> tuple[int, int]:
        """Return the byte range of a property's element or, within its tag, of its attribute."""
        if found.attribute is None:
            return found.begin, found.end
        attribute = rb"\s" + re.escape(found.attribute.encode()) + rb"\s*=\s*(\"[^\"]*\"|'[^']*')"
        # Also match quoted values, so that text inside one is not mistaken for an attribute.
        for match in re.finditer(
            rb"(?P<found>" + attribute + rb")|\"[^\"]*\"|'[^']*'", self.text[found.begin : found.end]
        ):
            if match["found"]:
                return found.begin + match.start(), found.begin + match.end()
        return found.begin, found.begin

    def _refuse(self, *_: object) -> None:
        raise ValueError("a document type")

    def _count_event(self, offset: int | None = None) -> int:
        """Count an event and return its byte offset, which is also where the previous tag ended."""
        self._events += 1
        if self._events > _MAX_EVENTS:
            raise ValueError("too many elements")
        offset = self._parser.CurrentByteIndex if offset is None else offset
        for found in self._open_ended:
            found.end = offset
        self._open_ended.clear()
        if not self._path and self.begin >= 0 > self.end:
            self.end = offset
        return offset

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        offset = self._count_event()
        key, written_name = _split(name)
        if not self._path:
            self.begin = offset
        self._path.append(key)
        if not self._rdf_depth and key == (_RDF, "RDF"):
            self._rdf_depth, self._rdf_name = len(self._path), written_name
        level = len(self._path) - self._rdf_depth if self._rdf_depth and self.rdf_end < 0 else 0
        if level == 1 and key == (_RDF, "Description"):
            for attribute, value in attributes.items():
                attribute_key, attribute_name = _split(attribute)
                if attribute_key[0] not in ("", _RDF):
                    self._open_ended.append(_Property(attribute_key, offset, text=value, attribute=attribute_name))
            self.properties += self._open_ended
        elif level == 2 and self._path[-2] == (_RDF, "Description"):
            by_key = {_split(attribute)[0]: value for attribute, value in attributes.items()}
            self._resource = by_key.get((_RDF, "resource"), "")
            self._current = _Property(key, offset)
            self._text_depth = len(self._path)
            self.properties.append(self._current)
        elif level > 2 and self._current is not None:
            by_key = {_split(attribute)[0]: value for attribute, value in attributes.items()}
            is_alternative = level == 4 and self._path[-2:] == [(_RDF, "Alt"), (_RDF, "li")]
            if is_alternative and by_key.get((_XML, "lang")) == "x-default":
                self._current.text = ""
                self._text_depth = len(self._path)
            else:
                if self._text_depth == self._rdf_depth + 2:
                    self._current.text = None
                self._text_depth = 0

    def _finish(self, _: str) -> None:
        offset = self._count_event()
        if len(self._path) == self._rdf_depth and self.rdf_end < 0:
            if not self.text.startswith(f"</{self._rdf_name}".encode(), offset):
                raise ValueError("an empty rdf:RDF without an end tag")
            self.rdf_end = offset
        if self._current is not None and len(self._path) == self._rdf_depth + 2:
            self._current.text = self._resource if self._current.text == "" else self._current.text
            self._open_ended.append(self._current)
            self._current = None
        self._path.pop()

    def _add_text(self, text: str) -> None:
        self._count_event()
        if self._current is not None and self._current.text is not None and len(self._path) == self._text_depth:
            self._current.text += text


def _split(name: str) -> tuple[PropertyKey, str]:
    """Return the key (namespace, local name) and the name as written, with its prefix."""
    *namespace, local = name.split(_SEPARATOR)[:2]
    prefix = name.split(_SEPARATOR)[2:]
    return ("".join(namespace), local), ":".join((*prefix, local))
