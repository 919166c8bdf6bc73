"""Keep what ``ImagenHook.generate_images`` spends under the caps of its connection."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from airflow_provider_imagen.api.retries import FIRST_WAIT_SECONDS
from airflow_provider_imagen.exceptions import ImagenError, LostAnswerError, UnreadableResponseError
from airflow_provider_imagen.money import format_usd
from airflow_provider_imagen.run.budget import Budget
from airflow_provider_imagen.run.shared_state import Cancellation, RunState
from airflow_provider_imagen.run.usage_caps import UsageCaps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from airflow_provider_imagen.api.responses import Generation
    from airflow_provider_imagen.catalogue.pricing import PriceList
    from airflow_provider_imagen.catalogue.request_builder import ImageRequest
    from airflow_provider_imagen.run.budget import Reservation
    from airflow_provider_imagen.run.usage_caps import UsageCap, UsageReader


class CappedSpending:
    """
    What one hook has spent, and the caps that limit it. Safe to use from any number of threads.

    The API's figures may lag behind, so the hook adds its own charges itself. It keeps no journal: a request whose
    outcome is unknown counts as charged at its price.

    :param caps: the connection's caps
    :param reader: reads what the key has spent
    """

    def __init__(self, caps: Iterable[UsageCap], *, reader: UsageReader) -> None:
        self._budget = Budget()
        self._caps = UsageCaps(
            caps,
            reader=reader,
            budget=self._budget,
            state=RunState(Cancellation()),
            max_age_seconds=0.0,
            first_wait_seconds=FIRST_WAIT_SECONDS,
        )

    def check(self, requests: Iterable[ImageRequest], prices: PriceList) -> None:
        """
        Raise if the requests of a call do not all fit under the caps, by the API's latest figures.

        :raises BudgetExceededError: they do not fit
        :raises ImagenError: what the key has spent cannot be read
        """
        self._caps.refresh()
        limit, committed_usd = self._budget.tightest_limit, self._budget.committed_usd
        usd = sum((prices.quote(request).usd or Decimal(0) for request in requests), Decimal(0))
        if limit is not None and (limit.most_usd <= committed_usd or committed_usd + usd > limit.most_usd):
            because = f", and these images cost about {format_usd(usd)}. Nothing was sent."
            raise limit.exceeded(committed_usd, because, items_left=1)

    def pay(self, request: ImageRequest, prices: PriceList, send: Callable[[ImageRequest], Generation]) -> Generation:
        """
        Send a request if it fits under the caps, and count what it cost.

        :raises BudgetExceededError: it does not fit
        :raises ImagenError: as ``send``
        """
        reservation = self._budget.reserve(
            model=str(request.body["model"]),
            quoted_usd=prices.quote(request).usd,
            images=request.expected_images,
        )
        try:
            generation = send(request)
        except BaseException as error:
            self._budget.count_charge(reservation, usd=self._cost_of_error(reservation, error))
            raise
        usd = self._budget.cost(reservation, generation.usd, has_images=bool(generation.pictures))
        self._budget.count_charge(reservation, usd=usd or Decimal(0))
        return generation

    def _cost_of_error(self, reservation: Reservation, error: BaseException) -> Decimal:
        is_answered = isinstance(error, ImagenError) and not isinstance(
            error, (LostAnswerError, UnreadableResponseError)
        )
        if isinstance(error, ImagenError) and (error.usd or is_answered):
            return Decimal(str(error.usd or 0))
        return self._budget.price(reservation) or Decimal(0)
