"""
Identify an image's format and size, and verify that it is complete.

Only the bytes count, never a file name or ``Content-Type``: with this API, the two can disagree (a ``.png`` URL that
serves ``image/jpeg``).
"""

from __future__ import annotations

import zlib
from typing import Final, Literal, cast

from msgspec import Struct

from airflow_provider_imagen.exceptions import BadImageError
from airflow_provider_imagen.storage.open_image import FORMATS, RasterFormat, open_image
from airflow_provider_imagen.storage.png import iterate_png_chunks
from airflow_provider_imagen.storage.svg import read_svg_size

FileFormat = Literal[RasterFormat, "SVG"]

DEFAULT_MAX_PIXELS: Final = 89_478_485
"""Default pixel limit: where Pillow starts to suspect a decompression bomb (a quarter GiB of RGB)."""

EXTENSIONS: Final[dict[RasterFormat, str]] = {name: name.lower() for name in FORMATS} | {"JPEG": "jpg"}
MIME_TYPES: Final[dict[RasterFormat, str]] = {name: f"image/{name.lower()}" for name in FORMATS}
SVG_MIME_TYPE: Final = "image/svg+xml"


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


def inspect_image(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS, accept_svg: bool = False) -> ImageInfo:
    """
    Return the format and size of an image after verifying that it is complete.

    The size is read from the header and checked before anything is decoded. Then the image (the first frame of an
    animation) is decoded once, because only that proves its data present and intact. Unreadable metadata and bytes
    after the end of the image are tolerated. Thread-safe: no Pillow setting is changed, and all threads share a pixel
    budget (:data:`~airflow_provider_imagen.storage.open_image.MAX_DECODED_PIXELS`).

    :param data: the whole file
    :param max_pixels: maximum width times height; Pillow's own limit (twice :data:`DEFAULT_MAX_PIXELS`) also applies
    :param accept_svg: whether to accept SVG, which has no pixels and may contain scripts
    :raises BadImageError: the bytes are not an image in a supported format, are truncated or corrupt, or the image is
        too large
    """
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise BadImageError("The image is empty (0 bytes).")
    if accept_svg and (size := read_svg_size(data)) is not None:
        return ImageInfo(format="SVG", mime_type=SVG_MIME_TYPE, extension="svg", width=size[0], height=size[1])
    try:
        with open_image(data, max_pixels=max_pixels) as image:
            width, height = image.size
            # MPO is Pillow's name for a JPEG that is followed by more images.
            file_format = cast("RasterFormat", "JPEG" if image.format == "MPO" else image.format)
            image.load()
    except UnidentifiedImageError:
        raise BadImageError(
            f"The {len(data)} bytes are not an image in a supported format ({_describe_start(data)})."
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImageError(f"The image is too large to decode safely: {error}") from error
    except BadImageError:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error …
        raise BadImageError(f"The image is truncated or corrupt ({len(data)} bytes): {error}") from error
    _check_end(data, file_format)
    return ImageInfo(
        format=file_format,
        mime_type=MIME_TYPES[file_format],
        extension=EXTENSIONS[file_format],
        width=width,
        height=height,
    )


def _check_end(data: bytes, file_format: RasterFormat) -> None:
    """Raise for damage that Pillow does not check: PNG checksums, a missing PNG end or GIF trailer."""
    if file_format == "PNG":
        last = b""
        for kind, start, end in iterate_png_chunks(data):
            if zlib.crc32(data[start - 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
                raise BadImageError(f"The image is corrupt: PNG chunk {kind!r} has a wrong checksum.")
            last = kind
        if last != b"IEND":
            raise BadImageError(f"The image is truncated: the PNG has no IEND chunk ({len(data)} bytes).")
    elif file_format == "GIF" and not _has_gif_trailer(data):
        raise BadImageError(f"The image is truncated: the GIF has no trailer ({len(data)} bytes).")


def _has_gif_trailer(data: bytes) -> bool:
    """Return whether the blocks of a GIF lead to its trailer; anything after that is padding (GIF89a, appendix A)."""

    def skip_table(packed: int) -> int:
        return 3 * 2 ** ((packed & 7) + 1) if packed & 0x80 else 0

    try:
        position = 13 + skip_table(data[10])
        while data[position] != 0x3B:
            if data[position] == 0x2C:  # an image: descriptor, colour table, code size
                position += 10 + skip_table(data[position + 9]) + 1
            elif data[position] == 0x21:  # an extension
                position += 2
            else:  # decoders skip unknown bytes
                position += 1
                continue
            while data[position]:
                position += data[position] + 1
            position += 1
    except IndexError:
        return False
    return True


def _describe_start(data: bytes) -> str:
    """Return what the bytes look like, without quoting them: an error page may contain anything."""
    head = data[:512].lstrip().lower()
    if head.startswith((b"<!doctype html", b"<html")):
        return "looks like an HTML page"
    if head.startswith(b"<svg") or (head.startswith(b"<?xml") and b"<svg" in head):
        return "looks like SVG"
    if head.startswith((b"<?xml", b"<error")):
        return "looks like XML"
    if head.startswith((b"{", b"[")):
        return "looks like JSON"
    return f"starting with {data[:8].hex()}"
