"""
The thin part that waits: authenticated HTTP to the API, one attempt a call, every outcome classified.

Whether to call again is decided by the callers. Imports requests, so import this module when it is used.
"""

from __future__ import annotations

import json
import re
import ssl
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import requests
from requests import exceptions as transport
from urllib3 import exceptions as pool

from airflow_provider_imagen import __version__
from airflow_provider_imagen.api.answers import Generation, read_generation
from airflow_provider_imagen.api.errors import error_for
from airflow_provider_imagen.api.secrets import scrub
from airflow_provider_imagen.exceptions import ConnectionFailedError, LostAnswerError, UnreadableResponseError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

DEFAULT_BASE_URL = "https://api.aimlapi.com"
USER_AGENT = f"airflow-provider-imagen/{__version__}"
MAX_ANSWER_BYTES = 256 * 1024 * 1024
"""Largest body that is read: four base64 pictures of 40 MB fit."""

_CLIENT_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
"""What the API keeps of ``X-Client-Request-Id``; it drops anything else silently (docs, request tracing, 2026-08-21)."""

LOG_PAGE_ROWS = 100
"""Most rows ``GET /v2/logs`` gives at once (spec of the endpoint, 2026-08-21)."""


@dataclass(frozen=True)
class ClientSettings:
    """
    Where the API is and how to reach it.

    :param base_url: scheme, host and optional path, with or without ``/v1``
    :param api_key: sent to this host only; never shown by ``repr``
    :param connect_timeout_seconds: longest wait for a connection
    :param read_timeout_seconds: longest silence while an answer is awaited, and longest time its body may take
    :param verify: check TLS certificates; a path names a CA bundle
    """

    base_url: str = DEFAULT_BASE_URL
    api_key: str | None = field(default=None, repr=False)
    connect_timeout_seconds: float = 10.0
    read_timeout_seconds: float = 300.0
    verify: bool | str = True


@dataclass(frozen=True)
class Answer:
    """A complete HTTP answer: status, headers by lower-case name, whole body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class ApiClient:
    """
    Calls the API. Safe to share between threads: each has its own connections.

    :param settings: where to call and with which key
    """

    def __init__(self, settings: ClientSettings) -> None:
        self.settings = settings
        self._root = _root_of(settings.base_url)
        self._local = threading.local()
        self._sessions: list[requests.Session] = []
        self._lock = threading.Lock()

    @property
    def host(self) -> str:
        """Host name of the API."""
        return urlsplit(self._root).hostname or ""

    def generate(
        self,
        path: str,
        body: Mapping[str, Any],
        *,
        client_request_id: str,
        files: Any = None,
    ) -> Generation:
        """
        Send one paid request, once.

        :param path: ``/v1/images/generations`` or ``/v1/images/edits``
        :param body: JSON fields, or the form fields beside ``files``
        :param client_request_id: 1 to 128 characters of ``A-Za-z0-9._:-``
        :param files: parts of a multipart form as requests takes them
        :raises ConnectionFailedError: nothing was sent
        :raises LostAnswerError: sent, outcome unknown
        :raises ImagenError: the error the answer means, see :mod:`airflow_provider_imagen.exceptions`
        """
        if not _CLIENT_REQUEST_ID.fullmatch(client_request_id):
            raise ValueError(
                f"client_request_id={client_request_id!r}: 1 to 128 characters of A-Za-z0-9._:- are allowed; "
                f"the API would drop this one silently"
            )
        model = body.get("model")
        facts: dict[str, Any] = {"client_request_id": client_request_id, "model": model if isinstance(model, str) else None}
        sent = {"data": dict(body), "files": files} if files else {"json": dict(body)}
        try:
            answer = self._exchange("POST", path, headers={"X-Client-Request-Id": client_request_id}, **sent)
        except (ConnectionFailedError, LostAnswerError, UnreadableResponseError) as error:
            error.client_request_id, error.model = client_request_id, facts["model"]
            raise
        if 200 <= answer.status < 300:
            return read_generation(status=answer.status, headers=answer.headers, body=answer.body, **facts)
        raise error_for(
            status=answer.status, headers=answer.headers, body=answer.body, api_key=self.settings.api_key, **facts
        )

    def get_key(self) -> dict[str, Any]:
        """Ask ``GET /v1/key`` what the key is: name, prefix, scopes, limit; free."""
        data = self.get_json("/v1/key").get("data")
        return data if isinstance(data, dict) else {}

    def get_balance(self) -> dict[str, Any]:
        """Ask ``GET /v2/billing`` for ``current_balance`` and ``currency`` (USD); free."""
        return self.get_json("/v2/billing")

    def list_models(self, *, include_pricing: bool = False) -> list[dict[str, Any]]:
        """Ask ``GET /v1/models`` for the image models; needs no key; free."""
        params = {"type": "openai/image-generations", **({"include": "pricing"} if include_pricing else {})}
        return _rows(self.get_json("/v1/models", params=params))

    def list_deprecations(self) -> list[dict[str, Any]]:
        """Ask ``GET /v1/models/deprecations`` which models are on their way out; needs no key; free."""
        return _rows(self.get_json("/v1/models/deprecations"))

    def iter_request_logs(
        self, *, start: datetime, end: datetime, model: str | Sequence[str] | None = None
    ) -> Iterator[dict[str, Any]]:
        """
        Yield the rows of ``GET /v2/logs`` in a window, page after page, newest first as the API orders them.

        :param start: start of the window, with a time zone
        :param end: its end, at most 92 days later (spec of the endpoint, 2026-08-21)
        :param model: only requests made to this model, or these (50 at most)
        """
        params: dict[str, Any] = {"start": start.isoformat(), "end": end.isoformat(), "limit": LOG_PAGE_ROWS}
        if model:
            params["model"] = model  # a list is sent as a repeated parameter
        offset = 0
        while True:
            page = self.get_json("/v2/logs", params={**params, "offset": offset})
            rows = _rows(page)
            yield from rows
            pagination = page.get("pagination")
            if not rows or not (isinstance(pagination, dict) and pagination.get("has_more")):
                return
            offset += len(rows)

    def get_json(self, path: str, *, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """
        Send one free GET, once, and read its JSON object.

        :raises ConnectionFailedError: no whole answer came
        :raises UnreadableResponseError: the answer is no JSON object
        """
        try:
            answer = self._exchange("GET", path, params=params)
        except LostAnswerError as error:  # a GET costs nothing: its loss is only a missing answer
            raise ConnectionFailedError(str(error)) from error
        if not 200 <= answer.status < 300:
            raise error_for(
                status=answer.status, headers=answer.headers, body=answer.body, api_key=self.settings.api_key
            )
        try:
            found = json.loads(answer.body)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise UnreadableResponseError(
                f"GET {path} answered {answer.status} with no JSON object.", status=answer.status
            )
        return found

    def close(self) -> None:
        """Close the connections of every thread."""
        with self._lock:
            sessions, self._sessions = self._sessions, []
        for session in sessions:
            session.close()

    def _exchange(self, method: str, path: str, *, headers: Mapping[str, str] | None = None, **sent: Any) -> Answer:
        """Send once and read the whole answer; tell "never sent" from "outcome unknown"."""
        where = f"{method} {path} at {self.host}"
        timeout = (self.settings.connect_timeout_seconds, self.settings.read_timeout_seconds)
        try:
            with self._session().request(
                method,
                self._url(path),
                headers=dict(headers or {}),
                timeout=timeout,
                stream=True,
                allow_redirects=False,
                **sent,
            ) as response:
                return Answer(
                    status=response.status_code,
                    headers={name.lower(): value for name, value in response.headers.items()},
                    body=self._read_body(response, where),
                )
        except transport.RequestException as error:
            reason = scrub(_reason(error), self.settings.api_key, limit=200)
            if _was_never_sent(error):
                raise ConnectionFailedError(f"{where}: no connection was made ({reason}). Nothing was sent.") from None
            raise LostAnswerError(f"{where}: the answer was lost ({reason}).") from None

    def _read_body(self, response: requests.Response, where: str) -> bytes:
        deadline = time.monotonic() + self.settings.read_timeout_seconds
        parts: list[bytes] = []
        size = 0
        for part in response.iter_content(256 * 1024):
            parts.append(part)
            size += len(part)
            if size > MAX_ANSWER_BYTES:
                raise UnreadableResponseError(
                    f"{where}: the answer is larger than {MAX_ANSWER_BYTES} bytes and was not read.",
                    status=response.status_code,
                    inference_id=response.headers.get("x-inference-id"),
                )
            if time.monotonic() > deadline:
                raise transport.ReadTimeout(f"body not whole after {self.settings.read_timeout_seconds:g} s")
        return b"".join(parts)

    def _url(self, path: str) -> str:
        return self._root + path

    def _session(self) -> requests.Session:
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = requests.Session()
            session.verify = self.settings.verify
            session.headers.update({"User-Agent": USER_AGENT, "Accept": "application/json"})
            session.auth = _KeyFor(self.settings.api_key)
            with self._lock:
                self._sessions.append(session)
        return session


class _KeyFor(requests.auth.AuthBase):
    """Put the key on a request, and keep requests from looking into ``.netrc`` for another one."""

    def __init__(self, api_key: str | None) -> None:
        self._api_key = api_key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._api_key:
            request.headers["Authorization"] = f"Bearer {self._api_key}"
        return request


def _root_of(base_url: str) -> str:
    """Cut a base URL down to what stands before ``/v1``."""
    parts = urlsplit(base_url if "://" in base_url else f"https://{base_url}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"host={scrub(base_url)!r}: a base URL such as {DEFAULT_BASE_URL} is allowed")
    if parts.username or parts.password:
        raise ValueError(
            "host: user name and password in the URL are not allowed; the key is the connection's password"
        )
    path = parts.path.rstrip("/").removesuffix("/v1")
    return f"{parts.scheme}://{parts.netloc}{path}"


def _rows(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    data = answer.get("data")
    return [row for row in data if isinstance(row, dict)] if isinstance(data, list) else []


def _causes(error: BaseException) -> Iterator[BaseException]:
    """
    Walk everything requests and urllib3 wrapped into an error.

    Not ``__context__``: an earlier failure that was being handled while this request was sent would stand there, and
    "no connection" of that one must not be taken for this one's.
    """
    seen: set[int] = set()
    waiting: list[Any] = [error]
    while waiting:
        cause = waiting.pop()
        if not isinstance(cause, BaseException) or id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        waiting += [cause.__cause__, getattr(cause, "reason", None), *cause.args]


def _was_never_sent(error: transport.RequestException) -> bool:
    """
    Say whether no byte of the request can have reached the API.

    True only where the transport proves it: no connection, no proxy, a certificate that was not accepted, or a
    request that could not even be put together. Everything else counts as sent.
    """
    if isinstance(error, transport.ConnectTimeout | transport.ProxyError):
        return True
    if isinstance(
        error, transport.InvalidURL | transport.InvalidSchema | transport.InvalidHeader | transport.MissingSchema
    ):
        return True
    return any(
        isinstance(
            cause,
            pool.NewConnectionError
            | pool.NameResolutionError
            | pool.ConnectTimeoutError
            | ssl.SSLCertVerificationError,
        )
        for cause in _causes(error)
    )


def _reason(error: BaseException) -> str:
    """Say in a few words what happened on the transport, without the URL."""
    names = [type(cause) for cause in _causes(error)]
    for kinds, words in (
        ((pool.NameResolutionError,), "the host name is not known"),
        ((ssl.SSLCertVerificationError,), "the TLS certificate is not trusted"),
        ((pool.ConnectTimeoutError, transport.ConnectTimeout), "connecting took too long"),
        ((ConnectionRefusedError,), "connection refused"),
        ((pool.ReadTimeoutError, transport.ReadTimeout, TimeoutError), "no answer in time"),
        ((pool.IncompleteRead,), "the answer was cut off"),
        ((ConnectionResetError,), "the connection was reset"),
        ((pool.ProtocolError, pool.DecodeError), "the connection broke off"),
        ((transport.ProxyError,), "the proxy refused"),
    ):
        if any(issubclass(name, kinds) for name in names):
            return words
    return type(error).__name__
