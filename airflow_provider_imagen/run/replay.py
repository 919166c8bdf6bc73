"""Decide what previous attempts mean for this one: reuse a response, report a loss again, or send."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_provider_imagen.run.budget import Budget
from airflow_provider_imagen.run.losses import lost_requests
from airflow_provider_imagen.run.plan import Item, Plan
from airflow_provider_imagen.run.results import Answered, Made, RequestWithoutImages, RunResult

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from airflow_provider_imagen.journal.records import JournalState, RequestState, StoredFile
    from airflow_provider_imagen.journal.url_encryption import UrlEncryption
    from airflow_provider_imagen.run.plan import Slot, Unit


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

    def is_paid(self, unit: Unit) -> bool:
        """
        Return whether there is a response to reuse.

        If lost responses may be paid for again, one with an inline image that is gone counts as lost.
        """
        request = self.requests.get(unit.key)
        if request is None or request.response is None:
            return False
        return not (self._may_resend and self._has_unreachable_images(request))

    def is_lost(self, unit: Unit) -> bool:
        """Return whether a previous attempt was charged for a lost response that must not be paid for again."""
        request = self.requests.get(unit.key)
        return request is not None and bool(request.charges_lost) and not self._may_resend

    def units_to_send(self, slot: Slot) -> list[Unit]:
        """Return the requests this attempt would have to pay for, unless their model is retired."""
        return [unit for unit in self.in_order_of_use(slot)[0] if not self.is_paid(unit) and not self.is_lost(unit)]

    def in_order_of_use(self, slot: Slot) -> list[tuple[Unit, ...]]:
        """Return the slot's alternatives: models that responded before, those that may have charged, then others."""

        def rank(units: tuple[Unit, ...]) -> int:
            requests = [request for unit in units if (request := self.requests.get(unit.key)) is not None]
            if any(request.response for request in requests):
                return 0
            return 1 if any(request.open_intents or request.charges_lost for request in requests) else 2

        return sorted(slot.choices, key=rank)

    def superseded(self, plan: Plan) -> Iterator[tuple[str, Item]]:
        """Yield the paid requests that are no longer in the plan, each with the item it was for."""
        planned = {unit.key for unit in plan.units}
        for key, request in self.requests.items():
            if key not in planned and request.response is not None and (target := request.target) is not None:
                yield (
                    key,
                    Item(
                        index=target.prompt_index,
                        name=target.name,
                        prompt=target.prompt,
                        arguments={},
                        images=target.prompt_images,
                        is_superseded=True,
                    ),
                )

    def _has_unreachable_images(self, request: RequestState) -> bool:
        """Return whether an inline image is gone; one whose write had started may be stored after all."""
        return request.has_unreachable_images or any(
            not self._is_stored(request.files[place]) for place in request.writes_started
        )


def previous_result(
    state: JournalState, *, plan: Plan | None, links: UrlEncryption, is_there: Callable[[StoredFile], bool]
) -> RunResult:
    """
    Return what previous attempts made according to the journal, for an attempt that does nothing itself.

    :param plan: ``None`` when this attempt could not make one
    :param links: decrypts URLs
    :param is_there: returns whether a stored file still exists
    """
    budget = Budget()
    budget.inherit(state)
    made: list[Made] = []
    for key, request in state.requests.items():
        if request.response is None or (target := request.target) is None:
            continue
        answered = Answered(
            key=key,
            slot_number=None,
            item=Item(target.prompt_index, target.name, target.prompt, {}, target.prompt_images),
            first_image=target.image_index,
            images=target.images,
            response=request.response,
            is_reused=True,
        )
        for place, image in enumerate(request.response.images):
            stored = request.files.get(place)
            if stored is not None and not is_there(stored):
                stored = None
            url = links.decrypt(image.url) if image.url else None
            if stored is None and (url is None or image.withheld):
                continue
            made.append(Made(answered, place, target.index_of(place), url, stored))
    made.sort(key=lambda each: each.order)
    usd_in_doubt, in_doubt = budget.in_doubt()
    unresolved = state.all_unresolved()
    return RunResult(
        plan=plan or Plan(items=(), slots=()),
        made=made,
        superseded=[],
        failures=[],
        not_sent=[],
        halt=None,
        usd_spent=budget.spent_usd,
        usd_lost=budget.lost_usd,
        usd_in_doubt=usd_in_doubt,
        in_doubt=[RequestWithoutImages.in_doubt(name, unresolved.get(name)) for name in in_doubt],
        lost=list(lost_requests(state.requests, models={})),
        usd_is_estimate=budget.is_estimate,
        seconds=0.0,
    )
