"""
Build XMP packets from properties.

Only simple text properties are supported. They are written as elements, because attributes would lose line breaks. Most
control characters, lone surrogates and two noncharacters are not allowed in XML and become U+FFFD.
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
"""Property values by namespace and name."""

_UNWRITABLE = "[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"


def xml_text(text: str) -> str:
    """Return text that XML can hold: invalid characters become U+FFFD, and line ends become line feeds."""
    if text.isascii() and text.isprintable():  # most texts; skips compiling the pattern, which takes milliseconds
        return text
    return re.sub(_UNWRITABLE, "\ufffd", text.replace("\r\n", "\n").replace("\r", "\n"))


def build_packet(properties: Properties, prefixes: Mapping[str, str]) -> bytes:
    """
    Return a new packet.

    :param properties: at least one property
    :param prefixes: the usual prefix of each namespace
    """
    body = (
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{RDF}">\n'
        f"{describe(properties, prefixes)}\n</rdf:RDF></x:xmpmeta>"
    )
    return f"{BEGIN}\n{body}\n{END}".encode()


def describe(properties: Properties, prefixes: Mapping[str, str]) -> str:
    """Return the properties as an ``rdf:Description`` that fits into any packet."""
    used = {namespace for namespace, _ in properties}
    declared = "".join(f' xmlns:{prefix}="{namespace}"' for namespace, prefix in prefixes.items() if namespace in used)
    lines = "\n".join(
        f"<{prefixes[namespace]}:{name}>{escape(xml_text(text), quote=False)}</{prefixes[namespace]}:{name}>"
        for (namespace, name), text in properties.items()
    )
    # rdf is declared here too, because an existing packet may use another prefix for it.
    return f'<rdf:Description xmlns:rdf="{RDF}" rdf:about=""{declared}>\n{lines}\n</rdf:Description>'
