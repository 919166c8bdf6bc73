"""Read JSON from outside: damaged text costs a few characters, never the image beside it. Pure."""

from __future__ import annotations

import json
import re
from typing import Any, Final

REPLACED: Final = "\ufffd"
"""Stands where a character was damaged."""

_UNSTORABLE: Final = re.compile("[\0\ud800-\udfff]")
_BAD_ESCAPE: Final = re.compile(r'\\(?:(["\\/bfnrt]|u[0-9a-fA-F]{4})|)')
_DECODER: Final = json.JSONDecoder(strict=False)  # takes raw control characters within text


def storable(text: str) -> str:
    """Replace what no database takes by U+FFFD: null characters and halves of a character (lone surrogates)."""
    return text if text.isascii() and "\0" not in text else _UNSTORABLE.sub(REPLACED, text)


def read_json(body: bytes) -> Any:
    """
    Return the JSON of a body, all its text storable.

    Raw control characters, bytes that are no UTF-8, unknown escapes and anything behind an object are tolerated.

    :raises ValueError: there is no whole JSON document
    """
    text = body.decode(json.detect_encoding(body), "replace").lstrip("\ufeff \t\r\n")
    try:
        try:
            document, end = _DECODER.raw_decode(text)
        except ValueError:
            text = _BAD_ESCAPE.sub(lambda found: found[0] if found[1] else r"\\", text)
            document, end = _DECODER.raw_decode(text)
        if text[end:].strip() and not isinstance(document, dict):
            raise ValueError("not JSON alone")
        return _storable_json(document)
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None


def find_texts(body: bytes, names: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return every text that stands behind one of some names in a body that is no whole JSON, in order."""
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
