"""
Identify an image's format and size, and verify that it is complete.

Only the bytes count, never a file name or ``Content-Type``: with this API, the two can disagree (a ``.png`` URL that
serves ``image/jpeg``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple, cast

from msgspec import Struct

from airflow_provider_imagen.exceptions import BadImageError
from airflow_provider_imagen.storage.avif import is_complete_avif
from airflow_provider_imagen.storage.gif import find_gif_damage, read_gif_size
from airflow_provider_imagen.storage.jpeg import find_jpeg_damage, read_jpeg_size
from airflow_provider_imagen.storage.open_image import (
    FORMATS,
    RasterFormat,
    check_pixels,
    corrupt_image,
    decode,
    open_image,
)
from airflow_provider_imagen.storage.png import PNG_SIGNATURE, find_png_damage, read_png_size
from airflow_provider_imagen.storage.svg import read_svg_size
from airflow_provider_imagen.storage.webp import find_webp_damage, read_webp_size

if TYPE_CHECKING:
    from collections.abc import Callable

FileFormat = Literal[RasterFormat, "SVG"]

DEFAULT_MAX_PIXELS: Final = 89_478_485
"""Default pixel limit: where Pillow starts to suspect a decompression bomb (a quarter GiB of RGB)."""

EXTENSIONS: Final[dict[RasterFormat, str]] = {name: name.lower() for name in FORMATS} | {"JPEG": "jpg"}
MIME_TYPES: Final[dict[RasterFormat, str]] = {name: f"image/{name.lower()}" for name in FORMATS}
SVG_MIME_TYPE: Final = "image/svg+xml"

_PILLOW_MAX_PIXELS: Final = 2 * DEFAULT_MAX_PIXELS


class ImageInfo(Struct, frozen=True):
    """
    Format and size of a complete image, as read from its bytes.

    :param format: the format, in Pillow's spelling
    :param mime_type: media type, for instance ``image/png``
    :param extension: usual file name extension, without the dot
    :param width: pixels, as stored (an EXIF orientation is not applied); 0 for an SVG that does not state it
    :param height: pixels, as stored; 0 for an SVG that does not state it
    """

    format: FileFormat
    mime_type: str
    extension: str
    width: int
    height: int


class _Verifier(NamedTuple):
    """
    How the structure of a format is verified.

    :param start: how a file starts
    :param read_size: returns width and height
    :param find_damage: returns what is wrong, or ``None``; like ``read_size``, it raises ``ValueError`` or
        ``LookupError`` if only decoding can tell
    """

    format: RasterFormat
    start: bytes
    read_size: Callable[[bytes], tuple[int, int]]
    find_damage: Callable[[bytes], str | None]


_VERIFIERS: Final = (
    _Verifier("PNG", PNG_SIGNATURE, read_png_size, find_png_damage),
    _Verifier("JPEG", b"\xff\xd8\xff", read_jpeg_size, find_jpeg_damage),
    _Verifier("WEBP", b"RIFF", read_webp_size, find_webp_damage),
    _Verifier("GIF", b"GIF8", read_gif_size, find_gif_damage),
)


def inspect_image(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS, accept_svg: bool = False) -> ImageInfo:
    """
    Return the format and size of an image after verifying that it is complete.

    The size is read from the header and checked first. Then the structure of the file is verified, which takes a
    fraction of the time of decoding it:

    ======== =============================================== ==================================================
    Format   Proven                                          Not noticed
    ======== =============================================== ==================================================
    PNG      every chunk is there, with a right checksum     pixel data that was corrupt when it was encoded
    JPEG     every segment and scan up to the end marker;    changed bytes within a table or a scan; bytes
             the restart markers in order, if it has any     missing from a scan, unless they hit a marker
    WebP     the length of the file and of every chunk;      changed bytes within the compressed data
             the headers of the images
    AVIF     the length of the file and of every box         changed bytes within the compressed data
    GIF      the length of every block up to the trailer     changed bytes within the compressed data
    TIFF     it is decoded                                   changed pixels
    BMP      it is decoded                                   changed pixels
    ======== =============================================== ==================================================

    So a truncated file is noticed in every format. An unusual file (an arithmetic-coded JPEG, for instance) is decoded,
    or its first frame, because only that can tell whether it is complete. Unreadable metadata and bytes after the end
    of the image are tolerated. Pillow is imported only for AVIF, TIFF, BMP and unusual files.

    Thread-safe: no Pillow setting is changed, and all threads that decode share a pixel budget
    (:data:`~airflow_provider_imagen.storage.open_image.MAX_DECODED_PIXELS`).

    :param data: the whole file
    :param max_pixels: maximum width times height; Pillow's own limit (twice :data:`DEFAULT_MAX_PIXELS`) also applies
    :param accept_svg: whether to accept SVG, which has no pixels and may contain scripts
    :raises BadImageError: the bytes are not an image in a supported format, are truncated or corrupt, or the image is
        too large
    """
    if not data:
        raise BadImageError("The image is empty (0 bytes).")
    if accept_svg and (size := read_svg_size(data)) is not None:
        return ImageInfo(format="SVG", mime_type=SVG_MIME_TYPE, extension="svg", width=size[0], height=size[1])
    file_format, (width, height) = _verify_structure(data, max_pixels) or _verify_by_decoding(data, max_pixels)
    return ImageInfo(
        format=file_format,
        mime_type=MIME_TYPES[file_format],
        extension=EXTENSIONS[file_format],
        width=width,
        height=height,
    )


def _verify_structure(data: bytes, max_pixels: int) -> tuple[RasterFormat, tuple[int, int]] | None:
    """Return the format and size of a complete image; ``None`` if only decoding can tell whether it is complete."""
    verifier = next((verifier for verifier in _VERIFIERS if data.startswith(verifier.start)), None)
    if verifier is None:
        return None
    try:
        width, height = verifier.read_size(data)
        if width * height > _PILLOW_MAX_PIXELS:
            raise BadImageError(f"The image is too large to decode safely: it has {width}x{height} pixels.")
        check_pixels(width, height, max_pixels)
        damage = verifier.find_damage(data)
    except (ValueError, LookupError):
        return None
    if damage is not None:
        raise corrupt_image(data, f"{damage}.")
    return verifier.format, (width, height)


def _verify_by_decoding(data: bytes, max_pixels: int) -> tuple[RasterFormat, tuple[int, int]]:
    with open_image(data, max_pixels=max_pixels) as image:
        size = image.size
        # MPO is Pillow's name for a JPEG that is followed by more images.
        file_format = cast("RasterFormat", "JPEG" if image.format == "MPO" else image.format)
        if file_format != "AVIF" or not is_complete_avif(data):
            decode(image, data)
    return file_format, size
