"""
Decide whether and when to resend a failed POST within a task.

Only requests that certainly cost nothing are resent: no connection was made, or the API itself returned a transient
error.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential, wait_random

from airflow_provider_imagen.exceptions import ConnectionFailedError, ImagenError, RateLimitedError, ServerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tenacity import RetryCallState

MAX_POSTS = 6
"""Most POSTs of one request in one retry loop, including the first."""

FIRST_WAIT_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 60.0
"""Longest wait in a task. On a longer ``Retry-After`` the attempt ends, and the retry policy waits without a worker."""


def may_resend(error: BaseException) -> bool:
    """Return whether resending the same request may help and cannot pay twice."""
    if not isinstance(error, (ConnectionFailedError, RateLimitedError, ServerError)):
        return False
    if error.usd:
        return False  # charged despite the error
    retry_after = getattr(error, "retry_after", None)
    return retry_after is None or retry_after <= LONGEST_WAIT_SECONDS


def resending(
    *,
    wait: Callable[[float], None],
    on_refused: Callable[[ImagenError, float], None] = lambda *_: None,
    first_wait_seconds: float = FIRST_WAIT_SECONDS,
    without: tuple[type[ImagenError], ...] = (),
) -> Retrying:
    """
    Return the retry loop around a POST.

    :param wait: sleeps for some seconds; raises if the task is cancelled
    :param on_refused: called before each retry with the error and the seconds to wait
    :param first_wait_seconds: backoff after the first failure, doubled after each further one; the API's own
        ``Retry-After`` takes precedence
    :param without: errors the caller handles itself; they end the loop at once
    """
    jitter = wait_random(0, min(1.0, first_wait_seconds))
    backoff = wait_exponential(multiplier=first_wait_seconds, max=LONGEST_WAIT_SECONDS) + jitter

    def seconds(state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        retry_after = getattr(error, "retry_after", None)
        if retry_after is None:
            return float(backoff(state))
        return float(retry_after) + random.uniform(0, 0.25 + retry_after / 10)  # noqa: S311 - jitter, not a secret

    def before_sleep(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, ImagenError):
            on_refused(error, state.upcoming_sleep)

    return Retrying(
        retry=retry_if_exception(lambda error: may_resend(error) and not isinstance(error, without)),
        stop=stop_after_attempt(MAX_POSTS),
        wait=seconds,
        sleep=wait,
        before_sleep=before_sleep,
        reraise=True,
    )
