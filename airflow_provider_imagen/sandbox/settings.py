"""How the sandbox behaves when nothing goes wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from decimal import Decimal, InvalidOperation
from typing import Any, get_args

from airflow_provider_imagen.sandbox.envelopes import Envelope
from airflow_provider_imagen.sandbox.limits import Counting, RateLimit

SANDBOX_API_KEY = "5a9db0c5" + "0" * 24
"""The key a sandbox accepts by default; it opens nothing else."""

_MINIMUMS = {
    "balance_usd": 0,
    "latency_seconds": 0,
    "log_lag_seconds": 0,
    "clock_skew_seconds": -365 * 86400,
    "picture_scale": 0,
    "requests_per_minute": 0,
    "window_seconds": 0,
    "burst": 1,
    "max_concurrent": 0,
    "logs_per_minute": 0,
}
_MAXIMUMS = {"clock_skew_seconds": 365 * 86400, "picture_scale": 1}
_ABOVE_MINIMUM = ("picture_scale", "window_seconds")
_CHOICES = {"counting": get_args(Counting), "limit_envelope": get_args(Envelope)}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """
    The settings of a sandbox: arguments of ``Sandbox`` and ``serve``, and of their ``configure`` at any time.

    :param api_key: the key to accept
    :param balance_usd: money in the account, in USD
    :param latency_seconds: how long a generation takes
    :param log_lag_seconds: how long after its end a request appears in ``/v2/logs``
    :param clock_skew_seconds: how far the sandbox's clock is ahead of the real time, or behind it if negative: in the
        ``Date`` header, in ``/v2/logs``, and in every time in a body or a signed URL; a year at most
    :param picture_scale: width and height of what is drawn, as a share of what was requested: above 0, to 1
    :param requests_per_minute: generations beyond this are answered 429; ``None`` = no limit
    :param counting: how they are counted: ``sliding``, ``fixed`` or ``bucket``;
        see :data:`~airflow_provider_imagen.sandbox.limits.Counting`
    :param window_seconds: the window of ``sliding`` and ``fixed``
    :param burst: generations that ``bucket`` lets through at once
    :param max_concurrent: generations at once beyond this are answered 429; ``None`` = no limit
    :param tells_retry_after: whether a 429 for one of these limits carries ``Retry-After``, in whole seconds
    :param limit_envelope: the form of such a 429, ``problem`` or ``old``
    :param logs_per_minute: calls of ``/v2/logs`` beyond this are answered 429; the API's number is 200
    :param seed: decides pictures without a seed of their own, and faults with a probability
    :raises ValueError: a value out of range
    """

    api_key: str = SANDBOX_API_KEY
    balance_usd: Decimal = Decimal(100)
    latency_seconds: float = 0.0
    log_lag_seconds: float = 0.0
    clock_skew_seconds: float = 0.0
    picture_scale: float = 1.0
    requests_per_minute: float | None = None
    counting: Counting = "sliding"
    window_seconds: float = 60.0
    burst: int = 1
    max_concurrent: int | None = None
    tells_retry_after: bool = False
    limit_envelope: Envelope = "problem"
    logs_per_minute: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "balance_usd", Decimal(str(self.balance_usd)))
        except InvalidOperation:
            raise ValueError(f"balance_usd={self.balance_usd!r}; allowed: an amount in USD") from None
        for name, least in _MINIMUMS.items():
            value = getattr(self, name)
            if value is None and getattr(type(self), name) is None:
                continue
            most, is_above = _MAXIMUMS.get(name, math.inf), name in _ABOVE_MINIMUM
            number = isinstance(value, (int, float, Decimal)) and not isinstance(value, bool) and math.isfinite(value)
            if not number or not least <= value <= most or (is_above and value == least):
                allowed = f"above {least}" if is_above else f"{least} or more"
                raise ValueError(
                    f"{name}={value!r}; allowed: {allowed}" + (f", {most} at most" if most < math.inf else "")
                )
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}; allowed: {', '.join(choices)}")

    def changed(self, **values: Any) -> Settings:
        """
        Return a copy with some values changed.

        :raises ValueError: an unknown name, or a value out of range
        """
        known = [field.name for field in fields(self)]
        if unknown := [name for name in values if name not in known]:
            raise ValueError(f"The sandbox has no setting {', '.join(unknown)}; allowed: {', '.join(known)}")
        return replace(self, **values)

    @property
    def generation_limit(self) -> RateLimit:
        """How many generations are let through."""
        return RateLimit(
            self.requests_per_minute,
            counting=self.counting,
            window_seconds=self.window_seconds,
            burst=self.burst,
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; money travels as text."""
        return {field.name: getattr(self, field.name) for field in fields(self)} | {
            "balance_usd": str(self.balance_usd)
        }
