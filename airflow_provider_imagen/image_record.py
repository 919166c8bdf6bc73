"""
The stages of an image, each built from the one before. Their field names are the keys of the files and XComs.

::

    GeneratedImage   in a response of the API: a URL or the bytes (api.responses)
    ResponseImage    in the journal: without the bytes, a signed URL encrypted
    StoredFile       the file that was written
    ImageRecord      in XCom ``images``: what was requested, what came back, and the file
    ManifestLine     in ``metadata.jsonl``: the record, the file's name in the folder, and the task instance
    GalleryImage     in the gallery: the record and the task instance (plugins.gallery.task_results)
"""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Final, Self, TypeVar

from msgspec import Meta, Struct, ValidationError, convert
from msgspec.structs import asdict, fields

if TYPE_CHECKING:
    from collections.abc import Mapping

Pixels = Annotated[int, Meta(ge=0, le=2**31)]
WholeNumber = Annotated[int, Meta(ge=-(2**63) + 1, le=2**63 - 1)]
Usd = Annotated[float, Meta(ge=0, le=1e15)]

MAX_METADATA_NAMES: Final = 64
MAX_METADATA_NAME_CHARACTERS: Final = 64
MAX_METADATA_CHARACTERS: Final = 10_000
"""Maximum number of characters in all metadata values of one item."""

MAX_ARGUMENTS_CHARACTERS: Final = 10_000
"""Maximum length of the recorded arguments of one item."""

ArgumentsText = Annotated[str, Meta(max_length=MAX_ARGUMENTS_CHARACTERS)]
"""
The operator's arguments that request one prompt item alone, as a JSON object; ``null`` stands for one that cannot be
recorded. Text, so that a manifest's column has one type whatever the arguments are.
"""

MetadataName = Annotated[str, Meta(min_length=1, max_length=MAX_METADATA_NAME_CHARACTERS)]
MetadataText = Annotated[str, Meta(max_length=MAX_METADATA_CHARACTERS)]
Metadata = Annotated[dict[MetadataName, MetadataText | None], Meta(max_length=MAX_METADATA_NAMES)]
"""Values of a prompt item that are never sent to the API, such as columns of its table row, by name."""

RecordT = TypeVar("RecordT", bound=Struct)


class ResponseImage(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """
    One image of a response, without its bytes.

    :param url: its URL, encrypted if it is signed; ``None`` if the image came inside the response
    :param prompt: the prompt as rewritten by the model
    :param seed: the seed stated in the response, else the one sent
    :param withheld: whether the model filtered the image
    :param broken: why the image cannot be read
    """

    url: str | None = None
    prompt: str | None = None
    seed: int | None = None
    withheld: bool = False
    broken: str | None = None

    @property
    def is_inline(self) -> bool:
        """Whether the bytes came inside the response, so they cannot be downloaded again."""
        return self.url is None and not self.withheld and self.broken is None


class StoredFile(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """
    One stored image.

    :param path: location that ``ObjectStoragePath(path)`` can open; an absolute path on a disk
    :param file_name: name relative to the output folder, parts joined by ``/``
    :param sha256: digest of the file, in hex
    :param bytes: size of the file
    :param mime_type: media type of the file
    :param width: pixels; 0 for an SVG that does not state it
    :param height: pixels; 0 for an SVG that does not state it
    :param thumbnail: name of the preview relative to the output folder; ``None`` if there is none
    :param original: name of the file as delivered, relative to the output folder; ``None`` unless a conversion dropped
        its C2PA content credentials
    :param original_sha256: digest of that file, in hex
    """

    path: str
    file_name: str
    sha256: str
    bytes: Annotated[int, Meta(ge=0, le=2**62)]
    mime_type: str
    width: Pixels
    height: Pixels
    thumbnail: str | None = None
    original: str | None = None
    original_sha256: str | None = None


class ImageRecord(Struct, frozen=True, kw_only=True):
    """
    What is published about one image; unknown values are ``None``.

    :param prompt_index: index of the prompt in the list, from 0; ``None`` if no operator stored the image
    :param image_index: index among the images of its prompt, from 0; ``None`` if no operator stored the image
    :param url: the API's URL, without the signature if the image is stored
    :param path: location of the file (:attr:`StoredFile.path`); like the other fields of the file, ``None`` if the
        image is not stored
    :param width: pixels
    :param height: pixels
    :param mime_type: media type of the file
    :param bytes: size of the file
    :param sha256: digest of the file, in hex
    :param model: model id
    :param seed: the seed stated in the response, else the one sent
    :param prompt: the prompt as sent
    :param enhanced_prompt: the prompt as rewritten by the model
    :param usd: its share of the request's cost; 0 if it was reused from another run
    :param inference_id: the API's id of the paid work
    :param client_request_id: the id sent with the request
    :param name: the prompt item's name
    :param metadata: the prompt item's metadata, as text; within a task, every item has the same names
    :param reused_from: location of the file of another run that was reused, which is the image's own location if it
        was used in place; ``None`` if the task instance itself generated the image
    :param usd_saved: what the reused image cost when it was generated
    :param arguments: the operator's arguments that request the prompt item alone, as JSON, without prompt, name and
        metadata (:func:`~airflow_provider_imagen.run.recorded_arguments.record_arguments`)
    """

    prompt_index: WholeNumber | None = None
    image_index: WholeNumber | None = None
    url: str | None = None
    path: str | None = None
    width: WholeNumber | None = None
    height: WholeNumber | None = None
    mime_type: str | None = None
    bytes: WholeNumber | None = None
    sha256: str | None = None
    model: str | None = None
    seed: WholeNumber | None = None
    prompt: str | None = None
    enhanced_prompt: str | None = None
    usd: Usd | None = None
    inference_id: str | None = None
    client_request_id: str | None = None
    name: str | None = None
    metadata: Metadata | None = None
    reused_from: str | None = None
    usd_saved: Usd | None = None
    arguments: ArgumentsText | None = None

    @classmethod
    def of(cls, file: StoredFile | None, **known: Any) -> Self:
        """Return a record from a stored file, if there is one, and what else is known; the file overrides that."""
        shared = [name for name in StoredFile.__struct_fields__ if name in ImageRecord.__struct_fields__]
        return cls(**(known | {name: getattr(file, name) for name in shared if file is not None}))

    @property
    def purchase_usd(self) -> float | None:
        """Cost of the image to the run that generated it, in USD; ``None`` if unknown."""
        return self.usd if self.reused_from is None else self.usd_saved

    def to_json(self) -> dict[str, Any]:
        """Return the record as a mapping, every key present."""
        return asdict(self)


class ManifestLine(ImageRecord, frozen=True, kw_only=True):
    """
    One line of ``metadata.jsonl``.

    :param file_name: name relative to the folder of the manifest
    :param thumbnail: name of the preview relative to that folder
    :param original: name of the file as delivered (:attr:`StoredFile.original`), relative to that folder
    :param original_sha256: digest of that file, in hex
    :param dag_id: the DAG of the task instance that the line belongs to
    :param run_id: its run
    :param task_id: its task
    :param map_index: its map index; -1 if the task is not mapped
    :param created_at: when the image was generated, in ISO 8601 with time zone
    :param request_fingerprint: the first 20 hex digits of the SHA-256 of the request that generated the image (path and
        body, an input image by its own digest), with which ``reuse`` finds it
    :param response_index: index of the image in the response, from 0
    :param reused_at: when the task instance reused the image, in ISO 8601 with time zone; ``None`` if it generated it
    """

    file_name: str
    thumbnail: str | None = None
    original: str | None = None
    original_sha256: str | None = None
    dag_id: str | None = None
    run_id: str | None = None
    task_id: str | None = None
    map_index: WholeNumber | None = None
    created_at: str | None = None
    request_fingerprint: str | None = None
    response_index: WholeNumber | None = None
    reused_at: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the line as a mapping, ``file_name`` first."""
        return {"file_name": self.file_name, **asdict(self)}

    @property
    def file(self) -> StoredFile | None:
        """The file that the line describes; ``None`` if one of its values is missing or invalid."""
        with suppress(ValidationError):
            return convert(self, StoredFile, from_attributes=True)
        return None

    @property
    def is_used_in_place(self) -> bool:
        """Whether the file belongs to another task instance, and the line's own only uses it."""
        return self.reused_from is not None and self.reused_from == self.path


def read_record(kind: type[RecordT], values: Mapping[str, Any]) -> RecordT | None:
    """
    Return a record from untrusted JSON values. A value of the wrong type counts as missing.

    :return: ``None`` if a required field is missing
    """
    with suppress(ValidationError, UnicodeEncodeError):  # the latter for a key with a lone surrogate
        return convert(values, kind)
    kept: dict[str, Any] = {}
    for name, type_ in _field_types(kind).items():
        with suppress(ValidationError):
            kept[name] = convert(values.get(name), type_)
    try:
        return kind(**kept)
    except TypeError:
        return None


@cache
def _field_types(kind: type[Struct]) -> dict[str, Any]:
    """Return the types of a record's fields; evaluating their annotations is slow."""
    return {field.name: field.type for field in fields(kind)}
