"""Iterate over the segments of a JPEG, and strip its metadata."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_APP1_BYTES: Final = 65_502
"""Maximum bytes of XMP or EXIF in one ``APP1`` segment, after the segment's identifier (XMP specification, part 3)."""

_STANDALONE: Final = frozenset((0x01, *range(0xD0, 0xD8)))  # markers without a length
_METADATA: Final = frozenset((*range(0xE0, 0xF0), 0xFE))  # application segments and comments
_ADOBE: Final = 0xEE  # names the colour transform
_ADOBE_BYTES: Final = 12


def iterate_jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """
    Yield the segments before a JPEG's pixel data, the start of scan last.

    :returns: per segment its marker, its own start, and the start and end of its content
    :raises ValueError, IndexError: the segments are malformed
    """
    position = 2
    while True:
        begin = position
        if data[position] != 0xFF:
            raise ValueError("a marker is missing")
        while data[position] == 0xFF:
            position += 1
        marker = data[position]
        position += 1
        if marker in _STANDALONE:
            continue
        length = int.from_bytes(data[position : position + 2], "big")
        end = position + length
        if length < 2 or end > len(data):
            raise ValueError("a segment exceeds the file")
        yield marker, begin, position + 2, end
        if marker == 0xDA:
            return
        position = end


def strip_jpeg_metadata(data: bytes) -> bytes | None:
    """Return a JPEG with only the segments its pixels and orientation need; ``None`` if it is not a valid JPEG."""
    if not data.startswith(b"\xff\xd8"):
        return None
    parts = [data[:2]]
    try:
        for marker, begin, start, end in iterate_jpeg_segments(data):
            is_exif = marker == 0xE1 and data.startswith(b"Exif\0", start)
            is_colour_transform = marker == _ADOBE and end - start >= _ADOBE_BYTES
            if marker == 0xDA:
                parts.append(data[begin:])
            elif marker not in _METADATA or is_exif or is_colour_transform:
                parts.append(data[begin:end])
    except (ValueError, IndexError):
        return None
    return b"".join(parts)
