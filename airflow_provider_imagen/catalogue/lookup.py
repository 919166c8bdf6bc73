"""
The model catalogue: fields, endpoints, status and prices of the API's image models.

Loaded once, on first use, from ``models.json``, which ``dev/refresh_catalogue.py`` generates. A model that is not in
it is not rejected: the API adds models more often than this package is released.
"""

from __future__ import annotations

from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct

from airflow_provider_imagen.api.fields import BASE64_FIELDS, COUNT_FIELDS, IMAGE_FIELDS, INPUT_FIELDS, SIZE_FIELDS
from airflow_provider_imagen.catalogue.input_images import INPUT_ARGUMENT

if TYPE_CHECKING:
    from collections.abc import Mapping

CATALOGUE_FILE = "models.json"

Kind = Literal["text_to_image", "edit", "image_to_image", "upscale"]
Status = Literal["listed", "unlisted", "deprecated", "withdrawn"]
PriceSource = Literal["documented", "observed", "third party", "estimated"]

_BARE_NAMED = ("openai/", "google/")
"""Developer prefixes that may be omitted: ``gpt-image-1``, ``veo-2.0-generate-001`` (docs, complete-model-list page,
2026-08-19)."""


class Endpoint(Struct, frozen=True, eq=False):
    """
    One way to call a model.

    :param path: path below the API's base URL
    :param required: fields the body must have, besides ``model``
    :param fields: JSON Schema of each field except ``model``. A field of type ``file`` is uploaded; ``sides`` are the
        smallest and largest side of a ``WIDTHxHEIGHT`` text, in pixels
    """

    path: str
    required: tuple[str, ...]
    fields: Mapping[str, Mapping[str, Any]]

    @property
    def count_field(self) -> str | None:
        """The field for the number of images; ``None`` if every request generates one."""
        return self._first(COUNT_FIELDS)

    @property
    def max_images(self) -> int | None:
        """Most images per request; ``None`` if the count field has no limit."""
        name = self.count_field
        if name is None:
            return 1
        schema = self.fields[name]
        limits = [*schema.get("enum", ()), *([schema["maximum"]] if "maximum" in schema else [])]
        return int(max(limits)) if limits else None

    @property
    def size_field(self) -> str | None:
        """The field for the shape of the image; there may be a ``resolution`` field, too."""
        return self._first(SIZE_FIELDS)

    @property
    def base64_field(self) -> str | None:
        """The field that chooses between URLs and base64; ``None`` if the response always contains URLs."""
        return self._first(BASE64_FIELDS)

    @property
    def image_fields(self) -> tuple[str, ...]:
        """The fields that take images."""
        return tuple(name for name in IMAGE_FIELDS if name in self.fields)

    @property
    def input_fields(self) -> tuple[str, ...]:
        """The fields for the images to work on, without those for masks and style references."""
        return tuple(name for name in INPUT_FIELDS if name in self.fields)

    @property
    def needs_input(self) -> bool:
        """Whether every request needs an input image."""
        return any(name in self.required for name in INPUT_FIELDS)

    @property
    def max_inputs(self) -> int | None:
        """Most input images per request: 0 if it takes none, ``None`` if no limit is documented."""
        limits = [max_images_of(self.fields[name]) for name in self.input_fields]
        return None if None in limits else max((limit for limit in limits if limit), default=0)

    def _first(self, names: tuple[str, ...]) -> str | None:
        return next((name for name in names if name in self.fields), None)


class KnownPrice(Struct, frozen=True):
    """
    The last known price of an image.

    :param usd: USD per image at the source's settings; the highest figure if sources differ
    :param source: ``documented`` by the vendor, ``observed`` on a real call, from a ``third party``, or ``estimated``
    :param seen: year and month it was published, ``YYYY-MM``
    :param pricing: how the price depends on quality, resolution, megapixels or inputs, in the form of the API's own
        ``pricing`` block (:mod:`~airflow_provider_imagen.catalogue.pricing`); ``None`` if every image costs ``usd``
    :param basis: evidence for ``pricing``; ``None`` without it
    """

    usd: Decimal
    source: PriceSource
    seen: str
    pricing: Mapping[str, Any] | None = None
    basis: str | None = None


class AnnouncedEnd(Struct, frozen=True):
    """
    The end of a model as announced by its maker; the API may stop serving it then without listing it beforehand.

    :param date: the day, ``YYYY-MM-DD``
    :param source: who announced it, and where
    :param seen: year and month the announcement was read, ``YYYY-MM``
    """

    date: str
    source: str
    seen: str


class Model(Struct, frozen=True, eq=False):
    """
    One image model.

    :param id: canonical id, as used in requests
    :param aliases: other names of the same model
    :param kind: what it generates an image from: text (``text_to_image``), an image and a requested change (``edit``),
        an image as a starting point (``image_to_image``), or an image alone (``upscale``)
    :param status: ``listed`` by the vendor; ``unlisted`` but documented; ``deprecated``: the vendor announced its end,
        or lists it as no longer supported; ``withdrawn``: retired, requests get a 404
    :param successor: its replacement, if one is named
    :param ends: its announced end, if its maker named one
    :param generations: the endpoint every model has
    :param edits: the endpoint for uploads, which a few models have
    :param price: last known price of ``generations``
    :param edits_price: last known price of ``edits``
    """

    id: str
    aliases: tuple[str, ...]
    kind: Kind
    status: Status
    successor: str | None
    generations: Endpoint
    edits: Endpoint | None
    price: KnownPrice | None
    edits_price: KnownPrice | None
    ends: AnnouncedEnd | None = None

    def endpoint_at(self, path: str) -> Endpoint | None:
        """Return the endpoint with this path."""
        return next(
            (endpoint for endpoint in (self.generations, self.edits) if endpoint and endpoint.path == path), None
        )

    def endpoint_for(self, names: Any) -> Endpoint:
        """
        Return the endpoint for these argument names.

        That is ``edits`` if the model has it and the names include an upload that ``generations`` does not take.
        """
        uploads = (INPUT_ARGUMENT, "image", "mask")
        if self.edits and any(name in names and name not in self.generations.fields for name in uploads):
            return self.edits
        return self.generations


def max_images_of(schema: Mapping[str, Any]) -> int | None:
    """Return the most images a field accepts; ``None`` if no limit is documented."""
    lists = [choice for choice in schema.get("anyOf", (schema,)) if choice.get("type") == "array"]
    return lists[0].get("maxItems") if lists else 1


def find_model(model_id: object) -> Model | None:
    """Return a model by its id or an alias; ``None`` if it is not in the catalogue."""
    return _by_name().get(model_id) if isinstance(model_id, str) else None


def all_models() -> tuple[Model, ...]:
    """Return every model, sorted by id."""
    return _load()


def nearest_models(model_id: str) -> list[str]:
    """Return up to three known names similar to this one, best first."""
    from difflib import get_close_matches

    wanted = model_id.strip().lower()
    known = {name.lower(): name for name in _by_name()}
    by_tail = {name.rpartition("/")[2]: name for name in known}  # the developer prefix is often left out
    near = [
        *([by_tail[wanted]] if wanted in by_tail else []),
        *(name for name in known if len(wanted) > 3 and name.rpartition("/")[2].startswith(wanted)),
        *get_close_matches(wanted, known, n=3, cutoff=0.6),
        *(by_tail[tail] for tail in get_close_matches(wanted.rpartition("/")[2], by_tail, n=3, cutoff=0.7)),
    ]
    return list(dict.fromkeys(known[name] for name in near))[:3]


@cache
def _load() -> tuple[Model, ...]:
    from importlib import resources

    from msgspec import json

    data = resources.files(__package__).joinpath(CATALOGUE_FILE).read_bytes()
    return tuple(_read_model(model_id, entry) for model_id, entry in sorted(json.decode(data).items()))


@cache
def _by_name() -> Mapping[str, Model]:
    """Return models by every name; ids win over aliases, and aliases over names without the developer prefix."""
    bare = {model.id.partition("/")[2]: model for model in _load() if model.id.startswith(_BARE_NAMED)}
    aliases = {alias: model for model in _load() for alias in model.aliases}
    return bare | aliases | {model.id: model for model in _load()}


def _read_model(model_id: str, entry: Mapping[str, Any]) -> Model:
    edits = entry.get("edits")
    return Model(
        id=model_id,
        aliases=tuple(entry.get("aliases", ())),
        kind=entry["kind"],
        status=entry["status"],
        successor=entry.get("successor"),
        generations=_read_endpoint(entry),
        edits=_read_endpoint(edits) if edits else None,
        price=_read_price(entry),
        edits_price=_read_price(edits or {}),
        ends=AnnouncedEnd(**entry["ends"]) if "ends" in entry else None,
    )


def _read_endpoint(entry: Mapping[str, Any]) -> Endpoint:
    return Endpoint(path=entry["endpoint"], required=tuple(entry["required"]), fields=entry["fields"])


def _read_price(entry: Mapping[str, Any]) -> KnownPrice | None:
    price = entry.get("price")
    return KnownPrice(**{**price, "usd": Decimal(price["usd"])}) if price else None
