"""
Read ``data:`` URIs and base64 text as people, browsers, shells and other languages write them. Pure.

One reader for the pictures that go into a request and for those that come out of an answer. It forgives what does not
change the bytes: upper case, further parameters, white space, percent-encoding, the URL-safe alphabet and missing
padding, as browsers do (WHATWG, Fetch and Infra standards, "data: URL processor" and "forgiving-base64 decode").
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any
from urllib.parse import unquote_to_bytes

from msgspec import Struct

_HEAD = re.compile(r'(?i)data:((?:[^,"]++|"[^"]*+")*+),')
"""
The scheme, media type and parameters; a comma inside a quoted parameter does not end them.

Without possessive quantifiers, 50 MB that have no comma would take gigabytes.
"""

_MOST_HEAD_CHARACTERS = 10_000


class DataUri(Struct, frozen=True):
    """
    A decoded ``data:`` URI.

    :param mime_type: in lower case, without parameters; ``text/plain`` where none is named (RFC 2397)
    :param data: the bytes, at least one
    :param is_base64: whether they were written as base64 rather than percent-encoded
    """

    mime_type: str
    data: bytes
    is_base64: bool

    def __str__(self) -> str:
        """Write it in the plainest form, which every model reads."""
        return f"data:{self.mime_type};base64,{base64.b64encode(self.data).decode('ascii')}"


def is_data_uri(text: str) -> bool:
    """Return whether a text is meant as a ``data:`` URI, readable or not."""
    return text[:5].lower() == "data:"


def read_data_uri(text: str) -> DataUri:
    """
    Decode a ``data:`` URI.

    :raises ValueError: with what is wrong with it
    """
    head = _HEAD.match(text, 0, _MOST_HEAD_CHARACTERS)
    if head is None:
        raise ValueError("a data: URI without data")
    mime_type, *parameters = (part.strip() for part in _percent_decode(head[1]).decode("utf-8", "replace").split(";"))
    is_base64 = "base64" in (parameter.lower() for parameter in parameters)
    data = _percent_decode(text[head.end() :])
    if is_base64:
        data = read_base64(data.decode("latin-1"))
    if not data:
        raise ValueError("an empty data: URI")
    return DataUri(mime_type.lower() or "text/plain", data, is_base64)


def plain_data_uris(value: Any) -> Any:
    """Rewrite a base64 ``data:`` URI, or those in a list, in the plainest form; leave what cannot be read."""
    if isinstance(value, list):
        return [plain_data_uris(part) for part in value]
    if not isinstance(value, str) or not is_data_uri(value):
        return value
    try:
        uri = read_data_uri(value)
    except ValueError:
        return value
    return str(uri) if uri.is_base64 else value


def read_base64(text: str) -> bytes:
    """
    Decode base64 text, which may be broken into lines and lack its padding; other characters are not forgiven.

    :raises ValueError: with what is wrong with it
    """
    text = "".join(text.split()).rstrip("=").replace("-", "+").replace("_", "/")
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("base64 data that cannot be decoded") from None
    if not data:
        raise ValueError("empty base64 data")
    return data


def _percent_decode(text: str) -> bytes:
    try:
        return unquote_to_bytes(text)
    except UnicodeEncodeError:
        raise ValueError("a data: URI that is no text") from None
