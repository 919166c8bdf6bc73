"""Find out what became of POSTs without a response, so that none is paid for twice and none goes uncounted."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future
from decimal import Decimal
from typing import TYPE_CHECKING, Literal

from msgspec import Struct, field

from airflow_provider_imagen.exceptions import ImagenError, JournalError, LostAnswerError, StoppedError, StorageError
from airflow_provider_imagen.journal.records import ChargeLost, PresumedUnbilled, Rejected
from airflow_provider_imagen.run.budget import reservation_for
from airflow_provider_imagen.run.charge_lookup import LONGEST_WINDOW_SECONDS, ChargeLookup
from airflow_provider_imagen.run.losses import (
    charge_lost,
    lost_request,
    lost_requests,
    sent_with_another_key,
    unknown_outcome,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from airflow_provider_imagen.journal.log import Journal
    from airflow_provider_imagen.journal.records import Intent, JournalState, RequestState, StoredFile
    from airflow_provider_imagen.run.budget import Budget, Reservation
    from airflow_provider_imagen.run.plan import Plan, Unit
    from airflow_provider_imagen.run.ports import Ports, RunOptions
    from airflow_provider_imagen.run.results import RequestWithoutImages
    from airflow_provider_imagen.run.shared_state import RunState

log = logging.getLogger(__name__)

STRAGGLER_SECONDS = 3.0
"""
How long a charge may be known before the response to it appears in the journal.

An earlier attempt may still be alive (its supervisor was killed, it was stopped and continued): it sends nothing any
more, but records the responses it gets, and those come about when the API's log shows the charge.
"""


FLUSH_SECONDS = 2.0
"""How long the last records may take to become durable before late charges are looked for."""

FINAL_AFTER_SECONDS = 24 * 3600.0
"""How long after its response was given up a request that the API's log does not show is unbilled for good."""


def is_final(lost_at: float) -> bool:
    """Return whether the log's silence about a request is final; it does not reach back for ever."""
    return FINAL_AFTER_SECONDS < time.time() - lost_at < LONGEST_WINDOW_SECONDS


class PendingRequest(Struct, frozen=True):
    """
    A POST of an earlier attempt whose outcome is not known yet.

    :param reservation: the money that is set aside for it
    :param outcome: done once the request may be sent again or its response is in the journal, or fails with the reason
        why it may not
    """

    unit: Unit
    intent: Intent
    reservation: Reservation
    outcome: Future[None] = field(default_factory=Future)


class Resolution(Struct, frozen=True):
    """
    What became of a POST without a response.

    :param kind: ``billed``, and its response is gone; ``rejected`` by the API, which costs nothing;
        ``presumed_unbilled``, because nothing shows a charge; or ``unknown``
    :param usd: what was billed, in USD; ``None`` when not even an estimate is known
    :param error: why it is not sent again; ``None`` when it may be
    """

    kind: Literal["billed", "rejected", "presumed_unbilled", "unknown"]
    usd: Decimal | None = None
    inference_id: str | None = None
    error: LostAnswerError | None = None


class Reconciler:
    """
    Resolves requests in doubt, those of this attempt and those that earlier attempts left behind.

    :param plan: what is going to be bought; a request that is not in it any more cannot hold anything up
    :param ports: reads the API's request log
    :param journal: open; resolutions are recorded there
    :param budget: keeps money reserved until there is a resolution
    :param reload: returns what earlier attempts have recorded by now
    """

    def __init__(
        self,
        *,
        plan: Plan,
        ports: Ports,
        journal: Journal,
        options: RunOptions,
        state: RunState,
        budget: Budget,
        reload: Callable[[], JournalState],
    ) -> None:
        self._ports = ports
        self._journal = journal
        self._options = options
        self._state = state
        self._budget = budget
        self._reload_journal = reload
        self._charges = ChargeLookup(
            iter_request_logs=ports.iter_request_logs,
            wait=state.cancellation.wait,
            patience_seconds=options.lost_answer_patience_seconds,
            clock_offset_seconds=lambda: ports.clock_offset_seconds,
        )
        self._reloading = threading.Lock()
        self._reloaded: tuple[float, JournalState] | None = None
        self._in_doubt: dict[str, list[PendingRequest]] = {}
        self._lost: list[tuple[PendingRequest, Decimal | None]] = []
        models = {unit.key: unit.model for unit in plan.units}
        self._without_response = {
            request.client_request_id: request for request in lost_requests(journal.state.requests, models)
        }
        for unit in plan.units:
            request = journal.state.requests.get(unit.key)
            for intent in request.open_intents.values() if request is not None else ():
                if (reservation := budget.examine(intent.client_request_id)) is not None:
                    self._in_doubt.setdefault(unit.key, []).append(PendingRequest(unit, intent, reservation))

    @property
    def in_doubt(self) -> Iterator[PendingRequest]:
        """Every request of the plan that an earlier attempt left in doubt; each is to be resolved once."""
        for requests in self._in_doubt.values():
            yield from requests

    def await_outcomes(self, unit: Unit) -> None:
        """
        Wait until everything that earlier attempts left in doubt about a request is resolved.

        :raises LostAnswerError: one of its POSTs was billed, or nobody can say
        :raises StoppedError: the task was cancelled before
        """
        for request in self._in_doubt.get(unit.key, ()):
            request.outcome.result()

    # --- one request of an earlier attempt ----------------------------------------------------------------------------

    def resolve(self, request: PendingRequest) -> None:
        """Find out what became of a POST of an earlier attempt, for the slot that waits for it."""
        try:
            if not self._has_response_by_now(request):
                self._resolve_by_log(request)
            request.outcome.set_result(None)
        except ImagenError as error:
            request.outcome.set_exception(error)
            self._state.fail_fast(error)
        except BaseException as error:
            request.outcome.set_exception(error)
            raise

    def _resolve_by_log(self, request: PendingRequest) -> None:
        intent = request.intent
        if self._options.on_lost_answer == "check" and not intent.is_visible_to(self._ports.account):
            self._budget.doubt(request.reservation)
            raise sent_with_another_key(intent)
        cause = LostAnswerError(
            "An earlier attempt ended while this request was in flight.",
            client_request_id=intent.client_request_id,
            model=intent.model,
        )
        try:
            lost_at = self._lost_at(intent)
            resolution = self._look_up(request.reservation, cause, sent_at=intent.at, lost_at=lost_at)
        except BaseException:
            self._budget.doubt(request.reservation)
            raise
        if resolution.kind == "rejected" or not self._has_response_soon(request, resolution):
            if resolution.kind == "billed":
                self._lost.append((request, resolution.usd))
            self._conclude(request.unit.key, request.reservation, resolution)

    def _lost_at(self, intent: Intent) -> float:
        """
        Return when the response to a POST of an earlier attempt must be considered lost, by our clock.

        Nobody saw it get lost: the API may work on it for as long as a response may take. The clock of that attempt's
        machine need not agree with ours, so the API's clock is what both are compared with.
        """
        options = self._options
        sent_at = intent.at
        if options.on_lost_answer == "check" and intent.clock_offset is not None:
            self._charges.look_once({intent.client_request_id: intent.at})  # any response tells the API's time
            if (offset := self._ports.clock_offset_seconds) is not None:
                sent_at += intent.clock_offset - offset
        return sent_at + max(options.lost_answer_patience_seconds, options.answer_timeout_seconds)

    def _has_response_soon(self, request: PendingRequest, resolution: Resolution) -> bool:
        """Give an earlier attempt that is still alive the time to record the response that the log shows as billed."""
        seconds = min(STRAGGLER_SECONDS, self._options.lost_answer_patience_seconds)
        give_up_at = time.monotonic() + (seconds if resolution.kind == "billed" else 0)
        while not (found := self._has_response_by_now(request)) and time.monotonic() < give_up_at:
            time.sleep(0.1)
        return found

    def _has_response_by_now(self, request: PendingRequest) -> bool:
        """Return whether the earlier attempt has recorded the response meanwhile, and reuse it if so."""
        found = self._find_response(request)
        if found is not None:
            self._budget.settle(request.reservation, usd=found.response.usd if found.response else None)
            self._budget.lose(found.usd_missing)
        return found is not None

    def _find_response(self, request: PendingRequest) -> RequestState | None:
        """Look for a response that the earlier attempt has recorded meanwhile, and take over what it recorded."""
        try:
            found = self._reload().requests.get(request.unit.key)
        except (JournalError, StorageError) as error:
            log.warning("%s", error)
            return None
        if found is None or found.response is None:
            return None
        if found.response.client_request_id != request.intent.client_request_id:
            return None
        self._journal.state.requests[request.unit.key] = found
        self._journal.append(found.response)
        return found

    def recover_losses(self) -> Iterator[PendingRequest]:
        """
        Look again for responses that were reported lost: an earlier attempt that was still alive may have them by now.

        :return: the requests whose responses were found; they are not counted as lost any more
        """
        for request, lost_usd in self._lost:
            if (found := self._find_response(request)) is not None and found.response is not None:
                usd = lost_usd if found.response.usd is None else found.response.usd
                counted = lost_usd or Decimal(0)
                self._budget.settle(request.reservation, usd=None if usd is None else usd - counted)
                self._budget.lose(found.usd_missing - counted)
                self._without_response.pop(request.intent.client_request_id, None)
                yield request

    def find_file(self, key: str, place: int) -> StoredFile | None:
        """
        Look for an inline image that an earlier attempt may have stored without recording it, or may be storing.

        :param place: of the image in the response
        """
        give_up_at = time.monotonic() + min(STRAGGLER_SECONDS, self._options.lost_answer_patience_seconds)
        while True:
            try:
                request = self._reload().requests.get(key)
            except (JournalError, StorageError) as error:
                log.warning("%s", error)
                return None
            stored = request.files.get(place) if request is not None else None
            if stored is not None or time.monotonic() >= give_up_at:
                return stored
            time.sleep(0.1)

    def _reload(self) -> JournalState:
        """Read what earlier attempts have written by now; at most once a second for all threads."""
        with self._reloading:
            if self._reloaded is None or time.monotonic() - self._reloaded[0] > 1.0:
                self._reloaded = (time.monotonic(), self._reload_journal())
            return self._reloaded[1]

    # --- one request of this attempt ----------------------------------------------------------------------------------

    def judge(
        self, unit: Unit, reservation: Reservation, cause: LostAnswerError, *, sent_at: float, lost_at: float
    ) -> None:
        """
        Decide about a POST of this attempt whose response got lost, and return if it may be sent again.

        :param reservation: the money set aside for it, with the client request id it was sent with
        :param cause: how its response got lost
        :param sent_at: when it was sent, in seconds since the epoch
        :param lost_at: when its response was given up, in seconds since the epoch
        :raises LostAnswerError: it may not be sent again
        :raises StoppedError: the task was cancelled before there was a resolution
        """
        try:
            resolution = self._look_up(reservation, cause, sent_at=sent_at, lost_at=lost_at)
        except BaseException:
            self._budget.doubt(reservation)
            raise
        self._conclude(unit.key, reservation, resolution)

    def _look_up(
        self, reservation: Reservation, cause: LostAnswerError, *, sent_at: float, lost_at: float
    ) -> Resolution:
        """Find out what a POST was charged, in the way the author wants."""
        client_request_id, model = reservation.client_request_id or "", reservation.model
        cause.client_request_id, cause.model = client_request_id, model
        if cause.usd:  # the head of the response states the charge, so nothing needs to be looked up
            usd: Decimal | None = Decimal(str(cause.usd))
            inference_id = cause.inference_id
        elif self._options.on_lost_answer == "fail":
            cause.retry_helps = False
            return Resolution("unknown", error=cause)
        elif self._options.on_lost_answer == "resend":
            return Resolution("presumed_unbilled")
        else:
            log.warning("%s Looking the request up in the API's log (%s).", cause, client_request_id)
            try:
                charge = self._charges.find(client_request_id, sent_at=sent_at, lost_at=lost_at)
            except StoppedError:
                raise
            except ImagenError as error:
                return Resolution("unknown", error=unknown_outcome(model, client_request_id, cause, error))
            if charge is None:
                is_settled = is_final(lost_at)
                return Resolution("rejected" if is_settled else "presumed_unbilled")
            if not charge.billed:
                return Resolution("rejected")
            usd = self._budget.cost(reservation, charge.usd, has_images=True)
            inference_id = charge.inference_id
        if self._options.on_lost_answer == "resend":
            return Resolution("billed", usd, inference_id)
        loss = charge_lost(model, client_request_id=client_request_id, inference_id=inference_id, usd=usd)
        return Resolution("billed", usd, inference_id, loss)

    def _conclude(self, key: str, reservation: Reservation, resolution: Resolution) -> None:
        """
        Count and record a resolution.

        :raises LostAnswerError: the request may not be sent again
        """
        client_request_id = reservation.client_request_id or ""
        match resolution.kind:
            case "billed":
                self._budget.settle(reservation, usd=resolution.usd)
                self.record_loss(key, client_request_id, inference_id=resolution.inference_id, usd=resolution.usd)
            case "rejected":
                self._budget.release(reservation)
                self._journal.commit(Rejected(key=key, client_request_id=client_request_id))
            case "presumed_unbilled":
                self._budget.doubt(reservation)
                self._journal.commit(PresumedUnbilled(key=key, client_request_id=client_request_id))
            case "unknown":
                self._budget.doubt(reservation)
        if resolution.error is not None:
            raise resolution.error

    def record_loss(self, key: str, client_request_id: str, *, inference_id: str | None, usd: Decimal | None) -> None:
        """Count and record that a POST was billed and its response is gone."""
        loss = ChargeLost(key=key, client_request_id=client_request_id, inference_id=inference_id, usd=usd)
        self._count_loss(loss, self._journal.unresolved.get(client_request_id))
        self._journal.commit(loss)  # the API's log may never show it, so this record is all there is

    def _count_loss(self, loss: ChargeLost, intent: Intent | None) -> None:
        self._budget.lose(loss.usd)
        model, target = (intent.model, intent.target) if intent is not None else (None, None)
        self._without_response[loss.client_request_id] = lost_request(loss, model, target)

    def lost(self) -> list[RequestWithoutImages]:
        """Return the requests of all attempts that were billed and whose responses are gone."""
        return list(self._without_response.values())

    # --- the beginning and the end ------------------------------------------------------------------------------------

    def look_for_late_charges(self) -> None:
        """
        Look for everything that may have been billed, so that a charge that came late is counted.

        Before anything is sent, so that it is not bought again; and at the end, so that it is counted at least.
        """
        if self._options.on_lost_answer == "fail" or not self._journal.unresolved:
            return
        self._journal.flush(FLUSH_SECONDS)  # what has been resolved by now
        unresolved = {
            client_request_id: intent
            for client_request_id, intent in dict(self._journal.unresolved).items()
            if self._budget.is_in_doubt(client_request_id) and intent.is_visible_to(self._ports.account)
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
                "A request whose response was lost was billed after all: $%s, inference id %s, client request id %s.",
                usd,
                charge.inference_id,
                client_request_id,
            )
            self._budget.settle(reservation, usd=usd)
            loss = ChargeLost(
                key=intent.key, client_request_id=client_request_id, inference_id=charge.inference_id, usd=usd
            )
            self._count_loss(loss, intent)
            self._journal.append(loss)
            if (request := self._journal.state.requests.get(intent.key)) is not None:
                request.apply(loss)
