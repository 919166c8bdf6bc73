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
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from airflow_provider_imagen.api.money import CREDITS_PER_USD, read_amount
from airflow_provider_imagen.exceptions import ImagenError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

log = logging.getLogger(__name__)

CLOCK_SLACK = timedelta(minutes=10)
"""How far the API's clock may be from ours; the window that is searched is wider by this."""

LONGEST_WINDOW = timedelta(days=92)
"""Longest stretch the log shows at once (spec of ``GET /v2/logs``, 2026-08-21)."""

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 10.0


class Charge(Struct, frozen=True):
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
        self._reading = threading.Lock()
        self._sought: dict[str, float] = {}
        self._found: dict[str, Charge] = {}
        self._looks = 0
        self._failure: ImagenError | None = None

    def find(self, client_request_id: str, *, sent_at: float, lost_at: float) -> Charge | None:
        """
        Wait for a verdict on a POST.

        :param client_request_id: the id it was sent with
        :param sent_at: when, in seconds since the epoch
        :param lost_at: when its answer was given up; patience counts from here
        :return: the charge, or one of 0 for a failed request; ``None`` when the log still does not know the request
            after the patience has run out
        :raises ImagenError: the log cannot be read, so nothing is known
        """
        give_up_at = lost_at + self._patience_seconds
        pause = FIRST_PAUSE_SECONDS
        with self._lock:
            self._sought[client_request_id] = sent_at
        try:
            while True:
                is_last = self._now() >= give_up_at
                failure = self._look()
                if (charge := self._found.get(client_request_id)) is not None:
                    return charge
                if failure is not None and (is_last or not failure.retry_helps):
                    raise failure
                if is_last:
                    return None
                self._wait(min(pause, max(0.05, give_up_at - self._now())))
                pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
        finally:
            with self._lock:
                del self._sought[client_request_id]

    def look_once(self, sent: Mapping[str, float]) -> dict[str, Charge]:
        """Look a last time for requests taken for never billed; an unreachable log finds nothing."""
        with self._lock:
            self._sought.update(sent)
        if (failure := self._look()) is not None:
            log.warning("The request log of the API could not be read a last time: %s", failure)
        return {name: charge for name in sent if (charge := self._found.get(name)) is not None}

    def _look(self) -> ImagenError | None:
        """Read the log, or take the result of another thread's look that began after this call; give what failed."""
        with self._lock:
            looks_before = self._looks
        with self._reading:
            if self._looks == looks_before:
                with self._lock:
                    self._looks += 1
                    sought = dict(self._sought)
                try:
                    self._read_log(sought)
                    self._failure = None
                except ImagenError as error:
                    log.warning("The request log of the API could not be read: %s", error)
                    self._failure = error
            return self._failure

    def _read_log(self, sought: Mapping[str, float]) -> None:
        missing = sought.keys() - self._found.keys()
        if not missing:
            return
        times = [sought[name] for name in missing]
        end = datetime.fromtimestamp(max(times), UTC) + CLOCK_SLACK
        start = max(datetime.fromtimestamp(min(times), UTC) - CLOCK_SLACK, end - LONGEST_WINDOW)
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
    billed = row.get("status") != "failed" or bool(usd)  # an outcome that is not documented is taken for a charge
    inference_id = row.get("inference_id")
    return Charge(
        billed=billed,
        usd=usd if billed else Decimal(0),
        inference_id=inference_id if isinstance(inference_id, str) else None,
    )
