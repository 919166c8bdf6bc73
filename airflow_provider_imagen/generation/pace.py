"""Make the workers of a task wait for their turn; when that is, the :mod:`throttle <.throttle>` decides."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from airflow_provider_imagen.exceptions import RateLimitedError, StoppedError
from airflow_provider_imagen.generation.throttle import Throttle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)


class Pace:
    """
    Lets requests out, one turn each; shared by all workers of a task.

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
        self._throttle = Throttle(concurrency=concurrency, requests_per_minute=requests_per_minute)
        self._should_stop = should_stop
        self._clock = clock
        self._door = threading.Lock()
        self._changed = threading.Condition()
        self._is_told = False

    @contextmanager
    def turn(self) -> Iterator[None]:
        """
        Wait for a turn, and hold it while the request is in flight.

        A :class:`RateLimitedError` that leaves the block slows the whole task down.
        """
        with self._door, self._changed:  # one worker waits for the next start, the others for that worker
            while (seconds := self._throttle.seconds_until_start(self._clock())) > 0:
                self._check()
                self._changed.wait(min(seconds, 0.2))
            self._check()
            turn = self._throttle.start(self._clock())
        refused: RateLimitedError | None = None
        try:
            yield
        except RateLimitedError as error:
            refused = error
            raise
        finally:
            with self._changed:
                if refused is None:
                    self._throttle.end(turn)
                else:
                    self._tell_once()
                    self._throttle.refuse(turn, self._clock(), retry_after=refused.retry_after)
                self._changed.notify_all()

    @property
    def refused_for_seconds(self) -> float:
        """How long nothing but 429 answers have come; 0 while requests are taken."""
        with self._changed:
            since = self._throttle.stopped_since
            return 0.0 if since is None else self._clock() - since

    def wait(self, seconds: float) -> None:
        """
        Sleep, but wake when the task is told to stop.

        :raises StoppedError: the task was told to stop
        """
        sleep_unless(self._should_stop, seconds, clock=self._clock)

    def _tell_once(self) -> None:
        if not self._is_told:
            self._is_told = True
            log.warning("The API limits this task (429). It pauses for a moment and finds a pace that is accepted.")

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
