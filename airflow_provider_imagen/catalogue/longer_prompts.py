"""Name models for a prompt that is too long for the chosen one. Pure."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Final

from airflow_provider_imagen.catalogue.lookup import all_models

if TYPE_CHECKING:
    from airflow_provider_imagen.catalogue.lookup import Model

_MODELS_NAMED: Final = 3


def advise_longer_prompt(model: Model, characters: int) -> str:
    """
    Return which models accept a prompt of this length, cheapest first, or the greatest length that any accepts.

    Considers models of the same kind that document a limit, need no further fields or LoRA weights, and are not about
    to be retired. Models whose price is unknown come last.

    :param model: the model for which the prompt is too long
    :param characters: length of the prompt
    """
    limits = {each: limit for each in all_models() if (limit := _prompt_limit(each, like=model)) is not None}
    accepting = sorted((each for each in limits if limits[each] >= characters), key=_cost)
    if accepting:
        return f"models that accept it, cheapest first: {', '.join(each.id for each in accepting[:_MODELS_NAMED])}"
    longest = max(limits, key=lambda each: limits[each])
    return f"the longest that a model of this kind accepts is {limits[longest]:,} ({longest.id})"


def _prompt_limit(candidate: Model, *, like: Model) -> int | None:
    """Return the documented limit of a model that can replace another one, in characters, else ``None``."""
    endpoint = candidate.generations
    is_current = candidate.status == "listed" and candidate.ends is None
    needs_more = "loras" in endpoint.fields or {*endpoint.required} - {"prompt", *endpoint.input_fields}
    if candidate.kind != like.kind or not is_current or needs_more:
        return None
    limit = endpoint.fields.get("prompt", {}).get("maxLength")
    return int(limit) if limit is not None else None


def _cost(model: Model) -> tuple[bool, Decimal, str]:
    return (model.price is None, model.price.usd if model.price else Decimal(0), model.id)
