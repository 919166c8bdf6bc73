"""
Find out whether a POST whose answer was lost was billed.

``GET /v2/logs`` has one row per request, with the ``X-Client-Request-Id`` we sent (docs, request-tracing page,
2026-08-21). Rows appear some time after the answer, so one look is not enough to say "never billed". All workers that
wait for a verdict share the looks: the endpoint allows 200 requests a minute.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from airflow_provider_imagen.api.money import CREDITS_PER_USD, read_amount
from airflow_provider_imagen.exceptions import ImagenError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

log = logging.getLogger(__name__)

CLOCK_SLACK = timedelta(minutes=10)
"""How far the API's clock may be from ours; the window that is searched is wider by this."""

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 10.0


@dataclass(frozen=True)
class Charge:
    """
    What the log says of one POST.

    :param usd: what it was charged, in USD; 0 when it failed
    :param billed: whether there was a charge
    """

    billed: bool
    usd: Decimal | None
    inference_id: str | None


class ChargeLookup:
    """
    Answers "was this request billed?" for any number of threads.

    :param iter_request_logs: gives the log's rows of a window, as :meth:`ApiClient.iter_request_logs` does
    :param wait: sleeps; raises when the task is told to stop
    :param patience_seconds: how long a request may stay out of the log before it counts as never billed
    :param now: wall-clock seconds since the epoch, comparable with the times in the journal
    """

    def __init__(
        self,
        *,
        iter_request_logs: Callable[..., Iterator[dict[str, Any]]],
        wait: Callable[[float], None],
        patience_seconds: float,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._iter_request_logs = iter_request_logs
        self._wait = wait
        self._patience_seconds = patience_seconds
        self._now = now
        self._lock = threading.Lock()
        self._sought: dict[str, float] = {}
        self._found: dict[str, Charge] = {}
        self._looked_at = float("-inf")
        self._failure: ImagenError | None = None

    def find(self, client_request_id: str, *, sent_at: float, lost_at: float) -> Charge | None:
        """
        Wait for a verdict on a POST.

        :param client_request_id: the id it was sent with
        :param sent_at: when, in seconds since the epoch
        :param lost_at: when its answer was given up; patience counts from here
        :return: the charge, or one of 0 for a failed request; ``None`` when the log still does not know the request
            after the patience has run out
        :raises ImagenError: not one look succeeded when the patience had run out, so nothing is known
        """
        give_up_at = lost_at + self._patience_seconds
        pause = FIRST_PAUSE_SECONDS
        while True:
            asked_at = self._now()
            charge, failure = self._look(client_request_id, sent_at=sent_at, not_before=asked_at)
            if charge is not None:
                return charge
            if asked_at >= give_up_at:
                if failure is not None:
                    raise failure
                return None
            self._wait(min(pause, max(0.05, give_up_at - self._now())))
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)

    def look_once(self, sent: Mapping[str, float]) -> dict[str, Charge]:
        """Look a last time for requests taken for never billed; an unreachable log finds nothing."""
        with self._lock:
            self._sought.update(sent)
            try:
                self._read_log()
            except ImagenError as error:
                log.warning("The request log of the API could not be read a last time: %s", error)
            return {
                client_request_id: self._found[client_request_id]
                for client_request_id in sent
                if client_request_id in self._found
            }

    def _look(
        self, client_request_id: str, *, sent_at: float, not_before: float
    ) -> tuple[Charge | None, ImagenError | None]:
        """Read the log, unless another thread has done so since ``not_before``."""
        with self._lock:
            self._sought[client_request_id] = sent_at
            if client_request_id not in self._found and self._looked_at <= not_before:
                looked_at = self._now()
                try:
                    self._read_log()
                    self._failure = None
                except ImagenError as error:
                    log.warning("The request log of the API could not be read: %s", error)
                    self._failure = error
                self._looked_at = looked_at
            charge = self._found.get(client_request_id)
            if charge is not None:
                self._sought.pop(client_request_id, None)
            return charge, self._failure

    def _read_log(self) -> None:
        missing = set(self._sought) - set(self._found)
        start = datetime.fromtimestamp(min(self._sought.values()), UTC) - CLOCK_SLACK
        end = datetime.fromtimestamp(self._now(), UTC) + CLOCK_SLACK
        for row in self._iter_request_logs(start=start, end=end):
            client_request_id = row.get("client_request_id")
            if client_request_id in missing:
                self._found[client_request_id] = _read_row(row)
                missing.discard(client_request_id)
                if not missing:
                    return


def _read_row(row: Mapping[str, Any]) -> Charge:
    cost = row.get("cost")
    cost = cost if isinstance(cost, dict) else {}
    usd = read_amount(cost.get("usd"))
    if usd is None and (credits_used := read_amount(cost.get("credits"))) is not None:
        usd = credits_used / CREDITS_PER_USD
    succeeded = row.get("status") == "succeeded" or bool(usd)
    inference_id = row.get("inference_id")
    return Charge(
        billed=succeeded,
        usd=usd if succeeded else Decimal(0),
        inference_id=inference_id if isinstance(inference_id, str) else None,
    )
