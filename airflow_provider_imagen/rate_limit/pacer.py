"""Block the threads of a task until they get a permit; the :mod:`controller <.controller>` decides when."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from airflow_provider_imagen.rate_limit.controller import Controller

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from airflow_provider_imagen.rate_limit.controller import Permit

log = logging.getLogger(__name__)

Prepared = TypeVar("Prepared")

MAX_AGE_SECONDS = 30.0
"""Prepare a request again if it was prepared longer ago than this; its journaled timestamp would be stale."""

MAX_LEAD_SECONDS = 5.0
"""Cap on how early permits are taken to prepare requests; if the disk is slower, requests start late."""

POLL_SECONDS = 0.2
"""How often a waiting thread checks for cancellation."""


class Pacer:
    """
    Hands out permits to send; shared by all workers of a task.

    :param concurrency: maximum number of requests in flight, at least 1
    :param requests_per_minute: maximum number of requests started per minute, evenly spaced; ``None`` for no limit
    :param throttled: class of the error raised for a 429; its ``retry_after`` is in seconds, or ``None``
    :param check: called while waiting; raises if the task was cancelled
    :param clock: monotonic seconds
    """

    def __init__(
        self,
        *,
        concurrency: int,
        throttled: type[Exception],
        requests_per_minute: float | None = None,
        check: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._controller = Controller(concurrency=concurrency, requests_per_minute=requests_per_minute)
        self._throttled = throttled
        self._check = check
        self._clock = clock
        self._queue = threading.Lock()
        self._changed = threading.Condition()
        self._has_warned = False
        self._mean_seconds = self._deviation_seconds = 0.0  # of preparing

    @contextmanager
    def permit(self, prepare: Callable[[], Prepared], *, undo: Callable[[Prepared], object]) -> Iterator[Prepared]:
        """
        Wait for a permit, and hold it while the request is in flight.

        An error of class ``throttled`` raised in the block slows the whole task down.

        :param prepare: slow work to do before a request is sent; called shortly before its start, so that requests
            start on time even if several are being prepared at once
        :param undo: called with the result of ``prepare`` if the request cannot be sent then; the wait and ``prepare``
            start over, unless an error was raised
        """
        while True:
            permit = self._acquire()
            prepared_at = self._clock()
            is_sent, error = False, None
            try:
                prepared = prepare()
                try:
                    is_sent = self._await_start(permit, prepared_at)
                finally:
                    if not is_sent:
                        undo(prepared)
                if is_sent:
                    yield prepared
                    return
            except self._throttled as throttled:
                error = throttled
                raise
            finally:
                self._end(permit, is_sent=is_sent, error=error)

    @property
    def refused_for_seconds(self) -> float:
        """How long every request has been refused with a 429, in seconds; 0 while requests are accepted."""
        with self._changed:
            since = self._controller.throttled_since
            return 0.0 if since is None else self._clock() - since

    def _acquire(self) -> Permit:
        """Wait until it is time to prepare the next request."""
        with self._queue, self._changed:  # one thread waits for the next start, the others wait for that thread
            # The usual longest time to prepare, estimated as TCP does its time-out (RFC 6298, 2).
            while delay := self._controller.delay(
                self._clock(), lead=min(self._mean_seconds + 4 * self._deviation_seconds, MAX_LEAD_SECONDS)
            ):
                self._wait(delay)
            self._check()
            return self._controller.acquire(self._clock())

    def _await_start(self, permit: Permit, prepared_at: float) -> bool:
        """Wait until the permit's start, and return whether the request may be sent."""
        with self._changed:
            seconds = self._clock() - prepared_at
            self._deviation_seconds += (abs(seconds - self._mean_seconds) - self._deviation_seconds) / 4
            self._mean_seconds += (seconds - self._mean_seconds) / 8
            while (delay := permit.start - self._clock()) > 0 and not self._controller.is_revoked(permit):
                self._wait(delay)
            self._check()
            return self._clock() - prepared_at <= MAX_AGE_SECONDS and not self._controller.is_revoked(permit)

    def _wait(self, seconds: float) -> None:
        self._check()
        self._changed.wait(min(seconds, POLL_SECONDS))

    def _end(self, permit: Permit, *, is_sent: bool, error: Exception | None) -> None:
        with self._changed:
            if error is not None:
                if not self._has_warned:
                    self._has_warned = True
                    log.warning("The API is rate limiting this task (429); sending pauses, then resumes more slowly.")
                self._controller.throttle(permit, self._clock(), retry_after=getattr(error, "retry_after", None))
            elif is_sent:
                self._controller.release(permit)
            else:
                self._controller.cancel(permit)
            self._changed.notify_all()
