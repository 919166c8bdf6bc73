"""Resolve requests whose responses were lost, so that none is paid for twice and no charge goes uncounted."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future
from decimal import Decimal
from typing import TYPE_CHECKING, Literal

from msgspec import Struct, field

from airflow_provider_imagen.exceptions import (
    ChargedButLostError,
    ImagenError,
    JournalError,
    LostAnswerError,
    StoppedError,
    StorageError,
)
from airflow_provider_imagen.journal.records import ChargeLost, PresumedUnbilled, Rejected
from airflow_provider_imagen.money import format_usd
from airflow_provider_imagen.run.budget import reservation_for
from airflow_provider_imagen.run.charge_lookup import LONGEST_WINDOW_SECONDS, ChargeLookup
from airflow_provider_imagen.run.results import RequestWithoutImages, billed_without_images

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from airflow_provider_imagen.image_record import StoredFile
    from airflow_provider_imagen.journal.records import Intent, JournalState, RequestState
    from airflow_provider_imagen.run.budget import Reservation
    from airflow_provider_imagen.run.context import RunContext
    from airflow_provider_imagen.run.plan import Plan, PlannedRequest

log = logging.getLogger(__name__)

STRAGGLER_SECONDS = 3.0
"""
How long to wait for a response to appear in the journal once its charge is known.

A previous attempt may still be alive (its supervisor was killed, or it was paused and resumed). It sends nothing more
but still records responses, which arrive at about the time the API's log shows the charge.
"""

FINAL_AFTER_SECONDS = 24 * 3600.0
"""Time since a response was given up after which a request missing from the API's log is unbilled for good."""


def is_final(lost_at: float) -> bool:
    """Return whether a request's absence from the API's log is final: it is old enough, and the log still covers it."""
    return FINAL_AFTER_SECONDS < time.time() - lost_at < LONGEST_WINDOW_SECONDS


class PendingRequest(Struct, frozen=True):
    """
    A POST of a previous attempt whose outcome is not known yet.

    :param reservation: the money reserved for it
    :param outcome: done once the request may be sent again or its response is in the journal; fails with the reason why
        it may not be sent
    """

    planned: PlannedRequest
    intent: Intent
    reservation: Reservation
    outcome: Future[None] = field(default_factory=Future)


class Resolution(Struct, frozen=True):
    """
    Outcome of a POST without a response.

    :param kind: ``billed``, and its response is gone; ``rejected``, so it cost nothing; ``presumed_unbilled``, because
        no charge has shown up; or ``unknown``
    :param usd: what was billed, in USD; ``None`` when not even an estimate is known
    :param error: why it may not be sent again; ``None`` when it may
    """

    kind: Literal["billed", "rejected", "presumed_unbilled", "unknown"]
    usd: Decimal | None = None
    inference_id: str | None = None
    error: LostAnswerError | None = None


class Reconciler:
    """
    Resolves in-doubt requests, both of this attempt and of previous ones.

    In-doubt requests that are no longer in the plan hold nothing up.

    :param reload: returns what previous attempts have recorded by now
    """

    def __init__(self, context: RunContext, *, reload: Callable[[], JournalState]) -> None:
        self._api = context.api
        self._journal = context.journal
        self._options = context.options
        self._state = context.state
        self._budget = context.budget
        self._reload_journal = reload
        self._charges = ChargeLookup(
            iter_request_logs=self._api.iter_request_logs,
            wait=self._state.cancellation.wait,
            patience_seconds=self._options.lost_answer_patience_seconds,
            clock_offset_seconds=lambda: self._api.clock_offset_seconds,
        )
        self._reloading = threading.Lock()
        self._reloaded: tuple[float, JournalState] | None = None
        self._in_doubt = self._reopen_in_doubt(context.plan)
        self._reported_lost: list[tuple[PendingRequest, Decimal | None]] = []  # each with the charge counted for it
        models = {planned.key: planned.model for planned in context.plan.requests}
        losses = billed_without_images(self._journal.state.requests, models)
        self._losses = {loss.client_request_id: loss for loss in losses}

    def _reopen_in_doubt(self, plan: Plan) -> dict[str, list[PendingRequest]]:
        """Return the plan's requests in doubt, by key; their money counts as in flight until they are resolved."""
        in_doubt: dict[str, list[PendingRequest]] = {}
        for planned in plan.requests:
            request = self._journal.state.requests.get(planned.key)
            for intent in request.open_intents.values() if request is not None else ():
                if (reservation := self._budget.reopen(intent.client_request_id)) is not None:
                    in_doubt.setdefault(planned.key, []).append(PendingRequest(planned, intent, reservation))
        return in_doubt

    @property
    def in_doubt(self) -> Iterator[PendingRequest]:
        """The plan's requests that previous attempts left in doubt; resolve each of them once."""
        for requests in self._in_doubt.values():
            yield from requests

    def await_outcomes(self, planned: PlannedRequest) -> None:
        """
        Wait until all of a request's POSTs that previous attempts left in doubt are resolved.

        :raises LostAnswerError: one of them was billed, or its outcome remains unknown
        :raises StoppedError: the task was cancelled first
        """
        for pending in self._in_doubt.get(planned.key, ()):
            pending.outcome.result()

    # --- requests of previous attempts --------------------------------------------------------------------------------

    def resolve_pending(self, pending: PendingRequest) -> None:
        """Resolve a POST of a previous attempt, for the slot that waits for its outcome."""
        try:
            if not self._reuse_response(pending):
                self._resolve_without_response(pending)
            pending.outcome.set_result(None)
        except ImagenError as error:
            pending.outcome.set_exception(error)
            self._state.fail_fast(error)
        except BaseException as error:
            pending.outcome.set_exception(error)
            raise

    def _resolve_without_response(self, pending: PendingRequest) -> None:
        """Resolve a POST of a previous attempt that has recorded no response to it so far."""
        intent = pending.intent
        if self._options.on_lost_answer == "check" and not intent.is_visible_to(self._api.account):
            self._budget.hold_in_doubt(pending.reservation)
            raise LostAnswerError.sent_with_another_key(intent.client_request_id, model=intent.model)
        cause = LostAnswerError(
            "A previous attempt ended while this request was in flight.",
            client_request_id=intent.client_request_id,
            model=intent.model,
        )
        try:
            lost_at = self._lost_at(intent)
            resolution = self._resolve(pending.reservation, cause, sent_at=intent.at, lost_at=lost_at)
        except BaseException:
            self._budget.hold_in_doubt(pending.reservation)
            raise
        # Only a rejected request certainly has no response; any other may have been recorded during the lookup.
        if resolution.kind == "rejected" or not self._await_response(pending, resolution):
            if resolution.kind == "billed":
                self._reported_lost.append((pending, resolution.usd))
            self._conclude(pending.planned.key, pending.reservation, resolution)

    def _lost_at(self, intent: Intent) -> float:
        """
        Return when to consider the response to a previous attempt's POST lost, by our clock.

        Nobody knows when it was lost, so allow for as long as a response may take. The clock of the machine that sent
        it may differ from ours; both are compared with the API's clock.
        """
        options = self._options
        sent_at = intent.at
        if options.on_lost_answer == "check" and intent.clock_offset is not None:
            self._charges.look_once({intent.client_request_id: intent.at})  # any response carries the API's time
            if (offset := self._api.clock_offset_seconds) is not None:
                sent_at += intent.clock_offset - offset
        return sent_at + max(options.lost_answer_patience_seconds, options.answer_timeout_seconds)

    def _await_response(self, pending: PendingRequest, resolution: Resolution) -> bool:
        """Reuse the response if the previous attempt records it; wait a moment for that if the request was billed."""
        seconds = min(STRAGGLER_SECONDS, self._options.lost_answer_patience_seconds)
        give_up_at = time.monotonic() + (seconds if resolution.kind == "billed" else 0)
        while not (found := self._reuse_response(pending)) and time.monotonic() < give_up_at:
            time.sleep(0.1)
        return found

    def _reuse_response(self, pending: PendingRequest) -> bool:
        """Reuse and count the response if the previous attempt has recorded it by now; return whether it has."""
        found = self._take_over_response(pending)
        if found is not None:
            self._budget.count_charge(pending.reservation, usd=found.response.usd if found.response else None)
            self._budget.count_lost(found.usd_missing)
        return found is not None

    def _take_over_response(self, pending: PendingRequest) -> RequestState | None:
        """
        Copy the response to this attempt's journal if the previous attempt has recorded it by now.

        :return: the state of the request, ``None`` if there is no response
        """
        try:
            found = self._reload_shared().requests.get(pending.planned.key)
        except (JournalError, StorageError) as error:
            log.warning("%s", error)
            return None
        if found is None or found.response is None:
            return None
        if found.response.client_request_id != pending.intent.client_request_id:
            return None
        self._journal.state.requests[pending.planned.key] = found
        self._journal.append(found.response)
        return found

    def find_file(self, key: str, position: int) -> StoredFile | None:
        """
        Return the file of an inline image if a previous attempt has stored it; wait a moment for one still at work.

        :param position: index of the image in the response
        """
        give_up_at = time.monotonic() + min(STRAGGLER_SECONDS, self._options.lost_answer_patience_seconds)
        while True:
            try:
                request = self._reload_shared().requests.get(key)
            except (JournalError, StorageError) as error:
                log.warning("%s", error)
                return None
            stored = request.files.get(position) if request is not None else None
            if stored is not None or time.monotonic() >= give_up_at:
                return stored
            time.sleep(0.1)

    def _reload_shared(self) -> JournalState:
        """Return what previous attempts have written by now, read at most once a second for all threads."""
        with self._reloading:
            if self._reloaded is None or time.monotonic() - self._reloaded[0] > 1.0:
                self._reloaded = (time.monotonic(), self._reload_journal())
            return self._reloaded[1]

    # --- requests of this attempt -------------------------------------------------------------------------------------

    def resolve_lost(
        self,
        planned: PlannedRequest,
        reservation: Reservation,
        cause: LostAnswerError,
        *,
        sent_at: float,
        lost_at: float,
    ) -> None:
        """
        Resolve a POST of this attempt whose response was lost, and return if it may be sent again.

        :param reservation: the money reserved for it, with its client request id
        :param cause: how its response was lost
        :param sent_at: when it was sent, in seconds since the epoch
        :param lost_at: when its response was given up, in seconds since the epoch
        :raises LostAnswerError: it may not be sent again
        :raises StoppedError: the task was cancelled before it was resolved
        """
        try:
            resolution = self._resolve(reservation, cause, sent_at=sent_at, lost_at=lost_at)
        except BaseException:
            self._budget.hold_in_doubt(reservation)
            raise
        self._conclude(planned.key, reservation, resolution)

    # --- requests of any attempt --------------------------------------------------------------------------------------

    def _resolve(
        self, reservation: Reservation, cause: LostAnswerError, *, sent_at: float, lost_at: float
    ) -> Resolution:
        """Return the resolution of a POST: from its response headers, else in the way ``on_lost_answer`` requests."""
        client_request_id = reservation.client_request_id or ""
        cause.client_request_id, cause.model = client_request_id, reservation.model
        if cause.usd:  # the response headers state the charge
            return self._billed(reservation, Decimal(str(cause.usd)), cause.inference_id)
        if self._options.on_lost_answer == "fail":
            cause.retry_helps = False
            return Resolution("unknown", error=cause)
        if self._options.on_lost_answer == "resend":
            return Resolution("presumed_unbilled")
        log.warning("%s Looking the request up in the API's log (%s).", cause, client_request_id)
        try:
            charge = self._charges.find(client_request_id, sent_at=sent_at, lost_at=lost_at)
        except StoppedError:
            raise
        except ImagenError as error:
            return Resolution("unknown", error=cause.with_failed_lookup(error))
        if charge is None:
            return Resolution("rejected" if is_final(lost_at) else "presumed_unbilled")
        if not charge.billed:
            return Resolution("rejected")
        usd = self._budget.cost(reservation, charge.usd, has_images=True)
        return self._billed(reservation, usd, charge.inference_id)

    def _billed(self, reservation: Reservation, usd: Decimal | None, inference_id: str | None) -> Resolution:
        """Return the resolution of a POST that was billed, which is an error unless it may be paid for again."""
        if self._options.on_lost_answer == "resend":
            return Resolution("billed", usd, inference_id)
        error = ChargedButLostError.of_charge(
            usd,
            model=reservation.model,
            client_request_id=reservation.client_request_id or "",
            inference_id=inference_id,
        )
        return Resolution("billed", usd, inference_id, error)

    def _conclude(self, key: str, reservation: Reservation, resolution: Resolution) -> None:
        """
        Count and journal a resolution.

        :raises LostAnswerError: the request may not be sent again
        """
        client_request_id = reservation.client_request_id or ""
        match resolution.kind:
            case "billed":
                self._budget.count_charge(reservation, usd=resolution.usd)
                self.journal_loss(key, client_request_id, inference_id=resolution.inference_id, usd=resolution.usd)
            case "rejected":
                self._budget.release(reservation)
                self._journal.commit(Rejected(key=key, client_request_id=client_request_id))
            case "presumed_unbilled":
                self._budget.hold_in_doubt(reservation)
                self._journal.commit(PresumedUnbilled(key=key, client_request_id=client_request_id))
            case "unknown":
                self._budget.hold_in_doubt(reservation)
        if resolution.error is not None:
            raise resolution.error

    def journal_loss(self, key: str, client_request_id: str, *, inference_id: str | None, usd: Decimal | None) -> None:
        """Count and journal that a POST was billed and its response is gone."""
        loss = ChargeLost(key=key, client_request_id=client_request_id, inference_id=inference_id, usd=usd)
        self._count_loss(loss, self._journal.unresolved.get(client_request_id))
        self._journal.commit(loss)  # the API's log may never show it; this may be the only trace

    def _count_loss(self, loss: ChargeLost, intent: Intent | None) -> None:
        self._budget.count_lost(loss.usd)
        model, target = (intent.model, intent.target) if intent is not None else (None, None)
        self._losses[loss.client_request_id] = RequestWithoutImages.billed(loss, model=model, target=target)

    # --- before and after the run -------------------------------------------------------------------------------------

    def look_for_late_charges(self) -> None:
        """
        Look up everything in doubt once more, and count charges that have appeared since.

        At the start, this prevents paying again for what was billed; at the end, it at least counts it.
        """
        if self._options.on_lost_answer == "fail" or not self._journal.unresolved:
            return
        unresolved = {
            client_request_id: intent
            for client_request_id, intent in dict(self._journal.unresolved).items()
            # A request that this run resolves on its own is in flight instead of in doubt.
            if self._budget.is_in_doubt(client_request_id) and intent.is_visible_to(self._api.account)
        }
        if not unresolved:
            return
        sent = {client_request_id: intent.at for client_request_id, intent in unresolved.items()}
        for client_request_id, charge in self._charges.look_once(sent).items():
            intent = unresolved[client_request_id]
            reservation = reservation_for(intent)
            if not charge.billed:
                self._budget.release(reservation)
                self._journal.append(Rejected(key=intent.key, client_request_id=client_request_id))
                continue
            usd = self._budget.cost(reservation, charge.usd, has_images=True)
            log.error(
                "A request whose response was lost was billed after all: %s, inference id %s, client request id %s.",
                "unknown cost" if usd is None else format_usd(usd),
                charge.inference_id,
                client_request_id,
            )
            self._budget.count_charge(reservation, usd=usd)
            loss = ChargeLost(
                key=intent.key, client_request_id=client_request_id, inference_id=charge.inference_id, usd=usd
            )
            self._count_loss(loss, intent)
            self._journal.append(loss)
            if (request := self._journal.state.requests.get(intent.key)) is not None:
                request.apply(loss)  # so that this run reports the loss instead of paying again

    def recover_losses(self) -> Iterator[PendingRequest]:
        """
        Yield requests that were reported lost and whose responses a previous attempt has recorded since.

        They no longer count as lost.
        """
        for pending, lost_usd in self._reported_lost:
            if (found := self._take_over_response(pending)) is not None and found.response is not None:
                usd = lost_usd if found.response.usd is None else found.response.usd
                counted = lost_usd or Decimal(0)
                self._budget.count_charge(pending.reservation, usd=None if usd is None else usd - counted)
                self._budget.count_lost(found.usd_missing - counted)
                self._losses.pop(pending.intent.client_request_id, None)
                yield pending

    def losses(self) -> list[RequestWithoutImages]:
        """Return the billed requests of all attempts whose responses are gone."""
        return list(self._losses.values())
