"""Iterate over the segments of a JPEG, verify them, read its size, and strip its metadata."""

from __future__ import annotations

import math
import re
import struct
from itertools import chain, cycle, islice
from typing import TYPE_CHECKING, Final, cast

from msgspec import Struct

from airflow_provider_imagen.exceptions import BadImageError

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_APP1_BYTES: Final = 65_502
"""Maximum bytes of XMP or EXIF in one ``APP1`` segment, after the segment's identifier (XMP specification, part 3)."""

_STANDALONE: Final = frozenset((0x01, *range(0xD0, 0xDA)))  # markers without a length
_METADATA: Final = frozenset((*range(0xE0, 0xF0), 0xFE))  # application segments and comments
_FRAMES: Final = frozenset((0xC0, 0xC1, 0xC2))  # baseline, extended and progressive, with Huffman coding
_HUFFMAN: Final = 0xC4
_END: Final = 0xD9
_SCAN: Final = 0xDA
_QUANTIZATION: Final = 0xDB
_RESTART_INTERVAL: Final = 0xDD
_FILL: Final = re.compile(rb"\xff*")
_MARKER: Final = re.compile(rb"\xff[^\x00\xff]")  # within a scan, FF 00 stands for the byte FF
_MARKER_AFTER_RESTARTS: Final = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_RESTART: Final = re.compile(rb"\xff([\xd0-\xd7])")
_MAX_SEGMENTS: Final = 100_000  # usual files have tens
_MAX_SCANS: Final = 100  # usual progressive files have ten; decoding takes time for each
_MAX_RESTARTS: Final = 100_000  # per scan; more are not checked, which would take seconds
_ADOBE: Final = 0xEE  # names the colour transform
_ADOBE_BYTES: Final = 12


def iterate_jpeg_segments(data: bytes, position: int = 2) -> Iterator[tuple[int, int, int, int]]:
    """
    Yield the segments of a JPEG up to the next start of scan or end of image, which is the last.

    :param position: where to start: by default at the first segment
    :returns: per segment its marker, its own start, and the start and end of its content
    :raises ValueError: a marker or a length is missing
    :raises IndexError: the file ends too early
    :raises BadImageError: there are more than 100,000 segments
    """
    for _ in range(_MAX_SEGMENTS):
        begin = position
        if data[position] != 0xFF:
            raise ValueError("a marker is missing")
        position = cast("re.Match[bytes]", _FILL.match(data, position)).end()
        marker = data[position]
        start = end = position + 1
        if marker not in _STANDALONE:
            start += 2
            length = int.from_bytes(data[end:start], "big")
            end += length
            if end > len(data):
                raise IndexError("a segment exceeds the file")
            if length < 2:
                raise ValueError("a segment has no length")
        yield marker, begin, start, end
        if marker in (_SCAN, _END):
            return
        position = end
    raise BadImageError(f"The JPEG has more than {_MAX_SEGMENTS:,} segments.")


def read_jpeg_size(data: bytes) -> tuple[int, int]:
    """
    Return the width and height of a JPEG, in pixels.

    :raises ValueError, IndexError: the file is unusual or truncated
    :raises BadImageError: there are too many segments
    """
    for marker, _, start, end in iterate_jpeg_segments(data):
        if marker in _FRAMES:
            frame = _read_frame(data[start:end])
            return frame.width, frame.height
    raise ValueError("the JPEG has no usual frame")


def find_jpeg_damage(data: bytes) -> str | None:
    """
    Return what is wrong with a JPEG, for an error message; ``None`` if its segments and scans lead to its end marker.

    :raises ValueError, LookupError: the file is unusual, and only decoding can tell
    :raises BadImageError: there are too many segments, or more than 100 scans
    """
    try:
        return _find_damage(data)
    except IndexError:
        return "the JPEG ends before its end marker"


class _Frame(Struct):
    """
    The header of the pixel data.

    :param sampling: per component its horizontal and vertical sampling factor
    """

    width: int
    height: int
    sampling: dict[int, tuple[int, int]]

    def restarts(self, components: bytes, interval: int) -> int:
        """Return how many restart markers a scan of these components has, one after each interval but the last."""
        across = max(horizontal for horizontal, _ in self.sampling.values())
        down = max(vertical for _, vertical in self.sampling.values())
        width, height = self.width, self.height
        if len(components) == 1:  # not interleaved: its units are single blocks
            horizontal, vertical = self.sampling[components[0]]
            width, height = math.ceil(width * horizontal / across), math.ceil(height * vertical / down)
            across = down = 1
        units = math.ceil(width / (8 * across)) * math.ceil(height / (8 * down))
        return math.ceil(units / interval) - 1


def _read_frame(content: bytes) -> _Frame:
    precision, count = content[0], content[5]
    height, width = struct.unpack(">HH", content[1:5])
    sampling = {
        component: (factors >> 4, factors & 15)
        for component, factors in zip(content[6::3], content[7::3], strict=False)
    }
    is_usual = precision == 8 and count in (1, 3, 4) and len(content) == 6 + 3 * count and len(sampling) == count
    if not is_usual or 0 in (width, height, *chain(*sampling.values())):
        raise ValueError("the JPEG has an unusual frame")
    return _Frame(width, height, sampling)


def _find_damage(data: bytes) -> str | None:
    frame: _Frame | None = None
    tables = set()
    interval = 0
    position = 2
    for scan in range(_MAX_SCANS + 1):
        for marker, _, start, end in iterate_jpeg_segments(data, position):
            if marker in _FRAMES and frame is None:
                frame = _read_frame(data[start:end])
            elif marker in (_HUFFMAN, _QUANTIZATION):
                tables.add(marker)
            elif marker == _RESTART_INTERVAL:
                interval = int.from_bytes(data[start:end], "big")
            elif marker not in _METADATA and marker not in (_SCAN, _END):
                raise ValueError("the JPEG has an unusual segment")
            position = end
        if marker == _END and scan > 0:
            return None
        if frame is None or len(tables) < 2 or marker == _END:
            raise ValueError("the JPEG lacks a frame, tables or a scan")
        components = data[start + 1 : start + 1 + 2 * data[start] : 2]
        following = (_MARKER_AFTER_RESTARTS if interval else _MARKER).search(data, position)
        if following is None:
            return "the JPEG has no end marker"
        if following.start() == position:
            return "the JPEG has a scan without data"
        expected = frame.restarts(components, interval) if interval else 0
        if 0 < expected <= _MAX_RESTARTS:
            found = b"".join(
                match[1] for match in islice(_RESTART.finditer(data, position, following.start()), expected + 2)
            )
            # Some encoders write one more at the end.
            if len(found) - expected not in (0, 1) or found != bytes(islice(cycle(range(0xD0, 0xD8)), len(found))):
                return "the JPEG's restart markers are incomplete or out of order"
        position = following.start()
    raise BadImageError(f"The JPEG has more than {_MAX_SCANS} scans.")


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
