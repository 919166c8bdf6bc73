"""Decide what previous attempts mean for this one: reuse a response, report a loss again, or send."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_provider_imagen.run.budget import Budget
from airflow_provider_imagen.run.plan import Plan, PromptItem
from airflow_provider_imagen.run.results import (
    FinishedImage,
    ReceivedResponse,
    RequestWithoutImages,
    RunResult,
    billed_without_images,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from airflow_provider_imagen.image_record import StoredFile
    from airflow_provider_imagen.journal.records import JournalState, RequestState
    from airflow_provider_imagen.journal.url_encryption import UrlEncryption
    from airflow_provider_imagen.run.plan import ImageSlot, PlannedRequest


class PreviousAttempts:
    """
    Outcomes of previous attempts, by request; they may change while one of those attempts is still alive.

    :param requests: the journal's requests by key, as of its opening and updated since
    :param may_resend: lost responses may be paid for again (``on_lost_answer="resend"``)
    :param is_stored: returns whether a stored image is present and intact
    """

    def __init__(
        self, requests: Mapping[str, RequestState], *, may_resend: bool, is_stored: Callable[[StoredFile], bool]
    ) -> None:
        self.requests = requests
        self._may_resend = may_resend
        self._is_stored = is_stored

    def is_paid(self, planned: PlannedRequest) -> bool:
        """
        Return whether there is a response to reuse.

        If lost responses may be paid for again, one with an inline image that is gone counts as lost.
        """
        request = self.requests.get(planned.key)
        if request is None or request.response is None:
            return False
        return not (self._may_resend and self._has_unreachable_images(request))

    def is_lost(self, planned: PlannedRequest) -> bool:
        """Return whether a previous attempt was charged for a lost response that must not be paid for again."""
        request = self.requests.get(planned.key)
        return request is not None and bool(request.charges_lost) and not self._may_resend

    def requests_to_send(self, slot: ImageSlot) -> list[PlannedRequest]:
        """Return the requests this attempt would have to pay for, unless their model is retired."""
        first = self.in_order_of_use(slot)[0]
        return [planned for planned in first if not self.is_paid(planned) and not self.is_lost(planned)]

    def in_order_of_use(self, slot: ImageSlot) -> list[tuple[PlannedRequest, ...]]:
        """Return the slot's alternatives: models that responded before, those that may have charged, then others."""

        def rank(alternative: tuple[PlannedRequest, ...]) -> int:
            requests = [self.requests[planned.key] for planned in alternative if planned.key in self.requests]
            if any(request.response for request in requests):
                return 0
            return 1 if any(request.open_intents or request.charges_lost for request in requests) else 2

        return sorted(slot.alternatives, key=rank)

    def superseded(self, plan: Plan) -> Iterator[ReceivedResponse]:
        """Yield the paid responses that are no longer in the plan."""
        planned = {request.key for request in plan.requests}
        for key, request in self.requests.items():
            if key not in planned and (received := _received(key, request)) is not None:
                yield received

    def _has_unreachable_images(self, request: RequestState) -> bool:
        """Return whether an inline image is gone; one whose write had started may be stored after all."""
        return request.has_unreachable_images or any(
            not self._is_stored(request.files[position]) for position in request.writes_started
        )


def _received(key: str, request: RequestState) -> ReceivedResponse | None:
    """Return a previous attempt's response outside any plan; ``None`` if it has none."""
    if request.response is None or (target := request.target) is None:
        return None
    return ReceivedResponse(
        key=key,
        slot_number=None,
        item=PromptItem(
            index=target.prompt_index,
            name=target.name,
            prompt=target.prompt,
            arguments={},
            images=target.prompt_images,
            metadata=target.metadata,
            is_superseded=True,
        ),
        target=target,
        response=request.response,
        is_reused=True,
        files=request.files,
        missing=request.missing,
    )


def previous_result(
    state: JournalState, *, plan: Plan | None, encryption: UrlEncryption, is_there: Callable[[StoredFile], bool]
) -> RunResult:
    """
    Return what previous attempts generated according to the journal, for an attempt that does nothing itself.

    :param plan: ``None`` when this attempt could not make one
    :param encryption: decrypts URLs
    :param is_there: returns whether a stored file still exists
    """
    budget = Budget()
    budget.count_previous(state)
    made: list[FinishedImage] = []
    for key, request in state.requests.items():
        received = _received(key, request)
        for position, image in enumerate(received.response.images if received is not None else ()):
            file = request.files.get(position)
            if file is not None and not is_there(file):
                file = None
            url = encryption.decrypt(image.url) if image.url else None
            if received is not None and (file is not None or (url is not None and not image.withheld)):
                made.append(FinishedImage(received, position, url, file))
    made.sort(key=lambda each: each.order)
    usd_in_doubt, in_doubt = budget.in_doubt()
    unresolved = state.all_unresolved()
    return RunResult(
        plan=plan or Plan(items=(), slots=()),
        made=made,
        superseded=[],
        failures=[],
        not_sent=[],
        abort_reason=None,
        usd_spent=budget.spent_usd,
        usd_by_model=budget.spent_usd_by_model,
        usd_lost=budget.lost_usd,
        usd_in_doubt=usd_in_doubt,
        in_doubt=[RequestWithoutImages.in_doubt(name, unresolved.get(name)) for name in in_doubt],
        lost=list(billed_without_images(state.requests, models={})),
        usd_is_estimate=budget.is_estimate,
        seconds=0.0,
    )
