"""Verify the boxes of an AVIF (ISO/IEC 14496-12)."""

from __future__ import annotations

from typing import Final

_MAX_BOXES: Final = 1000
_IGNORED: Final = (b"free", b"skip", b"uuid")


def is_complete_avif(data: bytes) -> bool:
    """
    Return whether the boxes of a still AVIF fill the file exactly: one with its type, one with metadata, one with data.

    Otherwise, the file is truncated or unusual (an animation, several data boxes, padding), and only decoding can tell.
    The offsets in the metadata are not followed, so a file with several data boxes that ends exactly after the first
    looks complete.
    """
    position = 0
    kinds = []
    for _ in range(_MAX_BOXES):
        kind = data[position + 4 : position + 8]
        size = int.from_bytes(data[position : position + 4], "big")
        if size == 1:  # a longer field follows
            size = int.from_bytes(data[position + 8 : position + 16], "big")
        if kind not in _IGNORED:
            kinds.append(kind)
        position += size
        if size < 8 or position >= len(data):
            break
    return position == len(data) and kinds[:1] == [b"ftyp"] and sorted(kinds) == [b"ftyp", b"mdat", b"meta"]
