"""
Decide what bytes are: which picture format, how large, and whether all of it came.

The bytes decide, never a name or a ``Content-Type``: in this API the two can disagree (a ``.png`` link that
answers ``image/jpeg``).
"""

from __future__ import annotations

import zlib
from io import BytesIO
from typing import TYPE_CHECKING, Final, Literal

from msgspec import Struct

from airflow_provider_imagen.exceptions import BadImageError

if TYPE_CHECKING:
    from collections.abc import Iterator

PictureFormat = Literal["PNG", "JPEG", "WEBP", "AVIF", "GIF", "TIFF", "BMP"]

DEFAULT_MAX_PIXELS: Final = 89_478_485
"""Pixels a picture may have: where Pillow starts to suspect a decompression bomb (a quarter GiB of RGB)."""

EXTENSIONS: Final[dict[PictureFormat, str]] = {
    "PNG": "png",
    "JPEG": "jpg",
    "WEBP": "webp",
    "AVIF": "avif",
    "GIF": "gif",
    "TIFF": "tiff",
    "BMP": "bmp",
}
MIME_TYPES: Final[dict[PictureFormat, str]] = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "WEBP": "image/webp",
    "AVIF": "image/avif",
    "GIF": "image/gif",
    "TIFF": "image/tiff",
    "BMP": "image/bmp",
}
PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"


class PictureFacts(Struct, frozen=True):
    """
    What the bytes of a whole picture say about themselves.

    :param format: the format, in Pillow's spelling
    :param mime_type: its media type, for instance ``image/png``
    :param extension: its usual file name extension, without the dot
    :param width: pixels, as stored (an EXIF orientation is not applied)
    :param height: pixels, as stored
    """

    format: PictureFormat
    mime_type: str
    extension: str
    width: int
    height: int


def inspect_picture(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> PictureFacts:
    """
    Prove that the bytes are one whole picture, and say which.

    The size is read from the header and checked before anything is decoded; then the picture (the first frame of an
    animation) is decoded once, because only that shows that its data is there and sound. Safe to call from many
    threads: no setting of Pillow is changed.

    :param data: the whole file
    :param max_pixels: width times height that is still accepted; Pillow's own limit (twice
        :data:`DEFAULT_MAX_PIXELS`) applies besides
    :raises BadImageError: when it is no picture of a known format, is cut off or damaged, or is too large
    """
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise BadImageError("The picture is empty: 0 bytes came.")
    try:
        with Image.open(BytesIO(data), formats=tuple(EXTENSIONS)) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise BadImageError(f"The picture has {width}x{height} pixels; at most {max_pixels} are accepted.")
            picture_format = _format_named(image.format)
            image.load()
    except UnidentifiedImageError:
        raise BadImageError(
            f"The {len(data)} bytes are no picture of a known format ({_describe_start(data)})."
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImageError(f"The picture is too large to be decoded safely: {error}") from error
    except BadImageError:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error …
        raise BadImageError(f"The picture is cut off or damaged ({len(data)} bytes): {error}") from error
    _check_end(data, picture_format)
    return PictureFacts(
        format=picture_format,
        mime_type=MIME_TYPES[picture_format],
        extension=EXTENSIONS[picture_format],
        width=width,
        height=height,
    )


def _format_named(name: str | None) -> PictureFormat:
    for known in EXTENSIONS:
        if known == name:
            return known
    if name == "MPO":  # a JPEG with further pictures behind it; Pillow tells them apart, file names do not
        return "JPEG"
    if name == "DIB":
        return "BMP"
    raise BadImageError(f"A picture of format {name} is not supported.")


def _check_end(data: bytes, picture_format: PictureFormat) -> None:
    """Check what Pillow does not: the check sums and the end of a PNG, the trailer of a GIF."""
    if picture_format == "PNG":
        last = b""
        for kind, start, end in iterate_png_chunks(data):
            if zlib.crc32(data[start - 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
                raise BadImageError(f"The picture is damaged: a {kind!r} part of the PNG has a wrong check sum.")
            last = kind
        if last != b"IEND":
            raise BadImageError(f"The picture is cut off: the PNG has no end ({len(data)} bytes).")
    elif picture_format == "GIF" and b";" not in data[-64:]:
        raise BadImageError(f"The picture is cut off: the GIF has no end ({len(data)} bytes).")


def iterate_png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """
    Walk the parts of a PNG, up to its end or to where it is cut off.

    :param data: a PNG file
    :returns: for each chunk its four-letter type, and where its content starts and ends; four bytes of check sum follow
    """
    position = len(PNG_SIGNATURE)
    while position + 12 <= len(data):
        kind = data[position + 4 : position + 8]
        start = position + 8
        end = start + int.from_bytes(data[position : position + 4], "big")
        if end + 4 > len(data):
            return
        yield kind, start, end
        if kind == b"IEND":
            return
        position = end + 4


def _describe_start(data: bytes) -> str:
    """Name what came instead of a picture, without repeating it: an error page may hold anything."""
    head = data[:512].lstrip().lower()
    if head.startswith((b"<!doctype html", b"<html")):
        return "it looks like an HTML page"
    if head.startswith(b"<svg") or (head.startswith(b"<?xml") and b"<svg" in head):
        return "it looks like SVG"
    if head.startswith((b"<?xml", b"<error")):
        return "it looks like XML"
    if head.startswith((b"{", b"[")):
        return "it looks like JSON"
    return f"they start with {data[:8].hex()}"
