"""Parse untrusted JSON leniently: one damaged string must not cost the images beside it. Pure."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import Any, Final

import msgspec
from msgspec import MsgspecError

REPLACED: Final = "\ufffd"
"""Stands in for invalid characters."""

_UNSTORABLE: Final = re.compile("[\0\ud800-\udfff]")
_BAD_ESCAPE: Final = re.compile(r'\\(?:(["\\/bfnrt]|u[0-9a-fA-F]{4})|)')
_DECODER: Final = json.JSONDecoder(strict=False)  # accepts raw control characters in strings


def storable(text: str) -> str:
    """Return text with the characters databases reject (nulls and lone surrogates) replaced by U+FFFD."""
    return text if text.isascii() and "\0" not in text else _UNSTORABLE.sub(REPLACED, text)


def read_json(body: bytes) -> Any:
    """
    Return a body's JSON, with all text made :func:`storable`.

    Tolerates raw control characters, invalid UTF-8, unknown escapes, and anything after an object.

    :raises ValueError: there is no complete JSON document
    """
    with suppress(MsgspecError, UnicodeDecodeError, RecursionError):  # what is well-formed needs no copy as text
        return _storable_json(msgspec.json.decode(body))
    text = body.decode(json.detect_encoding(body), "replace").lstrip("\ufeff \t\r\n")
    try:
        try:
            document, end = _DECODER.raw_decode(text)
        except ValueError:
            text = _BAD_ESCAPE.sub(lambda found: found[0] if found[1] else r"\\", text)
            document, end = _DECODER.raw_decode(text)
        if text[end:].strip() and not isinstance(document, dict):
            raise ValueError("trailing data after the JSON")
        return _storable_json(document)
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None


def find_string_fields(body: bytes, names: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return the string values of these keys in incomplete JSON, as pairs of key and value, in order."""
    pattern = rf'"({"|".join(map(re.escape, names))})"\s*:\s*("[^"\\\x00-\x1f]*+(?:\\.[^"\\\x00-\x1f]*+)*+")'
    found = []
    for name, text in re.findall(pattern, body.decode("utf-8", "replace")):
        try:
            found.append((name, storable(_DECODER.decode(text))))
        except ValueError:
            continue
    return found


def _storable_json(value: Any) -> Any:
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, list):
        return [_storable_json(each) for each in value]
    if isinstance(value, dict):
        return {storable(name): _storable_json(each) for name, each in value.items()}
    return value
