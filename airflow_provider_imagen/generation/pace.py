"""Make the workers of a task wait for their turn; when that is, the :mod:`throttle <.throttle>` decides."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from airflow_provider_imagen.exceptions import RateLimitedError, StoppedError
from airflow_provider_imagen.generation.throttle import Throttle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from airflow_provider_imagen.generation.throttle import Turn

log = logging.getLogger(__name__)

Prepared = TypeVar("Prepared")

_PREPARED_LASTS_SECONDS = 30.0
"""What was begun to be prepared longer ago than this when its turn comes is prepared anew: it bears its time."""

_LONGEST_AHEAD_SECONDS = 5.0
"""A disk that takes longer makes requests late, rather than hold so many turns."""


class _Preparing:
    """How long before its turn a request is to be prepared: estimated as TCP does its time-out (RFC 6298, 2)."""

    def __init__(self) -> None:
        self._mean = 0.0
        self._deviation = 0.0

    def took(self, seconds: float) -> None:
        """Take in how long it took once."""
        self._deviation += (abs(seconds - self._mean) - self._deviation) / 4
        self._mean += (seconds - self._mean) / 8

    @property
    def seconds(self) -> float:
        """How long it takes at most, as a rule."""
        return min(self._mean + 4 * self._deviation, _LONGEST_AHEAD_SECONDS)


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
        self._preparing = _Preparing()

    @contextmanager
    def turn(self, prepare: Callable[[], Prepared], *, undo: Callable[[Prepared], object]) -> Iterator[Prepared]:
        """
        Wait for a turn, and hold it while the request is in flight.

        A :class:`RateLimitedError` that leaves the block slows the whole task down.

        :param prepare: what must be done before a request is sent and takes a while. It is called shortly before the
            turn, so that requests leave at their times although several are prepared together.
        :param undo: called with what was prepared when the request is not sent; both begin anew, unless an error leaves
        :raises StoppedError: the task was told to stop before the turn came
        """
        while True:
            turn = self._take_place()
            prepared_at = self._clock()
            refused: RateLimitedError | None = None
            is_sent = False
            try:
                prepared = prepare()
                try:
                    is_sent = self._await_start(turn, prepared_at)
                finally:
                    if not is_sent:
                        undo(prepared)
                if is_sent:
                    yield prepared
                    return
            except RateLimitedError as error:
                refused = error
                raise
            finally:
                self._give_back(turn, is_sent=is_sent, refused=refused)

    def _take_place(self) -> Turn:
        """Wait until the next turn is so near that its request is to be prepared."""
        with self._door, self._changed:  # one worker waits for the next start, the others for that worker
            while seconds := self._throttle.seconds_until_start(self._clock(), ahead=self._preparing.seconds):
                self._check()
                self._changed.wait(min(seconds, 0.2))
            self._check()
            return self._throttle.start(self._clock())

    def _await_start(self, turn: Turn, prepared_at: float) -> bool:
        """Wait until a turn comes, and say whether the request may be sent."""
        with self._changed:
            self._preparing.took(self._clock() - prepared_at)
            while (seconds := turn.started - self._clock()) > 0 and not self._throttle.is_held_up(turn):
                self._check()
                self._changed.wait(min(seconds, 0.2))
            self._check()
            is_fresh = self._clock() - prepared_at <= _PREPARED_LASTS_SECONDS
            return is_fresh and not self._throttle.is_held_up(turn)

    def _give_back(self, turn: Turn, *, is_sent: bool, refused: RateLimitedError | None) -> None:
        with self._changed:
            if refused is not None:
                self._tell_once()
                self._throttle.refuse(turn, self._clock(), retry_after=refused.retry_after)
            elif is_sent:
                self._throttle.end(turn)
            else:
                self._throttle.withdraw(turn)
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
