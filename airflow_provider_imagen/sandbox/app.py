"""The API as one ASGI application, and the recording of every request."""

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
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from airflow_provider_imagen.sandbox.account_routes import account_routes
from airflow_provider_imagen.sandbox.catalogue_routes import catalogue_routes
from airflow_provider_imagen.sandbox.control_routes import CONTROL_PREFIX, control_routes
from airflow_provider_imagen.sandbox.control_types import SeenRequest
from airflow_provider_imagen.sandbox.envelopes import error_body
from airflow_provider_imagen.sandbox.fault_responses import failing_answer
from airflow_provider_imagen.sandbox.generation import edits, generations
from airflow_provider_imagen.sandbox.json_responses import Json, Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from airflow_provider_imagen.sandbox.state import State


_NO_KEY = (
    "This request requires a valid API key. You can create a new API key on the Billing page: "
    "https://aimlapi.com/app/keys"
)
"""Message of a 401 (docs, "Errors with status code 4xx" page, 2026-08)."""


def api_app(state: State) -> ASGIApp:
    """Build the API."""
    app = Starlette(
        routes=[
            *(Route(path, generations, methods=["POST"]) for path in ("/v1/images/generations", "/images/generations")),
            *(Route(path, edits, methods=["POST"]) for path in ("/v1/images/edits", "/images/edits")),
            *account_routes(),
            *catalogue_routes(),
            *control_routes(),
        ],
        exception_handlers={404: _not_there, 405: _not_there},
    )
    app.state.sandbox = state
    return _Gate(app, state)


async def _not_there(request: Request, error: Exception) -> Response:
    state: State = request.app.state.sandbox
    status: int = getattr(error, "status_code", 404)
    message = f"Cannot {request.method} {request.url.path}"
    return Json(error_body(status, message, path=request.url.path, now=state.clock()), status)


class _Gate:
    """Apply the faults of single paths, then check the key."""

    _OPEN = ("/v1/models", "/models", "/api/v1/models", "/model/", "/docs-json", CONTROL_PREFIX)

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
                await failing_answer(hits["end"], path=path, now=self.state.clock())(scope, receive, send)
                return
            if not path.startswith(self._OPEN) and not self._has_key(dict(scope["headers"])):
                body = error_body(401, _NO_KEY, path=path, now=self.state.clock(), envelope="problem")
                await Problem(body, 401)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _has_key(self, headers: Mapping[bytes, bytes]) -> bool:
        scheme, _, key = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        return scheme.lower() == "bearer" and key.strip() == self.state.settings.api_key


class SameMachine:
    """
    Refuse what a web page elsewhere makes a browser on this machine send: it may not set headers a program sets.

    A page can post ``text/plain`` and forms to any address, and a name of its own can lead to 127.0.0.1 (DNS
    rebinding). Programs are let through: they send JSON or uploads, no ``Origin``, and the name they were given.

    :param app: what answers
    :param is_loopback: whether the sandbox listens on loopback only; elsewhere, any name may be its own
    """

    def __init__(self, app: ASGIApp, *, is_loopback: bool) -> None:
        self.app = app
        self.is_loopback = is_loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run as an ASGI application."""
        if scope["type"] == "http" and (why := self._refusal(scope["method"], Headers(scope=scope))):
            await PlainTextResponse(why, 403)(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _refusal(self, method: str, headers: Headers) -> str | None:
        host = headers.get("host", "")
        if self.is_loopback and not _is_this_machine(f"//{host}"):
            return "The sandbox answers to localhost, 127.0.0.1 and [::1] only."
        if method in ("GET", "HEAD", "OPTIONS"):
            return None
        if "origin" in headers and not _is_this_machine(headers["origin"]):
            return "The sandbox takes no requests from web pages elsewhere."
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind and not kind.endswith(("/json", "+json")) and kind != "multipart/form-data":
            return "The sandbox takes application/json and multipart/form-data."
        return None


def _is_this_machine(url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or host.endswith(".localhost") or ip_address(host).is_loopback
    except ValueError:
        return False


class Watched:
    """
    Record each request before it is answered, and its status; add ``Date`` to the response.

    :param host: recorded with each request
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
        body = await _whole_body(receive)
        if body is None:
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        sighting = self.state.see(
            SeenRequest(
                host=self.host,
                method=scope["method"],
                path=scope["path"],
                query=parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True),
                headers=headers,
                json=_decoded(body, headers),
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

        async def note(message: Message) -> None:
            if message["type"] == "http.response.start":
                sighting.answered(message["status"])
                date = formatdate(self.state.clock(), usegmt=True).encode()
                message = {**message, "headers": [*message.get("headers", ()), (b"date", date)]}
            await send(message)

        with suppress(asyncio.CancelledError):  # the sandbox is closing; uvicorn would log an error
            await self.app(scope, replay, note)


async def _whole_body(receive: Receive) -> bytes | None:
    """Return the whole body, or ``None`` when the client disconnected first."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


def _decoded(body: bytes, headers: Mapping[str, str]) -> Any:
    if not body or headers.get("content-type", "application/json").startswith("multipart/"):
        return None
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None
