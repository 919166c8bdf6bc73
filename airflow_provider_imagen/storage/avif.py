"""Iterate over the boxes of an AVIF, and verify them (ISO/IEC 14496-12)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAX_BOXES: Final = 1000
_IGNORED: Final = (b"free", b"skip", b"uuid")


def iterate_boxes(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """
    Yield the first 1,000 top-level boxes of an AVIF or another file of this kind.

    :returns: per box its four-letter type, and the start and end of its content; the last one may end outside the file
    """
    position = 0
    for _ in range(_MAX_BOXES):
        start = position + 8
        size = int.from_bytes(data[position : position + 4], "big")
        if size == 1:  # a longer field follows
            start += 8
            size = int.from_bytes(data[position + 8 : position + 16], "big")
        yield data[position + 4 : position + 8], start, position + size
        position += size
        if size < 8 or position >= len(data):
            return


def is_complete_avif(data: bytes) -> bool:
    """
    Return whether the boxes of a still AVIF fill the file exactly: one with its type, one with metadata, one with data.

    Otherwise, the file is truncated or unusual (an animation, several data boxes, padding), and only decoding can tell.
    The offsets in the metadata are not followed, so a file with several data boxes that ends exactly after the first
    looks complete.
    """
    boxes = list(iterate_boxes(data))
    kinds = [kind for kind, _, _ in boxes if kind not in _IGNORED]
    return boxes[-1][2] == len(data) and kinds[:1] == [b"ftyp"] and sorted(kinds) == [b"ftyp", b"mdat", b"meta"]
