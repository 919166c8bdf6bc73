"""
What is known about every image model of the API, as data.

The facts lie in ``catalogue.json``, made by :mod:`~airflow_provider_imagen.api.refresh`, and are read once, when first
asked for. A model that is not in it is not refused: the API gains models faster than this package gains releases.
"""

from __future__ import annotations

from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct

from airflow_provider_imagen.api.inputs import INPUT_ARGUMENT

if TYPE_CHECKING:
    from collections.abc import Mapping

CATALOGUE_FILE = "catalogue.json"

Kind = Literal["text_to_image", "edit", "image_to_image", "upscale"]
Status = Literal["listed", "unlisted", "deprecated", "withdrawn"]
PriceSource = Literal["documented", "observed", "third party", "estimated"]

_BARE_NAMED = ("openai/", "google/")
"""Developers whose models the API also takes without their name: ``gpt-image-1``, ``veo-2.0-generate-001`` (docs,
complete-model-list page, 2026-08-19)."""

COUNT_FIELDS = ("num_images", "n")
SIZE_FIELDS = ("aspect_ratio", "image_size", "size")
BASE64_FIELDS = ("convert_base64_to_url", "response_format", "sync_mode")
INPUT_FIELDS = ("image", "image_url", "image_urls")
IMAGE_FIELDS = ("image", "image_url", "image_urls", "mask", "reference_image_url", "alpha_url")


class Endpoint(Struct, frozen=True, eq=False):
    """
    One way to call a model.

    :param path: where it is sent, below the API's base URL
    :param required: fields the body must have, beside ``model``
    :param fields: JSON Schema of each field, without ``model``. A field of type ``file`` is uploaded; ``sides`` are the
        smallest and the largest side of a ``WIDTHxHEIGHT`` text, in pixels
    """

    path: str
    required: tuple[str, ...]
    fields: Mapping[str, Mapping[str, Any]]

    @property
    def count_field(self) -> str | None:
        """The field that says how many pictures, ``None`` when every request makes one."""
        return self._first(COUNT_FIELDS)

    @property
    def max_images(self) -> int | None:
        """The most pictures one request makes; ``None`` when there is a count field without a limit."""
        name = self.count_field
        if name is None:
            return 1
        schema = self.fields[name]
        limits = [*schema.get("enum", ()), *([schema["maximum"]] if "maximum" in schema else [])]
        return int(max(limits)) if limits else None

    @property
    def size_field(self) -> str | None:
        """The field that says which shape the picture has; ``resolution`` may exist beside it."""
        return self._first(SIZE_FIELDS)

    @property
    def base64_field(self) -> str | None:
        """The field that chooses between links and base64, ``None`` when the answer always holds links."""
        return self._first(BASE64_FIELDS)

    @property
    def image_fields(self) -> tuple[str, ...]:
        """The fields that take pictures."""
        return tuple(name for name in IMAGE_FIELDS if name in self.fields)

    @property
    def input_fields(self) -> tuple[str, ...]:
        """The fields that take the pictures to work on; masks and references to a look are given by their own names."""
        return tuple(name for name in INPUT_FIELDS if name in self.fields)

    @property
    def needs_input(self) -> bool:
        """Whether no request can do without a picture."""
        return any(name in self.required for name in INPUT_FIELDS)

    @property
    def max_inputs(self) -> int | None:
        """The most pictures of one request: 0 when it takes none, ``None`` when no limit is documented."""
        limits = [max_pictures(self.fields[name]) for name in self.input_fields]
        return None if None in limits else max((limit for limit in limits if limit), default=0)

    def _first(self, names: tuple[str, ...]) -> str | None:
        return next((name for name in names if name in self.fields), None)


class KnownPrice(Struct, frozen=True):
    """
    What one picture cost when somebody last looked.

    :param usd: USD per picture at the settings of the source; the highest figure where sources differ
    :param source: ``documented`` by the vendor, ``observed`` on a real call, of a ``third party``, or ``estimated``
    :param seen: year and month it was published, ``YYYY-MM``
    :param pricing: how the price grows with quality, resolution, megapixels or inputs, in the form of the API's own
        ``pricing`` block (:mod:`~airflow_provider_imagen.api.pricing`); ``None`` when every picture costs ``usd``
    :param basis: what ``pricing`` rests on, ``None`` without it
    """

    usd: Decimal
    source: PriceSource
    seen: str
    pricing: Mapping[str, Any] | None = None
    basis: str | None = None


class AnnouncedEnd(Struct, frozen=True):
    """
    When a model's maker said that it ends; the API may stop serving it then, whatever its own lists say before.

    :param date: the day, ``YYYY-MM-DD``
    :param source: who said so, and where
    :param seen: year and month it was read, ``YYYY-MM``
    """

    date: str
    source: str
    seen: str


class Model(Struct, frozen=True, eq=False):
    """
    One image model.

    :param id: the name a request gives
    :param aliases: other names of the same model
    :param kind: what it makes pictures of: a text; a picture and a change to it; a picture as a start; a picture alone
    :param status: ``listed`` by the vendor; ``unlisted`` but documented; ``deprecated``: the vendor announced its end,
        or lists it as no longer supported; ``withdrawn``: requests end in 404
    :param successor: the model that takes its place, where one is named
    :param ends: its announced end, where its maker named one
    :param generations: the endpoint every model has
    :param edits: the endpoint that takes uploads, of a few models
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

    def endpoint_for(self, names: Any) -> Endpoint:
        """
        Choose the endpoint for these argument names.

        Pictures can be given to the models with ``/v1/images/edits`` only there.
        """
        uploads = (INPUT_ARGUMENT, "image", "mask")
        if self.edits and any(name in names and name not in self.generations.fields for name in uploads):
            return self.edits
        return self.generations


def max_pictures(schema: Mapping[str, Any]) -> int | None:
    """Give the most pictures a field takes, ``None`` when no limit is documented."""
    lists = [choice for choice in schema.get("anyOf", (schema,)) if choice.get("type") == "array"]
    return lists[0].get("maxItems") if lists else 1


def find_model(model_id: object) -> Model | None:
    """Find a model by its id or an alias, ``None`` when the catalogue does not know it."""
    return _by_name().get(model_id) if isinstance(model_id, str) else None


def all_models() -> tuple[Model, ...]:
    """Give every model, sorted by id."""
    return _load()


def nearest_models(model_id: str) -> list[str]:
    """Give up to three ids that look like this one, best first; none when nothing is near."""
    from difflib import get_close_matches

    wanted = model_id.strip().lower()
    known = {name.lower(): name for name in _by_name()}
    by_tail = {name.rpartition("/")[2]: name for name in known}  # the developer's prefix is often forgotten
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
    """Ids win over aliases, and those over names without the developer."""
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
