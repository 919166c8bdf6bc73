"""
Convert images to another format, and make thumbnails.

A conversion keeps EXIF and XMP, and the colour profile if it fits the new pixels
(:mod:`~airflow_provider_imagen.storage.colours`). An EXIF orientation is applied to the pixels and removed. Text
chunks, comments and C2PA manifests are dropped (a manifest signs bytes that no longer exist, so
:mod:`~airflow_provider_imagen.storage.save_image` also keeps the original). An animation becomes its first frame.
"""

from __future__ import annotations

import re
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final, Literal

from msgspec import Struct

from airflow_provider_imagen.exceptions import BadImageError, InvalidArgumentsError, Problem
from airflow_provider_imagen.storage.colours import change_mode, is_grey, to_eight_bits
from airflow_provider_imagen.storage.jpeg import MAX_APP1_BYTES
from airflow_provider_imagen.storage.open_image import decode, open_image
from airflow_provider_imagen.storage.png import has_exif

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

    from airflow_provider_imagen.storage.inspect_image import ImageInfo

ImageFormat = Literal["png", "jpeg", "webp", "avif"]

IMAGE_FORMATS: Final[tuple[ImageFormat, ...]] = ("png", "jpeg", "webp", "avif")
_DEFAULT_QUALITY: Final[dict[ImageFormat, int]] = {"jpeg": 92, "webp": 90, "avif": 80}
"""Quality at which the loss is hard to see; each encoder has its own scale from 0 to 100."""

PREVIEW_COPIES: Final = 3
"""How many images of the original's size exist at the same time while a preview is made."""

_CONVERSION_COPIES: Final = 4
_ORIENTATION: Final = 0x0112
_TIFF_STRUCTURE: Final = frozenset(
    (
        *(*range(254, 260), 262, 263, 266, 273, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 330, 338, 339, 347),
        *(529, 530, 531, 532, 700, 33723, 34377, 34675),
    )
)
"""TIFF tags for pixel storage or other embedded metadata, which have no place in another format's EXIF."""


def convert_image(
    data: bytes,
    *,
    image_format: ImageFormat,
    quality: int | None = None,
    xmp: bytes | None = None,
    notes: list[str] | None = None,
) -> bytes:
    """
    Return the image in another format.

    An upright image that already has the format is returned unchanged, unless ``quality`` or ``xmp`` is given. For
    JPEG, transparency is flattened onto white. CMYK becomes RGB, and 16-bit grey becomes 8-bit except in PNG.

    :param data: a complete image file
    :param image_format: the target format
    :param quality: 0 to 100, for jpeg, webp and avif; default 92 for jpeg, 90 for webp and 80 for avif
    :param xmp: XMP packet to write instead of the image's own
    :param notes: a sentence is appended if the colour profile is lost
    :raises InvalidArgumentsError: the arguments contradict each other or are out of range
    :raises BadImageError: the bytes are not an image, or the format cannot hold it (webp allows up to 16,383 pixels
        per side)
    """
    _check_arguments(image_format, quality)
    try:
        with open_image(data, copies=_CONVERSION_COPIES) as source:
            if _is_upright_in(source, data, image_format) and quality is None and xmp is None:
                return data
            options = _encoder_options(image_format, quality)
            image = _prepare(source, image_format, options, xmp, [] if notes is None else notes)
            return _encode(image, image_format, options)
    except Exception as error:
        raise BadImageError(f"The image cannot be converted to {image_format}: {error}") from error


class DerivedImages(Struct, frozen=True):
    """
    What :func:`convert_and_preview` made.

    :param converted: the file in the requested format; ``None`` if none was requested, the image has it already, or the
        conversion failed
    :param preview: a WebP file; ``None`` if none was requested or it failed
    :param notes: what was requested but could not be done, one sentence each; normally empty
    """

    converted: bytes | None
    preview: bytes | None
    notes: tuple[str, ...]


def convert_and_preview(
    data: bytes,
    info: ImageInfo,
    *,
    image_format: ImageFormat | None,
    preview_pixels: int | None,
    xmp: bytes | None = None,
) -> DerivedImages:
    """
    Convert an image as :func:`convert_image` does, and make a preview of the result, decoding the image only once.

    :param data: a complete image file
    :param info: its format and size
    :param image_format: the target format; ``None`` for no conversion
    :param preview_pixels: maximum length of the preview's longer side; ``None`` for no preview
    :param xmp: XMP packet to write instead of the image's own
    :raises InvalidArgumentsError: the target format is unknown
    :raises BadImageError: the image cannot be decoded; any other failure is only noted
    """
    if image_format is not None:
        _check_arguments(image_format, None)
    converted = preview = None
    notes: list[str] = []
    with open_image(data, copies=PREVIEW_COPIES if image_format is None else _CONVERSION_COPIES) as source:
        if image_format is not None and xmp is None and _is_upright_in(source, data, image_format):
            image_format = None
        if image_format is None and preview_pixels is not None:
            _reduce_decoded_size(source, preview_pixels)
        if image_format is not None or preview_pixels is not None:
            decode(source, data)
        image = source
        options: dict[str, Any] = {}
        if image_format is not None:
            try:
                options = _encoder_options(image_format, None)
                image = _prepare(source, image_format, options, xmp, notes)
                converted = _encode(image, image_format, options)
            except Exception as error:
                image = source
                notes.append(f"Kept as {info.extension}: The image cannot be converted to {image_format}: {error}")
        if preview_pixels is not None:
            profile = (options if converted is not None else source.info).get("icc_profile")
            try:
                preview = _encode_preview(image, preview_pixels, profile)
            except Exception as error:
                notes.append(f"No preview: Cannot generate a thumbnail: {error}")
    return DerivedImages(converted, preview, tuple(notes))


def make_thumbnail(data: bytes, *, pixels: int, max_pixels: int | None = None) -> bytes:
    """
    Return a small WebP preview, upright, with the image's proportions, and never larger than the image.

    Of the metadata, only the colour profile is kept.

    :param data: a complete image file
    :param pixels: maximum length of the preview's longer side
    :param max_pixels: maximum width times height of the image; ``None`` applies only Pillow's own limit
    :raises BadImageError: the bytes are not an image, or it is too large
    """
    try:
        with open_image(data, copies=PREVIEW_COPIES, max_pixels=max_pixels) as source:
            return _encode_preview(source, pixels, source.info.get("icc_profile"))
    except Exception as error:
        raise BadImageError(f"Cannot generate a thumbnail: {error}") from error


def make_preview(source: PillowImage, *, pixels: int, options: dict[str, Any]) -> PillowImage:
    """
    Return an opened image upright, no larger than a preview, and as RGB or RGBA.

    :param source: an image, best not decoded yet, so that a JPEG is decoded at reduced size; it is changed
    :param pixels: maximum length of the longer side
    :param options: encoder options; ``icc_profile`` is updated to fit the preview
    """
    from PIL import Image, ImageOps

    _reduce_decoded_size(source, pixels)
    ImageOps.exif_transpose(source, in_place=True)
    image = to_eight_bits(source)
    if image.mode == "P":
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    image.thumbnail((pixels, pixels), Image.Resampling.LANCZOS)
    return _fit_mode(image, "webp", options, [])


def _reduce_decoded_size(source: PillowImage, pixels: int) -> None:
    """Let a JPEG that is not decoded yet be decoded at reduced size for a preview; twice its size stays sharp."""
    if source.format == "JPEG":
        source.draft(None, (pixels * 2, pixels * 2))


def _encode_preview(source: PillowImage, pixels: int, profile: bytes | None) -> bytes:
    options: dict[str, Any] = {"icc_profile": profile, "quality": 80}
    return _encode(make_preview(source, pixels=pixels, options=options), "webp", options)


def _is_upright_in(image: PillowImage, data: bytes, image_format: ImageFormat) -> bool:
    """Return whether an image, opened from a file, has a format and no readable orientation that has to be applied."""
    if (image.format or "").lower().replace("mpo", "jpeg") != image_format:
        return False
    if image_format == "png" and not has_exif(data) and b"Orientation" not in image.info.get("xmp", b""):
        return True  # Pillow decodes a PNG to look for EXIF after its pixels
    try:
        return bool(image.getexif().get(_ORIENTATION, 1) == 1)
    except Exception:  # Pillow raises various errors for malformed EXIF
        return True


def _check_arguments(image_format: ImageFormat, quality: int | None) -> None:
    problems = []
    if image_format not in IMAGE_FORMATS:
        problems.append(Problem("image_format", image_format, f"one of {', '.join(IMAGE_FORMATS)}"))
    if quality is not None and not (0 <= quality <= 100 and image_format != "png"):
        problems.append(Problem("quality", quality, "0 to 100, for jpeg, webp and avif"))
    if problems:
        raise InvalidArgumentsError(problems)


def _prepare(
    image: PillowImage, image_format: ImageFormat, options: dict[str, Any], xmp: bytes | None, notes: list[str]
) -> PillowImage:
    """
    Return the image upright and in a mode that the format can hold.

    :param options: encoder options; the image's metadata is added
    """
    from PIL import ImageOps
    from PIL.PngImagePlugin import PngInfo

    was_tiff = image.format == "TIFF"
    if image.getexif().get(_ORIENTATION, 1) != 1 and xmp is not None:
        xmp = re.sub(rb"<tiff:Orientation>\d</tiff:Orientation>|\btiff:Orientation=(\"\d\"|'\d')", b"", xmp)
    ImageOps.exif_transpose(image, in_place=True)
    options["icc_profile"] = image.info.get("icc_profile")
    exif = image.getexif()
    for tag in _TIFF_STRUCTURE.intersection(exif) if was_tiff else ():
        del exif[tag]
    if exif and (image_format != "jpeg" or len(exif.tobytes()) <= MAX_APP1_BYTES):
        options["exif"] = exif.tobytes()
    packet = xmp if xmp is not None else image.info.get("xmp")
    if isinstance(packet, str):
        packet = packet.encode()
    if packet and image_format == "png":
        options["pnginfo"] = info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", packet.decode(errors="replace"))
    elif packet and (image_format != "jpeg" or len(packet) <= MAX_APP1_BYTES):
        options["xmp"] = packet
    return _fit_mode(image, image_format, options, notes)


def _encode(image: PillowImage, image_format: ImageFormat, options: dict[str, Any]) -> bytes:
    target = BytesIO()
    image.save(target, format=image_format, **options)
    return target.getvalue()


def _fit_mode(image: PillowImage, image_format: str, options: dict[str, Any], notes: list[str]) -> PillowImage:
    """Return the image in a mode that the format can hold, losing as little as possible."""
    if image_format == "png" and image.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        mode = image.mode
    elif image_format in ("jpeg", "png") and is_grey(image.mode):
        mode = "L"
    else:
        mode = "RGBA" if image.has_transparency_data and image_format != "jpeg" else "RGB"
    return change_mode(image, mode, options, notes)


def _encoder_options(image_format: ImageFormat, quality: int | None) -> dict[str, Any]:
    if image_format == "png":
        return {}
    options = {"quality": _DEFAULT_QUALITY[image_format] if quality is None else quality}
    # JPEG keeps its full colour resolution: generated images have hard edges.
    return options | {"subsampling": 0} if image_format == "jpeg" else options
