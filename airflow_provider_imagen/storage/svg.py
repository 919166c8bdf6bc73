"""
Recognize SVG and read its nominal size.

Nothing is rendered. A streaming parser verifies that the file starts with one complete XML document whose root is
``svg``.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final
from xml.parsers import expat

from airflow_provider_imagen.exceptions import BadImageError

if TYPE_CHECKING:
    from collections.abc import Mapping

_MAX_PARSED_BYTES: Final = 8 * 2**20  # of larger files, only this much is parsed and the end checked
_MAX_BYTES_WITH_ENTITIES: Final = 2**20
_MAX_ENTITY_CHARACTERS: Final = 1_000  # enough for the namespace entities of drawing programs
_MAX_SIDE_PIXELS: Final = 1_000_000
_PIXELS_PER_UNIT: Final = {"": 1, "px": 1, "in": 96, "cm": 96 / 2.54, "mm": 96 / 25.4, "pt": 96 / 72, "pc": 16}
_SEPARATOR: Final = "\n"  # between namespace and name; cannot occur in either
_LENGTH: Final = r"\s*\+?([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(px|in|cm|mm|pt|pc|)\s*"


class _OtherRootError(Exception):
    """The document is not SVG."""


class _MalformedError(Exception):
    """The document stops being well-formed at a byte position."""

    def __init__(self, error: expat.ExpatError, position: int) -> None:
        super().__init__(str(error))
        self.position = position


def read_svg_size(data: bytes) -> tuple[int, int] | None:
    """
    Return the width and height of a complete SVG in pixels, both 0 if it states neither; ``None`` for anything else.

    :raises BadImageError: the SVG is truncated or malformed, or defines entities that are too large
    """
    document, encoding = _document_of(data)
    if not document.startswith(b"<"):
        return None
    root: list[Mapping[str, str]] = []
    try:
        _parse(document, root, encoding)
        return _size_of(root[0])
    except _OtherRootError:
        return None
    except _MalformedError as error:
        if not root:
            return None
        # Padding after the root is fine if the document is complete up to the last </svg>.
        try:
            _parse(document[: document.rfind(b"svg>", 0, error.position) + 4], [], encoding)
        except _MalformedError:
            raise BadImageError(f"The SVG is truncated or malformed ({len(data)} bytes): {error}") from error
    return _size_of(root[0])


def has_svg_element(data: bytes, *, namespace: str, name: str) -> bool:
    """
    Return whether an SVG has an element of this name in its first 8 MiB.

    :raises BadImageError: the SVG defines entities that are too large
    """
    document, encoding = _document_of(data)
    parser = _create_parser(document, encoding, namespace_separator=_SEPARATOR)
    is_found = False

    def start(found: str, _: Mapping[str, str]) -> None:
        nonlocal is_found
        is_found = is_found or found == f"{namespace}{_SEPARATOR}{name}"

    parser.StartElementHandler = start
    with suppress(expat.ExpatError):
        parser.Parse(document[:_MAX_PARSED_BYTES], False)
    return is_found


def _document_of(data: bytes) -> tuple[bytes, str | None]:
    """Return the document without what may precede it, and its encoding; ``None`` if the document declares that."""
    encoding = None
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        data, encoding = data.decode("utf-16", "replace").encode(), "utf-8"
    return data.removeprefix(b"\xef\xbb\xbf").lstrip(), encoding


def _parse(document: bytes, root: list[Mapping[str, str]], encoding: str | None) -> None:
    """Parse a document, raising if it is not a complete SVG; append the root's attributes to ``root`` when known."""
    parser = _create_parser(document, encoding)

    def start(name: str, attributes: dict[str, str]) -> None:
        if name.rpartition(":")[2] != "svg":
            raise _OtherRootError
        root.append(attributes)
        parser.StartElementHandler = None

    parser.StartElementHandler = start
    is_large = len(document) > _MAX_PARSED_BYTES
    try:
        parser.Parse(document[:_MAX_PARSED_BYTES], not is_large)
    except expat.ExpatError as error:
        raise _MalformedError(error, parser.ErrorByteIndex) from error
    if is_large and not root:
        raise _OtherRootError
    if is_large and not document.rstrip(b"\0 \t\r\n").endswith(b"svg>"):
        raise BadImageError(f"The SVG is truncated ({len(document)} bytes).")


def _create_parser(
    document: bytes, encoding: str | None, namespace_separator: str | None = None
) -> expat.XMLParserType:
    """Return a parser for a document that never expands entities in the content, and refuses large ones."""
    parser = expat.ParserCreate(encoding, namespace_separator)

    def declare_entity(_name: str, _is_parameter: bool, value: str | None, *_: Any) -> None:
        if value is not None and (len(value) > _MAX_ENTITY_CHARACTERS or len(document) > _MAX_BYTES_WITH_ENTITIES):
            raise BadImageError(
                f"The SVG's entities exceed the limit of {_MAX_ENTITY_CHARACTERS:,} characters each, in a file of at "
                f"most {_MAX_BYTES_WITH_ENTITIES:,} bytes."
            )
        parser.DefaultHandler = lambda _: None  # stops expat from expanding entities in the content

    parser.EntityDeclHandler = declare_entity
    return parser


def _size_of(root: Mapping[str, str]) -> tuple[int, int]:
    """Return the size from the root's width and height, else from its view box, else zeros."""
    box = root.get("viewBox", "").replace(",", " ").split()
    for sides in ((root.get("width", ""), root.get("height", "")), tuple(box[2:])):
        if len(sides) == 2 and all(pixels := [_pixels(side) for side in sides]):
            return pixels[0], pixels[1]
    return 0, 0


def _pixels(length: str) -> int:
    match = re.fullmatch(_LENGTH, length[:30])
    pixels = round(float(match[1]) * _PIXELS_PER_UNIT[match[2]]) if match else 0
    return pixels if pixels <= _MAX_SIDE_PIXELS else 0
