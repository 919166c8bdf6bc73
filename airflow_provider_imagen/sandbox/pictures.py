"""The pictures the sandbox has made: kept as recipes, drawn when first asked for, found again by their link."""

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
    All that decides a picture; the same recipe gives the same bytes.

    :param model: id of the model, which gives all its pictures a look of their own
    :param width: pixels
    :param height: pixels
    :param index: place among the pictures of its request
    :param format: ``png`` ``jpeg`` ``webp`` ``tiff``
    :param colors: main colours of the picture it was made from, as (red, green, blue); empty = from the prompt
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
        """The true type of its bytes."""
        return f"image/{self.format}"


@dataclass
class Picture:
    """
    A picture with a link.

    :param models: id and aliases of the model it was made by
    :param made_at: seconds since the epoch
    :param query: the query its link must carry, for a signed link
    :param expires_at: when a signed link ends, seconds since the epoch
    :param ranges: whether parts of it may be asked for; a fault turns it off
    """

    recipe: Recipe
    models: tuple[str, ...]
    made_at: float
    query: str | None = None
    expires_at: float | None = None
    ranges: bool = True


class PictureStore:
    """
    Find pictures by path and draw them once. Safe to use from several threads.

    :param draw: makes the bytes of a recipe
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
        Give a picture its link without the host, in the form the API's links have.

        :param sign: makes the query of a signed link from its path, and says when it expires
        """
        name = uuid.uuid4()
        directory = _DIRECTORIES[name.int % len(_DIRECTORIES)]
        path = f"/generations/{directory}/{int(now * 1000)}-{name}.{SUFFIXES[recipe.format]}"
        query, expires_at = sign(path) if sign else (None, None)
        with self._lock:
            self._pictures[path] = Picture(recipe, models, now, query, expires_at)
        return path if query is None else f"{path}?{query}"

    def find(self, path: str) -> Picture | None:
        """Find a picture by the path of its link."""
        with self._lock:
            return self._pictures.get(path)

    def bytes_of(self, recipe: Recipe) -> bytes:
        """Draw a picture, or take it from the cache."""
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
        """Say whether :meth:`bytes_of` would answer at once."""
        with self._lock:
            return recipe in self._drawn

    def clear(self) -> None:
        """Forget every link; the cache of drawings stays, recipes decide their bytes."""
        with self._lock:
            self._pictures.clear()
