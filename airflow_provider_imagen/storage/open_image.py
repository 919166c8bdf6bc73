"""
Open images with Pillow, tolerating unreadable metadata, with one memory budget for all threads.

Pillow's own limits are not changed, because every task in the process shares them.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager, suppress
from io import BytesIO
from typing import TYPE_CHECKING, Final, Literal, get_args

from airflow_provider_imagen.exceptions import BadImageError
from airflow_provider_imagen.malloc import return_freed_memory
from airflow_provider_imagen.storage.jpeg import strip_jpeg_metadata
from airflow_provider_imagen.storage.png import (
    PNG_SIGNATURE,
    XmpTooLargeError,
    read_profile,
    read_xmp,
    strip_png_metadata,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL.Image import Image as PillowImage
    from PIL.ImageFile import ImageFile

RasterFormat = Literal["PNG", "JPEG", "WEBP", "AVIF", "GIF", "TIFF", "BMP"]

FORMATS: Final[tuple[RasterFormat, ...]] = get_args(RasterFormat)
"""The formats that Pillow may read, under Pillow's names."""

MAX_DECODED_PIXELS: Final = 360_000_000
"""
Maximum decoded pixels in the memory of a process, over all threads: 1.44 GB at 4 bytes each.

An image counts once per simultaneous copy. One that exceeds the whole budget is processed alone.
"""

_LARGE_PIXELS: Final = MAX_DECODED_PIXELS // 10
_MAX_PROFILE_BYTES: Final = 4 * 2**20
_MAX_XMP_BYTES: Final = 2**20  # to copy into conversions; the limit for a packet that is parsed is lower
_DECODER_COPIES: Final = {"WEBP": 3, "AVIF": 2}  # extra copies that these decoders hold


class PixelBudget:
    """
    A counting semaphore for pixels.

    :param pixels: size of the budget
    """

    def __init__(self, pixels: int) -> None:
        self.pixels = pixels
        self.free = pixels
        self._changed = threading.Condition()

    @contextmanager
    def reserve(self, pixels: int) -> Iterator[None]:
        """Wait until this many pixels are free, capped at the whole budget, and reserve them for the block."""
        pixels = min(pixels, self.pixels)
        with self._changed:
            self._changed.wait_for(lambda: self.free >= pixels)
            self.free -= pixels
        try:
            yield
        finally:
            with self._changed:
                self.free += pixels
                self._changed.notify_all()


PIXEL_BUDGET = PixelBudget(MAX_DECODED_PIXELS)


@contextmanager
def open_image(data: bytes, *, copies: int = 1, max_pixels: int | None = None) -> Iterator[PillowImage]:
    """
    Yield an image, opened but not decoded, with its pixels reserved; the end of the block closes and releases it.

    Do not nest these blocks: the inner one could wait for pixels that the outer one holds.

    :param data: a complete image file
    :param copies: how many images of this size the block holds at the same time, including this one
    :param max_pixels: maximum width times height; ``None`` applies only Pillow's own limit
    :raises BadImageError: the bytes are not an image in a supported format, or the image has more pixels
    """
    is_png = data.startswith(PNG_SIGNATURE)
    with _open(strip_png_metadata(data) if is_png else data) as image:
        width, height = image.size
        if max_pixels is not None:
            check_pixels(width, height, max_pixels)
        if is_png:
            image.info["icc_profile"] = read_profile(data, max_bytes=_MAX_PROFILE_BYTES)
            with suppress(XmpTooLargeError):
                if packet := read_xmp(data, max_inflated_bytes=_MAX_XMP_BYTES):
                    image.info["xmp"] = packet
        pixels = width * height * (copies + _DECODER_COPIES.get(image.format or "", 0))
        with PIXEL_BUDGET.reserve(pixels):
            try:
                yield image
            finally:
                image.close()
                if pixels >= _LARGE_PIXELS:
                    return_freed_memory()


def decode(image: PillowImage, data: bytes) -> None:
    """
    Decode an opened image.

    :param data: its file
    :raises BadImageError: its data is truncated or corrupt
    """
    try:
        image.load()
    except Exception as error:  # see _open
        raise corrupt_image(data, error) from error


def corrupt_image(data: bytes, reason: object) -> BadImageError:
    """Return the error for a file that is truncated or corrupt."""
    return BadImageError(f"The image is truncated or corrupt ({len(data)} bytes): {reason}")


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """Raise :class:`BadImageError` if an image has more pixels than allowed."""
    if width * height > max_pixels:
        raise BadImageError(f"The image has {width}x{height} pixels; at most {max_pixels} are allowed.")


def _open(data: bytes) -> ImageFile:
    from PIL import Image, UnidentifiedImageError

    try:
        try:
            return Image.open(BytesIO(data), formats=FORMATS)
        except Exception:
            stripped = strip_jpeg_metadata(data)  # Pillow may have failed on the metadata
            if stripped is None:
                raise
        return Image.open(BytesIO(stripped), formats=FORMATS)
    except UnidentifiedImageError:
        raise BadImageError(
            f"The {len(data)} bytes are not an image in a supported format ({_describe_start(data)})."
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImageError(f"The image is too large to decode safely: {error}") from error
    except BadImageError:
        raise
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, zlib.error …
        raise corrupt_image(data, error) from error


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
