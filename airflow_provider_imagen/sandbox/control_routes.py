"""The control endpoints under ``/_sandbox/``: ledger, seen requests, faults, settings, reset."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from starlette.routing import Route

from airflow_provider_imagen.sandbox.faults import Fault
from airflow_provider_imagen.sandbox.json_responses import AsciiJSONResponse

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from airflow_provider_imagen.sandbox.state import State

CONTROL_PREFIX = "/_sandbox/"


def is_control_path(path: str) -> bool:
    """Return whether a path is the sandbox's own, not the API's: requests are not recorded, and get no faults."""
    return path == "/" or path.startswith(CONTROL_PREFIX)


def control_routes() -> list[Route]:
    """Return the routes. None needs a key, so keep the sandbox on loopback."""
    return [
        Route(f"{CONTROL_PREFIX}ledger", _ledger),
        Route(f"{CONTROL_PREFIX}seen", _seen),
        Route(f"{CONTROL_PREFIX}faults", _faults, methods=["GET", "POST", "DELETE"]),
        Route(f"{CONTROL_PREFIX}reset", _reset, methods=["POST"]),
        Route(f"{CONTROL_PREFIX}settings", _settings, methods=["GET", "POST"]),
    ]


async def _ledger(request: Request) -> Response:
    state: State = request.app.state.sandbox
    return AsciiJSONResponse([charge.to_json() for charge in state.account.charges()])


async def _seen(request: Request) -> Response:
    state: State = request.app.state.sandbox
    return AsciiJSONResponse([seen.to_json() for seen in state.seen(request.query_params.get("path"))])


async def _faults(request: Request) -> Response:
    state: State = request.app.state.sandbox
    if request.method == "DELETE":
        state.faults.clear()
    elif request.method == "POST":
        try:
            state.faults.add(Fault.from_json(await _read_object(request)))
        except (ValueError, TypeError) as error:
            return AsciiJSONResponse({"error": str(error)}, 400)
    return AsciiJSONResponse([fault.to_json() for fault in state.faults.armed()])


async def _reset(request: Request) -> Response:
    state: State = request.app.state.sandbox
    state.reset()
    return AsciiJSONResponse({})


async def _settings(request: Request) -> Response:
    state: State = request.app.state.sandbox
    if request.method == "POST":
        try:
            state.configure(await _read_object(request))
        except (ValueError, TypeError) as error:
            return AsciiJSONResponse({"error": str(error)}, 400)
    return AsciiJSONResponse({**state.settings.to_json(), "url": state.api_url, "cdn_url": state.cdn_url})


async def _read_object(request: Request) -> dict[str, Any]:
    try:
        values = json.loads(await request.body())
    except RecursionError:
        raise ValueError("The JSON is nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError("Expected a JSON object")
    return values
