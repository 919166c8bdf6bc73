"""
Find out whether a POST whose response was lost was billed.

``GET /v2/logs`` has one row per request, with the ``X-Client-Request-Id`` we sent (docs, request-tracing page,
2026-08-21). Rows appear some time after the response, so a single read cannot prove that a request was not billed.
Waiting threads share reads of the log, because the API limits their rate.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from airflow_provider_imagen.api.account_rows import LONGEST_WINDOW
from airflow_provider_imagen.api.cost import read_row_usd
from airflow_provider_imagen.exceptions import ImagenError, UnreadableResponseError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

log = logging.getLogger(__name__)

CLOCK_SLACK_SECONDS = 15 * 60.0
"""
How far the journal's timestamps may be ahead of both our clock and the API's.

They come from the machine of a previous attempt, whose clock can no longer be measured. Timestamps that lag behind do
no harm: they only widen the window.
"""

LONGEST_WINDOW_SECONDS = LONGEST_WINDOW.total_seconds()
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 10.0


class Charge(Struct, frozen=True):
    """
    Whether one POST was billed, according to the log.

    :param billed: whether it was charged
    :param usd: amount charged, in USD; 0 for a failed request, ``None`` when it was billed without a stated amount
    """

    billed: bool
    usd: Decimal | None
    inference_id: str | None


def log_window(sent_at: Iterable[float], *, now: float, clock_offset_seconds: float) -> tuple[datetime, datetime]:
    """
    Return the start and end of the log window to read for some requests.

    It runs from the first request to the present, allowing for both our clock and the API's, because the machine that
    sent the requests may agree with either. It reaches the present because a request may be logged at the time it
    ended.

    :param sent_at: when they were sent, in seconds since the epoch
    :param now: current time by our clock, in seconds since the epoch
    :param clock_offset_seconds: seconds that the API's clock is ahead of ours
    """
    end = now + max(clock_offset_seconds, 0) + CLOCK_SLACK_SECONDS
    start = min(now, *sent_at) + min(clock_offset_seconds, 0) - CLOCK_SLACK_SECONDS
    start = max(start, end - LONGEST_WINDOW_SECONDS)
    return datetime.fromtimestamp(start, UTC), datetime.fromtimestamp(end, UTC)


class ChargeLookup:
    """
    Finds out whether requests were billed; safe to use from any number of threads.

    :param iter_request_logs: yields the log's rows in a window, as :meth:`ApiClient.iter_request_logs` does
    :param wait: sleeps; raises when the task is cancelled
    :param patience_seconds: how long a request may be absent from the log before it counts as never billed, and how
        long an unavailable log is retried
    :param now: wall-clock seconds since the epoch, comparable with the times in the journal
    :param clock_offset_seconds: seconds that the API's clock is ahead of ``now``; ``None`` before its first response
    """

    def __init__(
        self,
        *,
        iter_request_logs: Callable[..., Iterator[dict[str, Any]]],
        wait: Callable[[float], None],
        patience_seconds: float,
        now: Callable[[], float] = time.time,
        clock_offset_seconds: Callable[[], float | None] = lambda: 0.0,
    ) -> None:
        self._iter_request_logs = iter_request_logs
        self._wait = wait
        self._patience_seconds = patience_seconds
        self._now = now
        self._clock_offset_seconds = clock_offset_seconds
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._sought: list[Mapping[str, float]] = []
        self._found: dict[str, Charge] = {}
        self._looks = 0
        self._failure: ImagenError | None = None
        self._blocked_until = 0.0

    def find(self, client_request_id: str, *, sent_at: float, lost_at: float) -> Charge | None:
        """
        Return what a POST was charged, waiting until the log shows it.

        :param client_request_id: the id it was sent with
        :param sent_at: when it was sent, in seconds since the epoch
        :param lost_at: when its response was given up, in seconds since the epoch; the patience starts here
        :return: the charge, which is 0 for a failed request; ``None`` when the log still does not show the request
            after the patience
        :raises ImagenError: the log cannot be read, so the outcome is unknown
        """
        unbilled_at = lost_at + self._patience_seconds
        unknown_at = max(lost_at, self._now()) + self._patience_seconds
        pause = FIRST_PAUSE_SECONDS
        with self._seek({client_request_id: sent_at}):
            while True:
                looked_at = self._now()
                failure = self._look()
                if (charge := self._found.get(client_request_id)) is not None:
                    return charge
                give_up_at = unbilled_at if failure is None else unknown_at
                if failure is not None and (looked_at >= give_up_at or not _may_pass(failure)):
                    raise failure
                if looked_at >= give_up_at:
                    return None
                self._wait(min(max(pause, _retry_after(failure)), max(0.05, give_up_at - self._now())))
                pause = min(pause * 2, LONGEST_PAUSE_SECONDS)

    def look_once(self, sent: Mapping[str, float], *, strict: bool = False) -> dict[str, Charge]:
        """
        Return late charges of requests that were presumed unbilled, after one read of the log.

        :param sent: when each request was sent, in seconds since the epoch, by client request id
        :param strict: raise when the log cannot be read, instead of returning what is known
        :return: charges known so far, by client request id
        :raises ImagenError: the log cannot be read, and ``strict`` is set
        """
        with self._seek(sent):
            failure = self._look()
        if failure is not None and strict:
            raise failure
        if failure is not None:
            log.warning("The API's request log could not be searched for late charges: %s", failure)
        return {name: charge for name in sent if (charge := self._found.get(name)) is not None}

    @contextmanager
    def _seek(self, sent: Mapping[str, float]) -> Iterator[None]:
        """Within the block, make every read of the log, by any thread, look for these requests too."""
        with self._lock:
            self._sought.append(sent)
        try:
            yield
        finally:
            with self._lock:
                self._sought.remove(sent)

    def _look(self) -> ImagenError | None:
        """Read the log, or share a read that another thread starts after this call; return the error if it failed."""
        with self._lock:
            looks_before = self._looks
        with self._reading:
            if self._looks == looks_before and self._now() >= self._blocked_until:
                with self._lock:
                    self._looks += 1
                    sought = {name: at for sent in self._sought for name, at in sent.items()}
                self._failure = ImagenError("The API's request log was not read to its end.")
                try:
                    self._read_log(sought)
                    self._failure = None
                except ImagenError as error:
                    log.warning("The API's request log could not be read: %s", error)
                    self._failure = error
                    self._blocked_until = self._now() + _retry_after(error)
            return self._failure

    def _read_log(self, sought: Mapping[str, float]) -> None:
        missing = {name: at for name, at in sought.items() if name not in self._found}
        if not missing:
            return
        offset = self._clock_offset_seconds()
        if offset is None:  # any response carries it, even one for an empty window
            now = datetime.fromtimestamp(self._now(), UTC)
            next(self._iter_request_logs(start=now, end=now), None)
            offset = self._clock_offset_seconds() or 0.0
        start, end = log_window(missing.values(), now=self._now(), clock_offset_seconds=offset)
        for row in self._iter_request_logs(start=start, end=end):
            self._wait(0)  # a long log has many pages: stop when the task is cancelled
            client_request_id = row.get("client_request_id")
            if isinstance(client_request_id, str) and client_request_id in missing:
                self._found[client_request_id] = _read_row(row)
                del missing[client_request_id]
                if not missing:
                    return


def _may_pass(error: ImagenError) -> bool:
    return error.retry_helps or isinstance(error, UnreadableResponseError)  # reading again is free


def _retry_after(error: ImagenError | None) -> float:
    return getattr(error, "retry_after", None) or 0.0


def _read_row(row: Mapping[str, Any]) -> Charge:
    usd = read_row_usd(row.get("cost"))
    billed = row.get("status") != "failed" or bool(usd)  # an undocumented status counts as a charge
    inference_id = row.get("inference_id")
    return Charge(
        billed=billed,
        usd=usd if billed else Decimal(0),
        inference_id=inference_id if isinstance(inference_id, str) else None,
    )
