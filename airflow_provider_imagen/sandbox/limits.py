"""Rate limits, counted in the three usual ways: sliding window, fixed window, token bucket."""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import dataclass
from typing import Literal

Counting = Literal["sliding", "fixed", "bucket"]
"""
How requests are counted.

``sliding`` is a sliding window, ``fixed`` a fixed window that starts with the clock, ``bucket`` a token bucket that
refills evenly.
"""


@dataclass(frozen=True)
class RateLimit:
    """
    How many requests are let through.

    :param per_minute: requests in 60 seconds on average; ``None`` = no limit
    :param window_seconds: the window of ``sliding`` and ``fixed``
    :param burst: capacity of ``bucket``, which starts full
    """

    per_minute: float | None
    counting: Counting = "sliding"
    window_seconds: float = 60.0
    burst: int = 1

    @property
    def per_window(self) -> int:
        """Requests let through in one window."""
        return int((self.per_minute or 0) * self.window_seconds / 60)


class Meter:
    """Counts requests against a limit, which may change at any time. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Drop every request counted so far."""
        with self._lock:
            self._let_through: deque[float] = deque()
            self._window = -1
            self._in_window = 0
            self._tokens = math.inf
            self._filled_at = 0.0

    def seconds_to_wait(self, limit: RateLimit, *, now: float) -> float:
        """
        Let a request through, or return how many seconds to wait for the next one.

        :param now: in seconds, of a clock that only moves forward
        :return: 0 when it was let through and counted
        """
        if limit.per_minute is None:
            return 0.0
        with self._lock:
            if limit.counting == "bucket":
                return self._take_token(limit, now)
            return self._slide(limit, now) if limit.counting == "sliding" else self._count_in_window(limit, now)

    def _take_token(self, limit: RateLimit, now: float) -> float:
        per_second = (limit.per_minute or 0) / 60
        self._tokens = min(float(limit.burst), self._tokens + (now - self._filled_at) * per_second)
        self._filled_at = now
        if self._tokens < 1 - 1e-9:
            return (1 - self._tokens) / per_second if per_second else limit.window_seconds
        self._tokens -= 1
        return 0.0

    def _slide(self, limit: RateLimit, now: float) -> float:
        past = self._let_through
        while past and past[0] <= now - limit.window_seconds:
            past.popleft()
        if len(past) >= limit.per_window:
            return (past[-limit.per_window] - now if limit.per_window else 0.0) + limit.window_seconds
        past.append(now)
        return 0.0

    def _count_in_window(self, limit: RateLimit, now: float) -> float:
        window = int(now // limit.window_seconds)
        if window != self._window:
            self._window, self._in_window = window, 0
        if self._in_window >= limit.per_window:
            return (window + 1) * limit.window_seconds - now
        self._in_window += 1
        return 0.0
