"""
The two JSON formats of an error response, and the ``meta`` of a "Body validation error!".

(docs, "Errors and messages" pages and public tickets, 2025-05 to 2026-08)
"""

from __future__ import annotations

import http
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from jsonschema.exceptions import ValidationError

Envelope = Literal["old", "problem"]

_MESSAGES_BY_KEYWORD = {
    "type": "Expected {limit}, received {type}",
    "enum": "Invalid enum value. Expected {choices}, received {value!r}",
    "format": "Invalid url",
    "maxLength": "String must contain at most {limit} character(s)",
    "minLength": "String must contain at least {limit} character(s)",
    "maxItems": "Array must contain at most {limit} element(s)",
    "minItems": "Array must contain at least {limit} element(s)",
    "maximum": "Number must be less than or equal to {limit}",
    "minimum": "Number must be greater than or equal to {limit}",
    "multipleOf": "Number must be a multiple of {limit}",
}
_TYPES = {
    type(None): "null",
    bool: "boolean",
    str: "string",
    int: "number",
    float: "number",
    dict: "object",
    list: "array",
}


def timestamp(seconds: float) -> str:
    """Return a time in the API's format: UTC, milliseconds, ``Z``."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def error_body(
    status: int,
    message: str | list[str],
    *,
    path: str,
    now: float,
    envelope: Envelope = "old",
    error_kind: str | None = None,
    meta: dict[str, Any] | None = None,
    status_as_text: bool = False,
) -> dict[str, Any]:
    """
    Return the body of an error.

    :param now: seconds since the epoch
    :param error_kind: ``error.data.kind``, only in the problem format
    :param meta: tree of validation errors, only in the old format
    :param status_as_text: return ``statusCode`` as a string, as some old responses do
    """
    request_id = str(uuid.uuid4())
    if envelope == "old":
        body: dict[str, Any] = {
            "requestId": request_id,
            "statusCode": str(status) if status_as_text else status,
            "timestamp": timestamp(now),
            "path": path,
            "message": message,
        }
        return body if meta is None else {**body, "meta": meta}
    try:
        title = http.HTTPStatus(status).phrase
    except ValueError:
        title = "Error"
    return {
        "title": title,
        "status": status,
        "message": message,
        "instance": path,
        "requestId": request_id,
        "timestamp": timestamp(now),
        "error": {
            "name": f"{title.replace(' ', '')}Exception",
            "message": message,
            "data": {"kind": error_kind or f"err_{title.lower().replace(' ', '_')}"},
        },
    }


def validation_meta(errors: Iterable[ValidationError]) -> dict[str, Any]:
    """Return the tree of validation errors: field names are the branches, and ``_errors`` lists the messages."""
    tree: dict[str, Any] = {"_errors": []}
    for path, message in (found for error in errors for found in _messages(error)):
        node = tree
        for name in path:
            node = node.setdefault(str(name), {"_errors": []})
        node["_errors"] = node["_errors"] or [message]
    return tree


def _messages(error: ValidationError) -> Iterator[tuple[tuple[str | int, ...], str]]:
    value: Any = error.instance
    limit: Any = error.validator_value
    path = tuple(error.absolute_path)
    if error.validator == "required":
        yield from (((*path, name), "Required") for name in limit if name not in value)
    elif error.validator == "anyOf":
        nested = [each for each in error.context or () if each.relative_path or each.validator == "required"]
        for each in nested:
            yield from _messages(each)
        if not nested:
            yield path, "Invalid input"
    else:
        choices = " | ".join(map(repr, limit)) if isinstance(limit, list) else ""
        values = {"limit": limit, "choices": choices, "value": value, "type": _TYPES[type(value)]}
        yield path, _MESSAGES_BY_KEYWORD[str(error.validator)].format(**values)
