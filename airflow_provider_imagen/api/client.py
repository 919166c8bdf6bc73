"""
Authenticated HTTP client for the API: one attempt per call, every outcome classified.

Retries are up to the caller. Imports requests, so import this module only where it is used.
"""

from __future__ import annotations

import hashlib
import http.client
import re
import ssl
import threading
import time
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import requests
from msgspec import Struct
from msgspec.structs import asdict
from requests import exceptions as transport
from urllib3 import HTTPResponse
from urllib3 import exceptions as pool

from airflow_provider_imagen import __version__
from airflow_provider_imagen.api.cost import read_amount, read_cost
from airflow_provider_imagen.api.errors import error_for, read_http_date, rejected_field
from airflow_provider_imagen.api.fields import BASE64_FIELDS, COUNT_FIELDS, read_whole_number
from airflow_provider_imagen.api.json_body import read_json, storable
from airflow_provider_imagen.api.responses import Generation, read_generation
from airflow_provider_imagen.api.retries import resending
from airflow_provider_imagen.api.send_tracking import TrackedSession, track_sending
from airflow_provider_imagen.api.transport_checks import check_ca_bundle, warn_about_plain_http
from airflow_provider_imagen.exceptions import ConnectionFailedError, LostAnswerError, UnreadableResponseError
from airflow_provider_imagen.redaction import keep_queries_out_of_logs, scrub, scrub_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import datetime
    from decimal import Decimal

    from airflow_provider_imagen.api.send_tracking import SendProgress

DEFAULT_BASE_URL = "https://api.aimlapi.com"
CONNECT_TIMEOUT_SECONDS = 10.0
READ_TIMEOUT_SECONDS = 300.0

USER_AGENT = f"airflow-provider-imagen/{__version__}"
MAX_RESPONSE_BYTES = 256 * 1024 * 1024
"""Largest body read, however many images were requested."""

MAX_TEXT_BYTES = 16 * 1024 * 1024
"""Largest body read of a response without images."""

MAX_IMAGE_BYTES = 60 * 1024 * 1024
"""Allowance per image in a response body: 45 MB as base64."""

MAX_JSON_VALUES = 250_000
"""Most JSON values in a body. Once parsed, each takes tens to hundreds of bytes, however short it is in the body."""

_DEFAULT_IMAGES = 4
"""Images expected if the request states no count."""

_ERROR_BYTES = 1024 * 1024
_READ_BYTES = 256 * 1024
_ACCEPTED_ENCODINGS = ("gzip", "x-gzip", "deflate")
_JSON_TOKEN = re.compile(rb'"[^"]*"?|[,\[{]')  # a string, possibly unterminated, or a delimiter before a value
_API_KEY = re.compile(r"[!-~]+")
"""Characters valid in an HTTP header: visible ASCII."""

_CLIENT_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
"""Format of ``X-Client-Request-Id``; the API drops any other value (docs, request tracing, 2026-08-21)."""

LOG_PAGE_ROWS = 100
"""Most rows per page of ``GET /v2/logs`` (spec of the endpoint, 2026-08-21)."""

TRANSACTIONS_PAGE_ROWS = 100
"""Most entries per page of ``GET /v2/billing/transactions`` (spec of the endpoint, 2026-08-21)."""

LOG_INTERVAL_SECONDS = 0.35
"""
Shortest time between two calls of ``GET /v2/logs``.

The API allows 200 per 60 s (its documentation, 2026-08-21); this leaves some
for other tasks that use the same key.
"""

_LARGEST_CLOCK_OFFSET_SECONDS = 30 * 86400
"""A ``Date`` header further than this from our clock is ignored."""


class ClientSettings(Struct, frozen=True):
    """
    Connection settings of the API.

    :param base_url: scheme, host and optional path, with or without ``/v1``
    :param api_key: sent to this host only; left out of ``repr``
    :param connect_timeout_seconds: longest wait for a connection
    :param read_timeout_seconds: longest wait for the complete headers of a response, and again for its complete body
    :param verify: whether to check TLS certificates, or the path of a CA bundle
    """

    base_url: str = DEFAULT_BASE_URL
    api_key: str | None = None
    connect_timeout_seconds: float = CONNECT_TIMEOUT_SECONDS
    read_timeout_seconds: float = READ_TIMEOUT_SECONDS
    verify: bool | str = True

    @property
    def account(self) -> str:
        """Short hash of the API key: the API's log shows a request only to the key that sent it."""
        return hashlib.sha256(b"airflow-provider-imagen account\0" + (self.api_key or "").encode()).hexdigest()[:16]

    def __repr__(self) -> str:
        return f"ClientSettings(base_url={self.base_url!r})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Return the fields without the key, for tracebacks that show variables; a ``Struct`` would show them all."""
        return [("base_url", self.base_url)]


class ApiResponse(Struct, frozen=True):
    """A complete HTTP response: status, headers by lower-case name, body (of an error, possibly truncated)."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class _Page(Struct, frozen=True):
    """One page of a list: its rows, whether another page follows, and the cursor for it if the list uses cursors."""

    rows: list[dict[str, Any]]
    has_more: bool
    next_cursor: str | None


class ApiClient:
    """
    Client for the API. Thread-safe: each thread has its own connections.

    :param settings: base URL, API key and timeouts
    :param clock: monotonic seconds, to space out pages of the log
    :param sleep: pauses before the next page of the log
    :raises ValueError: the base URL, the key or the CA bundle is unusable
    """

    def __init__(
        self,
        settings: ClientSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if settings.api_key is not None and not _API_KEY.fullmatch(settings.api_key):
            raise ValueError("password: the API key must consist of visible ASCII characters, without spaces")
        self.settings = settings
        self._root = _parse_base_url(settings.base_url)
        if self._root.startswith("https:"):
            check_ca_bundle(settings.verify)
        elif settings.api_key:
            warn_about_plain_http(self._root)
        keep_queries_out_of_logs()
        self._local = threading.local()
        self._sessions: list[requests.Session] = []
        self._lock = threading.Lock()
        self._log_pacer = _Pacer(LOG_INTERVAL_SECONDS, clock=clock, sleep=sleep)
        self._clock_offset_seconds: float | None = None
        self._rejected_fields: set[tuple[str | None, str]] = set()

    @property
    def host(self) -> str:
        """Host name of the API."""
        return urlsplit(self._root).hostname or ""

    @property
    def clock_offset_seconds(self) -> float | None:
        """Seconds the API's clock is ahead of ours, by the latest usable ``Date`` header; ``None`` before the first."""
        return self._clock_offset_seconds

    def generate(
        self,
        path: str,
        body: Mapping[str, Any],
        *,
        client_request_id: str,
        files: Any = None,
        before_send: Callable[[], None] | None = None,
    ) -> Generation:
        """
        Send one paid request and return its result.

        Sends once, with one exception: if a gateway rejects the field that chooses between URLs and base64, the
        request, which cost nothing, is sent again without that field.

        :param path: ``/v1/images/generations`` or ``/v1/images/edits``
        :param body: JSON fields, or the form fields sent along with ``files``
        :param client_request_id: 1 to 128 characters of ``A-Za-z0-9._:-``
        :param files: parts of a multipart form as requests takes them
        :param before_send: called when the request is about to be sent; if it raises, the API has nothing to act on
        :raises ValueError: the id or the body is invalid; nothing was sent
        :raises ConnectionFailedError: nothing was sent
        :raises LostAnswerError: sent, outcome unknown
        :raises ImagenError: the error that was returned, see :mod:`airflow_provider_imagen.exceptions`
        """
        if not _CLIENT_REQUEST_ID.fullmatch(client_request_id):
            raise ValueError(
                f"client_request_id={client_request_id!r}: 1 to 128 characters of A-Za-z0-9._:- are allowed; "
                f"the API would drop this one silently"
            )
        model = body.get("model") if isinstance(body.get("model"), str) else None
        details: dict[str, Any] = {
            "api_key": self.settings.api_key,
            "client_request_id": client_request_id,
            "model": model,
        }
        try:
            while True:
                fields = {name: value for name, value in body.items() if (model, name) not in self._rejected_fields}
                response = self._exchange(
                    "POST",
                    path,
                    headers={"X-Client-Request-Id": client_request_id},
                    max_bytes=_max_response_bytes(fields),
                    before_send=before_send,
                    **({"data": fields, "files": files} if files else {"json": fields}),
                )
                rejected = rejected_field(response.status, response.body, fields.keys() & set(BASE64_FIELDS))
                if rejected is None or error_for(**asdict(response), **details).usd:
                    break
                self._rejected_fields.add((model, rejected))  # nothing was charged; the gateway chooses the format
        except (ConnectionFailedError, LostAnswerError, UnreadableResponseError) as error:
            error.client_request_id, error.model = client_request_id, model
            raise
        if 200 <= response.status < 300:
            return read_generation(**asdict(response), **details)
        raise error_for(**asdict(response), **details)

    def get_key(self) -> dict[str, Any]:
        """Return the key's name, prefix, scopes and limit (``GET /v1/key``; free)."""
        data = self.get_json("/v1/key").get("data")
        return data if isinstance(data, dict) else {}

    def get_balance(self) -> dict[str, Any]:
        """Return ``current_balance`` and ``currency``, which is USD (``GET /v2/billing``; free)."""
        return self.get_json("/v2/billing")

    def get_usage(self, *, start: datetime, end: datetime) -> Decimal:
        """
        Return what the key has spent in a time window, in USD (``GET /v2/usage``; free).

        :param start: start of the window, with a time zone
        :param end: end of the window, at most 92 days later (spec of the endpoint, 2026-08-21)
        :raises UnreadableResponseError: the response has no amount in USD
        """
        usage = self.get_json("/v2/usage", params={"start": start.isoformat(), "end": end.isoformat()})
        spent_usd = read_amount(usage.get("spend"))
        if spent_usd is None or usage.get("currency", "USD") != "USD":
            raise UnreadableResponseError("GET /v2/usage did not return an amount in USD.", status=200)
        return spent_usd

    def list_models(self, *, include_pricing: bool = False) -> list[dict[str, Any]]:
        """Return the image models (``GET /v1/models``; free, no key needed)."""
        params = {"type": "openai/image-generations", **({"include": "pricing"} if include_pricing else {})}
        return _rows(self.get_json("/v1/models", params=params))

    def find_models(self, model_id: str) -> list[dict[str, Any]]:
        """Return the models of any type with this id or alias (``GET /v1/models``; free, no key needed)."""
        return _rows(self.get_json("/v1/models", params={"id": model_id}))

    def list_deprecations(self) -> list[dict[str, Any]]:
        """Return the deprecated and retired models (``GET /v1/models/deprecations``; free, no key needed)."""
        return _rows(self.get_json("/v1/models/deprecations"))

    def iter_request_logs(
        self,
        *,
        start: datetime,
        end: datetime,
        model: str | Sequence[str] | None = None,
        wait: Callable[[float], None] | None = None,
    ) -> Iterator[dict[str, Any]]:
        """
        Yield the rows of ``GET /v2/logs`` within a time window, newest first; an empty one in place of an invalid one.

        A row that moves to the next page because newer ones arrive in between is yielded once.

        All threads together request at most one page per :data:`LOG_INTERVAL_SECONDS`.

        :param start: start of the window, with a time zone
        :param end: end of the window, at most 92 days later (spec of the endpoint, 2026-08-21)
        :param model: only requests to this model, or to these (at most 50)
        :param wait: sleeps before a page is requested again after a transient error; ``None`` raises the error
        :raises UnreadableResponseError: a page is malformed or does not say whether another follows, so a missing row
            may still exist
        """
        params: dict[str, Any] = {"start": start.isoformat(), "end": end.isoformat(), "limit": LOG_PAGE_ROWS}
        if model:
            params["model"] = model  # a list is sent as a repeated parameter
        offset = 0
        previous: list[dict[str, Any]] = []
        while True:
            self._log_pacer.wait()
            page = self._get_page("/v2/logs", {**params, "offset": offset}, wait)
            yield from page.rows[_overlap(previous, page.rows) :]
            if not page.has_more:
                return
            offset += len(page.rows)
            previous = page.rows

    def iter_transactions(
        self, *, start: datetime, end: datetime, wait: Callable[[float], None] | None = None
    ) -> Iterator[dict[str, Any]]:
        """
        Yield the entries of ``GET /v2/billing/transactions`` within a time window, newest first.

        An empty entry takes the place of an invalid one. An entry that moves to the next page is yielded once.

        :param start: start of the window, with a time zone
        :param end: end of the window, which it does not include
        :param wait: as in :meth:`iter_request_logs`
        :raises UnreadableResponseError: as in :meth:`iter_request_logs`
        """
        params = {"from": start.isoformat(), "to": end.isoformat(), "limit": TRANSACTIONS_PAGE_ROWS}
        cursors: set[str] = set()
        previous: list[dict[str, Any]] = []
        while True:
            page = self._get_page("/v2/billing/transactions", params, wait)
            yield from page.rows[_overlap(previous, page.rows) :]
            if not page.has_more:
                return
            if not page.next_cursor or page.next_cursor in cursors:
                raise UnreadableResponseError(
                    "GET /v2/billing/transactions did not return the position of its next page.", status=200
                )
            cursors.add(page.next_cursor)
            params["cursor"] = page.next_cursor
            previous = page.rows

    def _get_page(self, path: str, params: Mapping[str, Any], wait: Callable[[float], None] | None) -> _Page:
        """
        Return one page of a list.

        :raises UnreadableResponseError: it is malformed, or does not say whether another follows
        """
        get = self.get_json if wait is None else partial(resending(wait=wait), self.get_json)
        document = get(path, params=params)
        data, pagination = document.get("data"), document.get("pagination")
        pagination = pagination if isinstance(pagination, dict) else {}
        has_more, cursor = pagination.get("has_more"), pagination.get("next_cursor")
        if not isinstance(data, list) or not isinstance(has_more, bool) or (has_more and not data):
            raise UnreadableResponseError(f"GET {path} did not return a page of the list.", status=200)
        rows = [row if isinstance(row, dict) else {} for row in data]
        return _Page(rows, has_more, cursor if isinstance(cursor, str) else None)

    def get_json(self, path: str, *, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """
        Return the JSON object from one free GET, sent once.

        :raises ConnectionFailedError: no complete response arrived
        :raises UnreadableResponseError: the response is not a JSON object
        """
        try:
            response = self._exchange("GET", path, params=dict(params or {}))
        except LostAnswerError as error:  # a GET is free, so losing its response puts no money in doubt
            raise ConnectionFailedError(str(error)) from error
        if not 200 <= response.status < 300:
            raise error_for(**asdict(response), api_key=self.settings.api_key)
        try:
            document = read_json(response.body)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise UnreadableResponseError(
                f"GET {path} returned {response.status} without a JSON object.", status=response.status
            )
        return document

    def close(self) -> None:
        """Close the connections of all threads."""
        with self._lock:
            sessions, self._sessions, self._local = self._sessions, [], threading.local()
        for session in sessions:
            session.close()

    def _exchange(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        max_bytes: int = MAX_TEXT_BYTES,
        before_send: Callable[[], None] | None = None,
        **content: Any,
    ) -> ApiResponse:
        """
        Send a request once and return its complete response; if it fails, distinguish "never sent" from "in doubt".

        :param max_bytes: largest body of a successful response
        :raises ConnectionFailedError: nothing was sent
        :raises LostAnswerError: sent, outcome unknown
        """
        where = f"{method} {path} at {self.host}"
        session = self._session()
        try:
            request = session.prepare_request(
                requests.Request(method, self._root + path, headers=dict(headers or {}), **content)
            )
        except transport.RequestException as error:
            raise ValueError(f"{where}: the request cannot be encoded ({type(error).__name__})") from None
        timeout = (self.settings.connect_timeout_seconds, self.settings.read_timeout_seconds)
        with track_sending(before_send) as progress:
            try:
                response = session.send(request, timeout=timeout, allow_redirects=False, **self._environment)
            except (transport.RequestException, pool.HTTPError, OSError) as error:
                reason = scrub(_reason(error), self.settings.api_key, limit=200)
                if _was_never_sent(error, progress):
                    raise ConnectionFailedError(
                        f"{where}: no connection was made ({reason}). Nothing was sent."
                    ) from None
                raise LostAnswerError(f"{where}: the request was sent, but its response was lost ({reason}).") from None
        with response:
            return self._read_response(response, where, max_bytes)

    def _read_response(self, response: requests.Response, where: str, max_bytes: int) -> ApiResponse:
        """Read the body. Of an error, a truncated body is enough, because the status says what happened."""
        headers = {name.lower(): storable(value) for name, value in response.headers.items()}
        self._measure_clock(headers)
        status = response.status_code
        usd, _ = read_cost(headers, {})
        details: dict[str, Any] = {
            "status": status,
            "inference_id": scrub_id(headers.get("x-inference-id"), self.settings.api_key),
            "usd": float(usd) if usd is not None else None,
        }
        is_success = 200 <= status < 300
        max_bytes = max_bytes if is_success else _ERROR_BYTES
        chunks: list[bytes] = []
        received = 0
        problem = _encoding_problem(headers.get("content-encoding", ""))
        try:
            while problem is None and (chunk := response.raw.read1(_READ_BYTES, decode_content=True)):
                chunks.append(chunk)
                received += len(chunk)
                if received > max_bytes:
                    problem = f"is larger than {max_bytes} bytes"
        except (pool.HTTPError, OSError) as error:
            if is_success:
                raise LostAnswerError(f"{where}: the response was lost ({_reason(error)}).", **details) from None
        body = b"".join(chunks)
        if problem is None and is_success and _has_too_many_values(body):
            problem = f"contains more than {MAX_JSON_VALUES} JSON values"
        if problem is not None and is_success:
            raise UnreadableResponseError(f"{where}: the response body {problem}.", **details)
        return ApiResponse(status=status, headers=headers, body=body)

    def _measure_clock(self, headers: Mapping[str, str]) -> None:
        """Record how far the API's clock is ahead, unless a cache responded, whose ``Date`` is old."""
        date = read_http_date(headers.get("date"))
        if date is None or "age" in headers:
            return
        offset = date.timestamp() - time.time()
        if abs(offset) <= _LARGEST_CLOCK_OFFSET_SECONDS:
            self._clock_offset_seconds = offset

    @cached_property
    def _environment(self) -> dict[str, Any]:
        """
        Proxies and TLS settings from the environment; reading them for each request would take a millisecond.

        Passed with each request, because they would otherwise override ``verify``.
        """
        return dict(self._session().merge_environment_settings(self._root, {}, True, self.settings.verify, None))

    def _session(self) -> requests.Session:
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = TrackedSession()
            session.headers.update(
                {"User-Agent": USER_AGENT, "Accept": "application/json", "Accept-Encoding": "gzip, deflate"}
            )
            session.auth = _BearerAuth(self.settings.api_key)
            with self._lock:
                self._sessions.append(session)
        return session


class _Pacer:
    """
    Spaces calls evenly across all threads.

    :param interval_seconds: shortest time between two calls
    """

    def __init__(self, interval_seconds: float, *, clock: Callable[[], float], sleep: Callable[[float], None]) -> None:
        self._interval_seconds = interval_seconds
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._next_at = 0.0

    def wait(self) -> None:
        """Sleep until the caller may make its next call."""
        with self._lock:
            now = self._clock()
            at = max(now, self._next_at)
            self._next_at = at + self._interval_seconds
        if at > now:
            self._sleep(at - now)


class _BearerAuth(requests.auth.AuthBase):
    """Adds the key to a request, and thereby keeps requests from reading ``.netrc``."""

    def __init__(self, api_key: str | None) -> None:
        self._api_key = api_key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._api_key:
            request.headers["Authorization"] = f"Bearer {self._api_key}"
        return request


def _parse_base_url(base_url: str) -> str:
    """
    Return the base URL without ``/v1``.

    :raises ValueError: it is not a usable base URL
    """
    try:
        parts = urlsplit(base_url if "://" in base_url else f"https://{base_url}")
        root = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1')}"
        requests.Request("GET", root).prepare()  # raises if no request could be sent there
    except (ValueError, transport.RequestException):
        parts = urlsplit("")
    if "@" in parts.netloc:
        raise ValueError(
            "host: user name and password in the URL are not allowed; the key is the connection's password"
        )
    if parts.query or parts.fragment:
        raise ValueError(f"host={scrub(base_url)!r}: a query or fragment is not allowed; remove it")
    if parts.scheme not in ("http", "https") or not parts.hostname or " " in parts.hostname:
        raise ValueError(f"host={scrub(base_url)!r}: a base URL is needed, such as {DEFAULT_BASE_URL}")
    return root


def _overlap(previous: list[dict[str, Any]], rows: list[dict[str, Any]]) -> int:
    """Return how many rows at the start of a page are those at the end of the previous one; invalid rows never are."""
    longest = min(len(previous), len(rows))
    return next((size for size in range(longest, 0, -1) if previous[-size:] == rows[:size] and all(rows[:size])), 0)


def _max_response_bytes(fields: Mapping[str, Any]) -> int:
    """Return the size limit for the response to an image request; every image may be inline."""
    counts = (read_whole_number(fields.get(name)) for name in COUNT_FIELDS)
    images = max(next(filter(None, counts), _DEFAULT_IMAGES), 1)
    return min(MAX_TEXT_BYTES + MAX_IMAGE_BYTES * images, MAX_RESPONSE_BYTES)


def _encoding_problem(stated: str) -> str | None:
    """
    Return what is wrong with a ``Content-Encoding``; unknown encodings pass, because they are not decoded.

    Nested encodings can expand a kilobyte to a terabyte, and some that we do not accept are decoded without a limit.
    """
    encodings = [part for part in map(str.strip, stated.lower().split(",")) if part in HTTPResponse.CONTENT_DECODERS]
    if len(encodings) > 1 or any(encoding not in _ACCEPTED_ENCODINGS for encoding in encodings):
        return f"is encoded as {', '.join(encodings)!r}; only gzip or deflate, applied once, is accepted"
    return None


def _has_too_many_values(body: bytes | bytearray) -> bool:
    """Return whether JSON has more than :data:`MAX_JSON_VALUES` values, by counting the delimiters before them."""
    if sum(map(body.count, (b",", b"[", b"{"))) <= MAX_JSON_VALUES:
        return False
    body = body.replace(rb"\\", b"").replace(rb"\"", b"")
    delimiters = 0
    for number, token in enumerate(_JSON_TOKEN.finditer(body)):
        delimiters += body[token.start()] != ord('"')
        if max(delimiters, number // 3) > MAX_JSON_VALUES:  # at most two strings, key and value, follow a delimiter
            return True
    return False


def _rows(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    data = document.get("data")
    return [row for row in data if isinstance(row, dict)] if isinstance(data, list) else []


def _was_never_sent(error: Exception, progress: SendProgress) -> bool:
    """
    Return whether the request certainly did not reach the API; when in doubt, it counts as sent.

    An unusable proxy URL fails before there is a connection, so ``progress`` has recorded nothing by then.

    :param progress: what the connection recorded
    """
    unusable_proxy = isinstance(error, transport.InvalidURL | transport.InvalidSchema)
    return progress.never_sent or (unusable_proxy and not progress.sent)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """
    Yield an error and every error that requests and urllib3 wrapped in it.

    Skips ``__context__``: it may be an unrelated error that was being handled when the request was sent.
    """
    seen: set[int] = set()
    pending: list[Any] = [error]
    while pending:
        cause = pending.pop()
        if not isinstance(cause, BaseException) or id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        pending += [
            cause.__cause__,
            getattr(cause, "reason", None),
            getattr(cause, "original_error", None),
            *cause.args,
        ]


def _reason(error: BaseException) -> str:
    """Return a short description of a transport error, without the URL."""
    causes = list(_causes(error))
    behind_proxy = any(isinstance(cause, pool.ProxyError) for cause in causes)
    for types, text in (
        ((pool.NameResolutionError, pool.LocationParseError), "the host name cannot be resolved"),
        ((ssl.SSLCertVerificationError,), "the TLS certificate is not trusted"),
        ((ConnectionRefusedError,), "connection refused"),
        ((pool.NewConnectionError,), "the host cannot be reached"),
        ((pool.ConnectTimeoutError, transport.ConnectTimeout), "connecting timed out"),
        ((pool.ReadTimeoutError, transport.ReadTimeout, TimeoutError), "no response in time"),
        ((pool.IncompleteRead, http.client.IncompleteRead), "the response was truncated"),
        ((ConnectionAbortedError,), "the request was delayed too long and has expired"),
        ((ConnectionResetError, BrokenPipeError), "the connection was reset"),
        ((pool.ProtocolError, pool.DecodeError), "the connection broke"),
        ((transport.InvalidURL, transport.InvalidSchema), "the proxy URL is invalid"),
        ((pool.ProxyError, transport.ProxyError), "the proxy refused the request"),
    ):
        if any(isinstance(cause, types) for cause in causes):
            return f"{text}, behind a proxy" if behind_proxy and "proxy" not in text else text
    return type(error).__name__
