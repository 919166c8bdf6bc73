"""
Connections that record whether a request was sent, and time out its response as a whole.

The exception types of requests do not tell whether it was sent: a proxy that disconnects after taking the request
raises ``ProxyError``, a response with two lengths ``InvalidHeader``, a TLS handshake that hangs ``ReadTimeout``. So the
connection itself records it, whether direct or through a proxy. Imports requests, so import this module only where it
is used.
"""

from __future__ import annotations

import io
import time
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from requests import Session
from requests.adapters import HTTPAdapter

from airflow_provider_imagen.api.final_response import FinalResponse

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from requests import Response


class SendProgress(Struct):
    """
    How far one request got.

    :param before_send: called once it is connected, before its headers and again before its body; may raise
    :param tracked: whether it uses one of our connections; otherwise nothing is known
    :param sent: whether any of its bytes were handed to the network
    """

    before_send: Callable[[], None] | None = None
    tracked: bool = False
    sent: bool = False

    @property
    def never_sent(self) -> bool:
        """Whether certainly no byte of the request reached anyone."""
        return self.tracked and not self.sent


_current: ContextVar[SendProgress | None] = ContextVar("progress", default=None)


@contextmanager
def track_sending(before_send: Callable[[], None] | None = None) -> Iterator[SendProgress]:
    """Track the request that this thread sends inside the ``with`` block."""
    progress = SendProgress(before_send)
    token = _current.set(progress)
    try:
        yield progress
    finally:
        _current.reset(token)


class _DeadlineReader(io.RawIOBase):
    """Reads a socket until a deadline, however steadily data arrives: the socket's timeout after the last restart."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket) -> None:
        self._raw = raw  # holds the socket open until this reader closes
        self._sock = sock
        self._timeout_seconds = sock.gettimeout()
        self.restart()

    def restart(self) -> None:
        self._deadline = time.monotonic() + (self._timeout_seconds or float("inf"))

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._timeout_seconds is None:
            return self._sock.recv_into(buffer)
        if (seconds := self._deadline - time.monotonic()) <= 0:
            raise TimeoutError("the response was not complete in time")
        self._sock.settimeout(seconds)
        try:
            return self._sock.recv_into(buffer)
        finally:
            self._sock.settimeout(self._timeout_seconds)  # for a TLS handshake through a proxy

    def close(self) -> None:
        self._raw.close()
        super().close()


class _TimedResponse(FinalResponse):
    """
    A final response with two deadlines of one read timeout each: for its headers, and from then on for its body.

    The first deadline includes any interim responses.
    """

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self._reader = _DeadlineReader(self.fp.detach(), sock)
        self.fp = io.BufferedReader(self._reader)

    def begin(self) -> None:
        super().begin()
        self._reader.restart()


class _TracksSending:
    """Mixin for urllib3 connections that records when a request is sent; a proxy tunnel does not count."""

    response_class = _TimedResponse
    sock: Any
    _is_connecting = False

    def connect(self) -> None:
        self._is_connecting = True
        try:
            super().connect()  # type: ignore[misc]
        finally:
            self._is_connecting = False

    def send(self, data: Any) -> None:
        if self.sock is None:
            self.connect()
        progress = _current.get()
        if progress is not None and not self._is_connecting:
            if progress.before_send is not None:
                progress.before_send()
            progress.sent = True
        super().send(data)  # type: ignore[misc]


class TrackedAdapter(HTTPAdapter):
    """A requests adapter whose connections record whether they sent the request."""

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        """Return the pool for a request, set to create tracked connections."""
        pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
        if not issubclass(pool.ConnectionCls, _TracksSending):
            pool.ConnectionCls = type("TrackedConnection", (_TracksSending, pool.ConnectionCls), {})
        progress = _current.get()
        if progress is not None:
            progress.tracked = True
        return pool


class TrackedSession(Session):
    """A session on tracked connections that ignores redirects."""

    def __init__(self) -> None:
        super().__init__()
        for scheme in ("https://", "http://"):
            self.mount(scheme, TrackedAdapter())

    def get_redirect_target(self, resp: Response) -> str | None:  # noqa: ARG002 - the signature is requests'
        """Return ``None``: following a redirect would send the key elsewhere."""
        return None
