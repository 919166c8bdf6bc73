"""
Write XMP packets as text, from properties.

Only simple text properties are written, as elements (attributes would lose line breaks). XML cannot hold most control
characters, unpaired surrogates and two non-characters: each becomes U+FFFD.
"""

from __future__ import annotations

import re
from html import escape
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

RDF: Final = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
BEGIN: Final = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
END: Final = '<?xpacket end="w"?>'

Properties = dict[tuple[str, str], str]
"""Text by namespace and name of the property."""

_UNWRITABLE = "[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"


def xml_text(text: str) -> str:
    """Keep what XML can hold of a text; the rest becomes U+FFFD, and every line ends in a line feed as XML has it."""
    if text.isascii() and text.isprintable():  # as most are; the pattern takes a few milliseconds to compile
        return text
    return re.sub(_UNWRITABLE, "\ufffd", text.replace("\r\n", "\n").replace("\r", "\n"))


def build_packet(properties: Properties, prefixes: Mapping[str, str]) -> bytes:
    """
    Write a new packet.

    :param properties: at least one
    :param prefixes: the usual prefix of each namespace
    """
    body = (
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{RDF}">\n'
        f"{describe(properties, prefixes)}\n</rdf:RDF></x:xmpmeta>"
    )
    return f"{BEGIN}\n{body}\n{END}".encode()


def describe(properties: Properties, prefixes: Mapping[str, str]) -> str:
    """Write properties as an ``rdf:Description`` that can stand in any packet."""
    used = {namespace for namespace, _ in properties}
    declared = "".join(f' xmlns:{prefix}="{namespace}"' for namespace, prefix in prefixes.items() if namespace in used)
    lines = "\n".join(
        f"<{prefixes[namespace]}:{name}>{escape(xml_text(text), quote=False)}</{prefixes[namespace]}:{name}>"
        for (namespace, name), text in properties.items()
    )
    # rdf is declared here as well: an existing packet may know it by another prefix.
    return f'<rdf:Description xmlns:rdf="{RDF}" rdf:about=""{declared}>\n{lines}\n</rdf:Description>'
