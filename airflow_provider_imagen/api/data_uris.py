"""
Decode ``data:`` URIs and base64 text, for input images and for images in responses. Pure.

Tolerates what does not change the bytes: upper case, extra parameters, white space, percent-encoding, the URL-safe
alphabet and missing padding, as browsers do (WHATWG, Fetch and Infra standards, "data: URL processor" and
"forgiving-base64 decode").
"""

from __future__ import annotations

import base64
import binascii
import re
from contextlib import suppress
from typing import Any
from urllib.parse import unquote_to_bytes

from msgspec import Struct

_HEAD = re.compile(r'(?i)data:((?:[^,"]++|"[^"]*+")*+),')
"""
Scheme, media type and parameters; a comma inside a quoted parameter does not end them.

The quantifiers are possessive because without them, 50 MB without a comma would take gigabytes of memory.
"""

_MAX_HEAD_CHARACTERS = 10_000


class DataUri(Struct, frozen=True):
    """
    A decoded ``data:`` URI.

    :param mime_type: lower case, without parameters; ``text/plain`` if the URI names none (RFC 2397)
    :param data: the decoded bytes, at least one
    :param is_base64: whether they were given as base64 rather than percent-encoded
    """

    mime_type: str
    data: bytes
    is_base64: bool

    def __str__(self) -> str:
        """Return the URI in its simplest form, which every model accepts."""
        return f"data:{self.mime_type};base64,{base64.b64encode(self.data).decode('ascii')}"


def is_data_uri(text: str) -> bool:
    """Return whether text is meant as a ``data:`` URI, valid or not."""
    return text[:5].lower() == "data:"


def read_data_uri(text: str) -> DataUri:
    """
    Decode a ``data:`` URI.

    :raises ValueError: it is malformed or empty; the message is a noun phrase that says what it is
    """
    head = _HEAD.match(text, 0, _MAX_HEAD_CHARACTERS)
    if head is None:
        raise ValueError("a data: URI without data")
    mime_type, *parameters = (part.strip() for part in _percent_decode(head[1]).decode("utf-8", "replace").split(";"))
    is_base64 = "base64" in (parameter.lower() for parameter in parameters)
    payload = text[head.end() :]
    if not is_base64 or "%" in payload:
        data = _percent_decode(payload)
        payload = data.decode("latin-1")
    if is_base64:
        data = read_base64(payload)
    if not data:
        raise ValueError("an empty data: URI")
    return DataUri(mime_type.lower() or "text/plain", data, is_base64)


def plain_data_uris(value: Any) -> Any:
    """Return base64 ``data:`` URIs, alone or in a list, in their simplest form; other values unchanged."""
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
    Decode base64 text, which may contain white space and lack padding; any other invalid character is an error.

    :raises ValueError: it is malformed or empty; the message is a noun phrase that says what it is
    """
    with suppress(ValueError):  # standard base64, without the copies that follow
        if data := binascii.a2b_base64(text, strict_mode=True):
            return data
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
        raise ValueError("a data: URI with invalid characters") from None
