"""The models of the sandbox: fields, limits, response shape, price."""

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
    One model, as documented (OpenAPI documents and model pages, 2026-08-21).

    :param id: canonical id
    :param aliases: other ids
    :param developer: company that developed it
    :param kind: input: text, an image and text, or an image alone
    :param status: ``withdrawn`` if the documentation lists it as no longer supported
    :param replaced_by: replacement of a withdrawn model
    :param shutdown_at: shutdown date of a withdrawn model, ``YYYY-MM-DD``; invented if none is published
    :param shape: response shape, A to E (see :mod:`~airflow_provider_imagen.sandbox.response_shapes`)
    :param usd: price of one image in USD; invented if none is published
    :param usd_by: name of a field that the price depends on, and the price for each of its values
    :param format: image format without ``output_format``
    :param required: required fields besides ``model``
    :param fields: JSON Schema of each field
    :param edits: the model at ``/v1/images/edits``, ``None`` if it is not served there
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
        """Canonical id and aliases."""
        return (self.id, *self.aliases)

    @property
    def count_field(self) -> str | None:
        """Name of the field for the number of images, if the model has one."""
        return next((name for name in ("num_images", "n") if name in self.fields), None)

    @cached_property
    def validator(self) -> Validator:
        """JSON Schema validator of a body; it ignores unknown fields, as the API does."""
        from jsonschema import Draft202012Validator, FormatChecker

        checker = FormatChecker(formats=())
        checker.checks("uri")(lambda value: not isinstance(value, str) or bool(_URI.fullmatch(value)))
        schema = {"required": list(self.required), "properties": self.fields}
        return Draft202012Validator(schema, format_checker=checker)

    def price(self, body: dict[str, Any]) -> Decimal:
        """Return the price in USD of one image for a body."""
        if self.usd_by is None:
            return self.usd
        name, by_value = self.usd_by
        return by_value.get(str(body.get(name, self.fields[name].get("default"))), self.usd)


@cache
def all_models() -> dict[str, SandboxModel]:
    """Return all models by id."""
    text = resources.files(__package__).joinpath("model_specs.json").read_text(encoding="utf-8")
    return {model_id: _read(model_id, entry) for model_id, entry in json.loads(text).items()}


@cache
def _by_name() -> dict[str, SandboxModel]:
    models = all_models()
    return {alias: model for model in models.values() for alias in model.aliases} | models


def find_model(name: object) -> SandboxModel | None:
    """Return a model by id or alias, or ``None``."""
    return _by_name().get(name) if isinstance(name, str) else None


def _read(model_id: str, entry: dict[str, Any]) -> SandboxModel:
    edits = entry.pop("edits", None)
    usd_by = entry.pop("usd_by", None)
    aliases = tuple(entry.pop("aliases", ()))
    if usd_by is not None:
        ((name, by_value),) = usd_by.items()
        usd_by = (name, {value: Decimal(usd) for value, usd in by_value.items()})
    return SandboxModel(
        id=model_id,
        aliases=aliases,
        edits=_read(model_id, {**entry, **edits, "usd_by": None}) if edits else None,
        usd_by=usd_by,
        **{**entry, "usd": Decimal(entry["usd"]), "required": tuple(entry["required"])},
    )
