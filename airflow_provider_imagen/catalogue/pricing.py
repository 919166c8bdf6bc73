"""
Estimate the cost of a request before it is sent. Pure.

Quotes guard ``max_usd``, so they err on the high side: if a price depends on something the request leaves open, the
highest matching price counts; if it cannot be known (per token, per second of work), there is none. Last known prices
depend on quality, resolution, megapixels and inputs as far as documented; undocumented steps are estimated.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct, field

from airflow_provider_imagen.api.cost import read_amount
from airflow_provider_imagen.api.fields import IMAGE_FIELDS, read_whole_number
from airflow_provider_imagen.catalogue.input_images import ImageFile, flatten
from airflow_provider_imagen.catalogue.lookup import Endpoint, find_model

if TYPE_CHECKING:
    from collections.abc import Iterable

    from airflow_provider_imagen.catalogue.request_builder import ImageRequest

QuoteSource = Literal["live", "last known", "unknown"]

_PER_IMAGE_UNITS = frozenset({"image", "images", "picture", "generation", "generations"})
_PER_REQUEST_UNITS = frozenset({"request", "requests", "call"})
_PER_MEGAPIXEL_UNITS = frozenset({"megapixel", "megapixels", "mp"})

_FULL_MEGAPIXEL = 1024 * 1024
"""Pixels in one megapixel where fractions are rounded up: 1024 x 1024 is billed as exactly one."""

_PRESET_PIXELS = {
    "square_hd": 1024 * 1024,
    "square": 512 * 512,
    "portrait_4_3": 768 * 1024,
    "landscape_4_3": 1024 * 768,
    "portrait_16_9": 576 * 1024,
    "landscape_16_9": 1024 * 576,
}
"""Areas in pixels of the named sizes, as defined by fal.ai, which serves these models."""


class Quote(Struct, frozen=True):
    """
    The expected cost of a request.

    :param usd: for all its images together; ``None`` if no price is known
    :param source: ``live`` from the API's own list, ``last known`` from the catalogue, or ``unknown``
    """

    usd: Decimal | None
    source: QuoteSource


class PriceList(Struct, frozen=True):
    """
    Live prices from the API; models without a usable one are quoted at the catalogue's last known price.

    :param by_model: the ``pricing`` block of each model, by id and by alias
    """

    by_model: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def from_response(cls, document: Any) -> PriceList:
        """
        Return the prices in a response to ``GET /v1/models?include=pricing``, skipping malformed rows.

        :param document: the whole response, or its list of models
        """
        rows = document.get("data") if isinstance(document, Mapping) else document
        by_alias: dict[str, Mapping[str, Any]] = {}
        by_id: dict[str, Mapping[str, Any]] = {}
        for row in rows if isinstance(rows, list) else ():
            if not isinstance(row, Mapping) or not isinstance(row.get("pricing"), Mapping):
                continue
            aliases = row.get("aliases")
            for alias in aliases if isinstance(aliases, list) else ():
                by_alias[str(alias)] = row["pricing"]
            by_id[str(row.get("id"))] = row["pricing"]
        return cls(by_alias | by_id)

    def quote(self, request: ImageRequest) -> Quote:
        """Return the expected cost of a request."""
        model_id = str(request.body.get("model"))
        model = find_model(model_id)
        names = (model_id, *((model.id, *model.aliases) if model else ()))
        pricing = next((self.by_model[name] for name in names if name in self.by_model), None)
        usd = _block_price(pricing, request) if pricing is not None else None
        if usd is not None:
            return Quote(usd, "live")
        usd = _last_known(model_id, request.body, edits=request.path.endswith("/edits"))
        return Quote(usd, "unknown" if usd is None else "last known")


def _last_known(model_id: str, body: Mapping[str, Any], *, edits: bool) -> Decimal | None:
    from airflow_provider_imagen.catalogue.request_builder import ImageRequest

    model = find_model(model_id)
    price = (model.edits_price if edits else model.price) if model else None
    endpoint = (model.edits if edits else model.generations) if model else None
    if price is None or endpoint is None:
        return None
    count = (read_whole_number(body.get(endpoint.count_field)) if endpoint.count_field else None) or 1
    if price.pricing is None:
        return price.usd * count
    request = ImageRequest(endpoint.path, body, count, returns_base64=False)
    return _block_price(price.pricing, request)


def _block_price(pricing: Mapping[str, Any], request: ImageRequest) -> Decimal | None:
    """
    Return the cost of a request by a model's ``pricing`` block, in USD; ``None`` if it cannot be quoted.

    ``fixed`` lists ``units``, each ``{name, measure, price, per}``, which add up. ``variants`` lists rates
    ``{when, price, unit, per}``, where ``when`` holds the field values a rate applies to. ``variable`` cannot be
    quoted (docs, complete-model-list page, 2026-08-19).

    The catalogue's own blocks have three additions: the unit ``started megapixel`` rounds up, the measure
    ``input each`` counts inputs once per output, and ``beyond`` is the number of units a rate leaves free.
    """
    if str(pricing.get("currency", "USD")).upper() != "USD":
        return None
    if pricing.get("kind") == "fixed":
        return _sum([_rate_price(rate, request) for rate in _mappings(pricing.get("units"))])
    if pricing.get("kind") == "variants":
        variants = _mappings(pricing.get("variants"))
        matching = [variant for variant in variants if _may_apply(variant.get("when"), request)] or variants
        groups: dict[str, list[Decimal | None]] = {}  # rates for the same values add up
        for variant in matching:
            groups.setdefault(repr(variant.get("when")), []).append(_rate_price(variant, request))
        return _highest([_sum(prices) for prices in groups.values()])
    return None


def _rate_price(rate: Mapping[str, Any], request: ImageRequest) -> Decimal | None:
    """Return the cost by one rate: ``price`` is for ``per`` units of ``name`` (``unit`` in a variant)."""
    price, per, unit = read_amount(rate.get("price")), rate.get("per", 1), rate.get("name") or rate.get("unit")
    if unit is None and isinstance(per, str):
        unit, per = per, 1  # ``{"price": 0.04, "per": "image"}``
    amount = _billed_units(str(unit).lower(), str(rate.get("measure") or "output").lower(), request)
    if amount is not None and (beyond := read_amount(rate.get("beyond"))):
        amount = max(amount - beyond, Decimal(0))
    size = read_amount(per)
    return price * amount / size if price is not None and amount is not None and size else None


def _billed_units(unit: str, measure: str, request: ImageRequest) -> Decimal | None:
    """Return how many units a request is billed for, as output or input; ``None`` if unknown."""
    if measure in ("input", "input each"):
        inputs = _billed_inputs(unit, request)
        return inputs and inputs * (request.expected_images if measure == "input each" else 1)
    if measure != "output":
        return None
    if unit in _PER_IMAGE_UNITS:
        return Decimal(request.expected_images)
    if unit in _PER_REQUEST_UNITS:
        return Decimal(1)
    if unit in _PER_MEGAPIXEL_UNITS and (pixels := _pixels(request)) is not None:
        return Decimal(pixels) * request.expected_images / 1_000_000
    if unit == "started megapixel" and (pixels := _pixels(request) or _most_pixels(request)):
        return Decimal(-(-pixels // _FULL_MEGAPIXEL) * request.expected_images)
    return None


def _billed_inputs(unit: str, request: ImageRequest) -> Decimal | None:
    """
    Return how many units of input images a request is billed for; ``None`` if unknown.

    Counts at least one image if the model needs one. The size of an image behind a URL is unknown.
    """
    images = [part for name in IMAGE_FIELDS if name in request.body for part in flatten(request.body[name])]
    if unit in _PER_IMAGE_UNITS:
        endpoint = _endpoint(request)
        return Decimal(max(len(images), 1 if endpoint and endpoint.needs_input else 0))
    files = [part for part in images if isinstance(part, ImageFile)]
    if unit in _PER_MEGAPIXEL_UNITS and len(files) == len(images):
        return sum((Decimal(part.width * part.height) for part in files), Decimal(0)) / 1_000_000
    return None


def _may_apply(when: Any, request: ImageRequest) -> bool:
    """Return whether a variant may apply; a field left to the model or set to ``auto`` matches any value."""
    endpoint = _endpoint(request)
    for name, wanted in when.items() if isinstance(when, Mapping) else ():
        default = endpoint.fields.get(name, {}).get("default") if endpoint else None
        value = request.body.get(name, default)
        if value is not None and str(value).lower() not in ("auto", str(wanted).lower()):
            return False
    return True


def _pixels(request: ImageRequest) -> int | None:
    """Return the area of one image in pixels; ``None`` if neither the request nor the model's default sets it."""
    endpoint = _endpoint(request)
    name = endpoint.size_field if endpoint else "image_size"
    size = request.body.get(name or "", endpoint.fields[name].get("default") if endpoint and name else None)
    if isinstance(size, Mapping):
        sides = [read_whole_number(size.get(side)) for side in ("width", "height")]
    elif isinstance(size, str):
        if size in _PRESET_PIXELS:
            return _PRESET_PIXELS[size]
        sides = [read_whole_number(side) for side in size.split("x")]
    else:
        return None
    width, height = (*sides, None)[:2]
    return width * height if width and height else None


def _most_pixels(request: ImageRequest) -> int | None:
    """Return the area in pixels of the largest image the model generates; ``None`` if no limit is documented."""
    endpoint = _endpoint(request)
    schema = endpoint.fields[endpoint.size_field] if endpoint and endpoint.size_field else {}
    for choice in schema.get("anyOf", (schema,)):
        sides = [choice.get("properties", {}).get(side, {}).get("maximum") for side in ("width", "height")]
        if all(sides):
            return int(sides[0] * sides[1])
    return None


def _endpoint(request: ImageRequest) -> Endpoint | None:
    model = find_model(request.body.get("model"))
    return model.endpoint_at(request.path) if model else None


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    """Return a list of mappings, empty if any entry is not one: the price of that entry would be missing."""
    entries = value if isinstance(value, list) else []
    return entries if all(isinstance(entry, Mapping) for entry in entries) else []


def _sum(prices: Iterable[Decimal | None]) -> Decimal | None:
    known = list(prices)
    return sum(filter(None, known), Decimal(0)) if known and None not in known else None


def _highest(prices: Iterable[Decimal | None]) -> Decimal | None:
    known = list(prices)
    return max(filter(None, known), default=Decimal(0)) if known and None not in known else None
