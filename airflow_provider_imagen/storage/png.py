"""
Iterate over the chunks of a PNG, verify them, and read its size and metadata.

Pillow rejects a whole image over one bad metadata chunk, and its limits (``PngImagePlugin.MAX_TEXT_CHUNK``) are
process-wide. So the colour profile and the XMP packet are read here, and Pillow never sees those chunks.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final

from airflow_provider_imagen.exceptions import BadImageError

if TYPE_CHECKING:
    from collections.abc import Iterator

PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
XMP_KEYWORD: Final = b"XML:com.adobe.xmp\0"

_MAX_CHUNKS: Final = 100_000  # encoders write 8 KiB or more per chunk; a file of empty chunks would take minutes
_MAX_SIDE_PIXELS: Final = 2**31 - 1
_BIT_DEPTHS: Final = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}  # per colour type
_PALETTE: Final = 3  # a colour type
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
    :raises BadImageError: there are more than 100,000 chunks
    """
    position = len(PNG_SIGNATURE)
    for _ in range(_MAX_CHUNKS):
        if position + 12 > len(data):
            return
        kind = data[position + 4 : position + 8]
        start = position + 8
        end = start + int.from_bytes(data[position : position + 4], "big")
        if end + 4 > len(data):
            return
        yield kind, start, end
        if kind == b"IEND":
            return
        position = end + 4
    raise BadImageError(f"The PNG has more than {_MAX_CHUNKS:,} chunks.")


def read_png_size(data: bytes) -> tuple[int, int]:
    """
    Return the width and height of a PNG, in pixels.

    :raises ValueError: it does not start with a valid header
    """
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if data[8:16] != b"\0\0\0\x0dIHDR" or not (0 < width <= _MAX_SIDE_PIXELS and 0 < height <= _MAX_SIDE_PIXELS):
        raise ValueError("the PNG has no valid header")
    return width, height


def find_png_damage(data: bytes) -> str | None:
    """
    Return what is wrong with a PNG, for an error message; ``None`` if it is complete and every checksum is right.

    :param data: a file whose size :func:`read_png_size` can read
    :raises ValueError: the file is unusual, and only decoding can tell
    :raises BadImageError: there are too many chunks
    """
    view = memoryview(data)
    kinds = []
    pixel_bytes = 0
    for kind, start, end in iterate_png_chunks(data):
        if zlib.crc32(view[start - 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            return f"PNG chunk {kind!r} has a wrong checksum"
        kinds.append(kind)
        pixel_bytes += end - start if kind == b"IDAT" else 0
    if kinds[-1:] != [b"IEND"]:
        return "the PNG has no IEND chunk"
    depth, colour_type, compression, filter_method, interlace = data[24:29]
    first = kinds.index(b"IDAT")
    count = kinds.count(b"IDAT")
    if (
        depth not in _BIT_DEPTHS.get(colour_type, ())
        or (compression, filter_method) != (0, 0)
        or interlace > 1
        or kinds.count(b"IHDR") > 1
        or (colour_type == _PALETTE and b"PLTE" not in kinds[:first])
        or kinds[first : first + count] != [b"IDAT"] * count
        or pixel_bytes == 0
    ):
        raise ValueError("the PNG is unusual")
    return None


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


def has_exif(data: bytes) -> bool:
    """Return whether a PNG has EXIF, which may be before or after the pixel data."""
    return any(chunk[0] == b"eXIf" or _is_exif_text(data, *chunk) for chunk in iterate_png_chunks(data))


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
