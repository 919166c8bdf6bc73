"""
CUBIC congestion control (RFC 9438) for a rate-limited API, as a pure class: time is passed in, nothing waits.

The API documents neither its limits nor ``Retry-After`` (page "Errors", 2026-08), so two CUBIC curves run side by side,
one for requests per second and one for requests in flight. As in botocore's adaptive retry mode, a curve starts from
what was measured when the API first returned 429. Between stops, a token bucket of capacity 1 spaces the starts.

A 429 opens a circuit breaker for the whole task: nothing starts until a pause has passed, and then only one probe. A
refused probe lengthens the pause; an accepted one ends it. There are two deviations from TCP: the time in which a curve
regains its maximum is set directly, because probing costs a pause; and the rate is kept if the number of requests in
flight explains the refusal.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

from msgspec import Struct

BETA: Final = 0.85
"""Multiplicative decrease: what RFC 8511, 3.1, recommends to CUBIC for explicit signals such as a 429."""

PACING_GAIN: Final = 2.0
"""Highest rate under an in-flight limit, as a multiple of the measured rate (botocore: ``_MAX_RATE_ADJUST_SCALE``)."""

PROBE_INTERVAL_REQUESTS: Final = 50
PROBE_INTERVAL_PAUSES: Final = 30
MAX_PROBE_INTERVAL_SECONDS: Final = 30.0
"""Bounds of the time to regain the maximum (K in RFC 9438), in requests, pauses and seconds. They limit the cost of
probing to about 2 % of the requests and 3 % of the time. Chosen by simulation, see
``tests/rate_limit/test_controller.py``."""

EARLY: Final = 0.5
"""A refusal before this share of K has passed means a lower limit, or chance, and halves K. Chosen by simulation."""

BACKOFF: Final = 1.5
MAX_PAUSE_SECONDS: Final = 5.0
"""Factor by which each refused probe extends the time since the first 429 (as in Google's HTTP clients), and cap."""

RETRY_AFTER_RESOLUTION_SECONDS: Final = 1.0
"""``Retry-After`` is in whole seconds (RFC 9110, 10.2.3), so the limit may have ended this much earlier."""

MIN_OBSERVATIONS: Final = 100
MAX_CONTRARY_SHARE: Final = 0.05
"""Number of accepted requests to judge by. An in-flight limit is ruled out if more than this share of them had as many
others in flight as the refused one (5 %, the usual significance level)."""

MINUTE_SECONDS: Final = 60.25
"""A minute plus network jitter, so that no minute at the API sees one request too many."""


class Permit(Struct, eq=False):
    """
    The right to send one request.

    :param start: when to send it, in seconds; may be in the future
    :param others: other requests in flight at that time, except those that were refused
    """

    start: float
    others: int


class Cubic(Struct):
    """
    CUBIC's growth function (RFC 9438, 4.2), with K given instead of C.

    :param maximum: value at the last refusal (W_max)
    :param period: seconds until the value is back at the maximum (K)
    :param elapsed: seconds during which the value was what limited the task (RFC 9438, 5.8)
    """

    maximum: float
    period: float
    elapsed: float = 0.0

    @property
    def value(self) -> float:
        """Current limit."""
        return self.maximum * (1 + (1 - BETA) * (self.elapsed / self.period - 1) ** 3)


class _Stop(Struct):
    """
    An open circuit breaker.

    :param since: time of the first refusal
    :param until: earliest start of the next probe
    :param others: smallest number of requests in flight at a refusal
    :param last_refusal: start of the last request known to be refused
    """

    since: float
    until: float
    pause: float
    others: int
    last_refusal: float
    has_retry_after: bool = False
    probe: Permit | None = None


class Controller:
    """
    Decides when one task may start its next request. Not thread-safe.

    :param concurrency: maximum number of requests in flight, at least 1
    :param requests_per_minute: maximum number of requests started per minute, evenly spaced; ``None`` for no limit
    """

    def __init__(self, *, concurrency: int, requests_per_minute: float | None = None) -> None:
        self._concurrency = concurrency
        self._min_spacing = MINUTE_SECONDS / requests_per_minute if requests_per_minute else 0.0
        self._rate: Cubic | None = None
        self._window: Cubic | None = None
        self._in_flight: set[Permit] = set()
        self._observed: deque[Permit] = deque(maxlen=MIN_OBSERVATIONS + concurrency)  # since the last stop, not refused
        self._last_start = -math.inf
        self._refusal_seconds = 0.0
        self._stop: _Stop | None = None

    @property
    def throttled_since(self) -> float | None:
        """Start of the current run of refusals, ``None`` while requests are accepted."""
        return None if self._stop is None else self._stop.since

    def delay(self, now: float, *, lead: float = 0.0) -> float:
        """
        Return the seconds until the next permit; infinity if a request in flight has to end first.

        :param lead: how many seconds before its start a permit is wanted
        """
        if self._stop is not None and self._stop.probe is not None:
            if (left := self._stop.probe.start + 2 * self._refusal_seconds - now) > 1e-9:
                return left
            self._resume(self._stop, self._stop.probe)  # a refusal would have arrived by now; an image takes seconds
        if len(self._in_flight) >= self._limit:
            return math.inf
        return max(self._next_start - lead - now, 0.0)

    def acquire(self, now: float) -> Permit:
        """Return a permit; to be called when :meth:`delay` is 0."""
        permit = Permit(max(now, self._next_start), len(self._in_flight))
        self._in_flight.add(permit)
        if self._stop is not None:
            self._stop.probe = permit
        else:
            self._observed.append(permit)
            gap = permit.start - self._last_start
            if self._rate is not None and gap <= 1.1 / self._rate.value:
                self._rate.elapsed += gap
            if self._window is not None and len(self._in_flight) >= self._limit:
                self._window.elapsed += gap
        self._last_start = permit.start
        return permit

    def is_revoked(self, permit: Permit) -> bool:
        """Return whether a request must not be sent because another one has been refused since its permit."""
        stop = self._stop
        return stop is not None and (permit is not stop.probe or permit.start < stop.until)

    def cancel(self, permit: Permit) -> None:
        """Record that a request was not sent."""
        self._in_flight.discard(permit)
        if self._stop is not None and permit is self._stop.probe:
            self._stop.probe = None
        else:
            self._forget(permit)

    def release(self, permit: Permit) -> None:
        """Record that a request ended with anything but a 429."""
        self._in_flight.discard(permit)
        if self._stop is not None and permit is self._stop.probe:
            self._resume(self._stop, permit)

    def throttle(self, permit: Permit, now: float, *, retry_after: float | None = None) -> None:
        """Record a 429."""
        self._in_flight.discard(permit)
        self._refusal_seconds = max(0.9 * self._refusal_seconds, now - permit.start)
        for later in self._in_flight:
            if later.start >= permit.start:
                later.others -= 1
        if (stop := self._stop) is None:
            pause = min(self._spacing or (now - permit.start) / max(1, len(self._observed)), 1.0)
            stop = self._stop = _Stop(now, now, pause, self._concurrency, now)
        if permit is stop.probe:
            stop.probe, stop.last_refusal = None, permit.start
            stop.others = min(stop.others, permit.others)
            stop.pause = max(stop.pause, min(MAX_PAUSE_SECONDS, (BACKOFF - 1) * (now - stop.since)))
        else:
            self._forget(permit)
            stop.others = min(stop.others, len(self._in_flight))
        stop.has_retry_after = retry_after is not None
        stop.until = max(stop.until, now + max(stop.pause, retry_after or 0.0))

    @property
    def _limit(self) -> int:
        """Current maximum number of requests in flight."""
        return self._concurrency if self._window is None else min(self._concurrency, max(1, round(self._window.value)))

    @property
    def _spacing(self) -> float:
        return max(self._min_spacing, 1 / self._rate.value if self._rate is not None else 0.0)

    @property
    def _next_start(self) -> float:
        """Earliest time the next request may start."""
        if self._stop is not None:
            return max(self._stop.until, self._last_start + self._min_spacing)
        return self._last_start + self._spacing

    def _forget(self, permit: Permit) -> None:
        if permit in self._observed:
            self._observed.remove(permit)

    def _resume(self, stop: _Stop, probe: Permit) -> None:
        """End a stop; lower the limits unless nothing was accepted before it, as after others had used up a window."""
        if self._observed or self._rate is not None:
            self._decrease(stop, probe)
        self._stop = None
        self._observed.clear()
        self._observed.append(probe)

    def _decrease(self, stop: _Stop, probe: Permit) -> None:
        """Start new curves from the requests accepted and refused since the previous stop."""
        began = min((permit.start for permit in self._observed), default=probe.start)
        known_until = max(stop.last_refusal, stop.until - RETRY_AFTER_RESOLUTION_SECONDS if stop.has_retry_after else 0)
        accepted = len(self._observed) + 1
        at_most, at_least = (accepted / max(end - began, 1e-9) for end in (known_until, probe.start))
        measured = math.sqrt(at_most * at_least)
        period = min(PROBE_INTERVAL_REQUESTS / measured, MAX_PROBE_INTERVAL_SECONDS)
        is_window = self._window is not None and stop.others >= self._window.maximum
        if self._rate is None:
            self._rate = Cubic(measured, period)
        else:
            rate, is_early = self._rate.value, self._rate.elapsed < EARLY * self._rate.period
            pause = min(probe.start - stop.since, RETRY_AFTER_RESOLUTION_SECONDS)  # the rest is waiting for the window
            period = max(period, PROBE_INTERVAL_PAUSES * pause) * (EARLY if is_early else 1)
            if is_window:
                if rate > PACING_GAIN * measured:
                    self._rate = Cubic(PACING_GAIN * measured, period)
            else:
                self._rate = Cubic(min(rate, measured) if is_early else rate, period)
        contrary = sum(permit.others >= stop.others for permit in self._observed)
        is_likely = stop.others > max(1, probe.others) and contrary <= MAX_CONTRARY_SHARE * len(self._observed)
        if is_window or is_likely:
            self._window = Cubic(stop.others, period)
        elif stop.others < self._limit:
            self._window = None  # disproved: fewer were in flight than it allows
