"""Search for images by their prompts, names and metadata."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from airflow_provider_imagen.plugins.gallery.task_results import Entry

MAX_QUERY_CHARACTERS: Final = 200


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

    def filter(self, entries: Iterable[Entry]) -> list[Entry]:
        """Return the entries that match; all of them if there are no words."""
        return [entry for entry in entries if not self._words or self._matches(entry)]

    def _matches(self, entry: Entry) -> bool:
        texts = (entry.prompt, entry.name, *(entry.metadata or {}).values())
        text = "\n".join(text for text in texts if text).casefold()
        return all(word in text for word in self._words)


EVERYTHING: Final = ImageSearch("")
"""A search that everything matches."""
