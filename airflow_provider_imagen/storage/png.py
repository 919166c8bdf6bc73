"""
Iterate over the chunks of a PNG and read its metadata.

Pillow rejects a whole image over one bad metadata chunk, and its limits (``PngImagePlugin.MAX_TEXT_CHUNK``) are
process-wide. So the colour profile and the XMP packet are read here, and Pillow never sees those chunks.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
XMP_KEYWORD: Final = b"XML:com.adobe.xmp\0"

_EXIF_KEYWORD: Final = b"Raw profile type exif\0"  # as ImageMagick writes it
_MAX_EXIF_TEXT_BYTES: Final = 2**18
_NEEDED: Final = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf"))


class XmpTooLargeError(Exception):
    """A compressed XMP packet exceeds the size limit after decompression."""


def iterate_png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """
    Yield the chunks of a PNG, up to its end or the point where it is truncated.

    :param data: a PNG file
    :returns: per chunk its four-letter type, and the start and end of its content; a four-byte checksum follows
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


def read_xmp(data: bytes, *, max_inflated_bytes: int) -> bytes | None:
    """
    Return the first XMP packet of a PNG: ``None`` if there is none, empty if it is malformed.

    :param max_inflated_bytes: maximum size of a compressed packet after decompression
    :raises XmpTooLargeError: it is larger
    """
    for kind, start, end in iterate_png_chunks(data):
        if kind == b"iTXt" and data.startswith(XMP_KEYWORD, start):
            # keyword, compression flag and method, language, translated keyword, text
            content = data[start + len(XMP_KEYWORD) : end]
            fields = content[2:].split(b"\0", 2)
            if len(fields) < 3:
                return b""
            if content[0] != 1:
                return fields[2]
            packet = _inflate(fields[2], max_inflated_bytes) or b""
            if len(packet) > max_inflated_bytes:
                raise XmpTooLargeError
            return packet
    return None


def read_profile(data: bytes, *, max_bytes: int) -> bytes | None:
    """Return the colour profile of a PNG; ``None`` if it is missing, malformed or too large."""
    for kind, start, end in iterate_png_chunks(data):
        if kind == b"iCCP":
            _, _, packed = data[start:end].partition(b"\0")
            profile = _inflate(packed[1:], max_bytes) if packed.startswith(b"\0") else None
            return profile if profile and len(profile) <= max_bytes else None
    return None


def strip_png_metadata(data: bytes) -> bytes:
    """Return a PNG with only the chunks its pixels, transparency and orientation need; unchanged if truncated."""
    chunks = list(iterate_png_chunks(data))
    needed = [chunk for chunk in chunks if chunk[0] in _NEEDED or _is_exif_text(data, *chunk)]
    if len(needed) == len(chunks) or chunks[-1][0] != b"IEND":
        return data
    return PNG_SIGNATURE + b"".join(data[start - 8 : end + 4] for _, start, end in needed)


def _is_exif_text(data: bytes, kind: bytes, start: int, end: int) -> bool:
    if not data.startswith(_EXIF_KEYWORD, start) or end - start > _MAX_EXIF_TEXT_BYTES:
        return False
    packed = data[start + len(_EXIF_KEYWORD) : end]
    text = _inflate(packed[1:], _MAX_EXIF_TEXT_BYTES) if packed.startswith(b"\0") else None
    return kind == b"tEXt" or (kind == b"zTXt" and text is not None and len(text) <= _MAX_EXIF_TEXT_BYTES)


def _inflate(packed: bytes, max_bytes: int) -> bytes | None:
    """Return decompressed data, at most one byte more than the limit; ``None`` if it is malformed."""
    try:
        return zlib.decompressobj().decompress(packed, max_bytes + 1)
    except zlib.error:
        return None
