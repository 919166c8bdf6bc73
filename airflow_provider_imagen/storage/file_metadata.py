"""
Read and write the XMP packet of an image file without changing anything else in it.

PNG, JPEG and WebP files are sequences of chunks or segments. Only the one that holds the XMP is written; pixels, colour
profile, EXIF and everything else stay byte for byte. (PNG: ``iTXt`` with keyword ``XML:com.adobe.xmp``; JPEG: an
``APP1`` segment; WebP: an ``XMP`` chunk after a ``VP8X`` header; XMP specification, part 3.)
"""

from __future__ import annotations

import zlib
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from msgspec import Struct
from msgspec.structs import replace

from airflow_provider_imagen.exceptions import BadImageError
from airflow_provider_imagen.storage.jpeg import iterate_jpeg_segments
from airflow_provider_imagen.storage.png import XMP_KEYWORD, XmpTooLargeError, iterate_png_chunks, read_xmp
from airflow_provider_imagen.storage.webp import iterate_webp_chunks
from airflow_provider_imagen.storage.xmp import MAX_PACKET_BYTES

if TYPE_CHECKING:
    from airflow_provider_imagen.storage.inspect_image import FileFormat, ImageInfo

_MAX_INFLATED_PACKET_BYTES: Final = 2**16  # far below the usual limit: a decompression bomb costs its sender nothing
_JPEG_XMP: Final = b"http://ns.adobe.com/xap/1.0/\0"
_WEBP_CHUNKS_BEFORE_XMP: Final = (b"VP8X", b"ICCP", b"ANIM", b"ANMF", b"ALPH", b"VP8 ", b"VP8L", b"EXIF")


class FileMetadata(Struct, frozen=True):
    """
    Metadata of an image file.

    :param xmp: its XMP packet, ``None`` if it has none
    :param has_multiple_images: whether the file holds several images that refer to each other by byte offset
    :param has_huge_xmp: whether its XMP packet is too large to read; ``xmp`` is then ``None``
    """

    xmp: bytes | None
    has_multiple_images: bool = False
    has_huge_xmp: bool = False


def read_metadata(data: bytes, file_format: FileFormat) -> FileMetadata | None:
    """Return the metadata of a PNG, JPEG or WebP; ``None`` for any other format or a malformed file."""
    readers = {"PNG": _read_png, "JPEG": _read_jpeg, "WEBP": _read_webp}
    try:
        metadata = readers[file_format](data)
    except (BadImageError, KeyError, ValueError, IndexError):
        return None
    return replace(metadata, xmp=None, has_huge_xmp=True) if len(metadata.xmp or b"") > MAX_PACKET_BYTES else metadata


def write_xmp(data: bytes, info: ImageInfo, packet: bytes) -> bytes:
    """
    Return the file with the packet in it, replacing any existing one.

    :param data: a file that :func:`read_metadata` can read
    :param info: its format and size
    :param packet: the XMP packet; for a JPEG, at most :data:`~airflow_provider_imagen.storage.jpeg.MAX_APP1_BYTES`
    """
    if info.format == "PNG":
        return _write_png(data, packet)
    if info.format == "JPEG":
        return _write_jpeg(data, packet)
    return _write_webp(data, info, packet)


def _read_png(data: bytes) -> FileMetadata:
    try:
        return FileMetadata(xmp=read_xmp(data, max_inflated_bytes=_MAX_INFLATED_PACKET_BYTES))
    except XmpTooLargeError:
        return FileMetadata(xmp=None, has_huge_xmp=True)


def _write_png(data: bytes, packet: bytes) -> bytes:
    content = XMP_KEYWORD + b"\0\0\0\0" + packet
    chunk = len(content).to_bytes(4, "big") + b"iTXt" + content + zlib.crc32(b"iTXt" + content).to_bytes(4, "big")
    chunks = list(iterate_png_chunks(data))
    replaced = [
        (start - 8, end + 4) for kind, start, end in chunks if kind == b"iTXt" and data.startswith(XMP_KEYWORD, start)
    ]
    if not replaced:
        pixels = next(start - 8 for kind, start, _ in chunks if kind == b"IDAT")
        replaced = [(pixels, pixels)]
    view = memoryview(data)
    kept = (view[end:begin] for (_, end), (begin, _) in pairwise([*replaced, (len(data), len(data))]))
    return b"".join((view[: replaced[0][0]], chunk, *kept))


def _read_jpeg(data: bytes) -> FileMetadata:
    xmp = None
    has_multiple_images = False
    for marker, _, start, end in iterate_jpeg_segments(data):
        if marker == 0xE1 and xmp is None and data.startswith(_JPEG_XMP, start):
            xmp = data[start + len(_JPEG_XMP) : end]
        elif marker == 0xE2 and data.startswith(b"MPF\0", start):
            has_multiple_images = True
    return FileMetadata(xmp=xmp, has_multiple_images=has_multiple_images)


def _write_jpeg(data: bytes, packet: bytes) -> bytes:
    content = _JPEG_XMP + packet
    segment = b"\xff\xe1" + (len(content) + 2).to_bytes(2, "big") + content
    view = memoryview(data)
    insert_at = 2
    is_leading = True
    replaced = []
    for marker, begin, start, end in iterate_jpeg_segments(data):
        if marker == 0xE1 and data.startswith(_JPEG_XMP, start):
            replaced.append((begin, end))
        # JFIF and EXIF must come first, so the packet goes after them.
        is_leading = is_leading and (marker == 0xE0 or (marker == 0xE1 and data.startswith(b"Exif\0", start)))
        if is_leading:
            insert_at = end
    replaced = replaced or [(insert_at, insert_at)]
    kept = (view[end:begin] for (_, end), (begin, _) in pairwise([*replaced, (len(data), len(data))]))
    return b"".join((view[: replaced[0][0]], segment, *kept))


def _webp_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Return the chunks of a WebP: four-letter type and content (without padding)."""
    return [(kind, data[start:end]) for kind, start, end in iterate_webp_chunks(data)]


def _read_webp(data: bytes) -> FileMetadata:
    return FileMetadata(xmp=next((content for kind, content in _webp_chunks(data) if kind == b"XMP "), None))


def _write_webp(data: bytes, info: ImageInfo, packet: bytes) -> bytes:
    chunks = _webp_chunks(data)
    kind, content = chunks[0]
    if kind == b"VP8X":
        chunks[0] = kind, bytes([content[0] | 0x04]) + content[1:]  # flag: the file has XMP
    else:
        chunks.insert(0, (b"VP8X", _vp8x_header(kind, content, info)))
    kinds = [kind for kind, _ in chunks]
    if b"XMP " in kinds:
        position = kinds.index(b"XMP ")
    else:
        position = 1 + max(number for number, kind in enumerate(kinds) if kind in _WEBP_CHUNKS_BEFORE_XMP)
    after = [chunk for chunk in chunks[position:] if chunk[0] != b"XMP "]
    body = b"".join(
        kind + len(content).to_bytes(4, "little") + content + b"\0" * (len(content) % 2)
        for kind, content in [*chunks[:position], (b"XMP ", packet), *after]
    )
    padding = data[8 + int.from_bytes(data[4:8], "little") :]
    return b"RIFF" + (len(body) + 4).to_bytes(4, "little") + b"WEBP" + body + padding


def _vp8x_header(kind: bytes, content: bytes, info: ImageInfo) -> bytes:
    """Return the extended header for a WebP whose first chunk is its bitstream (RFC 9649)."""
    alpha = content[4] & 0x10 if kind == b"VP8L" else 0  # both headers use this bit for transparency
    return (
        bytes([0x04 | alpha, 0, 0, 0])
        + (info.width - 1).to_bytes(3, "little")
        + (info.height - 1).to_bytes(3, "little")
    )
