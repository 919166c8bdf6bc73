"""
Detect C2PA content credentials: a signed manifest in an image file that states where the image comes from.

Each format has one place for the manifest (C2PA specification, appendix "Embedding manifests into assets"), and only
there it is looked for. Its contents are not read, and its signature is not verified.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from airflow_provider_imagen.exceptions import BadImageError
from airflow_provider_imagen.storage.avif import iterate_boxes
from airflow_provider_imagen.storage.gif import iterate_gif_blocks
from airflow_provider_imagen.storage.jpeg import iterate_jpeg_segments
from airflow_provider_imagen.storage.png import PNG_SIGNATURE, iterate_png_chunks
from airflow_provider_imagen.storage.svg import has_svg_element
from airflow_provider_imagen.storage.webp import iterate_webp_chunks

if TYPE_CHECKING:
    from collections.abc import Callable

_JUMBF_TYPE: Final = b"c2pa\x00\x11\x00\x10\x80\x00\x00\xaa\x00\x38\x9b\x71"  # of a manifest store
_BMFF_UUID: Final = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")
_GIF_APPLICATION: Final = b"\x21\xff\x0bC2PA_GIF\x01\x00\x00"
_SVG_NAMESPACE: Final = "http://c2pa.org/manifest"
_TIFF_TAG: Final = 0xCD41
_MAX_TIFF_TAGS: Final = 0xFFFF  # what the count of a classic TIFF can state
_BIGTIFF_VERSION: Final = 43
_APP11: Final = 0xEB


def has_content_credentials(data: bytes) -> bool:
    """
    Return whether an image file contains a C2PA manifest.

    The format may be PNG, JPEG, WebP, AVIF or another HEIF, GIF, TIFF or SVG. A manifest that the file only refers to
    by URL does not count.

    :param data: the whole file; one in another format, or malformed before its manifest, has none
    """
    detect = next((detect for start, detect in _DETECTORS if data.startswith(start)), None)
    if detect is None:
        detect = _in_heif if data[4:8] == b"ftyp" else _in_svg
    try:
        return detect(data)
    except (BadImageError, ValueError, IndexError):
        return False


def _in_png(data: bytes) -> bool:
    return any(kind == b"caBX" for kind, _, _ in iterate_png_chunks(data))


def _in_jpeg(data: bytes) -> bool:
    return any(
        marker == _APP11 and _starts_manifest_store(data[start : min(end, start + 64)])
        for marker, _, start, end in iterate_jpeg_segments(data)
    )


def _starts_manifest_store(segment: bytes) -> bool:
    """
    Return whether an ``APP11`` segment starts a C2PA manifest store (ISO/IEC 19566-5, JUMBF).

    It holds an identifier, two numbers, and a ``jumb`` box (with a longer length if it is huge), whose first content is
    its description: a ``jumd`` box that starts with the content's type.
    """
    is_long = segment[8:12] == b"\x00\x00\x00\x01"
    description = segment[24 if is_long else 16 :]
    return segment[:2] == b"JP" and segment[12:16] == b"jumb" and description[4:24] == b"jumd" + _JUMBF_TYPE


def _in_webp(data: bytes) -> bool:
    return any(kind == b"C2PA" for kind, _, _ in iterate_webp_chunks(data))


def _in_heif(data: bytes) -> bool:
    return any(kind == b"uuid" and data.startswith(_BMFF_UUID, start) for kind, start, _ in iterate_boxes(data))


def _in_gif(data: bytes) -> bool:
    return any(data.startswith(_GIF_APPLICATION, begin) for _, begin, _ in iterate_gif_blocks(data))


def _in_tiff(data: bytes) -> bool:
    """Search the first directory of tags; a BigTIFF has wider numbers."""
    order: Literal["little", "big"] = "little" if data.startswith(b"II") else "big"

    def number(position: int, width: int) -> int:
        return int.from_bytes(data[position : position + width], order)

    if number(2, 2) == _BIGTIFF_VERSION:
        directory = number(8, 8)
        count, first, entry_bytes = number(directory, 8), directory + 8, 20
    else:
        directory = number(4, 4)
        count, first, entry_bytes = number(directory, 2), directory + 2, 12
    return any(number(first + index * entry_bytes, 2) == _TIFF_TAG for index in range(min(count, _MAX_TIFF_TAGS)))


def _in_svg(data: bytes) -> bool:
    return has_svg_element(data, namespace=_SVG_NAMESPACE, name="manifest")


_DETECTORS: Final[tuple[tuple[bytes, Callable[[bytes], bool]], ...]] = (
    (PNG_SIGNATURE, _in_png),
    (b"\xff\xd8", _in_jpeg),
    (b"RIFF", _in_webp),
    (b"GIF8", _in_gif),
    (b"II\x2a\x00", _in_tiff),
    (b"MM\x00\x2a", _in_tiff),
    (b"II\x2b\x00", _in_tiff),
    (b"MM\x00\x2b", _in_tiff),
)
