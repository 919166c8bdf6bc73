"""The account endpoints: key, balance, transactions, request log (specs of 2026-08)."""

from __future__ import annotations

import base64
import binascii
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from starlette.routing import Route

from airflow_provider_imagen.sandbox.account import CREDITS_PER_USD
from airflow_provider_imagen.sandbox.envelopes import error_body, timestamp
from airflow_provider_imagen.sandbox.json_responses import AsciiJSONResponse
from airflow_provider_imagen.sandbox.limits import RateLimit
from airflow_provider_imagen.sandbox.model_specs import find_model

if TYPE_CHECKING:
    from collections.abc import Mapping
    from decimal import Decimal

    from starlette.requests import Request
    from starlette.responses import Response

    from airflow_provider_imagen.sandbox.state import State

_LONGEST_WINDOW = timedelta(days=92)
_LOW_CREDITS = 10_000
_KEY_CREATED = "2026-01-05T09:00:00.000Z"


def account_routes() -> list[Route]:
    """Return the routes, which need a key."""
    return [
        Route("/v1/key", _key),
        Route("/v2/billing", _billing),
        Route("/v2/billing/transactions", _transactions),
        Route("/v2/logs", _logs),
        Route("/v2/usage", _usage),
        Route("/v1/billing/balance", _old_balance),
    ]


async def _key(request: Request) -> Response:
    state: State = request.app.state.sandbox
    spent = sum((charge.usd for charge in state.account.charges()), start=0)
    return AsciiJSONResponse(
        {
            "data": {
                "name": "sandbox",
                "disabled": False,
                "prefix": state.settings.api_key[:8],
                "scopes": ["model:image"],
                "created_at": _KEY_CREATED,
                "updated_at": _KEY_CREATED,
                "monthly_usage": float(spent),
            }
        }
    )


async def _billing(request: Request) -> Response:
    state: State = request.app.state.sandbox
    return AsciiJSONResponse({"current_balance": float(state.account.balance_usd), "currency": "USD"})


async def _old_balance(request: Request) -> Response:
    """Return the balance in credits, as the API did before ``/v2/billing``."""
    state: State = request.app.state.sandbox
    credits_left = int(state.account.balance_usd * CREDITS_PER_USD)
    return AsciiJSONResponse(
        {
            "balance": credits_left,
            "lowBalance": credits_left < _LOW_CREDITS,
            "lowBalanceThreshold": _LOW_CREDITS,
            "lastUpdated": timestamp(state.clock()),
            "autoDebitStatus": "disabled",
            "status": "current",
            "statusExplanation": "Balance is current and up to date",
        }
    )


async def _usage(request: Request) -> Response:
    """Return the total spent in a window."""
    state: State = request.app.state.sandbox
    try:
        since, until = _window(request.query_params, datetime.fromtimestamp(state.clock(), UTC))
    except ValueError as error:
        return _bad_request(request, str(error))
    charges = [c for c in state.account.charges() if since.timestamp() <= c.at <= until.timestamp()]
    return AsciiJSONResponse(
        {
            "api_key_prefix": request.query_params.get("key_prefix"),
            "start": timestamp(since.timestamp()),
            "end": timestamp(until.timestamp()),
            "spend": float(sum((charge.usd for charge in charges), start=0)),
            "currency": "USD",
            "requests": len(charges),
        }
    )


async def _transactions(request: Request) -> Response:
    state: State = request.app.state.sandbox
    try:
        limit = _integer_param(request.query_params, "limit", default=50, most=100, least=1)
        start = _read_cursor(request.query_params.get("cursor"))
        since, until = (_parse_time(request.query_params.get(name)) for name in ("from", "to"))
    except ValueError as error:
        return _bad_request(request, str(error))
    visible_until = state.clock() - state.settings.log_lag_seconds
    entries = [
        {
            "created_at": timestamp(charge.at),
            "direction": "CHARGE",
            "type": "MODEL_USAGE",
            "amount": _amount(charge.usd),
            "model": charge.model,
            "reference_id": charge.inference_id,
        }
        for charge in reversed(state.account.charges())
        if charge.at <= visible_until
        and (since is None or charge.at >= since.timestamp())
        and (until is None or charge.at < until.timestamp())
    ]
    if request.query_params.get("direction", "CHARGE") != "CHARGE":
        entries = []
    if request.query_params.get("type", "MODEL_USAGE") != "MODEL_USAGE":
        entries = []
    page, more = entries[start : start + limit], len(entries) > start + limit
    cursor = base64.urlsafe_b64encode(f"v1:{start + limit}".encode()).decode() if more else None
    return AsciiJSONResponse({"data": page, "pagination": {"next_cursor": cursor, "has_more": more}})


async def _logs(request: Request) -> Response:
    state: State = request.app.state.sandbox
    if state.log_meter.seconds_to_wait(RateLimit(state.settings.logs_per_minute), now=state.true_clock()):
        body = error_body(429, "Too many requests.", path=request.url.path, now=state.clock(), envelope="problem")
        return AsciiJSONResponse(body, 429, media_type="application/problem+json")
    query = request.query_params
    try:
        since, until = _window(query, datetime.fromtimestamp(state.clock(), UTC))
        limit = _integer_param(query, "limit", default=50, most=100, least=1)
        offset = _integer_param(query, "offset", default=0, most=None, least=0)
        statuses = query.getlist("status")
        if unknown := set(statuses) - {"succeeded", "failed"}:
            raise ValueError(f"status must be succeeded or failed, not {', '.join(unknown)}")
    except ValueError as error:
        return _bad_request(request, str(error))
    models = {model.id if (model := find_model(name)) else name for name in query.getlist("model")}
    rows = [
        row
        for row in state.account.log(lag_seconds=state.settings.log_lag_seconds)
        if since.timestamp() <= row.created <= until.timestamp()
        and (not statuses or row.status in statuses)
        and (not models or row.model in models)
    ]
    page = [
        {
            "created": timestamp(row.created),
            "status": row.status,
            "origin": "api",
            "model": row.model,
            "cost": _amount(row.usd),
            "tokens": {"input": 0, "output": 0, "total": 0},
            "request_id": row.request_id,
            "inference_id": row.inference_id,
            "client_request_id": row.client_request_id,
        }
        for row in rows[offset : offset + limit]
    ]
    pagination = {"limit": limit, "offset": offset, "total": len(rows), "has_more": len(rows) > offset + limit}
    return AsciiJSONResponse({"data": page, "pagination": pagination})


def _amount(usd: Decimal) -> dict[str, Any]:
    return {"usd": float(usd), "credits": int(usd * CREDITS_PER_USD)}


def _bad_request(request: Request, message: str) -> Response:
    state: State = request.app.state.sandbox
    return AsciiJSONResponse(error_body(400, message, path=request.url.path, now=state.clock()), 400)


def _window(query: Mapping[str, str], now: datetime) -> tuple[datetime, datetime]:
    """Return the window from ``period``, or from ``start`` and ``end``; at most 92 days."""
    period, start, end = query.get("period"), _parse_time(query.get("start")), _parse_time(query.get("end"))
    if (period is None) == (start is None and end is None):
        raise ValueError("Pass either period or both start and end")
    if period is not None:
        match = re.fullmatch(r"([1-9]\d{0,5})([hd])", period)
        if match is None:
            raise ValueError("period must be a positive whole number followed by h or d")
        number = int(match[1])
        length = timedelta(hours=number) if match[2] == "h" else timedelta(days=number)
        start, end = now - length, now
    if start is None or end is None:
        raise ValueError("start and end must be passed together")
    if end < start or end - start > _LONGEST_WINDOW:
        raise ValueError("end must not be before start, nor more than 92 days after it")
    return start, end


def _parse_time(text: str | None) -> datetime | None:
    if text is None:
        return None
    moment = datetime.fromisoformat(text.replace(" ", "+"))
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _integer_param(query: Mapping[str, str], name: str, *, default: int, least: int, most: int | None) -> int:
    text = query.get(name)
    if text is None:
        return default
    if not text.isdigit() or int(text) < least or (most is not None and int(text) > most):
        raise ValueError(f"{name} must be a whole number from {least}" + (f" to {most}" if most else ""))
    return int(text)


def _read_cursor(cursor: str | None) -> int:
    if cursor is None:
        return 0
    try:
        version, _, start = base64.urlsafe_b64decode(cursor).decode().partition(":")
        if version == "v1":
            return int(start)
    except (binascii.Error, ValueError):
        pass
    raise ValueError("cursor is invalid")
