"""Make the threads of a task wait for permits; the :mod:`controller <.controller>` decides when."""

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
"""Prepare a request anew when this was longer ago; its journaled timestamp would be stale."""

MAX_LEAD_SECONDS = 5.0
"""With a disk slower than this, requests are late; holding more permits in advance would not help."""

POLL_SECONDS = 0.2
"""How often a waiting thread looks whether the task was cancelled."""


class Pacer:
    """
    Hands out permits to send; shared by all workers of a task.

    :param concurrency: most requests in flight, 1 or more
    :param requests_per_minute: most requests started in a minute, evenly spaced; ``None`` for no such limit
    :param throttled: class of the error that stands for a 429; its ``retry_after`` is in seconds, or ``None``
    :param check: called while waiting; raises when the task was cancelled
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
        self._is_reported = False
        self._mean_seconds = self._deviation_seconds = 0.0  # of preparing

    @contextmanager
    def permit(self, prepare: Callable[[], Prepared], *, undo: Callable[[Prepared], object]) -> Iterator[Prepared]:
        """
        Wait for a permit, and hold it while the request is in flight.

        An error of class ``throttled`` that leaves the block slows the whole task down.

        :param prepare: slow work before a request is sent. Called shortly before its start, so that requests leave on
            time although several are prepared together.
        :param undo: called with what was prepared when the request is not sent; both begin anew, unless an error leaves
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
        """How long nothing but 429 has been answered; 0 while requests are accepted."""
        with self._changed:
            since = self._controller.throttled_since
            return 0.0 if since is None else self._clock() - since

    def _acquire(self) -> Permit:
        """Wait until it is time to prepare the next request."""
        with self._queue, self._changed:  # one thread waits for the next start, the others for that thread
            # The usual longest time to prepare, estimated as TCP does its time-out (RFC 6298, 2).
            while delay := self._controller.delay(
                self._clock(), lead=min(self._mean_seconds + 4 * self._deviation_seconds, MAX_LEAD_SECONDS)
            ):
                self._wait(delay)
            self._check()
            return self._controller.acquire(self._clock())

    def _await_start(self, permit: Permit, prepared_at: float) -> bool:
        """Wait for the start, and return whether the request may be sent."""
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
                if not self._is_reported:
                    self._is_reported = True
                    log.warning("The API limits this task (429). It pauses, then finds the rate that is accepted.")
                self._controller.throttle(permit, self._clock(), retry_after=getattr(error, "retry_after", None))
            elif is_sent:
                self._controller.release(permit)
            else:
                self._controller.cancel(permit)
            self._changed.notify_all()
