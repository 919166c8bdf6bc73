"""The image models the sandbox serves: fields, limits, shape of the response, price."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from decimal import Decimal
from functools import cache, cached_property
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:\S+|[A-Za-z0-9+/_-]{40,}={0,2}")
"""A URL, or base64 in place of one."""


@dataclass(frozen=True)
class SandboxModel:
    """
    One model, as the documentation describes it (OpenAPI documents and model pages, 2026-08-21).

    :param id: canonical id
    :param aliases: other ids it answers to
    :param developer: who made it
    :param kind: from text, from a picture and text, or from a picture alone
    :param status: ``withdrawn`` models are in the documentation's list of what is no longer supported
    :param replaced_by: replacement of a withdrawn model
    :param shutdown_at: when a withdrawn model stopped, ``YYYY-MM-DD``; invented where no date is published
    :param shape: form of the response, A to E (see :mod:`~airflow_provider_imagen.sandbox.response_shapes`)
    :param usd: price of one picture, in USD; invented where no price is published
    :param usd_by: price by the value of one field, for models whose price depends on it
    :param format: picture format when ``output_format`` is not given
    :param required: fields the body must have besides ``model``
    :param fields: JSON Schema of each field
    :param edits: ``required`` and ``fields`` at ``/v1/images/edits``, ``None`` when the model is not served there
    """

    id: str
    developer: str
    kind: Literal["generate", "edit", "upscale"]
    status: Literal["live", "withdrawn"]
    shape: Literal["A", "B", "C", "D", "E"]
    usd: Decimal
    format: str
    required: tuple[str, ...]
    fields: dict[str, Any]
    aliases: tuple[str, ...] = ()
    replaced_by: str | None = None
    shutdown_at: str | None = None
    usd_by: tuple[str, dict[str, Decimal]] | None = None
    edits: SandboxModel | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Every id it answers to."""
        return (self.id, *self.aliases)

    @property
    def count_field(self) -> str | None:
        """Name of the field with the number of images."""
        return next((name for name in ("num_images", "n") if name in self.fields), None)

    @cached_property
    def validator(self) -> Validator:
        """Checks a body against the fields; fields that the model does not have are ignored."""
        from jsonschema import Draft202012Validator, FormatChecker

        checker = FormatChecker(formats=())
        checker.checks("uri")(lambda value: not isinstance(value, str) or bool(_URI.fullmatch(value)))
        schema = {"required": list(self.required), "properties": self.fields}
        return Draft202012Validator(schema, format_checker=checker)

    def price(self, body: dict[str, Any]) -> Decimal:
        """Return the price of one picture for this body, in USD."""
        if self.usd_by is None:
            return self.usd
        name, by_value = self.usd_by
        return by_value.get(str(body.get(name, self.fields[name].get("default"))), self.usd)


@cache
def all_models() -> dict[str, SandboxModel]:
    """Return every model, by id."""
    text = resources.files(__package__).joinpath("model_specs.json").read_text(encoding="utf-8")
    return {model_id: _read(model_id, entry) for model_id, entry in json.loads(text).items()}


@cache
def _by_name() -> dict[str, SandboxModel]:
    models = all_models()
    return {alias: model for model in models.values() for alias in model.aliases} | models


def find_model(name: object) -> SandboxModel | None:
    """Return a model by id or alias."""
    return _by_name().get(name) if isinstance(name, str) else None


def _read(model_id: str, entry: dict[str, Any]) -> SandboxModel:
    edits = entry.pop("edits", None)
    usd_by = entry.pop("usd_by", None)
    aliases = tuple(entry.pop("aliases", ()))
    if usd_by is not None:
        ((name, by_value),) = usd_by.items()
        usd_by = (name, {value: Decimal(usd) for value, usd in by_value.items()})
    facts = {**entry, "usd": Decimal(entry["usd"]), "usd_by": usd_by}
    return SandboxModel(
        id=model_id,
        aliases=aliases,
        edits=_read(model_id, {**entry, **edits, "usd_by": None}) if edits else None,
        **{**facts, "required": tuple(entry["required"])},
    )
