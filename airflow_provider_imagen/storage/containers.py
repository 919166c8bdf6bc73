"""
Read and write the XMP packet of an image file without changing anything else in it.

PNG, JPEG and WebP files are sequences of chunks or segments. Only the one that holds the XMP is written; pixels, colour
profile, EXIF and everything else stay byte for byte. (PNG: ``iTXt`` with keyword ``XML:com.adobe.xmp``; JPEG: an
``APP1`` segment; WebP: an ``XMP`` chunk after a ``VP8X`` header; XMP specification, part 3.)
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final

from msgspec import Struct
from msgspec.structs import replace

from airflow_provider_imagen.storage.jpeg import iterate_jpeg_segments
from airflow_provider_imagen.storage.png import (
    PNG_SIGNATURE,
    XMP_KEYWORD,
    XmpTooLargeError,
    iterate_png_chunks,
    read_xmp,
)
from airflow_provider_imagen.storage.xmp import MAX_PACKET_BYTES

if TYPE_CHECKING:
    from airflow_provider_imagen.storage.inspect_image import FileFormat

MAX_JPEG_PACKET: Final = 65_502
"""Maximum bytes of XMP in one JPEG segment."""

MAX_INFLATED_PACKET: Final = 64 * 1024
"""Maximum bytes of XMP after decompression; far lower, because a decompression bomb costs its sender nothing."""

_JPEG_XMP = b"http://ns.adobe.com/xap/1.0/\0"


class FileMetadata(Struct, frozen=True):
    """
    Metadata of an image file.

    :param xmp: its XMP packet, ``None`` if it has none
    :param is_signed: whether the file carries a C2PA manifest, which signs it
    :param has_multiple_images: whether the file holds several images that refer to each other by byte offset
    :param has_huge_xmp: whether its XMP packet is too large to be read; ``xmp`` is then ``None``
    """

    xmp: bytes | None
    is_signed: bool
    has_multiple_images: bool = False
    has_huge_xmp: bool = False


def read_metadata(data: bytes, file_format: FileFormat) -> FileMetadata | None:
    """Return the metadata of a PNG, JPEG or WebP; ``None`` for any other format or a malformed file."""
    readers = {"PNG": _read_png, "JPEG": _read_jpeg, "WEBP": _read_webp}
    try:
        metadata = readers[file_format](data)
    except (KeyError, ValueError, IndexError):
        return None
    return replace(metadata, xmp=None, has_huge_xmp=True) if len(metadata.xmp or b"") > MAX_PACKET_BYTES else metadata


def write_xmp(data: bytes, file_format: FileFormat, packet: bytes) -> bytes:
    """
    Return the file with the packet in it, replacing any existing one.

    :param data: a file that :func:`read_metadata` can read
    :param packet: the XMP packet; for a JPEG, at most :data:`MAX_JPEG_PACKET` bytes
    """
    if file_format == "PNG":
        return _write_png(data, packet)
    if file_format == "JPEG":
        return _write_jpeg(data, packet)
    return _write_webp(data, packet)


def _read_png(data: bytes) -> FileMetadata:
    is_signed = any(kind == b"caBX" for kind, _, _ in iterate_png_chunks(data))
    try:
        return FileMetadata(xmp=read_xmp(data, max_inflated_bytes=MAX_INFLATED_PACKET), is_signed=is_signed)
    except XmpTooLargeError:
        return FileMetadata(xmp=None, is_signed=is_signed, has_huge_xmp=True)


def _write_png(data: bytes, packet: bytes) -> bytes:
    content = XMP_KEYWORD + b"\0\0\0\0" + packet
    chunk = len(content).to_bytes(4, "big") + b"iTXt" + content + zlib.crc32(b"iTXt" + content).to_bytes(4, "big")
    parts = [data[: len(PNG_SIGNATURE)]]
    last = len(PNG_SIGNATURE)
    placed = False
    has_place = any(_is_png_xmp(data, *found) for found in iterate_png_chunks(data))
    for kind, start, end in iterate_png_chunks(data):
        last = end + 4
        if _is_png_xmp(data, kind, start, end):
            if not placed:
                parts.append(chunk)
                placed = True
            continue
        if kind == b"IDAT" and not placed and not has_place:
            parts.append(chunk)
            placed = True
        parts.append(data[start - 8 : last])
    parts.append(data[last:])
    return b"".join(parts)


def _is_png_xmp(data: bytes, kind: bytes, start: int, _end: int) -> bool:
    return kind == b"iTXt" and data.startswith(XMP_KEYWORD, start)


def _read_jpeg(data: bytes) -> FileMetadata:
    xmp = None
    is_signed = has_multiple_images = False
    for marker, _, start, end in iterate_jpeg_segments(data):
        if marker == 0xE1 and xmp is None and data.startswith(_JPEG_XMP, start):
            xmp = data[start + len(_JPEG_XMP) : end]
        elif marker == 0xEB and data.startswith(b"JP", start) and b"c2pa" in data[start : min(end, start + 256)]:
            is_signed = True
        elif marker == 0xE2 and data.startswith(b"MPF\0", start):
            has_multiple_images = True
    return FileMetadata(xmp=xmp, is_signed=is_signed, has_multiple_images=has_multiple_images)


def _write_jpeg(data: bytes, packet: bytes) -> bytes:
    content = _JPEG_XMP + packet
    segment = b"\xff\xe1" + (len(content) + 2).to_bytes(2, "big") + content
    place = cut = None
    insert = 2
    leading = True
    for marker, begin, start, end in iterate_jpeg_segments(data):
        if marker == 0xE1 and place is None and data.startswith(_JPEG_XMP, start):
            place, cut = begin, end
        # JFIF and EXIF must come first, so the packet goes after them.
        leading = leading and (marker == 0xE0 or (marker == 0xE1 and data.startswith(b"Exif\0", start)))
        if leading:
            insert = end
    if place is None or cut is None:
        place = cut = insert
    return data[:place] + segment + data[cut:]


def _webp_chunks(data: bytes) -> list[tuple[bytes, int, int]]:
    """Return the chunks of a WebP: four-letter type, start and end of the content (without padding)."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        raise ValueError("no WebP")
    limit = 8 + int.from_bytes(data[4:8], "little")
    if limit > len(data) + 1:
        raise ValueError("the file is cut off")
    position = 12
    chunks = []
    while position + 8 <= limit:
        end = position + 8 + int.from_bytes(data[position + 4 : position + 8], "little")
        if end > len(data):
            raise ValueError("a chunk runs over the end")
        chunks.append((data[position : position + 4], position + 8, end))
        position = end + (end - position) % 2
    return chunks


def _read_webp(data: bytes) -> FileMetadata:
    chunks = _webp_chunks(data)
    xmp = next((data[start:end] for kind, start, end in chunks if kind == b"XMP "), None)
    return FileMetadata(xmp=xmp, is_signed=any(kind == b"C2PA" for kind, _, _ in chunks))


def _write_webp(data: bytes, packet: bytes) -> bytes:
    chunks = _webp_chunks(data)
    parts: list[tuple[bytes, bytes]] = []
    placed = False
    for kind, start, end in chunks:
        content = data[start:end]
        if kind == b"VP8X":
            content = bytes([content[0] | 0x04]) + content[1:]  # flag: the file has XMP
        if kind == b"XMP ":
            if placed:
                continue
            content = packet
            placed = True
        parts.append((kind, content))
    if parts[0][0] != b"VP8X":
        parts.insert(0, (b"VP8X", _vp8x_header(*parts[0])))
    if not placed:
        known = (b"VP8X", b"ICCP", b"ANIM", b"ANMF", b"ALPH", b"VP8 ", b"VP8L", b"EXIF")
        last = max(number for number, (kind, _) in enumerate(parts) if kind in known)
        parts.insert(last + 1, (b"XMP ", packet))
    body = b"".join(
        kind + len(content).to_bytes(4, "little") + content + b"\0" * (len(content) % 2) for kind, content in parts
    )
    behind = data[8 + int.from_bytes(data[4:8], "little") :]
    return b"RIFF" + (len(body) + 4).to_bytes(4, "little") + b"WEBP" + body + behind


def _vp8x_header(kind: bytes, content: bytes) -> bytes:
    """Return the extended header for a WebP without one, derived from its bitstream header (RFC 9649)."""
    if kind == b"VP8L":
        bits = int.from_bytes(content[1:5], "little")
        width, height, alpha = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, bits >> 28 & 1
    elif kind == b"VP8 ":
        width = int.from_bytes(content[6:8], "little") & 0x3FFF
        height = int.from_bytes(content[8:10], "little") & 0x3FFF
        alpha = 0
    else:
        raise ValueError("no picture where one must be")
    flags = 0x04 | (0x10 if alpha else 0)
    return bytes([flags, 0, 0, 0]) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
