"""The settings of the sandbox."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any

from airflow_provider_imagen.sandbox.envelopes import Envelope  # noqa: TC001 - check_values reads the annotations
from airflow_provider_imagen.sandbox.limits import Counting, RateLimit
from airflow_provider_imagen.sandbox.value_checks import Range, check_values, closest_name
from airflow_provider_imagen.sandbox_key import SANDBOX_API_KEY

_YEAR_SECONDS = 365 * 86400


@dataclass(frozen=True, kw_only=True)
class Settings:
    """
    The settings of a sandbox: arguments of ``Sandbox`` and ``serve``, and of their ``configure`` at any time.

    :param api_key: API key that the sandbox accepts
    :param balance_usd: account balance in USD
    :param latency_seconds: duration of a generation
    :param log_lag_seconds: delay until a finished request appears in ``/v2/logs`` and ``/v2/billing/transactions``
    :param clock_skew_seconds: how far the sandbox's clock is ahead of real time, or behind if negative; applies to the
        ``Date`` header, ``/v2/logs``, and all times in bodies and signed URLs; at most a year
    :param picture_scale: width and height of the drawn image as a fraction of the requested size: above 0, at most 1
    :param requests_per_minute: limit above which generations get a 429; ``None`` = no limit
    :param counting: algorithm of that limit: ``sliding``, ``fixed`` or ``bucket``;
        see :data:`~airflow_provider_imagen.sandbox.limits.Counting`
    :param window_seconds: window of ``sliding`` and ``fixed``
    :param burst: number of generations that ``bucket`` accepts at once
    :param max_concurrent: number of generations in flight above which further ones get a 429; ``None`` = no limit
    :param tells_retry_after: whether a 429 for one of these limits carries ``Retry-After``, in whole seconds
    :param limit_envelope: format of such a 429, ``problem`` or ``old``
    :param logs_per_minute: limit above which ``/v2/logs`` returns 429; the API's own is 200; ``None`` = no limit
    :param seed: seed of images without one of their own, and of faults with a probability
    :raises ValueError: a value out of range
    """

    api_key: str = SANDBOX_API_KEY
    balance_usd: Annotated[Decimal, Range(least=0)] = Decimal(100)
    latency_seconds: Annotated[float, Range(least=0)] = 0.0
    log_lag_seconds: Annotated[float, Range(least=0)] = 0.0
    clock_skew_seconds: Annotated[float, Range(least=-_YEAR_SECONDS, most=_YEAR_SECONDS)] = 0.0
    picture_scale: Annotated[float, Range(above=0, most=1)] = 1.0
    requests_per_minute: Annotated[float | None, Range(least=0)] = None
    counting: Counting = "sliding"
    window_seconds: Annotated[float, Range(above=0)] = 60.0
    burst: Annotated[int, Range(least=1)] = 1
    max_concurrent: Annotated[int | None, Range(least=0)] = None
    tells_retry_after: bool = False
    limit_envelope: Envelope = "problem"
    logs_per_minute: Annotated[int | None, Range(least=0)] = None
    seed: int = 0

    def __post_init__(self) -> None:
        try:
            balance = Decimal(str(self.balance_usd))
        except InvalidOperation:
            balance = Decimal("NaN")
        if not balance.is_finite():
            raise ValueError(f"balance_usd={self.balance_usd}; allowed: an amount in USD")
        object.__setattr__(self, "balance_usd", balance)
        check_values(self)

    def changed(self, **values: Any) -> Settings:
        """
        Return a copy with some values changed.

        :raises ValueError: an unknown name, or a value out of range
        """
        known = [each.name for each in fields(self)]
        if unknown := [name for name in values if name not in known]:
            suggestion = closest_name(unknown[0], known)
            raise ValueError(
                f"The sandbox has no setting {', '.join(unknown)}; allowed: {', '.join(known)}{suggestion}"
            )
        return replace(self, **values)

    @property
    def generation_limit(self) -> RateLimit:
        """Rate limit of generations."""
        return RateLimit(
            self.requests_per_minute,
            counting=self.counting,
            window_seconds=self.window_seconds,
            burst=self.burst,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON values, with money as text."""
        return asdict(self) | {"balance_usd": str(self.balance_usd)}
