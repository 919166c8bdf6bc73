"""The images the sandbox has made: kept as recipes, drawn on first use, found by the path of their URL."""

from __future__ import annotations

import threading
import uuid
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_CACHE_BYTES = 128 * 1024 * 1024
_DIRECTORIES = ("guepard", "hedgehog", "squirrel", "flamingo", "eagle")
SUFFIXES = {"png": "png", "jpeg": "jpg", "webp": "webp", "tiff": "tiff"}
"""File name endings by format; the format is also the second half of the content type."""


@dataclass(frozen=True)
class Recipe:
    """
    Everything that determines an image; the same recipe gives the same bytes.

    :param model: id of the model, which has a look of its own
    :param width: pixels
    :param height: pixels
    :param index: position among the images of its request
    :param format: ``png`` ``jpeg`` ``webp`` ``tiff``
    :param colors: main colours of the input image, as (red, green, blue); empty = the model's own
    """

    model: str
    prompt: str
    seed: int
    width: int
    height: int
    index: int
    format: str
    colors: tuple[tuple[int, int, int], ...] = ()

    @property
    def content_type(self) -> str:
        """MIME type of the bytes."""
        return f"image/{self.format}"


@dataclass
class Picture:
    """
    An image with a URL.

    :param models: id and aliases of its model
    :param made_at: seconds since the epoch
    :param query: the query that a signed URL must carry
    :param expires_at: when a signed URL expires, seconds since the epoch
    :param ranges: whether range requests are honoured; a fault turns them off
    """

    recipe: Recipe
    models: tuple[str, ...]
    made_at: float
    query: str | None = None
    expires_at: float | None = None
    ranges: bool = True


class PictureStore:
    """
    Store images by path and draw each once. Safe to use from several threads.

    :param draw: returns the bytes of a recipe
    """

    def __init__(self, draw: Callable[[Recipe], bytes]) -> None:
        self._draw = draw
        self._lock = threading.Lock()
        self._pictures: dict[str, Picture] = {}
        self._drawn: OrderedDict[Recipe, bytes] = OrderedDict()
        self._drawn_bytes = 0

    def add(
        self,
        recipe: Recipe,
        *,
        models: tuple[str, ...],
        now: float,
        sign: Callable[[str], tuple[str, float]] | None = None,
    ) -> str:
        """
        Store an image and return its URL without the host, in the form of the API's URLs.

        :param sign: returns the query of a signed URL for a path, and when it expires
        """
        name = uuid.uuid4()
        directory = _DIRECTORIES[name.int % len(_DIRECTORIES)]
        path = f"/generations/{directory}/{int(now * 1000)}-{name}.{SUFFIXES[recipe.format]}"
        query, expires_at = sign(path) if sign else (None, None)
        with self._lock:
            self._pictures[path] = Picture(recipe, models, now, query, expires_at)
        return path if query is None else f"{path}?{query}"

    def find(self, path: str) -> Picture | None:
        """Return an image by the path of its URL."""
        with self._lock:
            return self._pictures.get(path)

    def bytes_of(self, recipe: Recipe) -> bytes:
        """Return the bytes of an image, from the cache if possible."""
        with self._lock:
            if (data := self._drawn.get(recipe)) is not None:
                self._drawn.move_to_end(recipe)
                return data
        data = self._draw(recipe)
        with self._lock:
            if recipe not in self._drawn:
                self._drawn[recipe] = data
                self._drawn_bytes += len(data)
            while self._drawn_bytes > _CACHE_BYTES and len(self._drawn) > 1:
                self._drawn_bytes -= len(self._drawn.popitem(last=False)[1])
        return data

    def is_drawn(self, recipe: Recipe) -> bool:
        """Return whether the image is in the cache."""
        with self._lock:
            return recipe in self._drawn

    def clear(self) -> None:
        """Drop every image; the cache stays, as recipes determine their bytes."""
        with self._lock:
            self._pictures.clear()
