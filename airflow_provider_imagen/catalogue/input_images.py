"""
Input images: how arguments refer to them, and which ones models accept. Pure.

An input image is a URL, a ``data:`` URI, a path, or the record of an image that an earlier task stored. During
planning, a stored image is an :class:`ImageFile`; its bytes are read only when the request is sent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from msgspec import Struct

from airflow_provider_imagen.api.data_uris import is_data_uri

INPUT_ARGUMENT: Final = "input_images"
"""Argument whose images go into the chosen model's own field."""

MAX_INPUT_BYTES: Final = 50_000_000
"""Largest input image: the highest limit any model documents (gpt-image-1 edits spec, 2026-08-21)."""

MAX_INLINE_BYTES: Final = 64_000_000
"""Most bytes of stored images in one JSON request; our own limit, because each byte takes four in memory."""

MAX_MASK_BYTES: Final = 4_000_000
"""Largest mask (gpt-image-1 edits spec, 2026-08-21)."""

ReferenceKind = Literal["url", "data", "base64", "path"]

BARE_BASE64: Final = r"[A-Za-z0-9+/_-]{16,}={0,2}"
"""An image as bare base64, without the ``data:`` prefix."""


class ImageFile(Struct, frozen=True):
    """
    A stored input image, inspected before any money is spent.

    Its ``str`` is its digest, so that a request's fingerprint depends on the image, not on its location.

    :param address: its location, as ``ObjectStoragePath`` takes it
    :param sha256: digest of the whole file, lower-case hexadecimal
    :param bytes: size of the file
    :param mime_type: type detected from its bytes, such as ``image/png``
    :param width: pixels, as stored
    :param height: pixels, as stored
    """

    address: str
    sha256: str
    bytes: int
    mime_type: str
    width: int
    height: int

    def __str__(self) -> str:
        return f"sha256:{self.sha256}"


class InputLimits(Struct, frozen=True):
    """
    A model's limits for an input image; ``None`` where none is documented.

    :param mime_types: accepted types
    :param max_bytes: largest file
    :param max_side_pixels: longest side
    :param max_pixels: largest width times height
    """

    mime_types: tuple[str, ...] | None = None
    max_bytes: int | None = None
    max_side_pixels: int | None = None
    max_pixels: int | None = None

    def admit(self, *, mime_type: str, size: int, width: int, height: int) -> bool:
        """Return whether an image is within the limits without conversion; ``size`` is in bytes."""
        return (
            (self.mime_types is None or mime_type in self.mime_types)
            and size <= (self.max_bytes or size)
            and max(width, height) <= (self.max_side_pixels or max(width, height))
            and width * height <= (self.max_pixels or width * height)
        )


_NO_LIMITS = InputLimits()
_UPLOADS = InputLimits(("image/png", "image/webp", "image/jpeg"), MAX_INPUT_BYTES)  # gpt-image-1 edits spec, 2026-08-21
_MASKS = InputLimits(("image/png",), MAX_MASK_BYTES)
_BY_FIELD: Final[Mapping[tuple[str, str], InputLimits]] = {
    # docs, dreamina-creative-upscale page, 2026-08
    ("bytedance/dreamina-creative-upscale", "image_url"): InputLimits(
        ("image/jpeg", "image/png"), max_bytes=4_700_000, max_side_pixels=4096
    ),
    # docs, switchx-image-to-image page, 2026-06-29
    ("beeble/switchx-image-to-image", "image_url"): InputLimits(
        ("image/jpeg", "image/png", "image/webp"), max_pixels=2_770_000
    ),
    ("beeble/switchx-image-to-image", "reference_image_url"): InputLimits(("image/jpeg", "image/png", "image/webp")),
}


def limits_for(model_id: str, path: str, field: str) -> InputLimits:
    """
    Return the documented limits of an image field.

    :param model_id: canonical id of the model
    :param path: the endpoint's path
    """
    if path.endswith("/edits"):
        return _MASKS if field == "mask" else _UPLOADS
    return _BY_FIELD.get((model_id, field), _NO_LIMITS)


def reference_kind(text: str, *, field: str) -> ReferenceKind:
    """
    Return how a text refers to an image.

    :param field: the argument it came in. Only ``image`` may contain bare base64, because some models accept it; there,
        any text that could be base64 counts as base64
    """
    if is_data_uri(text):
        return "data"
    if text.lower().startswith(("http://", "https://")):
        return "url"
    return "base64" if field == "image" and re.fullmatch(BARE_BASE64, text) else "path"


def flatten(value: Any) -> list[Any]:
    """Return the images of one argument as a flat list, from one image, a list, or lists from mapped tasks."""
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray)):
        return [part for each in value for part in flatten(each)]
    return [value]


def reference_in(value: Any) -> str | None:
    """
    Return the image reference in a value, which is text or a record; ``None`` if there is none.

    A record's stored copy is preferred to its URL, which may have expired.
    """
    if isinstance(value, Mapping):
        value = value.get("path") or value.get("url")
    return value.strip() or None if isinstance(value, str) else None


def reference_problem(value: Any) -> str:
    """Return why a value does not refer to an image."""
    if isinstance(value, Mapping) and "manifest" in value:
        return (
            "the upstream task generated too many images for XCom and passed on the path of its manifest: "
            "read the records from there"
        )
    return "a URL (https://…), a data URI, a path, or a record with path or url is required"
