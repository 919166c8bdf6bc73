"""Decide, from the error of a failed try, whether the next one makes sense and when (Airflow 3.3 and later)."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_provider_imagen._compat import RetryDecision, RetryPolicy
from airflow_provider_imagen.exceptions import ImagenError, InvalidArgumentsError

if TYPE_CHECKING:
    from airflow.sdk import Context

LONGEST_RETRY_DELAY = timedelta(hours=6)
"""Cap on a wait the API asks for."""


class ImagenRetryPolicy(RetryPolicy):
    """
    Fail at once what no retry can mend, and wait out what the API asks to wait for without holding a worker.

    Hopeless are a key that is not accepted, an account without credits, a request or argument that is refused, a model
    that is withdrawn, a budget that is used up, and answers that were charged and lost. A 429 or 503 with a
    ``Retry-After`` decides the delay. Everything else follows the task's own ``retries`` and ``retry_delay``.
    """

    def evaluate(
        self,
        exception: BaseException,
        try_number: int,  # noqa: ARG002 - the signature is Airflow's
        max_tries: int,  # noqa: ARG002
        context: Context | None = None,  # noqa: ARG002
    ) -> RetryDecision:
        """Give Airflow the decision for the error that ended a try."""
        if isinstance(exception, InvalidArgumentsError):
            return RetryDecision.fail("the arguments are wrong: another try would be refused too")
        if not isinstance(exception, ImagenError):
            return RetryDecision.default()
        if not exception.retry_helps:
            return RetryDecision.fail(f"{type(exception).__name__}: another try cannot end better")
        seconds = getattr(exception, "retry_after", None)
        if seconds:
            delay = timedelta(seconds=min(seconds, LONGEST_RETRY_DELAY.total_seconds()))
            return RetryDecision.retry(delay, f"the API asks to wait {delay.total_seconds():.0f} s")
        return RetryDecision.default()

    def serialize(self) -> dict[str, Any]:
        """Nothing to keep: the policy has no settings."""
        return {}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> ImagenRetryPolicy:  # noqa: ARG003
        """Make the policy again."""
        return cls()
