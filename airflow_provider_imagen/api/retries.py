"""
Decide whether a failed POST may be sent again within the task, and how long to wait before.

Only what certainly bought nothing is sent again: no connection, or an error the API itself answered that may pass.
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
"""POSTs of one request within one try of the task, all answered with "try again"."""

FIRST_WAIT_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 60.0
"""Longest wait inside a task. When the API asks for more, the try ends and the retry policy waits without a worker."""


def may_resend(error: BaseException) -> bool:
    """Say whether sending the same request again is free of the risk to pay twice, and worth it."""
    if not isinstance(error, (ConnectionFailedError, RateLimitedError, ServerError)):
        return False
    if error.usd:
        return False  # answered with an error, and with a cost all the same
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
    Make the loop around a POST.

    :param wait: sleeps, and raises when the task is told to stop
    :param on_refused: told each error that will be tried again, with the seconds until then
    :param first_wait_seconds: wait after the first refusal that asks for none; it doubles with each further one
    :param without: errors that the caller sees to itself; they end the loop at once
    """
    spread = wait_random(0, min(1.0, first_wait_seconds))
    backoff = wait_exponential(multiplier=first_wait_seconds, max=LONGEST_WAIT_SECONDS) + spread

    def seconds(state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = getattr(error, "retry_after", None)
        if asked is None:
            return float(backoff(state))
        return float(asked) + random.uniform(0, 0.25 + asked / 10)  # noqa: S311 - spreads the workers, hides nothing

    def before_wait(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, ImagenError):
            on_refused(error, state.upcoming_sleep)

    return Retrying(
        retry=retry_if_exception(lambda error: may_resend(error) and not isinstance(error, without)),
        stop=stop_after_attempt(MAX_POSTS),
        wait=seconds,
        sleep=wait,
        before_sleep=before_wait,
        reraise=True,
    )
