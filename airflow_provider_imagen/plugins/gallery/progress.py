"""
Pages about work in progress, which a script requests again every few seconds (``static/live.js``).

The viewers of a page share the answers, so that the load on Airflow's API does not grow with their number. A viewer who
has the newest page already gets a 304.
"""

from __future__ import annotations

import hashlib
import inspect
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, Final

from fastapi.responses import HTMLResponse, Response

from airflow_provider_imagen.plugins.gallery.expiring_cache import ExpiringCache

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from fastapi import Request

    from airflow_provider_imagen.plugins.gallery.run_results import RunResults

REFRESH_SECONDS: Final = 1.5
"""
Interval at which a page about work in progress is requested again.

A new image appears within five seconds: a task publishes it within about two, and answers are one second old at most.
"""

IDLE_REFRESH_SECONDS: Final = 10.0
"""The same where nothing is in progress at the moment: a run waits for a person, or a DAG for its next run."""

ALL_DAGS_REFRESH_SECONDS: Final = 60.0
"""The same for the page about all DAGs."""

COUNTING_REFRESH_SECONDS: Final = 2.0
"""The same while that page has not counted everything; each request counts on."""

SHARED_SECONDS: Final = 1.0
"""How long viewers share an answer; one that took long to produce is shared for longer (``ExpiringCache``)."""

REFRESH_HEADER: Final = "imagen-refresh"
"""Request header of the script's requests; all others get a page made for them."""

_MAX_SHARED_BYTES: Final = 16 * 1024 * 1024


@dataclass(frozen=True)
class _Answer:
    html: bytes
    policy: str
    etag: str


_answers: ExpiringCache[_Answer] = ExpiringCache(
    entries=64, seconds=SHARED_SECONDS, max_bytes=_MAX_SHARED_BYTES, size_of=lambda answer: len(answer.html)
)


def refresh_seconds(shown: Iterable[RunResults]) -> float | None:
    """
    Return how often to request a page again; ``None`` for never, because everything on it has ended.

    :param shown: what is on the page
    """
    active = [results for results in shown if results.is_active]
    if any(not task.status.is_finished for results in active for task in results.tasks):
        return REFRESH_SECONDS
    return IDLE_REFRESH_SECONDS if active else None


def shared_by_viewers(show: Callable[..., Awaitable[Response]]) -> Callable[..., Awaitable[Response]]:
    """
    Make the viewers of a page share the answers to the script's requests.

    The dependencies of the route have checked the permissions of each. A page may depend on nothing but its URL.
    """

    @wraps(show)
    async def answer(request: Request, **query: Any) -> Response:
        if REFRESH_HEADER not in request.headers:
            return await show(request, **query)

        async def work() -> _Answer:
            page = await show(request, **query)
            html = bytes(page.body)
            return _Answer(html, page.headers["Content-Security-Policy"], f'"{hashlib.sha256(html).hexdigest()}"')

        shared = await _answers.get((request.scope.get("root_path"), request.url.path, request.url.query), work)
        headers = {"ETag": shared.etag, "Content-Security-Policy": shared.policy}
        if request.headers.get("if-none-match") == shared.etag:
            return Response(status_code=304, headers=headers)
        return HTMLResponse(shared.html, headers=headers)

    answer.__signature__ = inspect.signature(show, eval_str=True)  # type: ignore[attr-defined]
    return answer
