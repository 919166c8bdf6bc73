"""A journal store in memory, for tests that want to slow it down, break it, or look into it."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from airflow_provider_imagen.journal.log import HEADER, StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class MemoryStore:
    """A journal store in memory that can be slow, become unavailable after some writes, or reject them for good."""

    description = "memory"

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.calls: list[tuple[str, str]] = []
        self.writes = 0
        self.delay_seconds = 0.0
        self.fails_after: int | None = None
        self.is_away = False
        self.on_write: Callable[[str, str], None] = lambda name, text: None

    def read(self, name: str) -> str | None:
        self.calls.append(("read", name))
        if self.is_away:
            raise StoreUnavailableError("the store is away")
        return self.texts.get(name)

    def write(self, name: str, text: str) -> None:
        self.calls.append(("write", name))
        if self.delay_seconds:
            time.sleep(self.delay_seconds)
        if self.is_away:
            raise StoreUnavailableError("the store is away")
        if self.fails_after is not None and self.writes >= self.fails_after:
            raise OSError("the store refuses")
        self.writes += 1
        self.on_write(name, text)
        self.texts[name] = text

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            self.calls.append(("delete", name))
            self.texts.pop(name, None)

    @property
    def text(self) -> str:
        """All records as text, those of the first owner first."""
        return "".join(f"{line}\n" for line in self.lines)

    @property
    def lines(self) -> list[str]:
        header = json.loads(self.texts[HEADER]) if HEADER in self.texts else {"owners": []}
        found: list[str] = []
        for owner in header["owners"]:
            newest = self.texts.get(f"{owner}/0", "").splitlines()
            full = json.loads(newest.pop(0))["full_segments"] if newest and "full_segments" in newest[0] else 0
            for number in range(1, full + 1):
                found += self.texts[f"{owner}/{number}"].splitlines()
            found += newest
        return found

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]
