"""
Caps on what the API key spends per day and month, enforced with the API's own usage figures.

The figures include what every other client of the key spends. They are read before a task's first paid request and
again during the run, so that tasks that run at the same time notice each other.
"""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Final, Protocol, get_args

from msgspec import Struct
from msgspec.structs import replace

from airflow_provider_imagen.api.retries import resending
from airflow_provider_imagen.exceptions import ImagenError
from airflow_provider_imagen.run.budget import Limit, Period

if TYPE_CHECKING:
    from collections.abc import Iterable

    from airflow_provider_imagen.run.budget import Budget
    from airflow_provider_imagen.run.shared_state import RunState

PERIODS: Final[tuple[Period, ...]] = get_args(Period)
USAGE_MAX_AGE_SECONDS: Final = 10.0
"""Maximum age of the usage figures: far below the length of most runs, without a call for each request."""


class UsageCap(Struct, frozen=True):
    """
    A cap on what the API key may spend in each day or month.

    :param max_usd: in USD, above 0
    """

    period: Period
    max_usd: Decimal

    @property
    def name(self) -> str:
        """Name of the connection's extra field."""
        return f"max_usd_per_{self.period}"


class UsageReader(Protocol):
    """The part of the API that knows what the key has spent."""

    @property
    def clock_offset_seconds(self) -> float | None:
        """Seconds that the API's clock is ahead of ours; ``None`` before its first response."""

    def get_usage(self, *, start: datetime, end: datetime) -> Decimal:
        """Return what the key has spent in a time window, in USD."""


def read_limit(cap: UsageCap, reader: UsageReader) -> Limit:
    """
    Return the limit that a cap sets to a task that has spent nothing yet.

    :raises ImagenError: the usage cannot be read; the message says what that means and how to go on
    """
    start, end = _period_at(datetime.fromtimestamp(time.time() + (reader.clock_offset_seconds or 0.0), UTC), cap.period)
    try:
        used_usd = reader.get_usage(start=start, end=end)
    except ImagenError as error:
        error.args = (
            f"{cap.name} of the connection cannot be checked, so nothing more is sent: {error} "
            f"Try again later, or remove the cap from the connection.",
        )
        raise
    return Limit(max_usd=cap.max_usd, used_usd=used_usd, period=cap.period, starts_at=start, resets_at=end)


def _period_at(now: datetime, period: Period) -> tuple[datetime, datetime]:
    """Return when the UTC day or month of a moment begins and ends."""
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    if period == "day":
        return midnight, midnight + timedelta(days=1)
    first = midnight.replace(day=1)
    return first, (first + timedelta(days=31)).replace(day=1)


class UsageCaps:
    """
    Limits a task's budget to what the caps leave. Safe to use from any number of threads.

    The task counts its own charges itself, so those of this attempt never exceed a cap, even if the figures lag behind;
    what others spend is noticed at the next reading. Charges of previous attempts in the same period are taken to be in
    the figures as far as these are high enough. If they still lag, the same amount of others' charges goes unnoticed.

    :param max_age_seconds: age at which a reading is replaced before the next request
    :param first_wait_seconds: wait before a failed reading is repeated; it doubles each time
    """

    def __init__(
        self,
        caps: Iterable[UsageCap],
        *,
        reader: UsageReader,
        budget: Budget,
        state: RunState,
        max_age_seconds: float,
        first_wait_seconds: float,
    ) -> None:
        self._caps = tuple(caps)
        self._reader = reader
        self._budget = budget
        self._state = state
        self._max_age_seconds = max_age_seconds
        self._retrying = resending(wait=state.wait, first_wait_seconds=first_wait_seconds)
        self._lock = threading.Lock()
        self._read_at: float | None = None
        self._limits: dict[Period | None, Limit] = {}
        self._spent_before_usd: dict[Period | None, Decimal] = {}  # by the task, before the period

    def refresh(self) -> None:
        """
        Read the usage, unless the last reading is recent enough.

        :raises ImagenError: it cannot be read
        :raises StoppedError: nothing more may be sent
        """
        if not self._caps:
            return
        with self._lock:
            self._state.check()
            if self._read_at is not None and time.monotonic() - self._read_at < self._max_age_seconds:
                return
            for cap in self._caps:
                self._apply(self._retrying(read_limit, cap, self._reader))
            self._read_at = time.monotonic()

    def _apply(self, limit: Limit) -> None:
        """
        Limit the budget by what others have used.

        Requests of ours that are still in flight may already be part of the usage, so others have used at least what
        exceeds all of ours in the period. They cannot have used less than at the last reading of the same period.
        """
        last = self._limits.get(limit.period)
        is_first = last is None or last.resets_at != limit.resets_at
        if is_first:
            ours_usd = self._previous_usd_in(limit) if last is None else Decimal(0)
            self._spent_before_usd[limit.period] = self._budget.spent_usd - ours_usd
        before_usd = self._spent_before_usd[limit.period]
        others_usd = max(limit.used_usd - (self._budget.committed_usd - before_usd), Decimal(0))
        limit = replace(limit, used_usd=others_usd - before_usd)
        if last is not None and not is_first and last.used_usd > limit.used_usd:
            limit = last
        self._limits[limit.period] = limit
        self._budget.set_limit(limit)

    def _previous_usd_in(self, limit: Limit) -> Decimal:
        """Return what previous attempts were charged in a limit's period, in USD."""
        assert limit.starts_at is not None  # noqa: S101 - a type check
        return self._budget.previous_usd_since(limit.starts_at.timestamp() - (self._reader.clock_offset_seconds or 0.0))
