"""A journal store in memory, for tests that want to slow it down, break it, or look into it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class MemoryStore:
    """A journal store in memory that can be slow, fail, and lose everything after a number of writes."""

    description = "memory"

    def __init__(self) -> None:
        self.segments: dict[int, str] = {}
        self.writes = 0
        self.delay_seconds = 0.0
        self.fails_after: int | None = None
        self.on_write: Callable[[int, str], None] = lambda number, text: None

    def read(self, number: int) -> str | None:
        return self.segments.get(number)

    def write(self, number: int, text: str) -> None:
        if self.delay_seconds:
            time.sleep(self.delay_seconds)
        if self.fails_after is not None and self.writes >= self.fails_after:
            raise OSError("the store is away")
        self.writes += 1
        self.on_write(number, text)
        self.segments[number] = text

    def delete(self, number: int) -> None:
        self.segments.pop(number, None)

    @property
    def text(self) -> str:
        return "".join(text for _, text in sorted(self.segments.items()))
