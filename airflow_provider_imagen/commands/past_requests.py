"""Read from a manifest what was requested: each distinct prompt with its shape, number of images and other fields."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from airflow_provider_imagen.api.fields import BASE64_FIELDS, COUNT_FIELDS, IMAGE_FIELDS, SIZE_FIELDS, read_whole_number
from airflow_provider_imagen.bill import add_costs
from airflow_provider_imagen.catalogue.aspect_ratio import (
    COMMON_RATIOS,
    ratio_of,
    ratio_text,
    read_ratio,
    requested_ratio,
)
from airflow_provider_imagen.catalogue.input_images import INPUT_ARGUMENT
from airflow_provider_imagen.catalogue.lookup import all_models, find_model
from airflow_provider_imagen.exceptions import StorageError
from airflow_provider_imagen.image_record import ManifestLine, read_record
from airflow_provider_imagen.run.results import ROUNDING
from airflow_provider_imagen.storage.atomic_write import read_bytes
from airflow_provider_imagen.storage.manifest import read_manifest
from airflow_provider_imagen.storage.paths import descend
from airflow_provider_imagen.storage.provenance import is_ours, read_provenance

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_provider_imagen.storage.paths import StoragePath

MAX_IMAGE_BYTES: Final = 2**28

_PARALLEL_READS: Final = 8
_NOT_REPEATED: Final = frozenset({"seed", *COUNT_FIELDS, *BASE64_FIELDS})
"""Fields that say nothing about the image on another model, or that are set anew."""


class PastRequest(Struct, frozen=True, kw_only=True):
    """
    What was requested with one prompt.

    :param example: one of its images, the newest
    :param images: number of images, at least 1
    :param usd: what these images cost; ``None`` if unknown
    :param aspect_ratio: width and height, such as ``16:9``; ``None`` if it is not a usual one
    :param is_shape_requested: whether the aspect ratio was requested rather than left to the model
    :param fields: other API fields with their values
    :param has_known_fields: whether these are all fields; the image's metadata may be missing or shortened
    :param used_images: whether it was generated from input images, which a manifest does not hold
    """

    example: ManifestLine
    images: int
    usd: Decimal | None
    aspect_ratio: str | None
    is_shape_requested: bool
    fields: Mapping[str, Any]
    has_known_fields: bool
    used_images: bool

    @property
    def prompt(self) -> str:
        """The prompt as sent."""
        return self.example.prompt or ""


def read_past_requests(folder: StoragePath, *, name: str) -> list[PastRequest]:
    """
    Return the distinct requests behind a manifest, in its order.

    The same prompt in the same shape counts once, however many runs and models it was used with; the newest one counts.
    Its fields are in the metadata of its image, as a manifest does not list them.

    :param folder: the folder of the images
    :param name: name of the manifest in it
    :raises StorageError: the manifest cannot be read
    """
    lines = [read_record(ManifestLine, values) for values in read_manifest(folder, name=name)]
    items: dict[tuple[Any, ...], list[ManifestLine]] = {}
    for line in lines:
        if line is not None and line.prompt and line.prompt.strip():
            instance = (line.dag_id, line.run_id, line.task_id, line.map_index)
            items.setdefault((*instance, line.prompt_index, line.prompt, line.model), []).append(line)
    newest: dict[tuple[Any, ...], list[ManifestLine]] = {}
    for item in items.values():
        key = (item[0].prompt, _nearest_ratio(item[0]))
        if key not in newest or (item[0].created_at or "") >= (newest[key][0].created_at or ""):
            newest[key] = item
    with ThreadPoolExecutor(_PARALLEL_READS) as pool:
        fields = pool.map(lambda item: _read_fields(folder, item[0]), newest.values())
        return [_past_request(item, found) for item, found in zip(newest.values(), fields, strict=True)]


class _EmbeddedFields(Struct, frozen=True):
    """
    The API fields in an image's metadata.

    :param complete: those that it holds as they were sent
    :param shortened: names of the others
    :param is_known: whether there is such metadata at all
    """

    complete: Mapping[str, Any] = {}
    shortened: frozenset[str] = frozenset()
    is_known: bool = False


def _read_fields(folder: StoragePath, line: ManifestLine) -> _EmbeddedFields:
    try:
        data = read_bytes(descend(folder, line.file_name), within=folder, max_bytes=MAX_IMAGE_BYTES)
    except StorageError:
        return _EmbeddedFields()
    found = read_provenance(data) if data is not None else {}
    fields, shortened = found.get("parameters", {}), found.get("shortened_parameters", [])
    if not is_ours(found) or not isinstance(fields, dict) or not isinstance(shortened, list):
        return _EmbeddedFields()
    names = frozenset(name for name in shortened if isinstance(name, str))
    return _EmbeddedFields({name: value for name, value in fields.items() if name not in names}, names, is_known=True)


def _past_request(item: list[ManifestLine], embedded: _EmbeddedFields) -> PastRequest:
    first, fields = item[0], embedded.complete
    repeated = _fields_of_any_model() - _NOT_REPEATED
    requested = requested_ratio(fields)
    source = find_model(first.model)
    counts = (read_whole_number(fields.get(name)) for name in COUNT_FIELDS)
    return PastRequest(
        example=first,
        images=next((count for count in counts if count and count > 0), len(item)),
        usd=add_costs(None if line.purchase_usd is None else Decimal(str(line.purchase_usd)) for line in item),
        aspect_ratio=ratio_text(requested) if requested else _nearest_ratio(first),
        is_shape_requested=requested is not None,
        fields={
            name: value
            for name, value in fields.items()
            if name in repeated and not (name in SIZE_FIELDS and _has_ratio(value))
        },
        has_known_fields=embedded.is_known and repeated.isdisjoint(embedded.shortened),
        used_images=not {*fields, *embedded.shortened}.isdisjoint((INPUT_ARGUMENT, *IMAGE_FIELDS))
        or (source is not None and source.generations.needs_input),
    )


@cache
def _fields_of_any_model() -> frozenset[str]:
    """Return all API fields; authors may embed further metadata, which is not one."""
    endpoints = [endpoint for model in all_models() for endpoint in (model.generations, model.edits) if endpoint]
    return frozenset(name for endpoint in endpoints for name in endpoint.fields)


def _has_ratio(value: Any) -> bool:
    return isinstance(value, dict) or ratio_of(value) is not None or read_ratio(value) is not None


def _nearest_ratio(line: ManifestLine) -> str | None:
    """Return the ratio that an image was probably requested with: the nearest of its model's, or a common one."""
    if not line.width or not line.height or line.width < 0 or line.height < 0:
        return None
    shape = Fraction(line.width, line.height)
    model = find_model(line.model)
    offered = model.generations.fields.get("aspect_ratio", {}).get("enum", ()) if model else ()
    ratios = {text: ratio for text in (offered or COMMON_RATIOS) if (ratio := read_ratio(text)) is not None}
    nearest = min(ratios, key=lambda text: max(ratios[text] / shape, shape / ratios[text]), default=None)
    if nearest is None or not shape / ROUNDING <= ratios[nearest] <= shape * ROUNDING:
        return None
    return nearest
