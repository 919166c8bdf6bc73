"""Quote past requests on other models. Pure."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import replace

from airflow_provider_imagen.bill import add_costs
from airflow_provider_imagen.catalogue.request_builder import build_requests
from airflow_provider_imagen.catalogue.validation import check_field
from airflow_provider_imagen.exceptions import InvalidArgumentsError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from decimal import Decimal

    from airflow_provider_imagen.catalogue.lookup import Model
    from airflow_provider_imagen.catalogue.pricing import PriceList, QuoteSource
    from airflow_provider_imagen.commands.past_requests import PastRequest


class FittedRequest(Struct, frozen=True):
    """
    A past request as another model takes it.

    :param arguments: arguments of ``ImagenGenerateOperator``, or an item of its ``prompt``
    :param usd: quoted price of all its images, in USD; ``None`` if unknown
    :param source: where the price comes from
    :param left_out: names of the fields that the model has not, or not with this value
    """

    past: PastRequest
    arguments: Mapping[str, Any]
    usd: Decimal | None
    source: QuoteSource
    left_out: tuple[str, ...]


class RejectedRequest(Struct, frozen=True):
    """
    A past request that another model does not take.

    :param reason: why, in one or more sentences
    """

    past: PastRequest
    reason: str


class ModelQuote(Struct, frozen=True):
    """
    The cost of past requests on one model.

    :param fitted: the requests that the model takes, in the manifest's order
    :param rejected: the others
    """

    model: str
    fitted: tuple[FittedRequest, ...]
    rejected: tuple[RejectedRequest, ...]

    @property
    def images(self) -> int:
        """Number of images of the requests that the model takes."""
        return sum(fitted.past.images for fitted in self.fitted)

    @property
    def usd(self) -> Decimal | None:
        """Total in USD of the requests that the model takes; ``None`` if a price is unknown."""
        return add_costs(fitted.usd for fitted in self.fitted)

    @property
    def source(self) -> QuoteSource:
        """The least certain source of its prices."""
        sources = {fitted.source for fitted in self.fitted}
        return next((source for source in ("unknown", "last known") if source in sources), "live")

    @property
    def left_out(self) -> Counter[str]:
        """Number of requests that lose a field, by the name of the field."""
        return Counter(name for fitted in self.fitted for name in fitted.left_out)


class SampleCell(Struct, frozen=True):
    """
    One image of a sample.

    :param name: its name, unique in the sample
    :param fit: the request for it, or why there is none
    """

    name: str
    model: str
    fit: FittedRequest | RejectedRequest


class SampleRow(Struct, frozen=True):
    """
    One prompt of a sample.

    :param past: the past request
    :param cells: one for each model
    """

    past: PastRequest
    cells: tuple[SampleCell, ...]


def quote_model(model: Model, requests: Sequence[PastRequest], *, prices: PriceList) -> ModelQuote:
    """
    Return the cost of past requests on a model, and which of them it rejects.

    The prompt, the number of images and a requested shape are essential: without one of them, the request is rejected.
    Any other field is left out if the model has no such field or does not take the value.

    :param prices: live prices; the last known ones apply where it has none
    """
    results = [fit_request(model, request, prices=prices) for request in requests]
    return ModelQuote(
        model.id,
        tuple(each for each in results if isinstance(each, FittedRequest)),
        tuple(each for each in results if isinstance(each, RejectedRequest)),
    )


def lay_out_sample(
    models: Sequence[Model], requests: Sequence[PastRequest], *, prices: PriceList, prompts: int
) -> tuple[SampleRow, ...]:
    """
    Return a sample: one image of each of the first prompts that any model takes, on each model.

    :param prompts: maximum number of prompts
    """
    rows: list[SampleRow] = []
    for past in requests:
        fits = [fit_request(model, replace(past, images=1), prices=prices) for model in models]
        if any(isinstance(fit, FittedRequest) for fit in fits):
            cells = [
                SampleCell(f"{len(rows):03}-{model.id}", model.id, fit) for model, fit in zip(models, fits, strict=True)
            ]
            rows.append(SampleRow(past, tuple(cells)))
        if len(rows) == prompts:
            break
    return tuple(rows)


def fit_request(model: Model, past: PastRequest, *, prices: PriceList) -> FittedRequest | RejectedRequest:
    """Return a past request as a model takes it, or why the model does not; see :func:`quote_model`."""
    endpoint = model.generations
    if past.used_images:
        return RejectedRequest(past, "it was generated from input images, which a manifest does not hold")
    if endpoint.needs_input:
        return RejectedRequest(past, f"{model.id} needs input images")
    kept = {
        name: value
        for name, value in past.fields.items()
        if name in endpoint.fields and not check_field(endpoint, name, value)[1]
    }
    left_out = tuple(name for name in past.fields if name not in kept)
    essential = {"model": model.id, "prompt": past.prompt, "num_images": past.images}
    shaped = {**essential, "aspect_ratio": past.aspect_ratio}
    for arguments in (shaped,) if past.is_shape_requested else (shaped, essential):
        try:
            requests = build_requests({**arguments, **kept}, can_store=True)
        except InvalidArgumentsError as error:
            reason = "; ".join(f"{problem.field}: {problem.allowed}" for problem in error.problems)
            continue
        quotes = [prices.quote(request) for request in requests]
        given = {name: value for name, value in {**arguments, **kept}.items() if value is not None}
        return FittedRequest(past, given, add_costs(quote.usd for quote in quotes), quotes[0].source, left_out)
    return RejectedRequest(past, reason)
