"""The retry policy: whether and when to retry after an error (Airflow 3.3 and later)."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_provider_imagen._compat import RetryDecision, RetryPolicy
from airflow_provider_imagen.exceptions import ImagenError, InvalidArgumentsError

if TYPE_CHECKING:
    from airflow.sdk import Context

LONGEST_RETRY_DELAY = timedelta(hours=6)
"""Longest ``Retry-After`` that is honoured; longer ones are capped at this."""


class ImagenRetryPolicy(RetryPolicy):
    """
    Fails at once if a retry cannot help, and waits for ``Retry-After`` without holding a worker.

    A retry cannot help with a rejected key, an account without credits, an invalid request or argument, a retired
    model, an exhausted budget, or a response that was charged and lost. A 429 or 503 with ``Retry-After`` sets the
    delay. All other errors follow the task's ``retries`` and ``retry_delay``.
    """

    def evaluate(
        self,
        exception: BaseException,
        try_number: int,  # noqa: ARG002 - the signature is Airflow's
        max_tries: int,  # noqa: ARG002
        context: Context | None = None,  # noqa: ARG002
    ) -> RetryDecision:
        """Return whether and when to retry after this error."""
        if isinstance(exception, InvalidArgumentsError):
            return RetryDecision.fail("invalid arguments: a retry would be rejected as well")
        if not isinstance(exception, ImagenError):
            return RetryDecision.default()
        if not exception.retry_helps:
            return RetryDecision.fail(f"{type(exception).__name__}: a retry cannot help")
        seconds = getattr(exception, "retry_after", None)
        if seconds:
            delay = timedelta(seconds=min(seconds, LONGEST_RETRY_DELAY.total_seconds()))
            return RetryDecision.retry(delay, f"the API requested a delay of {delay.total_seconds():.0f} s")
        return RetryDecision.default()

    def serialize(self) -> dict[str, Any]:
        """Return no fields: the policy has no settings."""
        return {}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> ImagenRetryPolicy:  # noqa: ARG003
        """Return a new policy."""
        return cls()
