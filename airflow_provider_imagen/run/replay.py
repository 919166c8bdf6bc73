"""What earlier attempts of the task mean for this one: reuse a response, report a loss again, or send."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_provider_imagen.run.budget import Budget
from airflow_provider_imagen.run.losses import lost_requests
from airflow_provider_imagen.run.plan import Item, Plan, place_of
from airflow_provider_imagen.run.results import Answered, Made, RequestWithoutImages, RunResult

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from airflow_provider_imagen.journal.records import JournalState, RequestState, StoredFile
    from airflow_provider_imagen.journal.url_encryption import UrlEncryption
    from airflow_provider_imagen.run.plan import Slot, Unit


class PreviousAttempts:
    """
    What earlier attempts did, asked about the requests of this one; it grows while one of them is still alive.

    :param requests: what the journal held when it was opened, by the key of the request
    :param may_resend: the author wants lost responses bought again (``on_lost_answer="resend"``)
    :param is_stored: whether a stored image is there and whole
    """

    def __init__(
        self, requests: Mapping[str, RequestState], *, may_resend: bool, is_stored: Callable[[StoredFile], bool]
    ) -> None:
        self.requests = requests
        self._may_resend = may_resend
        self._is_stored = is_stored

    def is_paid(self, unit: Unit) -> bool:
        """Return whether there is a response to reuse; one whose images are gone is none if it may be resent."""
        request = self.requests.get(unit.key)
        if request is None or request.response is None:
            return False
        return not (self._may_resend and self._has_unreachable_images(request))

    def is_lost(self, unit: Unit) -> bool:
        """Return whether an earlier attempt was charged for a lost response that is not to be bought again."""
        request = self.requests.get(unit.key)
        return request is not None and bool(request.charges_lost) and not self._may_resend

    def units_to_send(self, slot: Slot) -> list[Unit]:
        """Return what this attempt would have to pay for, unless its model is withdrawn."""
        return [unit for unit in self.in_order_of_use(slot)[0] if not self.is_paid(unit) and not self.is_lost(unit)]

    def in_order_of_use(self, slot: Slot) -> list[tuple[Unit, ...]]:
        """Put the model first that an earlier attempt paid for this slot, then one that it at least sent it to."""

        def rank(units: tuple[Unit, ...]) -> int:
            requests = [request for unit in units if (request := self.requests.get(unit.key)) is not None]
            if any(request.response for request in requests):
                return 0
            return 1 if any(request.open_intents or request.charges_lost for request in requests) else 2

        return sorted(slot.choices, key=rank)

    def superseded(self, plan: Plan) -> Iterator[tuple[str, Item]]:
        """Return the requests that were paid for and are not in the plan any more, each with what its images are of."""
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
        """Look whether an image that was about to be written when its attempt ended is there after all."""
        return request.has_unreachable_images or any(
            not self._is_stored(request.files[place]) for place in request.writes_started
        )


def previous_result(
    state: JournalState, *, plan: Plan | None, links: UrlEncryption, is_there: Callable[[StoredFile], bool]
) -> RunResult:
    """
    Return what earlier attempts made, as the journal describes it, for an attempt that does nothing itself.

    :param plan: ``None`` when this attempt could not make one
    :param links: decrypts URLs
    :param is_there: whether a stored file still exists
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
            url = links.open(image.url) if image.url else None
            if stored is None and (url is None or image.withheld):
                continue
            index = place_of(
                place, images=target.images, first_image=target.image_index, prompt_images=target.prompt_images
            )
            made.append(Made(answered, place, index, url, stored))
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
