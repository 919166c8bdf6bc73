"""The generated images: stored as recipes, drawn on first use, found by the path of their URL."""

from __future__ import annotations

import threading
import uuid
from collections import OrderedDict
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_CACHE_BYTES = 128 * 1024 * 1024
_DIRECTORIES = ("guepard", "hedgehog", "squirrel", "flamingo", "eagle")
SUFFIXES = {"png": "png", "jpeg": "jpg", "webp": "webp", "tiff": "tiff"}
"""File name extensions by format; the format is also the subtype of the MIME type."""


@dataclass(frozen=True)
class Recipe:
    """
    Everything that determines an image; the same recipe yields the same bytes.

    :param model: model id, which determines the style
    :param width: pixels
    :param height: pixels
    :param index: position among the images of its request
    :param format: ``png`` ``jpeg`` ``webp`` ``tiff``
    :param colors: dominant colours of the input image as (red, green, blue); empty = the model's own
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
class StoredImage:
    """
    An image with a URL.

    :param models: id and aliases of its model
    :param query: required query of a signed URL
    :param expires_at: expiry of a signed URL, in seconds since the epoch
    """

    recipe: Recipe
    models: tuple[str, ...]
    query: str | None = None
    expires_at: float | None = None


class ImageStore:
    """
    Images by path, with a cache of their bytes. Thread-safe.

    :param draw: returns the bytes of a recipe
    """

    def __init__(self, draw: Callable[[Recipe], bytes]) -> None:
        self._draw = draw
        self._lock = threading.Lock()
        self._images: dict[str, StoredImage] = {}
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
        Store an image and return the path and query of its URL, in the format of the API's URLs.

        :param now: seconds since the epoch
        :param sign: returns the query of a signed URL for a path, and its expiry
        """
        name = uuid.uuid4()
        directory = _DIRECTORIES[name.int % len(_DIRECTORIES)]
        path = f"/generations/{directory}/{int(now * 1000)}-{name}.{SUFFIXES[recipe.format]}"
        query, expires_at = sign(path) if sign else (None, None)
        with self._lock:
            self._images[path] = StoredImage(recipe, models, query, expires_at)
        return path if query is None else f"{path}?{query}"

    def find(self, path: str) -> StoredImage | None:
        """Return the image at a URL path, or ``None``."""
        with self._lock:
            return self._images.get(path)

    def newest(self, count: int) -> list[tuple[str, StoredImage]]:
        """Return the newest images with the paths of their URLs, newest first."""
        with self._lock:
            return list(islice(reversed(self._images.items()), count))

    def __len__(self) -> int:
        """Return the number of images."""
        with self._lock:
            return len(self._images)

    def bytes_of(self, recipe: Recipe) -> bytes:
        """Return the bytes of an image, drawn unless cached."""
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
        """Drop all images, but keep the cache, since recipes determine the bytes."""
        with self._lock:
            self._images.clear()
