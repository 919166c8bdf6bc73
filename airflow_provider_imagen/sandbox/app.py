"""The API as an ASGI application, and the middleware around both applications."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.routing import Route

from airflow_provider_imagen.sandbox.account_routes import account_routes
from airflow_provider_imagen.sandbox.catalogue_routes import catalogue_routes
from airflow_provider_imagen.sandbox.control_page import page_routes
from airflow_provider_imagen.sandbox.control_routes import control_routes, is_control_path
from airflow_provider_imagen.sandbox.control_types import SeenRequest
from airflow_provider_imagen.sandbox.envelopes import error_body
from airflow_provider_imagen.sandbox.fault_responses import fault_response
from airflow_provider_imagen.sandbox.generation import edits, generations
from airflow_provider_imagen.sandbox.json_responses import AsciiJSONResponse, ProblemResponse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from airflow_provider_imagen.sandbox.state import State


_NO_KEY = (
    "This request requires a valid API key. You can create a new API key on the Billing page: "
    "https://aimlapi.com/app/keys"
)
"""Message of a 401 (docs, "Errors with status code 4xx" page, 2026-08)."""


def api_app(state: State) -> ASGIApp:
    """Return the API."""
    app = Starlette(
        routes=[
            *(Route(path, generations, methods=["POST"]) for path in ("/v1/images/generations", "/images/generations")),
            *(Route(path, edits, methods=["POST"]) for path in ("/v1/images/edits", "/images/edits")),
            *account_routes(),
            *catalogue_routes(),
            *control_routes(),
            *page_routes(),
        ],
        exception_handlers={404: _not_found, 405: _not_found},
    )
    app.state.sandbox = state
    return _FaultsAndKey(app, state)


async def _not_found(request: Request, error: Exception) -> Response:
    state: State = request.app.state.sandbox
    status: int = getattr(error, "status_code", 404)
    message = f"Cannot {request.method} {request.url.path}"
    return AsciiJSONResponse(error_body(status, message, path=request.url.path, now=state.clock()), status)


class _FaultsAndKey:
    """Apply the faults for a path, then check the key."""

    _WITHOUT_KEY = ("/v1/models", "/models", "/api/v1/models", "/model/", "/docs-json")

    def __init__(self, app: ASGIApp, state: State) -> None:
        self.app = app
        self.state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run as an ASGI application."""
        path: str = scope["path"]
        if not is_control_path(path):
            hits = self.state.faults.hits("api", path=path)
            if "before" in hits:
                await asyncio.sleep(hits["before"].setting("seconds"))
            if "end" in hits:
                await fault_response(hits["end"], path=path, now=self.state.clock())(scope, receive, send)
                return
            if not path.startswith(self._WITHOUT_KEY) and not self._has_key(dict(scope["headers"])):
                body = error_body(401, _NO_KEY, path=path, now=self.state.clock(), envelope="problem")
                await ProblemResponse(body, 401)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _has_key(self, headers: Mapping[bytes, bytes]) -> bool:
        scheme, _, key = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        return scheme.lower() == "bearer" and key.strip() == self.state.settings.api_key


class RequestRecorder:
    """
    Record each request on arrival, then its status, and add ``Date`` to the response.

    :param host: value of ``SeenRequest.host``
    """

    def __init__(self, app: ASGIApp, state: State, host: Literal["api", "cdn"]) -> None:
        self.app = app
        self.state = state
        self.host = host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run as an ASGI application."""
        if scope["type"] != "http" or is_control_path(scope["path"]):
            await self.app(scope, receive, send)
            return
        try:
            body = await Request(scope, receive).body()
        except ClientDisconnect:
            return
        headers = dict(Headers(scope=scope).items())
        recorded = self.state.record(
            SeenRequest(
                host=self.host,
                method=scope["method"],
                path=scope["path"],
                query=parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True),
                headers=headers,
                json=_decode_json(body, headers),
                client_request_id=headers.get("x-client-request-id"),
                at=self.state.true_clock(),
            )
        )
        replayed = False

        async def replay() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send_with_date(message: Message) -> None:
            if message["type"] == "http.response.start":
                recorded.set_status(message["status"])
                date = formatdate(self.state.clock(), usegmt=True).encode()
                message = {**message, "headers": [*message.get("headers", ()), (b"date", date)]}
            await send(message)

        with suppress(asyncio.CancelledError):  # the sandbox is closing, and uvicorn would log an error
            await self.app(scope, replay, send_with_date)


def _decode_json(body: bytes, headers: Mapping[str, str]) -> Any:
    if not body or headers.get("content-type", "application/json").startswith("multipart/"):
        return None
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None
