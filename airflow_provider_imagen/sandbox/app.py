"""The API as an ASGI application, and the middleware around both applications."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from email.utils import formatdate
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import parse_qs, urlsplit

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from airflow_provider_imagen.sandbox.account_routes import account_routes
from airflow_provider_imagen.sandbox.catalogue_routes import catalogue_routes
from airflow_provider_imagen.sandbox.control_routes import CONTROL_PREFIX, control_routes
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

    _WITHOUT_KEY = ("/v1/models", "/models", "/api/v1/models", "/model/", "/docs-json", CONTROL_PREFIX)

    def __init__(self, app: ASGIApp, state: State) -> None:
        self.app = app
        self.state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run as an ASGI application."""
        path: str = scope["path"]
        if not path.startswith(CONTROL_PREFIX):
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


class LocalRequestsOnly:
    """
    Reject requests that a web page makes a browser on this machine send (CSRF and DNS rebinding).

    A page can post ``text/plain`` and forms to any address, and its own host name can resolve to 127.0.0.1. Programs
    send JSON or uploads, no ``Origin``, and a local ``Host``.

    :param is_loopback: whether the sandbox listens on loopback only; otherwise any ``Host`` is accepted
    """

    def __init__(self, app: ASGIApp, *, is_loopback: bool) -> None:
        self.app = app
        self.is_loopback = is_loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run as an ASGI application."""
        if scope["type"] == "http" and (reason := self._rejection(scope["method"], Headers(scope=scope))):
            await PlainTextResponse(reason, 403)(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _rejection(self, method: str, headers: Headers) -> str | None:
        host = headers.get("host", "")
        if self.is_loopback and not _is_this_machine(f"//{host}"):
            return "The sandbox only accepts the hosts localhost, 127.0.0.1 and [::1]."
        if method in ("GET", "HEAD", "OPTIONS"):
            return None
        if "origin" in headers and not _is_this_machine(headers["origin"]):
            return "The sandbox rejects cross-origin requests."
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind and not kind.endswith(("/json", "+json")) and kind != "multipart/form-data":
            return "The sandbox only accepts application/json and multipart/form-data."
        return None


def _is_this_machine(url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or host.endswith(".localhost") or ip_address(host).is_loopback
    except ValueError:
        return False


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
        if scope["type"] != "http" or scope["path"].startswith(CONTROL_PREFIX):
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
