"""
Responses that break HTTP: truncated, reset, hanging, slow or endless.

Each is an ASGI application, so an endpoint can return it like any response. Closing a connection needs its transport,
which ASGI does not expose, so :class:`Protocol` registers it under the addresses of both ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from starlette.types import Receive, Scope, Send

_CONNECTIONS: dict[tuple[Any, Any], asyncio.Transport] = {}
_NO_LINGER = struct.pack("ii", 1, 0)


class Protocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """uvicorn's HTTP protocol, without its access log, that registers its open connections."""

    _ends: tuple[Any, Any] | None = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.access_log = False

    def connection_made(self, transport: Any) -> None:
        """Register the connection."""
        self._ends = (transport.get_extra_info("peername")[:2], transport.get_extra_info("sockname")[:2])
        _CONNECTIONS[self._ends] = transport
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Unregister the connection."""
        if self._ends is not None:
            _CONNECTIONS.pop(self._ends, None)
        super().connection_lost(exc)


def _find_transport(scope: Scope) -> asyncio.Transport | None:
    return _CONNECTIONS.get((tuple(scope["client"]), tuple(scope["server"])))


async def wait_for_disconnect(receive: Receive, seconds: float | None = None) -> None:
    """Wait until the client disconnects or the time is up; ``None`` waits forever."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while (await receive())["type"] != "http.disconnect":
                pass


class Reset:
    """Reset the TCP connection without sending a byte."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI signature
        """Run as an ASGI application."""
        if (transport := _find_transport(scope)) is not None:
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            transport.abort()
        await wait_for_disconnect(receive, 5)


class Hang:
    """
    Send nothing until the client disconnects or the time is up, then reset the connection.

    :param seconds: longest time to hold the connection
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run as an ASGI application."""
        await wait_for_disconnect(receive, self.seconds)
        await Reset()(scope, receive, send)


class Truncated:
    """
    Declare a full body, send part of it, and close the connection.

    :param body: the part to send
    :param content_length: declared length in bytes
    """

    def __init__(self, body: bytes, *, content_length: int, headers: Mapping[str, str]) -> None:
        self.body = body
        self.headers = {**headers, "content-length": str(content_length)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run as an ASGI application."""
        await send({"type": "http.response.start", "status": 200, "headers": _encode_headers(self.headers)})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        if (transport := _find_transport(scope)) is not None:
            transport.close()
        await wait_for_disconnect(receive, 5)


class Paced:
    """
    Send a body in chunks, with a pause before each, until it ends or the client disconnects.

    :param chunks: the body
    :param seconds: pause before each chunk
    :param content_length: declared length in bytes; ``None`` = none
    """

    def __init__(
        self,
        chunks: AsyncIterator[bytes],
        *,
        seconds: float = 0.0,
        content_length: int | None,
        headers: Mapping[str, str],
    ) -> None:
        self.chunks = chunks
        self.seconds = seconds
        self.headers = dict(headers)
        if content_length is not None:
            self.headers["content-length"] = str(content_length)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI signature
        """Run as an ASGI application."""
        await send({"type": "http.response.start", "status": 200, "headers": _encode_headers(self.headers)})
        disconnected = asyncio.ensure_future(wait_for_disconnect(receive))
        try:
            async for chunk in self.chunks:
                await asyncio.wait((disconnected,), timeout=self.seconds)
                if disconnected.done():
                    return
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            disconnected.cancel()


def _encode_headers(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
