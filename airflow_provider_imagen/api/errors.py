"""
Classify error responses.

The API uses two JSON envelopes (docs, "Errors and messages" pages and support tickets, 2026-08): the old one with
``statusCode`` (number or text), ``message`` (text or list) and a ``meta`` tree of ``_errors``; and
``application/problem+json`` with ``error.data.kind``. Both have a ``requestId``, which the HTML and JSON of a gateway
in front of the API do not have.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from airflow_provider_imagen.api.cost import read_cost
from airflow_provider_imagen.api.json_body import read_json
from airflow_provider_imagen.exceptions import (
    AuthenticationError,
    ConnectionFailedError,
    ImagenError,
    InvalidRequestError,
    LostAnswerError,
    ModelWithdrawnError,
    OutOfCreditsError,
    RateLimitedError,
    ServerError,
)
from airflow_provider_imagen.redaction import scrub, scrub_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from decimal import Decimal

OUT_OF_CREDITS_KINDS = frozenset({"err_insufficent_credits", "err_insufficient_credits"})
"""``error.data.kind`` of a 403 for lack of credits; the first spelling is the API's (support ticket, 2026-04)."""

_UNKNOWN_OUTCOME = frozenset({408, 504, 520, 521, 522, 523, 524, 525, 526, 527, 530})
"""Statuses of a gateway that gave up waiting for the API, which may still serve and bill the request."""

_TRANSIENT_UPSTREAM = frozenset({408, 425, 429})
"""Transient 4xx statuses of the model's own service; a retry does not help with any other 4xx."""

_FIELD_REJECTED = r"unknown parameter|unrecognized|not supported|unsupported|not permitted|extra_forbidden"
_MAX_BYTES_SEARCHED = 10_000

_MAX_DEPTH = 8
"""Levels of nested JSON searched for messages and validation errors."""


class ErrorBody(Struct, frozen=True):
    """
    The contents of an error body.

    :param message: human-readable reason, scrubbed; empty if there is none
    :param kind: machine-readable reason
    :param request_id: the API's id of the HTTP call
    :param field: the first field that failed validation
    :param from_api: whether the body is from the API itself, not from a gateway
    :param upstream_status: status of the model's own service (400 to 499), if the API wraps one
    :param usd: cost stated in the body, in USD
    """

    message: str = ""
    kind: str | None = None
    request_id: str | None = None
    field: str | None = None
    from_api: bool = False
    upstream_status: int | None = None
    usd: Decimal | None = None


def read_error_body(body: bytes, *secrets: str | None) -> ErrorBody:
    """
    Return the contents of either envelope; any other body gives an :class:`ErrorBody` that is not ``from_api``.

    :param secrets: values to redact, above all the API key
    """
    try:
        document = read_json(body)
    except ValueError:
        return ErrorBody()
    if not isinstance(document, dict):
        return ErrorBody()
    error = document.get("error")
    error = error if isinstance(error, dict) else {"message": error} if isinstance(error, str) else {}
    data = error["data"] if isinstance(error.get("data"), dict) else {}
    field_errors = list(_field_errors(document.get("meta")))
    message = (
        _message_text(document.get("message"))
        or _message_text(error.get("message"))
        or _message_text(document.get("title"))
    )
    upstream_status = _wrapped_status(message)
    if field_errors:
        message = f"{message} ({'; '.join(f'{field}: {text}' for field, text in field_errors[:5])})"
    kind = (
        _text_or_none(data.get("kind"))
        or _text_or_none(error.get("kind"))
        or _text_or_none(error.get("code"))
        or _text_or_none(error.get("name"))
    )
    request_id = _text_or_none(document.get("requestId"))
    return ErrorBody(
        message=scrub(message, *secrets).rstrip("."),
        kind=scrub(kind, *secrets, limit=100) if kind else None,
        request_id=scrub(request_id, *secrets, limit=100) if request_id else None,
        field=scrub(field_errors[0][0], *secrets, limit=100) if field_errors else None,
        from_api=request_id is not None,
        upstream_status=upstream_status,
        usd=read_cost({}, document)[0],
    )


def error_for(
    *,
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    api_key: str | None = None,
    client_request_id: str | None = None,
    model: str | None = None,
    now: datetime | None = None,
) -> ImagenError:
    """
    Return the error for a response outside 2xx.

    :param now: current time, for a ``Retry-After`` date in a response without ``Date`` header; default: the clock
    """
    by_name = {name.lower(): value for name, value in headers.items()}
    error_body = read_error_body(body, api_key)
    header_usd, _ = read_cost(by_name, {})
    usd = header_usd if header_usd is not None else error_body.usd
    details: dict[str, Any] = {
        "status": status,
        "usd": float(usd) if usd is not None else None,
        "kind": error_body.kind,
        "request_id": error_body.request_id,
        "inference_id": scrub_id(by_name.get("x-inference-id"), api_key),
        "client_request_id": client_request_id,
        "model": model,
        "field": error_body.field,
    }
    reason = error_body.message or "no reason given"
    retry_after = read_retry_after(by_name.get("retry-after"), now=read_http_date(by_name.get("date")) or now)

    if status == 401:
        return AuthenticationError(
            f"The API rejected the key (401): {reason}. Check the password of the connection.", **details
        )
    if status == 402 or (status == 403 and error_body.kind in OUT_OF_CREDITS_KINDS):
        return OutOfCreditsError(
            f"The account is out of credits ({status}): {reason}. Top it up, then clear the task.", **details
        )
    if status == 403:
        who = "The API" if error_body.from_api else "A gateway in front of the API"
        return AuthenticationError(
            f"{who} denied access (403): {reason}. The key may be disabled, over its limit, or lack the scope "
            f"model:image.",
            **details,
        )
    if status == 404 and error_body.from_api and model is not None:
        return ModelWithdrawnError(
            f"The API returned 404: model {model!r} is retired or unknown ({reason}).", **details
        )
    if status == 404:
        return InvalidRequestError(
            f"The URL does not exist (404): {reason}. Check the host of the connection.", **details
        )
    if status == 407:
        return ConnectionFailedError("The proxy requires authentication (407). Nothing reached the API.", **details)
    if status == 429:
        return RateLimitedError(f"Too many requests (429): {reason}.", retry_after=retry_after, **details)
    if status in _UNKNOWN_OUTCOME or (status >= 500 and not error_body.from_api):
        return LostAnswerError(
            f"A gateway returned {status} instead of the API; the request may have been served and billed.",
            **details,
        )
    if status >= 500:
        return _server_error(error_body, status=status, retry_after=retry_after, details=details)
    if 300 <= status < 400:
        return InvalidRequestError(
            f"The host returned a redirect ({status}), which is not followed because it would send the key elsewhere. "
            f"Check the host of the connection.",
            **details,
        )
    return InvalidRequestError(f"The API rejected the request ({status}): {reason}.", **details)


def _server_error(
    error_body: ErrorBody, *, status: int, retry_after: float | None, details: dict[str, Any]
) -> InvalidRequestError | ModelWithdrawnError | ServerError:
    """Return the error for a 5xx, which may wrap a 4xx of the model's own service."""
    reason = error_body.message or "no reason given"
    upstream = error_body.upstream_status
    if upstream is None or upstream in _TRANSIENT_UPSTREAM:
        return ServerError(f"The API failed ({status}): {reason}.", retry_after=retry_after, **details)
    if upstream == 404 and details["model"] is not None:
        return ModelWithdrawnError(
            f"The service behind model {details['model']!r} does not know it (404, wrapped in a {status}): {reason}.",
            **details,
        )
    return InvalidRequestError(
        f"The model's own service rejected the request ({upstream}, wrapped in a {status}): {reason}.", **details
    )


def rejected_field(status: int, body: bytes, names: Iterable[str]) -> str | None:
    """
    Return which of these request fields a response rejects as unknown; ``None`` if it rejects none of them.

    OpenAI and the gateways in front of it reject fields of other APIs: "Unknown parameter: 'response_format'",
    "Setting `response_format` is not supported" (openai and BerriAI/litellm issues, 2025-05 to 2026-06).

    :param names: optional fields that were sent
    """
    if status not in (400, 422):
        return None
    text = body[:_MAX_BYTES_SEARCHED].decode("utf-8", "replace")
    if not re.search(_FIELD_REJECTED, text, flags=re.IGNORECASE):
        return None
    return next((name for name in names if name in text), None)


def read_retry_after(value: str | None, *, now: datetime | None = None) -> float | None:
    """
    Return a ``Retry-After`` header, given in seconds or as an HTTP date, as seconds from now (never negative).

    Malformed values give ``None``.
    """
    if value is None:
        return None
    value = value.strip()
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", value):
        return float(value)
    at = read_http_date(value)
    return None if at is None else max(0.0, (at - (now or datetime.now(UTC))).total_seconds())


def read_http_date(value: str | None) -> datetime | None:
    """Return the date in a header; ``None`` if it is missing or malformed."""
    try:
        at = parsedate_to_datetime(value or "")
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _text_or_none(value: Any) -> str | None:
    """Return non-empty text, or a number as text; else ``None``."""
    return str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) and value != "" else None


def _message_text(value: Any, depth: int = 0) -> str:
    """Return a message, which may be text, a list, an object, or text that is itself JSON, as plain text."""
    if depth > _MAX_DEPTH:
        return ""
    if isinstance(value, list):
        return "; ".join(filter(None, (_message_text(part, depth + 1) for part in value[:10])))
    if isinstance(value, dict):
        return _message_text(value.get("message") or value.get("error") or value.get("detail"), depth + 1)
    if not isinstance(value, str):
        return ""
    if value.lstrip().startswith("{"):
        try:
            inner = read_json(value.encode())
        except ValueError:
            return value
        return _message_text(inner, depth + 1) or value
    return value


def _wrapped_status(message: str) -> int | None:
    """Return the upstream status in a message such as ``400 Invalid value`` in a 500 (seen in support tickets)."""
    found = re.match(r"\s*(?:error[: ]+)?(4[0-9]{2})\b", message, flags=re.IGNORECASE)
    return int(found.group(1)) if found else None


def _field_errors(meta: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Yield field path and message from the validator's tree: branches are fields, leaves are ``_errors`` lists."""
    if not isinstance(meta, dict) or len(path) > _MAX_DEPTH:
        return
    for name, branch in meta.items():
        if name == "_errors":
            if isinstance(branch, list):
                for text in branch[:5]:
                    if isinstance(text, str) and path:
                        yield ".".join(path), text
        else:
            yield from _field_errors(branch, (*path, str(name)))
