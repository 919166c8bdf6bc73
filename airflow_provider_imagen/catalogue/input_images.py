"""
Pictures that go into a request: how they are named, and what the models take. Pure.

A picture is given as a link, a ``data:`` URI, a path, or the record of a picture that an earlier task stored. A stored
one travels through planning as a :class:`PictureFile`, which says where it is and what it is; its bytes are read when
the request is sent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from msgspec import Struct

from airflow_provider_imagen.api.data_uris import is_data_uri

INPUT_ARGUMENT: Final = "input_images"
"""Argument that puts pictures into the chosen model's own field."""

MAX_INPUT_BYTES: Final = 50_000_000
"""Largest input picture: the most that any model documents (gpt-image-1 edits spec, 2026-08-21)."""

MAX_INLINE_BYTES: Final = 64_000_000
"""Most bytes of stored pictures in one JSON request; a limit of ours, since each takes four times that in memory."""

MAX_MASK_BYTES: Final = 4_000_000
"""Largest mask (gpt-image-1 edits spec, 2026-08-21)."""

LinkKind = Literal["link", "data", "base64", "path"]

BARE_BASE64: Final = r"[A-Za-z0-9+/_-]{16,}={0,2}"
"""A picture as base64 alone, without the head of a data URI."""


class PictureFile(Struct, frozen=True):
    """
    A stored picture that was looked at before anything is paid.

    As text it is its digest, so that a request is named by what the picture is and not by where it lies.

    :param address: what opens it again, as ``ObjectStoragePath`` takes it
    :param sha256: digest of the whole file, lower-case hexadecimal
    :param bytes: size of the file
    :param mime_type: what its bytes say it is, for instance ``image/png``
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
    What a model takes; ``None`` where its documentation states no limit.

    :param mime_types: kinds of picture
    :param max_bytes: size of the file
    :param max_side_pixels: longer side
    :param max_pixels: width times height
    """

    mime_types: tuple[str, ...] | None = None
    max_bytes: int | None = None
    max_side_pixels: int | None = None
    max_pixels: int | None = None

    def admit(self, *, mime_type: str, size: int, width: int, height: int) -> bool:
        """Say whether a picture is within the limits as it is."""
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
    Give the documented limits of a picture field.

    :param model_id: canonical id of the model
    :param path: the endpoint's path
    """
    if path.endswith("/edits"):
        return _MASKS if field == "mask" else _UPLOADS
    return _BY_FIELD.get((model_id, field), _NO_LIMITS)


def kind_of(text: str, *, field: str) -> LinkKind:
    """
    Tell what a text that stands for a picture is.

    :param field: the argument it was given in: only ``image``, the field of models that take base64 as it is, can hold
        that; text without a dot that could be base64 is taken for it there
    """
    if is_data_uri(text):
        return "data"
    if text.lower().startswith(("http://", "https://")):
        return "link"
    return "base64" if field == "image" and re.fullmatch(BARE_BASE64, text) else "path"


def flatten(value: Any) -> list[Any]:
    """List the pictures that one argument names: one, a list, or the lists that mapped tasks returned."""
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray)):
        return [part for each in value for part in flatten(each)]
    return [value]


def reference_in(value: Any) -> str | None:
    """
    Read which picture is meant: a text, or what a record says of itself.

    The stored copy of a record comes before its link, which may be dead by now. ``None`` when nothing is named.
    """
    if isinstance(value, Mapping):
        value = value.get("path") or value.get("url")
    return value.strip() or None if isinstance(value, str) else None


def why_no_reference(value: Any) -> str:
    """Say what is wrong with a value that names no picture."""
    if isinstance(value, Mapping) and "manifest" in value:
        return (
            "an earlier task made too many pictures for XCom and handed on where its list is: "
            "read the records from that manifest"
        )
    return "a link (https://…), a data URI, a path, or a record with path or url is needed"
