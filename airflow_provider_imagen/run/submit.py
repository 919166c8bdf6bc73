"""Obtain the responses for a slot: reuse what previous attempts paid for, and pay once for what is missing."""

from __future__ import annotations

import logging
import math
import threading
import time
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING

from msgspec.structs import replace

from airflow_provider_imagen.api.client_request_id import new_client_request_id
from airflow_provider_imagen.api.fields import read_whole_number
from airflow_provider_imagen.api.retries import MAX_POSTS, may_resend, resending
from airflow_provider_imagen.exceptions import (
    ChargedButLostError,
    ImagenError,
    LostAnswerError,
    ModelWithdrawnError,
    RateLimitedError,
    StoppedError,
    StorageError,
    UnreadableResponseError,
)
from airflow_provider_imagen.image_record import ResponseImage
from airflow_provider_imagen.journal.log import OWNERSHIP_MAX_AGE_SECONDS
from airflow_provider_imagen.journal.records import Rejected, Response, new_intent
from airflow_provider_imagen.run.results import ReceivedResponse

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_imagen.api.responses import Generation
    from airflow_provider_imagen.rate_limit.pacer import Pacer
    from airflow_provider_imagen.run.budget import Reservation
    from airflow_provider_imagen.run.context import RunContext
    from airflow_provider_imagen.run.plan import PlannedRequest
    from airflow_provider_imagen.run.previous_attempts import PreviousAttempts
    from airflow_provider_imagen.run.reconcile import Reconciler
    from airflow_provider_imagen.run.reuse import EarlierRequests, ReusedImage

log = logging.getLogger(__name__)

MAX_LOST_ANSWERS = 3
"""Lost responses to one request after which this attempt leaves it to the next."""


class Submitter:
    """
    Obtains the responses for slots; safe to use from any number of threads.

    :param pacer: issues the permits to send
    :param previous: what previous attempts did
    :param earlier: what other runs have paid for
    :param reconciler: decides about lost responses
    :param hand_over: called with each response as soon as it is available
    """

    def __init__(
        self,
        context: RunContext,
        *,
        pacer: Pacer,
        previous: PreviousAttempts,
        earlier: EarlierRequests,
        reconciler: Reconciler,
        hand_over: Callable[[ReceivedResponse], None],
    ) -> None:
        self._ti_key = context.ti_key
        self._plan = context.plan
        self._api = context.api
        self._sink = context.sink
        self._journal = context.journal
        self._options = context.options
        self._encryption = context.encryption
        self._state = context.state
        self._budget = context.budget
        self._usage_caps = context.usage_caps
        self._pacer = pacer
        self._previous = previous
        self._earlier = earlier
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

    def reuse(self, slot_number: int, planned: PlannedRequest, response: Response) -> ReceivedResponse:
        """Return a previous attempt's response, along with the files it stored."""
        request = self._previous.requests[planned.key]
        received = self._received(slot_number, planned, response)
        return replace(received, is_reused=True, files=request.files, missing=request.missing)

    def _received(self, slot_number: int, planned: PlannedRequest, response: Response) -> ReceivedResponse:
        return ReceivedResponse(
            key=planned.key,
            slot_number=slot_number,
            item=self._plan.items[planned.target.prompt_index],
            target=planned.target,
            response=response,
            aspect_ratio=planned.request.aspect_ratio,
        )

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
                is_new = self._state.record_retired(alternative[0].model, error)
                # Do not pay another model for what this one has already generated.
                if handed_over or alternative is alternatives[-1]:
                    raise
                if is_new:
                    log.warning("%s Continuing with a fallback model.", error)
            else:
                return

    def _await_finish(self, finished: threading.Event) -> None:
        """Wait until images that exist only in memory are stored, so that a kill can lose only requests in flight."""
        while not finished.wait(0.2):
            if self._state.crash is not None or self._state.cancellation.abandoned.is_set():
                return

    def _obtain(self, slot_number: int, planned: PlannedRequest) -> ReceivedResponse:
        """Return the response to a request: one that this task or another run paid for, else a new one."""
        self._reconciler.await_outcomes(planned)
        request = self._previous.requests.get(planned.key)
        if request is not None and request.response is not None and self._previous.is_paid(planned):
            return self.reuse(slot_number, planned, request.response)
        if request is not None and self._previous.is_lost(planned):
            *_, charge = request.charges_lost.values()  # the latest
            raise ChargedButLostError.of_charge(
                charge.usd,
                model=planned.model,
                client_request_id=charge.client_request_id,
                inference_id=charge.inference_id,
            )
        if (earlier := self._reuse_from_other_runs(slot_number, planned)) is not None:
            return earlier
        for _ in range(MAX_LOST_ANSWERS):
            if (received := self._post_with_retries(slot_number, planned)) is not None:
                return received
        raise LostAnswerError(
            f"{MAX_LOST_ANSWERS} responses to this request were lost in a row; the next attempt sends it again.",
            model=planned.model,
        )

    def _reuse_from_other_runs(self, slot_number: int, planned: PlannedRequest) -> ReceivedResponse | None:
        """
        Return a request that another run, or this task instance before it was cleared, paid for; ``None`` without one.

        All its images are stored in this run's folder.

        :raises StorageError: the images cannot be read or stored; nothing was sent
        """
        if self._sink is None:
            return None
        while (earlier := self._earlier.take(planned)) is not None:
            received = self._received(slot_number, planned, earlier.response_to(planned))
            if earlier.is_own:
                self._budget.count_own(
                    earlier.client_request_id, earlier.own_usd, model=planned.model, at=earlier.generated_at
                )
            reused: dict[int, ReusedImage] = {}
            try:
                for position, places in enumerate(earlier.images):
                    if (image := self._sink.reuse(places, received, position)) is None:
                        break
                    received.files[position] = image.file
                    reused[position] = image
                else:
                    return replace(received, reused=reused, is_reused=True, is_own=earlier.is_own)
                self._budget.count_lost(earlier.own_usd)
            except StorageError as error:
                self._state.count_not_written(error)
                raise
        return None

    def _post_with_retries(self, slot_number: int, planned: PlannedRequest) -> ReceivedResponse | None:
        """
        Send a request, and resend it after errors that certainly cost nothing; see :meth:`_post`.

        After a 429 it is resent with its next permit, without a backoff of its own, because the pacer already slows the
        whole task down. It fails once it has been limited :data:`MAX_POSTS` times and for longer than the rate-limit
        patience. The run is aborted once the API has accepted no request at all for that long.
        """
        prompt_index = planned.target.prompt_index
        patience = self._options.rate_limit_patience_seconds

        def on_refused(error: ImagenError, seconds: float) -> None:
            log.warning("Prompt %d: %s Resending in %.1f s.", prompt_index, error, seconds)

        retrying = resending(
            wait=self._state.wait,
            on_refused=on_refused,
            first_wait_seconds=self._options.first_wait_seconds,
            without=(RateLimitedError,),
        )
        times_limited, first_limited_at = 0, math.inf
        while True:
            try:
                return retrying(self._post, slot_number, planned)
            except RateLimitedError as error:
                if self._pacer.refused_for_seconds >= patience:
                    self._state.abort(error)
                    raise
                now = time.monotonic()
                times_limited += 1
                first_limited_at = min(first_limited_at, now)
                is_out_of_patience = times_limited >= MAX_POSTS and now - first_limited_at >= patience
                if is_out_of_patience or not may_resend(error):
                    raise
                log.info("Prompt %d: %s Resending with its next permit.", prompt_index, error)

    def _post(self, slot_number: int, planned: PlannedRequest) -> ReceivedResponse | None:
        """
        Send one POST. Its intent is durable before, and its response is handed to the journal right after.

        The submitter does not wait until the response is durable. It does wait for its next intent, which comes later
        in the same journal, so it never sends a request before its previous response is durable.

        :return: ``None`` when the response was lost and the request may be sent again
        """
        self._state.refuse_retired(planned.model)
        try:
            self._usage_caps.refresh()
        except ImagenError as error:
            if not isinstance(error, StoppedError):
                self._state.abort(error)
            raise
        reservation = self._budget.reserve(
            model=planned.model, quoted_usd=planned.quoted_usd, images=planned.target.images
        )
        lost: LostAnswerError | None = None
        try:
            permit = self._pacer.permit(
                partial(self._journal_intent, planned), undo=partial(self._journal_rejected, planned)
            )
            with permit as client_request_id:
                reservation.client_request_id = client_request_id
                started, sent_at = time.monotonic(), time.time()
                try:
                    generation = self._api.generate(
                        planned.request, client_request_id, before_send=self._confirm_may_send
                    )
                except LostAnswerError as error:
                    lost = error
                except ImagenError as error:
                    self._count_failed(planned, reservation, error)
                    raise
                except BaseException:
                    self._budget.hold_in_doubt(reservation)
                    raise
                seconds = time.monotonic() - started
        finally:
            if reservation.client_request_id is None:  # nothing was sent
                self._budget.release(reservation)
        if lost is not None:  # resolved only now, because a lookup may take minutes and needs no permit
            self._reconciler.resolve_lost(planned, reservation, lost, sent_at=sent_at, lost_at=time.time())
            return None
        response = self._response_record(planned, reservation, generation)
        self._count_response(planned, reservation, response)
        inline = {position: image.data for position, image in enumerate(generation.pictures) if image.data is not None}
        # Inline images exist only in memory, so their response becomes durable together with where they will be stored.
        journaled = self._journal.append(response, can_wait=bool(inline))
        return replace(
            self._received(slot_number, planned, response),
            seconds=seconds,
            inline=inline,
            journaled=None if inline else journaled,
            finished=threading.Event() if inline else None,
        )

    def _confirm_may_send(self) -> None:
        """
        Raise unless a request may still be sent; its intent may be old by now, for instance if the machine slept.

        :raises OwnershipLostError: another attempt owns the journal now
        :raises StoppedError: nothing more may be sent
        """
        self._journal.confirm_ownership(max_age_seconds=OWNERSHIP_MAX_AGE_SECONDS)
        self._state.check()

    def _journal_intent(self, planned: PlannedRequest) -> str:
        """Make the intent of a POST durable, and return its client request id."""
        client_request_id = new_client_request_id(
            dag_id=self._ti_key.dag_id, task_id=self._ti_key.task_id, request=planned.fingerprint
        )
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

    def _count_failed(self, planned: PlannedRequest, reservation: Reservation, error: ImagenError) -> None:
        """
        Count and journal what a POST that returned an error has cost.

        Errors are not billed (spec of ``GET /v2/logs``, 2026-08-21), even with a success status, unless they state a
        cost. A success that cannot be read counts as billed.
        """
        error.client_request_id = client_request_id = reservation.client_request_id or ""
        is_success = error.status is not None and 200 <= error.status < 300
        is_billed = bool(error.usd) or (is_success and isinstance(error, UnreadableResponseError))
        if not is_billed:
            self._budget.release(reservation)
            self._journal_rejected(planned, client_request_id)
            return
        usd = Decimal(str(error.usd)) if error.usd else self._budget.cost(reservation, None, has_images=True)
        self._budget.count_charge(reservation, usd=usd)
        self._reconciler.journal_loss(planned.key, client_request_id, inference_id=error.inference_id, usd=usd)

    def _response_record(self, planned: PlannedRequest, reservation: Reservation, generation: Generation) -> Response:
        """Return the journal record of a response."""
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
        return Response(
            key=planned.key,
            client_request_id=reservation.client_request_id or "",
            images=images,
            usd=usd,
            usd_is_estimate=usd != generation.usd,
            usd_undelivered=_undelivered(usd, generation, requested=reservation.images),
            inference_id=generation.inference_id,
            model=planned.model,
            at=round(time.time(), 3),
        )

    def _count_response(self, planned: PlannedRequest, reservation: Reservation, response: Response) -> None:
        """Count what a response cost, and the part of it that brings no image."""
        request = self._previous.requests.get(planned.key)
        if request is not None and request.response is not None:  # paid again: the previous charge is lost
            self._budget.count_lost((request.response.usd or Decimal(0)) - request.usd_missing)
        self._budget.count_lost(response.usd_undelivered)
        self._budget.count_charge(reservation, usd=response.usd)


def _undelivered(usd: Decimal | None, generation: Generation, *, requested: int) -> Decimal:
    """
    Return the part of a charge for images that can never be retrieved.

    That is the whole charge if no image came, otherwise a share for each ``null`` in place of an image. Images that are
    not in the list, or marked as filtered, are reported separately (:class:`FilteredError`).
    """
    if not usd:
        return Decimal(0)
    images = len(generation.pictures)
    return usd * generation.null_items / max(requested, images + generation.null_items) if images else usd
