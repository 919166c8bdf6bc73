"""State that the threads of a run share: whether to go on, and the results so far."""

from __future__ import annotations

import logging
import math
import threading
import time
from typing import TYPE_CHECKING

from msgspec.structs import replace

from airflow_provider_imagen.api.retries import LONGEST_WAIT_SECONDS
from airflow_provider_imagen.exceptions import (
    AuthenticationError,
    BudgetExceededError,
    ConnectionFailedError,
    ImagenError,
    JournalError,
    ModelWithdrawnError,
    OutOfCreditsError,
    RateLimitedError,
    ServerError,
    StoppedError,
    StorageError,
)
from airflow_provider_imagen.run.results import SlotResult

if TYPE_CHECKING:
    from airflow_provider_imagen.run.results import FinishedImage

log = logging.getLogger(__name__)

MAX_STORAGE_FAILURES = 3
"""Consecutive failed writes after which nothing more is sent."""

_HIT_EVERY_REQUEST = (
    AuthenticationError,
    OutOfCreditsError,
    BudgetExceededError,
    JournalError,
    ConnectionFailedError,
)
"""Errors that every later request would also hit."""


class Cancellation:
    """
    Ends an attempt: after :meth:`cancel` nothing new is sent, and work in flight gets a grace period.

    Do not call its methods from a signal handler: an event's lock is not reentrant.
    """

    def __init__(self) -> None:
        self._cancelled = threading.Event()
        self._grace_ends_at = math.inf
        self.reason = ""
        self.abandoned = threading.Event()
        """Set when the grace period has ended; work in flight is no longer awaited."""

    def cancel(self, reason: str, *, grace_seconds: float) -> None:
        """
        Cancel the attempt.

        :param reason: why, in a few words for logs and errors; the first reason is kept
        :param grace_seconds: how long requests and downloads in flight may continue; of several calls the earliest end
            counts
        """
        self.reason = self.reason or reason
        self._cancelled.set()
        ends_at = time.monotonic() + grace_seconds
        if ends_at < self._grace_ends_at:
            timer = threading.Timer(grace_seconds, self.abandoned.set)
            timer.daemon = True
            timer.start()
            self._grace_ends_at = ends_at  # last, because a signal handler may raise here and the caller cancel again

    def is_cancelled(self) -> bool:
        """Return whether nothing new may be sent."""
        return self._cancelled.is_set()

    def wait(self, seconds: float) -> None:
        """
        Sleep, but not beyond a cancellation.

        :raises StoppedError: the attempt was cancelled
        """
        if self._cancelled.wait(max(0.0, seconds)):
            raise _stopped()

    def is_overdue(self, seconds: float) -> bool:
        """Return whether the grace period ended at least so many seconds ago."""
        return time.monotonic() >= self._grace_ends_at + seconds


class RunState:
    """
    Whether to go on, and the results so far, behind one lock for all threads of a run.

    :param cancellation: ends the attempt when cancelled
    """

    def __init__(self, cancellation: Cancellation) -> None:
        self.cancellation = cancellation
        self._lock = threading.Lock()
        self._abort_reason: ImagenError | None = None
        self._crash: BaseException | None = None
        self._retired: dict[str, ModelWithdrawnError] = {}
        self._results: dict[int, SlotResult] = {}
        self._superseded: list[FinishedImage] = []
        self._done = 0
        self._storage_failures = 0

    # --- whether to go on ---------------------------------------------------------------------------------------------

    def is_over(self) -> bool:
        """Return whether nothing more may be sent; work in flight may still be finished."""
        return self._abort_reason is not None or self._crash is not None or self.cancellation.is_cancelled()

    def check(self) -> None:
        """
        Raise if nothing more may be sent.

        :raises StoppedError: the run was cancelled, aborted or has crashed
        """
        if self.is_over():
            raise _stopped()

    def wait(self, seconds: float) -> None:
        """
        Sleep, but not beyond the end of the run.

        :raises StoppedError: nothing more may be sent
        """
        until = time.monotonic() + seconds
        self.check()
        while (left := until - time.monotonic()) > 0:
            self.cancellation.wait(min(left, 0.1))  # an abort or a crash sets no event
            self.check()

    def record_crash(self, error: BaseException) -> None:
        """End the run because of an unexpected error in a worker."""
        with self._lock:
            self._crash = self._crash or error

    def abort(self, error: ImagenError) -> None:
        """Send nothing more; only the first reason is reported."""
        with self._lock:
            self._abort_reason = self._abort_reason or error

    def fail_fast(self, error: ImagenError) -> None:
        """Stop the run on errors that every later request would also hit."""
        if isinstance(error, (RateLimitedError, ServerError)):  # only if it asks for a longer wait than we make
            hits_all = error.retry_after is not None and error.retry_after > LONGEST_WAIT_SECONDS
        else:
            hits_all = isinstance(error, _HIT_EVERY_REQUEST)
        if hits_all:
            self.abort(error)

    @property
    def abort_reason(self) -> ImagenError | None:
        """The error that ended the run early, if any."""
        return self._abort_reason

    @property
    def crash(self) -> BaseException | None:
        """The unexpected error of a worker, if any."""
        return self._crash

    # --- models -------------------------------------------------------------------------------------------------------

    def record_retired(self, model: str, error: ModelWithdrawnError) -> bool:
        """Record that a model is retired, and return whether that is new."""
        with self._lock:
            is_new = model not in self._retired
            self._retired.setdefault(model, error)
        return is_new

    def refuse_retired(self, model: str) -> None:
        """
        Raise if a model is known to be retired.

        :raises ModelWithdrawnError: the model is retired; nothing was sent
        """
        if (error := self._retired.get(model)) is not None:
            raise ModelWithdrawnError(str(error), replaced_by=error.replaced_by, model=model, status=error.status)

    # --- images -------------------------------------------------------------------------------------------------------

    def record_finished(self, slot_number: int | None, image: FinishedImage) -> int:
        """
        Record a finished image, and return how many requested images are finished.

        :param slot_number: ``None`` for an image that is no longer requested
        """
        with self._lock:
            if slot_number is None:
                self._superseded.append(image)
            else:
                self._results.setdefault(slot_number, SlotResult()).made.append(image)
                self._done += 1
            return self._done

    def take_back(self, slot_number: int | None, image: FinishedImage) -> None:
        """Remove an image whose file has disappeared."""
        with self._lock:
            if slot_number is None:
                self._superseded.remove(image)
            else:
                self._results[slot_number].made.remove(image)
                self._done -= 1

    def record_error(self, slot_number: int | None, error: ImagenError) -> None:
        """Record a slot's error; that of an image that is no longer requested is only logged."""
        if slot_number is None:
            log.warning("An image of a prompt that is no longer requested could not be stored: %s", error)
            return
        with self._lock:
            self._results.setdefault(slot_number, SlotResult()).errors.append(error)

    def forget_error(self, slot_number: int, client_request_id: str) -> None:
        """Remove the errors of a request whose response was found after all."""
        with self._lock:
            result = self._results.get(slot_number)
            if result is not None:
                result.errors = [error for error in result.errors if error.client_request_id != client_request_id]

    def count_written(self) -> None:
        """Reset the count of consecutive storage failures."""
        with self._lock:
            self._storage_failures = 0

    def count_not_written(self, error: StorageError) -> None:
        """Count a storage failure; after several in a row, stop paying for images that cannot be stored."""
        with self._lock:
            self._storage_failures += 1
            is_persistent = self._storage_failures >= MAX_STORAGE_FAILURES
        if is_persistent:
            self.abort(error)

    def results(self) -> dict[int, SlotResult]:
        """Return a copy of each slot's result so far."""
        with self._lock:
            return {
                number: replace(result, made=list(result.made), errors=list(result.errors))
                for number, result in self._results.items()
            }

    def superseded(self) -> list[FinishedImage]:
        """Return a copy of the list of images that are no longer requested."""
        with self._lock:
            return list(self._superseded)


def _stopped() -> StoppedError:
    return StoppedError("The task was cancelled; nothing new was sent.")
