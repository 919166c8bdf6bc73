"""Iterate over the chunks of a WebP, verify them, and read its size (RFC 9649)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from airflow_provider_imagen.exceptions import BadImageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_MAX_CHUNKS: Final = 100_000  # an animation has one per frame
_FIRST_CHUNK: Final = 12
_FRAME_HEADER_BYTES: Final = 16
_ANIMATION_FLAG: Final = 0x02


def iterate_webp_chunks(
    data: bytes, position: int = _FIRST_CHUNK, limit: int | None = None
) -> Iterator[tuple[bytes, int, int]]:
    """
    Yield the chunks of a WebP, or those within one of its chunks.

    :param position: start of the first chunk
    :param limit: end of the last chunk; ``None`` for the end of the file according to its header
    :returns: per chunk its four-letter type, and the start and end of its content
    :raises ValueError: the file is not a WebP or is truncated
    :raises BadImageError: there are more than 100,000 chunks
    """
    if limit is None:
        limit = _file_end(data)
    if limit > len(data):
        raise ValueError("the file is truncated")
    for _ in range(_MAX_CHUNKS):
        if position + 8 > limit:
            return
        start = position + 8
        end = start + int.from_bytes(data[position + 4 : start], "little")
        if end > limit:
            raise ValueError("a chunk exceeds the file")
        yield data[position : position + 4], start, end
        position = end + (end - start) % 2
    raise BadImageError(f"The WebP has more than {_MAX_CHUNKS:,} chunks.")


def read_webp_size(data: bytes) -> tuple[int, int]:
    """
    Return the width and height of a WebP (of the canvas, if it is animated), in pixels.

    :raises ValueError: it does not start with a valid header
    """
    _file_end(data)
    start = _FIRST_CHUNK + 8
    if data[_FIRST_CHUNK : _FIRST_CHUNK + 4] == b"VP8X" and len(data) >= start + 10:
        return (
            1 + int.from_bytes(data[start + 4 : start + 7], "little"),
            1 + int.from_bytes(data[start + 7 : start + 10], "little"),
        )
    return _bitstream_size(data[_FIRST_CHUNK : _FIRST_CHUNK + 4], data[start : start + 10])


def find_webp_damage(data: bytes) -> str | None:
    """
    Return what is wrong with a WebP, for an error message; ``None`` if all its chunks are there, with an image.

    :param data: a file whose size :func:`read_webp_size` can read
    :raises ValueError: the file is unusual, and only decoding can tell
    :raises BadImageError: there are too many chunks
    """
    if _file_end(data) > len(data):
        return "the WebP is shorter than its header says"
    chunks = list(iterate_webp_chunks(data))
    _, start, end = chunks[-1]
    if end + (end - start) % 2 != _file_end(data) or any(kind == bytes(4) for kind, _, _ in chunks):
        raise ValueError("the WebP contains something other than chunks")
    is_animated = chunks[0][0] == b"VP8X" and data[chunks[0][1]] & _ANIMATION_FLAG
    if not is_animated:
        if _image_size(data, chunks) != read_webp_size(data):
            raise ValueError("the WebP's image does not have the size of its canvas")
        return None
    frames = [(start, end) for kind, start, end in chunks if kind == b"ANMF"]
    for start, end in frames:
        _image_size(data, iterate_webp_chunks(data, start + _FRAME_HEADER_BYTES, end))
    if not frames:
        raise ValueError("the WebP has no frames")
    return None


def _file_end(data: bytes) -> int:
    """Return where the file ends according to its header."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        raise ValueError("not a WebP")
    return 8 + int.from_bytes(data[4:8], "little")


def _image_size(data: bytes, chunks: Iterable[tuple[bytes, int, int]]) -> tuple[int, int]:
    """Return the size of the first image among some chunks."""
    for kind, start, end in chunks:
        if kind in (b"VP8 ", b"VP8L"):
            if kind == b"VP8 " and int.from_bytes(data[start : start + 3], "little") >> 5 > end - start - 10:
                raise ValueError("the first partition exceeds the image")
            return _bitstream_size(kind, data[start : min(start + 10, end)])
    raise ValueError("the WebP has no image")


def _bitstream_size(kind: bytes, header: bytes) -> tuple[int, int]:
    """Return the size in the header of an image."""
    if kind == b"VP8 " and len(header) == 10 and header[0] & 1 == 0 and header[3:6] == b"\x9d\x01\x2a":  # a key frame
        width = int.from_bytes(header[6:8], "little") & 0x3FFF
        height = int.from_bytes(header[8:10], "little") & 0x3FFF
        if width and height:
            return width, height
    if kind == b"VP8L" and len(header) > 5 and header[0] == 0x2F:
        bits = int.from_bytes(header[1:5], "little")
        if bits >> 29 == 0:  # the version
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    raise ValueError("the WebP has no image where one should start")
