"""Iterate over the blocks of a GIF, verify them, and read its size (GIF89a)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from airflow_provider_imagen.exceptions import BadImageError

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAX_BLOCKS: Final = 1_000_000  # a full block has 255 bytes
_IMAGE: Final = 0x2C
_EXTENSION: Final = 0x21
_TRAILER: Final = 0x3B


def read_gif_size(data: bytes) -> tuple[int, int]:
    """
    Return the width and height of a GIF, in pixels: those of its screen, enlarged if the first image exceeds it.

    :raises ValueError, IndexError: the file is unusual or truncated
    :raises BadImageError: there are too many blocks
    """
    for kind, begin, _ in iterate_gif_blocks(data):
        if kind == _IMAGE:
            left, top, width, height = struct.unpack("<4H", data[begin + 1 : begin + 9])
            screen_width, screen_height = struct.unpack("<HH", data[6:10])
            size = max(screen_width, left + width), max(screen_height, top + height)
            if 0 in (*size, width, height):
                break
            return size
    raise ValueError("the GIF has no image")


def find_gif_damage(data: bytes) -> str | None:
    """
    Return what is wrong with a GIF, for an error message; ``None`` if its blocks lead to its trailer.

    Anything after the trailer is padding (GIF89a, appendix A).

    :raises ValueError: the file is unusual, and only decoding can tell
    :raises BadImageError: there are too many blocks
    """
    has_image = False
    is_usual = True
    try:
        for kind, _, blocks in iterate_gif_blocks(data):
            has_image = has_image or kind == _IMAGE
            is_usual = is_usual and kind in (_IMAGE, _EXTENSION) and (kind == _EXTENSION or data[blocks] != 0)
    except IndexError:
        return "the GIF has no trailer"
    if not (has_image and is_usual):
        raise ValueError("the GIF is unusual")
    return None


def iterate_gif_blocks(data: bytes) -> Iterator[tuple[int, int, int]]:
    """
    Yield the images and extensions of a GIF, up to its trailer, and every unknown byte between them.

    :returns: for each its first byte, its start, and the start of the blocks with its data
    :raises IndexError: the file ends too early
    :raises BadImageError: there are more than 1,000,000 blocks
    """
    position = 13 + _table_bytes(data[10])
    is_within = False  # an image or extension, at the start of one of its blocks
    for _ in range(_MAX_BLOCKS):
        first = data[position]
        if is_within:
            position += first + 1
            is_within = first != 0
            continue
        begin = position
        if first == _TRAILER:
            return
        if first == _IMAGE:  # a descriptor, a colour table, the code size
            position += 10 + _table_bytes(data[position + 9]) + 1
        elif first == _EXTENSION:
            position += 2
        else:  # decoders skip unknown bytes
            position += 1
        yield first, begin, position
        is_within = first in (_IMAGE, _EXTENSION)
    raise BadImageError(f"The GIF has more than {_MAX_BLOCKS:,} blocks.")


def _table_bytes(packed: int) -> int:
    """Return the size of the colour table that a packed field announces."""
    return 3 * 2 ** ((packed & 7) + 1) if packed & 0x80 else 0
