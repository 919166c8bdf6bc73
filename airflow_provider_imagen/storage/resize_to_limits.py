"""Convert and shrink an input image to the limits that a model documents."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

from airflow_provider_imagen.exceptions import BadImageError
from airflow_provider_imagen.storage.colours import change_mode
from airflow_provider_imagen.storage.convert import convert_image
from airflow_provider_imagen.storage.inspect_image import inspect_image
from airflow_provider_imagen.storage.open_image import open_image

if TYPE_CHECKING:
    from collections.abc import Sequence

_MIN_SIDE_PIXELS: Final = 64
_JPEG_QUALITY: Final = 92


def resize_to_limits(
    data: bytes,
    *,
    mime_types: Sequence[str] | None = None,
    max_bytes: int | None = None,
    max_side_pixels: int | None = None,
    max_pixels: int | None = None,
) -> tuple[bytes, str]:
    """
    Return the image within the limits, and its media type; an image that already fits is returned unchanged.

    An unaccepted format becomes PNG, which is lossless. A file that is still too large becomes JPEG, if the image has
    no transparency and JPEG is accepted, and is then scaled down step by step.

    :param data: a complete image file
    :param mime_types: accepted media types, including PNG; ``None`` accepts all
    :param max_bytes: maximum file size
    :param max_side_pixels: maximum length of the longer side
    :param max_pixels: maximum width times height
    :raises BadImageError: the bytes are not an image, or it cannot be reduced to the limits
    """
    info = inspect_image(data)
    mime_type, width, height = info.mime_type, info.width, info.height
    if mime_types is not None and mime_type not in mime_types:
        data, mime_type = convert_image(data, image_format="png"), "image/png"
    scale = min(
        1.0,
        (max_side_pixels or width + height) / max(width, height),
        ((max_pixels or width * height) / (width * height)) ** 0.5,
    )
    if scale < 1:
        data, mime_type = _scaled(data, scale), "image/png"
    if max_bytes is None or len(data) <= max_bytes:
        return data, mime_type
    with open_image(data) as image:
        can_be_jpeg = (mime_types is None or "image/jpeg" in mime_types) and not image.has_transparency_data
    original, step = data, 1.0
    if can_be_jpeg:
        data = convert_image(original, image_format="jpeg", quality=_JPEG_QUALITY)
    while len(data) > max_bytes:
        step *= 0.8
        if min(width, height) * step < _MIN_SIDE_PIXELS:
            raise BadImageError(
                f"The image cannot be reduced to {max_bytes} bytes: its sides would be below {_MIN_SIDE_PIXELS} pixels."
            )
        data = _scaled(original, step)
        if can_be_jpeg:
            data = convert_image(data, image_format="jpeg", quality=_JPEG_QUALITY)
    return data, "image/jpeg" if can_be_jpeg else "image/png"


def _scaled(data: bytes, scale: float) -> bytes:
    """Return an upright PNG with sides at most ``scale`` times the image's."""
    from PIL import Image, ImageOps

    try:
        with open_image(data, copies=4) as image:
            ImageOps.exif_transpose(image, in_place=True)
            options: dict[str, Any] = {"icc_profile": image.info.get("icc_profile")}
            default_mode = "RGBA" if image.has_transparency_data else "RGB"
            mode = image.mode if image.mode in ("L", "LA", "RGB", "RGBA") else default_mode
            size = (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
            target = BytesIO()
            upright = change_mode(image, mode, options, [])
            upright.resize(size, Image.Resampling.LANCZOS).save(target, format="PNG", **options)
    except Exception as error:
        raise BadImageError(f"The image cannot be resized: {error}") from error
    return target.getvalue()
