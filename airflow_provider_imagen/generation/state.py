"""What the threads of a run know together: what came of each slot, what was lost, and whether to go on."""

from __future__ import annotations

import logging
import threading
from decimal import Decimal
from typing import TYPE_CHECKING

from msgspec.structs import replace

from airflow_provider_imagen.api.resending import LONGEST_WAIT_SECONDS
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
    StorageError,
)
from airflow_provider_imagen.generation.results import SlotResult

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_imagen.generation.plan import Unit
    from airflow_provider_imagen.generation.results import Made

log = logging.getLogger(__name__)

MAX_STORAGE_FAILURES = 3
"""Pictures that may fail to be written one after the other before buying more of them ends."""

_MEETS_ALL = (
    AuthenticationError,
    OutOfCreditsError,
    BudgetExceededError,
    JournalError,
    RateLimitedError,
    ConnectionFailedError,
)
"""Errors that would meet every further request too."""


class RunState:
    """
    The notes that all threads of a run share, behind one lock.

    :param asked_to_stop: asked often; true when the task is being killed
    :param usd_lost: what earlier tries were charged without a picture, in USD
    :param usd_is_estimate: some cost of earlier tries is a known price that no answer stated
    """

    def __init__(self, *, asked_to_stop: Callable[[], bool], usd_lost: Decimal, usd_is_estimate: bool) -> None:
        self._asked_to_stop = asked_to_stop
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._usd_lost = usd_lost
        self._usd_is_estimate = usd_is_estimate
        self._halt: ImagenError | None = None
        self._crash: BaseException | None = None
        self._withdrawn: dict[str, ModelWithdrawnError] = {}
        self._results: dict[int, SlotResult] = {}
        self._done = 0
        self._storage_failures = 0

    # --- whether to go on ---------------------------------------------------------------------------------------------

    def should_stop(self) -> bool:
        """Say whether the task is to end now."""
        return self._stopping.is_set() or self._asked_to_stop()

    def is_over(self) -> bool:
        """Say whether nothing more is to be bought, although what is under way may still be finished."""
        return self._halt is not None or self.should_stop()

    def stop(self) -> None:
        """Have every thread end as soon as it can."""
        self._stopping.set()

    def break_down(self, error: BaseException) -> None:
        """End a thread that met what no thread should meet, and the others with it."""
        with self._lock:
            self._crash = self._crash or error
        self.stop()

    def end_early(self, error: ImagenError) -> None:
        """Buy nothing more; the first reason is the one that is told."""
        with self._lock:
            self._halt = self._halt or error

    def weigh(self, error: ImagenError) -> None:
        """End early for an error that would meet every further request too; those worth it were resent before."""
        if isinstance(error, ServerError):  # one that asks for a longer wait than the task makes
            ends_the_task = error.retry_after is not None and error.retry_after > LONGEST_WAIT_SECONDS
        else:
            ends_the_task = isinstance(error, _MEETS_ALL)
        if ends_the_task:
            self.end_early(error)

    @property
    def halt(self) -> ImagenError | None:
        """The error that ended the buying early, if one did."""
        return self._halt

    @property
    def crash(self) -> BaseException | None:
        """What broke a thread down, if anything did."""
        return self._crash

    # --- models -------------------------------------------------------------------------------------------------------

    def note_withdrawn(self, model: str, error: ModelWithdrawnError) -> None:
        """Remember that a model is gone, and say so once."""
        with self._lock:
            is_news = model not in self._withdrawn
            self._withdrawn.setdefault(model, error)
        if is_news:
            log.warning("%s", error)

    def refuse_withdrawn(self, model: str) -> None:
        """
        Send nothing to a model that is known to be gone.

        :raises ModelWithdrawnError: it is
        """
        if (gone := self._withdrawn.get(model)) is not None:
            raise ModelWithdrawnError(str(gone), replaced_by=gone.replaced_by, model=model, status=gone.status)

    # --- money --------------------------------------------------------------------------------------------------------

    def add_loss(self, usd: Decimal | None) -> None:
        """Count money no picture came of."""
        with self._lock:
            self._usd_lost += usd or Decimal(0)

    def cost_of(self, unit: Unit, stated_usd: Decimal | None) -> Decimal | None:
        """Take the known price for a cost that the API does not state, and remember that this happened."""
        if stated_usd is not None:
            return stated_usd
        with self._lock:
            self._usd_is_estimate = True
        return unit.expected_usd

    @property
    def usd_lost(self) -> Decimal:
        """Charged without a picture over all tries, in USD."""
        return self._usd_lost

    @property
    def usd_is_estimate(self) -> bool:
        """Whether some cost is a known price that no answer stated."""
        return self._usd_is_estimate

    # --- pictures -----------------------------------------------------------------------------------------------------

    def note_made(self, slot_number: int, made: Made, *, adopted: bool) -> int:
        """Take in a picture that is done, and say how many are by now."""
        with self._lock:
            result = self._results.setdefault(slot_number, SlotResult())
            result.made.append(made)
            result.adopted += adopted
            self._done += 1
            return self._done

    def note_error(self, slot_number: int, error: ImagenError) -> None:
        """Take in what went wrong with a slot."""
        with self._lock:
            self._results.setdefault(slot_number, SlotResult()).errors.append(error)

    def note_written(self) -> None:
        """Take in that a picture could be written."""
        with self._lock:
            self._storage_failures = 0

    def note_not_written(self, error: StorageError) -> None:
        """Stop buying what cannot be stored; a single failure may be chance."""
        with self._lock:
            self._storage_failures += 1
            is_chance = self._storage_failures < MAX_STORAGE_FAILURES
        if not is_chance:
            self.end_early(error)

    def results(self) -> dict[int, SlotResult]:
        """Give what came of each slot so far, as a copy: threads that outlived the grace time may still write."""
        with self._lock:
            return {
                number: replace(result, made=list(result.made), errors=list(result.errors))
                for number, result in self._results.items()
            }
