"""Price a plan without sending anything."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from airflow_provider_imagen.run.plan import make_plan

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from airflow_provider_imagen.catalogue.pricing import PriceList, QuoteSource
    from airflow_provider_imagen.exceptions import Problem


@dataclass(frozen=True)
class PlanQuote:
    """
    Expected cost of a plan's images.

    :param usd: total in USD; ``None`` when any price is unknown
    :param source: ``live`` when the API lists every price, ``last known`` when the catalogue had to fill in,
        ``unknown`` when a price is missing
    :param images: number of images
    :param requests: number of paid requests they take
    """

    usd: Decimal | None
    source: QuoteSource
    images: int
    requests: int


def quote_plan(
    *,
    prompt: Any,
    arguments: Mapping[str, Any],
    prices: PriceList,
    resolve: Callable[[Sequence[tuple[dict[str, Any], str]], list[Problem]], list[dict[str, Any]]],
) -> PlanQuote:
    """
    Return the expected cost of everything requested, after validating it.

    :param prompt: as in :func:`~airflow_provider_imagen.run.plan.make_plan`
    :param arguments: by API field name, including ``model``
    :param prices: live prices; the last known ones apply where it has none
    :param resolve: finds the images that the arguments refer to
    :raises InvalidArgumentsError: with every problem of every item
    """
    plan = make_plan(prompt=prompt, arguments=arguments, can_store=True, resolve=resolve)
    quotes = [prices.quote(unit.request) for unit in plan.units]
    sources = {quote.source for quote in quotes}
    known = [quote.usd for quote in quotes if quote.usd is not None]
    source: QuoteSource = "live"
    for worse in ("last known", "unknown"):
        if worse in sources:
            source = worse
    return PlanQuote(
        usd=sum(known, Decimal(0)) if len(known) == len(quotes) else None,
        source=source,
        images=plan.images,
        requests=len(quotes),
    )
