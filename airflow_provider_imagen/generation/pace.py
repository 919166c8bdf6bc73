"""How fast a task may send: requests in flight, requests per minute, and what the API's 429 answers teach."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from airflow_provider_imagen.exceptions import StoppedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Pace:
    """
    Lets requests out, one turn each; shared by all workers of a task.

    A 429 halves the number in flight for the whole task and holds every worker for the time the API asks for; each
    answer that is not a 429 wins a part of it back, up to ``concurrency``.

    :param concurrency: most requests in flight, 1 or more
    :param requests_per_minute: most requests started in a minute, evenly spaced; ``None`` for no such limit
    :param should_stop: asked while waiting; when true, waiting ends in :class:`StoppedError`
    :param clock: monotonic seconds
    """

    def __init__(
        self,
        *,
        concurrency: int,
        requests_per_minute: float | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._concurrency = concurrency
        self._spacing_seconds = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._should_stop = should_stop
        self._clock = clock
        self._changed = threading.Condition()
        self._in_flight = 0
        self._allowed = float(concurrency)
        self._next_start = float("-inf")
        self._held_until = float("-inf")
        self._slowed_at = float("-inf")

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for a turn, and hold it while the request is in flight."""
        self._enter()
        try:
            yield
        finally:
            with self._changed:
                self._in_flight -= 1
                self._changed.notify_all()

    def slow_down(self, seconds: float) -> None:
        """Take in a 429: nobody starts for ``seconds``, and half as many are in flight from now on."""
        with self._changed:
            now = self._clock()
            self._held_until = max(self._held_until, now + seconds)
            if now - self._slowed_at > 1.0:  # the answers to one burst are one lesson
                self._allowed = max(1.0, self._allowed / 2)
                self._slowed_at = now
            self._changed.notify_all()

    def speed_up(self) -> None:
        """Take in an answer that is not a 429: about ``allowed`` of them allow one more in flight."""
        with self._changed:
            if self._allowed < self._concurrency:
                self._allowed = min(float(self._concurrency), self._allowed + 1 / self._allowed)
                self._changed.notify_all()

    def wait(self, seconds: float) -> None:
        """
        Sleep, but wake when the task is told to stop.

        :raises StoppedError: the task was told to stop
        """
        sleep_unless(self._should_stop, seconds, clock=self._clock)

    def _enter(self) -> None:
        with self._changed:
            while True:
                self._check()
                now = self._clock()
                earliest = max(self._held_until, self._next_start)
                if self._in_flight < int(self._allowed) and now >= earliest:
                    break
                self._changed.wait(min(max(earliest - now, 0.001), 0.2) if now < earliest else 0.2)
            self._in_flight += 1
            self._next_start = max(now, self._next_start) + self._spacing_seconds

    def _check(self) -> None:
        if self._should_stop():
            raise _stopped()


def sleep_unless(
    should_stop: Callable[[], bool], seconds: float, *, clock: Callable[[], float] = time.monotonic
) -> None:
    """
    Sleep, but look often whether the task is told to stop.

    :raises StoppedError: it is
    """
    until = clock() + seconds
    while not should_stop():
        if (left := until - clock()) <= 0:
            return
        time.sleep(min(left, 0.1))
    raise _stopped()


def _stopped() -> StoppedError:
    return StoppedError("The task was told to stop; nothing new was sent.")
