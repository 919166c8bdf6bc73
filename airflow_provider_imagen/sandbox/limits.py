"""Rate limits with the three usual algorithms: sliding window, fixed window, token bucket."""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import dataclass
from typing import Literal

Counting = Literal["sliding", "fixed", "bucket"]
"""
Algorithm of a rate limit.

``sliding`` is a sliding window, ``fixed`` a fixed window aligned with the clock, ``bucket`` a token bucket.
"""


@dataclass(frozen=True)
class RateLimit:
    """
    A rate limit.

    :param per_minute: average number of requests in 60 seconds; ``None`` = no limit
    :param window_seconds: window of ``sliding`` and ``fixed``
    :param burst: capacity of ``bucket``, which starts full
    """

    per_minute: float | None
    counting: Counting = "sliding"
    window_seconds: float = 60.0
    burst: int = 1

    @property
    def per_window(self) -> int:
        """Number of requests accepted per window."""
        return int((self.per_minute or 0) * self.window_seconds / 60)


class RateMeter:
    """Counts requests against a limit, which may change at any time. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Forget all requests counted so far."""
        with self._lock:
            self._accepted: deque[float] = deque()
            self._window = -1
            self._in_window = 0
            self._tokens = math.inf
            self._filled_at = 0.0

    def seconds_to_wait(self, limit: RateLimit, *, now: float) -> float:
        """
        Accept and count a request, or return the seconds until the next one would be accepted.

        :param now: in seconds, of a clock that only moves forward
        :return: 0 if it was accepted
        """
        if limit.per_minute is None:
            return 0.0
        with self._lock:
            if limit.counting == "bucket":
                return self._take_token(limit, now)
            return self._count_sliding(limit, now) if limit.counting == "sliding" else self._count_fixed(limit, now)

    def _take_token(self, limit: RateLimit, now: float) -> float:
        per_second = (limit.per_minute or 0) / 60
        self._tokens = min(float(limit.burst), self._tokens + (now - self._filled_at) * per_second)
        self._filled_at = now
        if self._tokens < 1 - 1e-9:
            return (1 - self._tokens) / per_second if per_second else limit.window_seconds
        self._tokens -= 1
        return 0.0

    def _count_sliding(self, limit: RateLimit, now: float) -> float:
        accepted = self._accepted
        while accepted and accepted[0] <= now - limit.window_seconds:
            accepted.popleft()
        if len(accepted) >= limit.per_window:
            return (accepted[-limit.per_window] - now if limit.per_window else 0.0) + limit.window_seconds
        accepted.append(now)
        return 0.0

    def _count_fixed(self, limit: RateLimit, now: float) -> float:
        window = int(now // limit.window_seconds)
        if window != self._window:
            self._window, self._in_window = window, 0
        if self._in_window >= limit.per_window:
            return (window + 1) * limit.window_seconds - now
        self._in_window += 1
        return 0.0
