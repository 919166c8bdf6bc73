"""
Rows of the API's request log and of the account's ledger, parsed from untrusted JSON. Pure.

Only the time and the amount of a row are indispensable: other values that are missing or invalid become ``None``, so
that no charge is dropped because of them.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from airflow_provider_imagen.api.client_request_id import RequestSource, read_client_request_id
from airflow_provider_imagen.api.cost import read_row_usd

if TYPE_CHECKING:
    from collections.abc import Mapping
    from decimal import Decimal

LONGEST_WINDOW: Final = timedelta(days=92)
"""Longest window the request log returns at once (spec of ``GET /v2/logs``, 2026-08-21)."""

_MAX_TEXT_CHARACTERS: Final = 200
_YEARS: Final = range(2020, 3000)


class LoggedRequest(Struct, frozen=True, kw_only=True, gc=False):
    """
    A row of the request log (``GET /v2/logs``).

    :param at: when the request was made, in UTC
    :param usd: amount charged, in USD; 0 for a failed request
    :param key: name of the API key that made it
    :param model: model id, as ``source/alias``
    :param request_id: the API's id of the HTTP call
    :param inference_id: the API's id of the paid work; ``reference_id`` of its transaction
    :param client_request_id: the id that the client sent
    """

    at: datetime
    usd: Decimal
    key: str
    model: str | None = None
    request_id: str | None = None
    inference_id: str | None = None
    client_request_id: str | None = None

    @property
    def source(self) -> RequestSource | None:
        """The source that its client request id names; ``None`` if another client sent it."""
        return read_client_request_id(self.client_request_id)


class Transaction(Struct, frozen=True, kw_only=True, gc=False):
    """
    An entry of the ledger (``GET /v2/billing/transactions``).

    :param at: when it was recorded, in UTC
    :param usd: amount in USD, never negative
    :param is_charge: whether the money went out
    :param kind: what produced it, such as ``MODEL_USAGE`` or ``REFUND``
    :param reference_id: for ``MODEL_USAGE``, the inference id
    """

    at: datetime
    usd: Decimal
    is_charge: bool
    kind: str
    reference_id: str | None = None


def read_logged_request(row: Mapping[str, Any], *, key: str) -> LoggedRequest | None:
    """
    Return a row of the request log; ``None`` if its time or amount is missing or invalid.

    :param key: name of the API key whose log it is
    """
    at, usd = _read_time(row.get("created")), read_row_usd(row.get("cost"))
    if at is None or usd is None:
        return None
    model = _read_text(row.get("model"))
    return LoggedRequest(
        at=at,
        usd=usd,
        key=key,
        model=None if model is None else sys.intern(model),
        request_id=_read_text(row.get("request_id")),
        inference_id=_read_text(row.get("inference_id")),
        client_request_id=_read_text(row.get("client_request_id")),
    )


def read_transaction(row: Mapping[str, Any]) -> Transaction | None:
    """Return an entry of the ledger; ``None`` if its time, amount, direction or type is missing or invalid."""
    at, usd, kind = _read_time(row.get("created_at")), read_row_usd(row.get("amount")), _read_text(row.get("type"))
    direction = row.get("direction")
    if at is None or usd is None or kind is None or direction not in ("CHARGE", "TOPUP"):
        return None
    return Transaction(
        at=at,
        usd=usd,
        is_charge=direction == "CHARGE",
        kind=sys.intern(kind),
        reference_id=_read_text(row.get("reference_id")),
    )


def _read_text(value: Any) -> str | None:
    is_text = isinstance(value, str) and 0 < len(value) <= _MAX_TEXT_CHARACTERS and value.isprintable()
    return value if is_text else None


def _read_time(value: Any) -> datetime | None:
    """Return a time in UTC, which a time without an offset is in already."""
    text = _read_text(value)
    try:
        at = datetime.fromisoformat(text or "")
        at = at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None
    return at if at.year in _YEARS else None
