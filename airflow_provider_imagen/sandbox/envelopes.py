"""The two JSON forms of an error answer (docs, "Errors and messages" pages and public tickets, 2025-05 to 2026-08)."""

from __future__ import annotations

import http
import uuid
from datetime import UTC, datetime
from typing import Any, Literal

Envelope = Literal["old", "problem"]


def timestamp(seconds: float) -> str:
    """Write a moment as the API does: UTC, milliseconds, ``Z``."""
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
    Build the body of an error.

    :param now: seconds since the epoch
    :param error_kind: ``error.data.kind``, only in the problem form
    :param meta: the validator's tree, only in the old form
    :param status_as_text: write ``statusCode`` as text, as some old answers do
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
