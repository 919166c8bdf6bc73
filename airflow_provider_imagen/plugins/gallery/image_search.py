"""Search for images by their prompts, names and metadata."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable

    from airflow_provider_imagen.plugins.gallery.task_results import GalleryImage, Problem

MAX_QUERY_CHARACTERS: Final = 200

Result = TypeVar("Result", "GalleryImage", "Problem")


class ImageSearch:
    """
    A search for words, which is false if there are none.

    :param query: words, each of which must be part of the prompt, the name or a metadata value; case does not matter
    """

    def __init__(self, query: str) -> None:
        self.query = query.strip()
        self._words = query.casefold().split()

    def __bool__(self) -> bool:
        return bool(self._words)

    def filter(self, results: Iterable[Result]) -> list[Result]:
        """Return the results that match; all of them if there are no words."""
        return [result for result in results if not self._words or self._matches(result)]

    def _matches(self, result: GalleryImage | Problem) -> bool:
        texts = (result.prompt, result.name, *(result.metadata or {}).values())
        text = "\n".join(text for text in texts if text).casefold()
        return all(word in text for word in self._words)
