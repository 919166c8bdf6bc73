"""The account endpoints: key, balance, transactions, request log (specs of 2026-08)."""

from __future__ import annotations

import base64
import json
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

    from airflow_provider_imagen.sandbox.control_types import Charge
    from airflow_provider_imagen.sandbox.state import State

_LONGEST_WINDOW = timedelta(days=92)
_LOW_CREDITS = 10_000
_PREFIX_CHARACTERS = 8
_DIRECTIONS = ("TOPUP", "CHARGE")
_TRANSACTION_TYPES = ("PAYMENT", "BONUS", "REFUND", "ADJUSTMENT", "MODEL_USAGE", "CREDITS_EXPIRED", "INIT")
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
    month = datetime.fromtimestamp(state.clock(), UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    charges = _visible_charges(state, since=month)
    return AsciiJSONResponse(
        {
            "data": {
                "name": "sandbox",
                "disabled": False,
                "prefix": state.settings.api_key[:_PREFIX_CHARACTERS],
                "scopes": ["model:image"],
                "created_at": _KEY_CREATED,
                "updated_at": _KEY_CREATED,
                "monthly_usage": float(sum((charge.usd for charge in charges), start=0)),
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
    if not _is_own_key(request):
        return _forbidden(request)
    charges = _visible_charges(state, since=since, until=until)
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


def _visible_charges(state: State, *, since: datetime, until: datetime | None = None) -> list[Charge]:
    """Return the charges in a window that have reached the account's figures."""
    end = state.clock() - state.settings.usage_lag_seconds
    if until is not None:
        end = min(end, until.timestamp())
    return [charge for charge in state.account.charges() if since.timestamp() <= charge.at <= end]


async def _transactions(request: Request) -> Response:
    state: State = request.app.state.sandbox
    try:
        limit = _integer_param(request.query_params, "limit", default=50, most=100, least=1)
        before = _read_cursor(request.query_params.get("cursor"))
        since, until = (_parse_time(request.query_params.get(name)) for name in ("from", "to"))
        if since is not None and until is not None and until <= since:
            raise ValueError("to must be later than from")
        direction = _choice_param(request.query_params, "direction", _DIRECTIONS, default="CHARGE")
        kind = _choice_param(request.query_params, "type", _TRANSACTION_TYPES, default="MODEL_USAGE")
    except ValueError as error:
        return _bad_request(request, str(error))
    visible_until = state.clock() - state.settings.log_lag_seconds
    found = [
        (position, charge)
        for position, charge in enumerate(state.account.charges())
        if charge.at <= visible_until
        and (before is None or position < before)
        and (since is None or charge.at >= since.timestamp())
        and (until is None or charge.at < until.timestamp())
    ]
    newest_first = found[::-1] if (direction, kind) == ("CHARGE", "MODEL_USAGE") else []  # it has no other entries
    page, has_more = newest_first[:limit], len(newest_first) > limit
    entries = [
        {
            "created_at": timestamp(charge.at),
            "direction": "CHARGE",
            "type": "MODEL_USAGE",
            "amount": _amount(charge.usd),
            "model": charge.model,
            "reference_id": charge.inference_id,
        }
        for _, charge in page
    ]
    cursor = _write_cursor(page[-1][0]) if has_more else None
    return AsciiJSONResponse({"data": entries, "pagination": {"next_cursor": cursor, "has_more": has_more}})


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
    if not _is_own_key(request):
        return _forbidden(request)
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


def _is_own_key(request: Request) -> bool:
    """Return whether a request asks about the key that it is authenticated with."""
    state: State = request.app.state.sandbox
    prefix = request.query_params.get("key_prefix")
    return prefix is None or prefix == state.settings.api_key[:_PREFIX_CHARACTERS]


def _forbidden(request: Request) -> Response:
    state: State = request.app.state.sandbox
    message = "Reporting on a different key requires a management key"
    return AsciiJSONResponse(error_body(403, message, path=request.url.path, now=state.clock()), 403)


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
        if length > _LONGEST_WINDOW:
            raise ValueError("period must not be longer than 92 days")
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
    try:
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except OverflowError as error:
        raise ValueError(str(error)) from error


def _integer_param(query: Mapping[str, str], name: str, *, default: int, least: int, most: int | None) -> int:
    text = query.get(name)
    if text is None:
        return default
    if not text.isdigit() or int(text) < least or (most is not None and int(text) > most):
        raise ValueError(f"{name} must be a whole number from {least}" + (f" to {most}" if most else ""))
    return int(text)


def _choice_param(query: Mapping[str, str], name: str, choices: tuple[str, ...], *, default: str) -> str:
    value = query.get(name, default)
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}")
    return value


def _write_cursor(position: int) -> str:
    """Return the cursor for the entries before a charge, which new charges do not move."""
    return base64.urlsafe_b64encode(json.dumps({"v": 1, "c": position}).encode()).decode()


def _read_cursor(cursor: str | None) -> int | None:
    """
    Return the position of the charge before which to continue; ``None`` for the newest.

    :raises ValueError: the cursor is not exactly one that :func:`_write_cursor` returns
    """
    if cursor is None:
        return None
    try:
        position = json.loads(base64.urlsafe_b64decode(cursor))["c"]
        if type(position) is int and position >= 0 and _write_cursor(position) == cursor:
            return position
    except (ValueError, TypeError, LookupError):
        pass
    raise ValueError("cursor is invalid")
