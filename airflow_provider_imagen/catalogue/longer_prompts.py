"""Name models for a prompt that is too long for the chosen one. Pure."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Final

from airflow_provider_imagen.catalogue.input_images import INPUT_ARGUMENT
from airflow_provider_imagen.catalogue.lookup import all_models

if TYPE_CHECKING:
    from airflow_provider_imagen.catalogue.lookup import Endpoint, Model

_MODELS_NAMED: Final = 3


def advise_longer_prompt(model: Model, characters: int, *, input_images: int = 0) -> str:
    """
    Return which models accept a prompt of this length, cheapest first, or the greatest length that any accepts.

    Considers models of the same kind that document a limit, need no further fields or LoRA weights, and are not about
    to be retired. With input images, it considers only models that take that many. Models whose price is unknown come
    last.

    :param model: the model for which the prompt is too long
    :param characters: length of the prompt
    :param input_images: number of input images
    """
    candidates = [each for each in all_models() if _can_replace(each, model, input_images=input_images)]
    limits = {each: limit for each in candidates if (limit := _prompt_limit(each, input_images)) is not None}
    if not limits:
        return "no model of this kind that accepts as many input images documents its limit"
    accepting = sorted(
        (each for each in limits if limits[each] >= characters), key=lambda each: _cost(each, input_images)
    )
    if accepting:
        return f"models that accept it, cheapest first: {', '.join(each.id for each in accepting[:_MODELS_NAMED])}"
    longest = max(limits, key=lambda each: limits[each])
    return f"the longest that a model of this kind accepts is {limits[longest]:,} ({longest.id})"


def _endpoint(model: Model, input_images: int) -> Endpoint:
    return model.endpoint_for((INPUT_ARGUMENT,) if input_images else ())


def _can_replace(candidate: Model, model: Model, *, input_images: int) -> bool:
    """Return whether a model can replace another one, apart from the length of the prompt."""
    endpoint = _endpoint(candidate, input_images)
    is_current = candidate.status == "listed" and candidate.ends is None
    needs_more = "loras" in endpoint.fields or {*endpoint.required} - {"prompt", *endpoint.input_fields}
    takes_inputs = endpoint.max_inputs is None or endpoint.max_inputs >= input_images
    return candidate.kind == model.kind and is_current and not needs_more and takes_inputs


def _prompt_limit(model: Model, input_images: int) -> int | None:
    """Return a model's documented limit in characters; ``None`` if there is none."""
    limit = _endpoint(model, input_images).fields.get("prompt", {}).get("maxLength")
    return int(limit) if limit is not None else None


def _cost(model: Model, input_images: int) -> tuple[bool, Decimal, str]:
    price = model.edits_price if _endpoint(model, input_images) is model.edits else model.price
    return (price is None, price.usd if price else Decimal(0), model.id)
