"""Protection of the sandbox against web pages in a browser on the same machine."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send


class LocalRequestsOnly:
    """
    Reject requests that a web page makes a browser on this machine send (CSRF and DNS rebinding).

    A page can post ``text/plain`` and forms to any address, and its own host name can resolve to 127.0.0.1. Programs
    send JSON or uploads, no ``Origin``, and a local ``Host``. The sandbox's own page sends forms with its ``Origin``.

    :param is_loopback: whether the sandbox listens on loopback only; otherwise any ``Host`` is accepted, and the page
        works if it is opened by an IP address
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

    def _is_from_own_address(self, headers: Headers) -> bool:
        """Return whether the own page was opened by the address of a network interface."""
        return not self.is_loopback and is_from_own_page(headers) and _is_address(headers["origin"])

    def _rejection(self, method: str, headers: Headers) -> str | None:
        host = headers.get("host", "")
        if self.is_loopback and not _is_this_machine(f"//{host}"):
            return "The sandbox only accepts the hosts localhost, 127.0.0.1 and [::1]."
        if method in ("GET", "HEAD", "OPTIONS"):
            return None
        if "origin" in headers and not (_is_this_machine(headers["origin"]) or self._is_from_own_address(headers)):
            return "The sandbox rejects cross-origin requests."
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "application/x-www-form-urlencoded" and is_from_own_page(headers):
            return None
        if kind and not kind.endswith(("/json", "+json")) and kind != "multipart/form-data":
            return "The sandbox only accepts application/json and multipart/form-data."
        return None


def _is_address(url: str) -> bool:
    """Return whether the host of a URL is an IP address, which no other page can make its own name resolve to."""
    try:
        return bool(ip_address(urlsplit(url).hostname or ""))
    except ValueError:
        return False


def is_from_own_page(headers: Headers) -> bool:
    """Return whether the sandbox's own page made the browser send a request; programs and other pages did not."""
    return headers.get("origin") == f"http://{headers.get('host', '')}"


def _is_this_machine(url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or host.endswith(".localhost") or ip_address(host).is_loopback
    except ValueError:
        return False
