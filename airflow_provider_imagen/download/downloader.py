"""
Download images from the URLs the API returns, without the API key.

URLs are untrusted: every hop is checked, the connection goes to the address that was checked, and size, time and
redirects are limited. Transient failures, truncated bodies among them, are retried here, independently of generation.

Imports requests, so import this module only where it is used.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import threading
import time
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urljoin, urlsplit

import requests
from msgspec import Struct
from requests.utils import select_proxy
from tenacity import Retrying, retry_if_exception, wait_exponential, wait_random
from urllib3 import Retry
from urllib3.exceptions import HTTPError, InvalidHeader

from airflow_provider_imagen import __version__
from airflow_provider_imagen.download.ssrf import FetchLimits, GuardedAdapter, failure_message
from airflow_provider_imagen.exceptions import BadImageError, DownloadError, LinkExpiredError, UnsafeAddressError
from airflow_provider_imagen.redaction import keep_queries_out_of_logs
from airflow_provider_imagen.signed_urls import url_expiry

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from types import TracebackType

    from requests import PreparedRequest, Response
    from tenacity import RetryCallState

    from airflow_provider_imagen.download.ip_addresses import HostAndPort

MAX_RETRY_AFTER_SECONDS = 30.0
"""Longest ``Retry-After`` honoured between two attempts of one download."""

_CHUNK_BYTES = 256 * 1024
_POOLED_HOSTS = 32
_POOLED_CONNECTIONS_PER_HOST = 64  # the most threads that can download at once
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_EXPIRED = frozenset({401, 403, 404, 410})
_TRANSIENT = frozenset({408, 425, 429})  # and every 5xx
_HEADERS = {
    "User-Agent": f"airflow-provider-imagen/{__version__}",
    "Accept": "image/*, */*;q=0.5",  # */* for servers that store images under a generic type
    "Accept-Encoding": "identity",
}
_COMPRESSIONS = frozenset({"gzip", "x-gzip", "deflate", "compress", "x-compress", "br", "zstd"})
_GZIP, _ZLIB, _RAW_DEFLATE = zlib.MAX_WBITS | 16, zlib.MAX_WBITS, -zlib.MAX_WBITS
_GZIP_START = b"\x1f\x8b\x08"
_MAX_GZIP_MEMBERS = 16  # concatenated
_MAX_NESTED_COMPRESSIONS = 4  # nested


class Download(Struct, frozen=True):
    """
    A downloaded body.

    :param data: the body, not empty; not yet verified to be a complete image
    :param content_type: media type stated by the server, lower case without parameters; may disagree with ``data``
    :param final_host: host that served the body, after redirects
    """

    data: bytes
    content_type: str | None
    final_host: str

    def __repr__(self) -> str:
        return f"Download({len(self.data)} bytes, {self.content_type!r}, {self.final_host!r})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Return the fields without the data, for tracebacks that show variables."""
        return [("content_type", self.content_type), ("final_host", self.final_host)]


@dataclass(eq=False)
class _AttemptError(Exception):
    """
    A failed attempt.

    :param reason: what happened; completes "Could not download the image from <host>: …"
    :param retry: whether to retry
    :param retry_after: seconds the server asks to wait before a retry
    """

    reason: str
    host: str | None
    retry: bool = False
    kind: type[DownloadError] = DownloadError
    status: int | None = None
    retry_after: float | None = None

    def to_error(self, attempts: int) -> DownloadError:
        suffix = f" ({attempts} attempts)" if attempts > 1 else ""
        return self.kind(failure_message(self.host, f"{self.reason}{suffix}"), host=self.host, status=self.status)


class Downloader:
    """
    Download images with SSRF protection and limits, without the API key.

    Sends no credentials, cookies or referrer, limits redirects and checks every hop. Each host name is resolved once.
    All its addresses must be public (or private where ``allow_private_hosts`` permits, but never link-local or that of
    a metadata service), and the connection goes to one of them, which defeats DNS rebinding.

    Proxies and CA bundles come from the environment as requests reads them (``HTTPS_PROXY``, ``NO_PROXY``,
    ``REQUESTS_CA_BUNDLE`` …); ``.netrc`` is not read. **A proxy resolves names itself**: only IP literals and the
    names that this machine can resolve are checked then, and the proxy may resolve a name differently.

    Thread-safe; each fetch runs in the calling thread.

    :param allow_private_hosts: hosts (:func:`~airflow_provider_imagen.download.ip_addresses.parse_host`) that may have
        private or loopback addresses and may be reached by a redirect from ``https`` to ``http``; ``True`` for all
    :param verify: whether to check TLS certificates, or the path of a CA bundle
    :param connect_timeout_seconds: longest wait for one connection, not counting name resolution
    :param read_timeout_seconds: longest time without data from a server
    :param total_timeout_seconds: longest time for one :meth:`fetch`, all attempts and waits included
    :param max_bytes: largest body, before and after decompression
    :param max_redirects: most redirects followed
    :param attempts: most attempts in all, at least 1
    :param cancelled: ends every fetch and wait when set; ``None`` for never
    :param sleep: waits between attempts, in seconds; default: until then or until ``cancelled`` is set
    :param clock: monotonic seconds
    """

    def __init__(
        self,
        *,
        allow_private_hosts: bool | Collection[HostAndPort],
        verify: bool | str = True,
        connect_timeout_seconds: float = 10.0,
        read_timeout_seconds: float = 60.0,
        total_timeout_seconds: float = 300.0,
        max_bytes: int = 64 * 1024 * 1024,
        max_redirects: int = 3,
        attempts: int = 4,
        cancelled: threading.Event | None = None,
        sleep: Callable[[float], Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        keep_queries_out_of_logs()
        self._allow_private_hosts = allow_private_hosts
        self._verify = verify
        self._connect_timeout_seconds = connect_timeout_seconds
        self._read_timeout_seconds = read_timeout_seconds
        self._total_timeout_seconds = total_timeout_seconds
        self._max_bytes = max_bytes
        self._max_redirects = max_redirects
        self._attempts = attempts
        self._cancelled = cancelled or threading.Event()
        self._sleep: Callable[[float], Any] = sleep or self._cancelled.wait
        self._clock = clock
        self._environment_of = lru_cache(maxsize=_POOLED_HOSTS)(self._read_environment)
        self._adapter = GuardedAdapter(_POOLED_HOSTS, _POOLED_CONNECTIONS_PER_HOST)

    def __enter__(self) -> Downloader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections kept alive between fetches."""
        self._adapter.close()

    def fetch(self, url: str) -> Download:
        """
        Return the body behind a URL, retrying transient failures.

        :param url: an ``http`` or ``https`` URL; the caller decodes ``data:`` URIs
        :raises UnsafeAddressError: the URL or a redirect leads into a private network, or cannot be used safely
        :raises LinkExpiredError: the URL is gone or no longer accessible
        :raises BadImageError: the body is empty, too large, corrupt, or an HTML or JSON document
        :raises DownloadError: every attempt failed, or the task is ending
        """
        limits = FetchLimits(
            allow_private_hosts=self._allow_private_hosts,
            read_timeout_seconds=self._read_timeout_seconds,
            total_timeout_seconds=self._total_timeout_seconds,
            cancelled=self._cancelled,
            clock=self._clock,
        )

        retrying = Retrying(
            retry=retry_if_exception(lambda error: isinstance(error, _AttemptError) and error.retry),
            stop=lambda state: (
                state.attempt_number >= self._attempts or state.upcoming_sleep >= limits.remaining_seconds()
            ),
            wait=_wait_seconds,
            before_sleep=lambda _: limits.check(),
            sleep=self._sleep,
            reraise=True,
        )
        try:
            with limits.applied():
                return retrying(self._attempt, url, limits)
        except _AttemptError as error:
            failure = error.to_error(retrying.statistics["attempt_number"])
        raise failure  # outside the handler, so that no chained error shows the URL

    def _attempt(self, url: str, limits: FetchLimits) -> Download:
        """Make one attempt, following redirects hop by hop."""
        secure = False
        for _ in range(self._max_redirects + 1):
            request = _prepare(url)
            parts = urlsplit(url := str(request.url))
            limits.host = host = parts.hostname or ""
            limits.check()
            port = parts.port or (443 if parts.scheme == "https" else 80)
            if secure and parts.scheme == "http" and not limits.may_be_private(host, port):
                raise _AttemptError("it redirects from https to http", host, kind=UnsafeAddressError)
            secure = parts.scheme == "https"
            response = self._send(request, limits, host, port)
            try:
                location = response.headers.get("Location")
                if response.status_code not in _REDIRECTS or location is None:
                    return self._receive(response, limits, host)
            finally:
                response.close()
            url = _follow(url, location)
        raise _AttemptError(f"more than {self._max_redirects} redirects", limits.host)

    def _send(self, request: PreparedRequest, limits: FetchLimits, host: str, port: int) -> Response:
        settings = self._environment_of(urlsplit(str(request.url))._replace(path="", query="").geturl())
        limits.check_literal(host, port)
        if select_proxy(str(request.url), settings["proxies"]):
            limits.check_before_proxy(host, port)
        remaining = limits.remaining_seconds()
        timeout = (min(self._connect_timeout_seconds, remaining), min(self._read_timeout_seconds, remaining))
        try:
            return self._adapter.send(
                request,
                stream=True,
                timeout=timeout,
                verify=cast("bool | str", settings["verify"]),
                proxies=settings["proxies"],
            )
        except (OSError, HTTPError, ValueError) as error:  # errors of requests are OSErrors
            raise _transport_error(error, host) from None

    def _read_environment(self, origin: str) -> Mapping[str, Any]:
        """Return proxies and TLS settings for a server; reading them for each request would take a millisecond."""
        return requests.Session().merge_environment_settings(origin, {}, True, self._verify, None)

    def _receive(self, response: Response, limits: FetchLimits, host: str) -> Download:
        """Classify the status of a response that is not a redirect, and read its body."""
        status = response.status_code
        if status in _EXPIRED:
            reason = f"the server returned {status}: the URL no longer works{_expiry_note(str(response.url))}"
            raise _AttemptError(reason, host, kind=LinkExpiredError, status=status)
        is_transient = status in _TRANSIENT or status >= 500
        if not 200 <= status < 300 or status == 206:  # no range was requested, so 206 is part of an image
            raise _AttemptError(
                f"the server returned {status}",
                host,
                retry=is_transient,
                status=status,
                retry_after=_retry_after_seconds(response),
            )
        return self._decode(self._read(response, limits, host), response, host)

    def _read(self, response: Response, limits: FetchLimits, host: str) -> bytes:
        """Return the body if it is complete and within the size limit."""
        chunks: list[bytes] = []
        received = 0
        total = _content_length(response)
        too_large = _AttemptError(f"the body is larger than {self._max_bytes} bytes", host, kind=BadImageError)
        if total is not None and total > self._max_bytes:
            raise too_large
        response.raw.headers.discard("Content-Encoding")  # urllib3 rejects long lists even without decoding
        try:
            while chunk := response.raw.read(_CHUNK_BYTES, decode_content=False):
                chunks.append(chunk)
                received += len(chunk)
                if received > self._max_bytes:
                    raise too_large
                if received != total:  # keep a complete body even if the task is ending
                    limits.check()
        except (OSError, HTTPError) as error:
            raise _transport_error(error, host) from None
        return b"".join(chunks)

    def _decode(self, body: bytes, response: Response, host: str) -> Download:
        """Undo compression, which was not requested, and reject a body that cannot be an image."""
        codings = _content_codings(response)
        for _ in range(_MAX_NESTED_COMPRESSIONS):
            compression = _detect_compression(body, codings)
            decompressed = None if compression is None else _decompress(body, compression, self._max_bytes)
            if decompressed is None and compression in (_GZIP, _ZLIB):
                raise _AttemptError("the compressed body is corrupt", host, kind=BadImageError)
            if decompressed is None:
                break
            if len(decompressed) > self._max_bytes:
                raise _AttemptError(
                    f"the decompressed body is larger than {self._max_bytes} bytes", host, kind=BadImageError
                )
            body = decompressed
        if not body:
            raise _AttemptError("the body is empty", host, retry=True, kind=BadImageError, status=response.status_code)
        stated_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower() or None
        document = _document_kind(body, stated_type)
        if document is not None:
            raise _AttemptError(f"the server returned {document} instead of an image", host, kind=BadImageError)
        return Download(data=body, content_type=stated_type, final_host=host)


def _error_of(state: RetryCallState) -> _AttemptError:
    return cast("_AttemptError", state.outcome and state.outcome.exception())  # the only kind that is retried


_backoff = wait_exponential(multiplier=0.5, max=10.0) + wait_random(0.0, 1.0)


def _wait_seconds(state: RetryCallState) -> float:
    """Return the exponential backoff, or the server's ``Retry-After`` (capped) if longer."""
    retry_after = min(_error_of(state).retry_after or 0.0, MAX_RETRY_AFTER_SECONDS)
    return max(retry_after, _backoff(state))


def _prepare(url: str) -> PreparedRequest:
    """Return the request for one hop; raise if the URL cannot be fetched safely."""
    scheme = url.lstrip().partition(":")[0].lower()
    if scheme == "data":
        raise _AttemptError("a data: URI cannot be downloaded", None)
    if scheme not in ("http", "https"):
        raise _AttemptError("only http and https URLs are allowed", None, kind=UnsafeAddressError)
    try:
        request = requests.Request("GET", url, headers=_HEADERS).prepare()
        parts = urlsplit(str(request.url))
        _ = parts.port  # raises ValueError for an invalid port
    except ValueError:  # requests' errors for malformed URLs are ValueErrors, too
        raise _AttemptError("the URL is malformed", None, kind=UnsafeAddressError) from None
    if "@" in parts.netloc:
        raise _AttemptError("the URL contains a user name", parts.hostname, kind=UnsafeAddressError)
    return request


def _follow(url: str, location: str) -> str:
    """Return the URL a redirect leads to, empty if ``Location`` is malformed."""
    try:
        return urljoin(url, location.encode("latin-1").decode("utf-8", "replace"))
    except ValueError:
        return ""


def _transport_error(error: Exception, host: str) -> _AttemptError:
    """Classify a transport error, leaving out its text, which contains the URL."""
    chain: list[BaseException] = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(inner)
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in chain):
        return _AttemptError("its TLS certificate is not trusted; set verify to the CA bundle of its issuer", host)
    if any(isinstance(cause, socket.gaierror) for cause in chain):
        return _AttemptError("the host name cannot be resolved", host, retry=True)
    if any(isinstance(cause, http.client.IncompleteRead) for cause in chain):
        return _AttemptError("the body was truncated", host, retry=True)
    name = type(error).__name__
    if isinstance(error, (requests.Timeout, TimeoutError)) or "Timeout" in name:
        return _AttemptError("the server did not respond in time", host, retry=True)
    is_transient = isinstance(error, (requests.ConnectionError, HTTPError))
    if not is_transient and type(error) is OSError:  # from requests, before it connects
        return _AttemptError("the CA bundle set by verify or the environment does not exist", host)
    return _AttemptError(f"the connection failed ({name})", host, retry=is_transient)


def _retry_after_seconds(response: Response) -> float | None:
    try:
        return Retry().get_retry_after(response.raw)
    except (InvalidHeader, ValueError, OverflowError):
        return None


def _expiry_note(url: str) -> str:
    expiry = url_expiry(url)
    if expiry is None:
        return ""
    age = datetime.now(UTC) - expiry
    if age < timedelta(0):
        return f", although it is valid until {expiry:%Y-%m-%d %H:%M} UTC"
    return f"; it expired at {expiry:%Y-%m-%d %H:%M} UTC, {timedelta(seconds=int(age.total_seconds()))} h ago"


def _content_length(response: Response) -> int | None:
    text = response.headers.get("Content-Length", "")
    is_number = re.fullmatch(r"[0-9]{1,18}", text) is not None
    return int(text) if is_number and "Transfer-Encoding" not in response.headers else None


def _content_codings(response: Response) -> set[str]:
    """Return the compressions named in ``Content-Encoding``; other values there do not change the bytes."""
    stated = response.headers.get("Content-Encoding", "").lower().split(",")
    return {part.strip() for part in stated} & _COMPRESSIONS


def _detect_compression(body: bytes, codings: set[str]) -> int | None:
    """
    Return how a body may be compressed, as zlib's ``wbits``; ``None`` if it is not.

    The bytes decide, because storage hosts repeat whatever ``Content-Encoding`` an upload had. No image starts like
    gzip, so gzip is recognized even if no header names it. zlib's header is too short for that, so it counts only if
    a header names a compression. Raw "deflate", which some servers send, is whatever decompresses without an error.
    """
    if body.startswith(_GZIP_START):
        return _GZIP
    has_zlib_header = len(body) > 1 and body[0] & 0x8F == 8 and int.from_bytes(body[:2], "big") % 31 == 0
    if has_zlib_header and codings & {"gzip", "x-gzip", "deflate"}:
        return _ZLIB
    return _RAW_DEFLATE if "deflate" in codings else None


def _decompress(body: bytes, compression: int, max_bytes: int) -> bytes | None:
    """Return the decompressed body, truncated at one byte over the limit; ``None`` if the data is corrupt."""
    decompressed = b""
    for _ in range(_MAX_GZIP_MEMBERS):
        decompressor = zlib.decompressobj(compression)
        try:
            decompressed += decompressor.decompress(body, max_bytes + 1 - len(decompressed))
        except zlib.error:
            return None
        if len(decompressed) > max_bytes:
            return decompressed
        if not decompressor.eof or (compression == _RAW_DEFLATE and decompressor.unused_data):
            return None
        body = decompressor.unused_data
        if compression != _GZIP or not body.startswith(_GZIP_START):
            break
    return decompressed


def _document_kind(body: bytes, stated_type: str | None) -> str | None:
    """Return the kind of document sent instead of an image, else ``None``; the bytes can override the stated type."""
    head = body[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    if head.startswith((b"{", b"[")):
        return "a JSON document"
    if stated_type is None or b"\0" in body[:512] or b"<svg" in body[:4096].lower():
        return None
    if stated_type in ("text/html", "application/xhtml+xml"):
        return "an HTML page"
    return "a JSON document" if stated_type == "application/json" or stated_type.endswith("+json") else None
