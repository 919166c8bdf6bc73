"""Obtain the responses for a slot: reuse what previous attempts paid for, and pay once for what is missing."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING

from airflow_provider_imagen.api.fields import read_whole_number
from airflow_provider_imagen.api.retries import MAX_POSTS, may_resend, resending
from airflow_provider_imagen.exceptions import (
    ChargedButLostError,
    ImagenError,
    LostAnswerError,
    ModelWithdrawnError,
    RateLimitedError,
    StoppedError,
    UnreadableResponseError,
)
from airflow_provider_imagen.image_record import ResponseImage
from airflow_provider_imagen.journal.records import Rejected, Response, new_intent
from airflow_provider_imagen.run.results import ReceivedResponse

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from airflow_provider_imagen.api.responses import Generation
    from airflow_provider_imagen.rate_limit.pacer import Pacer
    from airflow_provider_imagen.run.budget import Reservation
    from airflow_provider_imagen.run.context import RunContext
    from airflow_provider_imagen.run.plan import PlannedRequest
    from airflow_provider_imagen.run.reconcile import Reconciler
    from airflow_provider_imagen.run.replay import PreviousAttempts

log = logging.getLogger(__name__)

MAX_LOST_ANSWERS = 3
"""Lost responses to one request within an attempt, after which it is left to the next attempt."""

OWNERSHIP_LASTS_SECONDS = 2.0
"""Maximum age of the last ownership check when a request is sent; committing its intent includes a check."""


class Submitter:
    """
    Obtains the responses for slots; safe to use from any number of threads.

    :param pacer: issues the permits to send
    :param previous: what previous attempts did
    :param reconciler: decides about lost responses
    :param hand_over: called with each response as soon as it is available
    """

    def __init__(
        self,
        context: RunContext,
        *,
        pacer: Pacer,
        previous: PreviousAttempts,
        reconciler: Reconciler,
        hand_over: Callable[[ReceivedResponse], None],
    ) -> None:
        self._plan = context.plan
        self._api = context.api
        self._journal = context.journal
        self._options = context.options
        self._encryption = context.encryption
        self._state = context.state
        self._budget = context.budget
        self._pacer = pacer
        self._previous = previous
        self._reconciler = reconciler
        self._hand_over = hand_over

    def submit_slot(self, slot_number: int) -> None:
        """Obtain the responses for a slot, and record what goes wrong."""
        try:
            self._submit_first_available(slot_number)
        except StoppedError:
            return
        except ImagenError as error:
            self._state.record_error(slot_number, error)
            self._state.fail_fast(error)

    def _submit_first_available(self, slot_number: int) -> None:
        """Obtain the responses for a slot from the first model that is not retired."""
        alternatives = self._previous.in_order_of_use(self._plan.slots[slot_number])
        for alternative in alternatives:
            handed_over = 0
            try:
                for planned in alternative:
                    received = self._obtain(slot_number, planned)
                    self._hand_over(received)
                    handed_over += 1
                    if received.finished is not None:
                        self._await_finish(received.finished)
            except ModelWithdrawnError as error:
                self._state.record_retired(alternative[0].model, error)
                # Do not pay another model for what this one has already generated.
                if handed_over or alternative is alternatives[-1]:
                    raise
            else:
                return

    def _await_finish(self, finished: threading.Event) -> None:
        """Wait until images that exist only in memory are stored, so that a kill can lose only requests in flight."""
        while not finished.wait(0.2):
            if self._state.crash is not None or self._state.cancellation.abandoned.is_set():
                return

    def _obtain(self, slot_number: int, planned: PlannedRequest) -> ReceivedResponse:
        """Return the response to a request: one that was already paid for, else a new one."""
        self._reconciler.await_outcomes(planned)
        request = self._previous.requests.get(planned.key)
        if request is not None and request.response is not None and self._previous.is_paid(planned):
            return self.reuse(slot_number, planned, request.response)
        if request is not None and self._previous.is_lost(planned):
            charge = list(request.charges_lost.values())[-1]
            raise ChargedButLostError.of_charge(
                charge.usd,
                model=planned.model,
                client_request_id=charge.client_request_id,
                inference_id=charge.inference_id,
            )
        for _ in range(MAX_LOST_ANSWERS):
            if (received := self._submit(slot_number, planned)) is not None:
                return received
        raise LostAnswerError(
            f"{MAX_LOST_ANSWERS} responses to this request were lost, one after the other; the next attempt sends it "
            f"again.",
            model=planned.model,
        )

    def reuse(self, slot_number: int, planned: PlannedRequest, response: Response) -> ReceivedResponse:
        """Return a previous attempt's response, along with the files it stored."""
        request = self._previous.requests[planned.key]
        return ReceivedResponse(
            key=planned.key,
            slot_number=slot_number,
            item=self._plan.items[planned.target.prompt_index],
            target=planned.target,
            response=response,
            aspect_ratio=planned.request.aspect_ratio,
            is_reused=True,
            files=request.files,
            missing=request.missing,
        )

    def _submit(self, slot_number: int, planned: PlannedRequest) -> ReceivedResponse | None:
        """
        Send a request until there is a response, resending only what certainly cost nothing; see :meth:`_post`.

        After a 429 it waits for its next permit, for as long as the rate-limit patience and :data:`MAX_POSTS` allow. If
        no request gets through for that patience, the run is aborted.
        """
        prompt_index = planned.target.prompt_index

        def on_refused(error: ImagenError, seconds: float) -> None:
            log.warning("Prompt %d: %s Sending it again in %.1f s.", prompt_index, error, seconds)

        again = resending(
            wait=self._state.wait,
            on_refused=on_refused,
            first_wait_seconds=self._options.first_wait_seconds,
            without=(RateLimitedError,),
        )
        times_limited, limited_at = 0, 0.0
        while True:
            try:
                return again(self._post, slot_number, planned)
            except RateLimitedError as error:
                times_limited += 1
                limited_at = limited_at or time.monotonic()
                patience = self._options.rate_limit_patience_seconds
                is_singled_out = times_limited >= MAX_POSTS and time.monotonic() - limited_at >= patience
                if self._pacer.refused_for_seconds >= patience:  # no request gets through
                    self._state.abort(error)
                    raise
                if is_singled_out or not may_resend(error):
                    raise
                log.info("Prompt %d: %s It is sent again with its next permit.", prompt_index, error)

    def _post(self, slot_number: int, planned: PlannedRequest) -> ReceivedResponse | None:
        """
        Send one POST. Its intent is durable before, and its response is handed to the journal right after.

        The submitter does not wait for the record of the response. It does wait for its next intent, which comes later
        in the same journal, so it never sends a request before the previous response is durable.

        :return: ``None`` when the response was lost and the request may be sent again
        """
        self._state.refuse_retired(planned.model)
        reservation = self._budget.reserve(
            model=planned.model, quoted_usd=planned.quoted_usd, images=planned.target.images
        )
        is_sent = False
        lost: LostAnswerError | None = None
        try:
            permit = self._pacer.permit(
                partial(self._journal_intent, planned), undo=partial(self._journal_rejected, planned)
            )
            with permit as client_request_id:
                self._check_that_it_may_be_sent(planned, client_request_id)
                reservation.client_request_id, is_sent = client_request_id, True
                started, sent_at = time.monotonic(), time.time()
                try:
                    generation = self._api.generate(planned.request, client_request_id)
                except LostAnswerError as error:
                    lost = error
                except ImagenError as error:
                    self._count_rejected(planned, reservation, error)
                    raise
                except BaseException:
                    self._budget.doubt(reservation)
                    raise
                seconds = time.monotonic() - started
        finally:
            if not is_sent:
                self._budget.release(reservation)
        if lost is not None:
            self._reconciler.resolve_lost(planned, reservation, lost, sent_at=sent_at, lost_at=time.time())
            return None
        response, journaled = self._journal_response(planned, reservation, generation)
        inline = {position: image.data for position, image in enumerate(generation.pictures) if image.data is not None}
        return ReceivedResponse(
            key=planned.key,
            slot_number=slot_number,
            item=self._plan.items[planned.target.prompt_index],
            target=planned.target,
            response=response,
            aspect_ratio=planned.request.aspect_ratio,
            seconds=seconds,
            inline=inline,
            journaled=journaled,
            finished=threading.Event() if inline else None,
        )

    def _check_that_it_may_be_sent(self, planned: PlannedRequest, client_request_id: str) -> None:
        """
        Check once more right before sending, because the intent may be a few seconds old.

        :raises OwnershipLostError: another attempt owns the journal now
        :raises StoppedError: nothing more may be sent
        """
        try:
            self._journal.confirm_ownership(max_age_seconds=OWNERSHIP_LASTS_SECONDS)
            self._state.check()
        except ImagenError:
            self._journal_rejected(planned, client_request_id)
            raise

    def _journal_intent(self, planned: PlannedRequest) -> str:
        """Make the intent of a POST durable, and return its client request id."""
        client_request_id = f"imagen.{planned.key.partition('#')[0]}.{secrets.token_hex(8)}"
        intent = new_intent(
            planned.key,
            client_request_id=client_request_id,
            model=planned.model,
            usd=planned.quoted_usd,
            target=planned.target,
            clock_offset=self._api.clock_offset_seconds,
            account=self._api.account,
        )
        try:
            self._journal.commit(intent)
        except ImagenError:  # not sent, although the intent may be or become durable
            self._journal_rejected(planned, client_request_id)
            raise
        return client_request_id

    def _journal_rejected(self, planned: PlannedRequest, client_request_id: str) -> None:
        """Journal that a POST was not sent, or that the API did no work for it."""
        self._journal.append(Rejected(key=planned.key, client_request_id=client_request_id))

    def _count_rejected(self, planned: PlannedRequest, reservation: Reservation, error: ImagenError) -> None:
        """
        Journal that a POST brought no images, and count what it cost nevertheless.

        Errors are not billed (spec of ``GET /v2/logs``, 2026-08-21), even with a success status, unless they state a
        cost. A success that cannot be read counts as billed.
        """
        error.client_request_id = client_request_id = reservation.client_request_id or ""
        usd = Decimal(str(error.usd)) if error.usd is not None else None
        is_success = error.status is not None and 200 <= error.status < 300
        if is_success and not usd and isinstance(error, UnreadableResponseError):
            usd = self._budget.cost(reservation, None, has_images=True)
        elif not usd:
            self._budget.release(reservation)
            self._journal_rejected(planned, client_request_id)
            return
        self._budget.settle(reservation, usd=usd)
        self._reconciler.record_loss(planned.key, client_request_id, inference_id=error.inference_id, usd=usd)

    def _journal_response(
        self, planned: PlannedRequest, reservation: Reservation, generation: Generation
    ) -> tuple[Response, Future[None]]:
        """Count and journal a response; return it with a future that is done once it is durable."""
        images = tuple(
            ResponseImage(
                url=self._encryption.encrypt(image.url) if image.url else None,
                prompt=image.prompt,
                seed=image.seed if image.seed is not None else read_whole_number(planned.request.body.get("seed")),
                withheld=image.withheld,
                broken=image.broken,
            )
            for image in generation.pictures
        )
        usd = self._budget.cost(reservation, generation.usd, has_images=bool(images))
        response = Response(
            key=planned.key,
            client_request_id=reservation.client_request_id or "",
            images=images,
            usd=usd,
            usd_is_estimate=usd != generation.usd,
            usd_undelivered=_undelivered(usd, generation, asked=reservation.images),
            inference_id=generation.inference_id,
            model=planned.model,
            at=round(time.time(), 3),
        )
        request = self._previous.requests.get(planned.key)
        if request is not None and request.response is not None:  # paid again: the cost of the first response is lost
            self._budget.lose((request.response.usd or Decimal(0)) - request.usd_missing)
        self._budget.lose(response.usd_undelivered)
        self._budget.settle(reservation, usd=usd)
        return response, self._journal.append(response)


def _undelivered(usd: Decimal | None, generation: Generation, *, asked: int) -> Decimal:
    """
    Return the part of a charge that is for images which can never be retrieved.

    That is the whole charge if no image came, otherwise a share for each ``null`` in place of an image. Images that are
    not in the list, or marked as filtered, are reported separately (:class:`FilteredError`).
    """
    if not usd:
        return Decimal(0)
    images = len(generation.pictures)
    return usd * generation.null_items / max(asked, images + generation.null_items) if images else usd
