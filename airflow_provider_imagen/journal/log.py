"""
A durable, append-only notebook of what was bought, shared by all threads of a task and all its tries.

Facts are lines of JSON in numbered segments. Segment 0 is the one that grows. When it is :data:`SEGMENT_BYTES` long, it
is copied to the next free number and begun anew, with a first line that says how many full ones there are. So what
segment 0 says is true at any moment: a journal without it is none, a full segment counts once segment 0 names it, and
one that is missing is found out. A task that makes a few pictures reads one segment, writes one and deletes one.

Threads that write at the same time share one write (group commit): while one write is under way, and for a moment
before it, facts gather, and the next write takes them all. Reading it back costs one call per segment, so ten thousand
requests resume in seconds.
"""

from __future__ import annotations

import json
import math
import re
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Protocol

from airflow_provider_imagen.exceptions import JournalError
from airflow_provider_imagen.journal.records import Entry, entries_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from airflow_provider_imagen.journal.records import Fact

SEGMENT_BYTES = 48 * 1024
"""Longest segment; from 64 KB on Airflow's task state store warns (Airflow 3.3, ``max_value_storage_bytes``)."""


GATHERING_SECONDS = 0.002
"""
How long a write waits for company, a tenth of what it takes (about 20 ms in Airflow's task state store, Airflow 3.3).

The answer to one request and the intent of the next, which the same thread hands in right after it, share a write.
"""

LEISURE_SECONDS = 0.5
"""How long a fact that can wait does, for a write that is made anyway."""

_FULL = "full_segments"
"""Key in the first line of segment 0 that says how many full ones there are; without it there is none."""

_FORGOTTEN = "forgotten_segments"
"""Key in the only line of segment 0 when the journal is void; it says how many full ones may be left to delete."""


class JournalStore(Protocol):
    """Where segments are kept. Each call returns only when its effect would survive the loss of this process."""

    description: str
    """What to call the place in a log line."""

    def read(self, number: int) -> str | None:
        """Give the text of a segment, ``None`` when there is none."""

    def write(self, number: int, text: str) -> None:
        """Write a segment whole, in place of what it held."""

    def delete(self, number: int) -> None:
        """Remove a segment; no error when there is none."""


class NoStore:
    """Keeps nothing: a retry would pay again."""

    description = "nowhere"

    def read(self, number: int) -> str | None:  # noqa: ARG002 - the protocol's signature
        """Nothing was kept."""
        return None

    def write(self, number: int, text: str) -> None:
        """Keep nothing."""

    def delete(self, number: int) -> None:
        """Nothing to remove."""


class Journal:
    """
    The notebook of one task instance.

    :param store: where segments are kept
    """

    def __init__(self, store: JournalStore) -> None:
        self._store = store
        self._ready = threading.Condition()
        self._waiting: list[tuple[str, Future[None]]] = []
        self._due = math.inf
        self._closed = True
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._full = 0
        self._segment = ""
        self.writes = 0
        self.entries: dict[str, Entry] = {}

    def open(self) -> None:
        """
        Read what earlier tries wrote, and be ready to write.

        :raises JournalError: the store cannot be read, so nobody knows what was already bought
        """
        segments = self._read_segments()
        facts = [fact for number, text in segments.items() for fact in _parse(text, segment=number)]
        try:
            self.entries = entries_of(facts)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise _damaged("A fact in the journal") from None
        self._closed = False
        self._thread = threading.Thread(target=self._write_forever, name="imagen-journal", daemon=True)
        self._thread.start()

    def _read_segments(self) -> dict[int, str]:
        """Read all segments, the oldest first; the one that grows is last."""
        segments: dict[int, str] = {}
        try:
            text = self._store.read(0)
            if text is None:
                return {}
            if _count(_FORGOTTEN, text):
                forget(self._store)
                return {}
            if not text.strip():  # no write of ours leaves it like that
                raise _damaged("Segment 0 of the journal")
            self._segment = text if text.endswith("\n") else f"{text}\n"
            self._full = _count(_FULL, self._segment)
            for number in range(1, self._full + 1):
                if (full := self._store.read(number)) is None:
                    raise _damaged(f"The journal has no segment {number} of {self._full}: it")
                segments[number] = full
        except JournalError:
            raise
        except Exception as error:
            raise JournalError(
                f"The journal in {self._store.description} cannot be read ({type(error).__name__}), "
                f"so what was already paid for is unknown; nothing was sent."
            ) from error
        return {**segments, 0: self._segment.removeprefix(_heading(_FULL, self._full))}

    @property
    def segments(self) -> int:
        """How many segments there are, or may be by the end of the write that is under way."""
        return self._full + 1

    def append(self, fact: Fact, *, can_wait: bool = False) -> Future[None]:
        """
        Hand in a fact; the future is done once it is durable, and fails when it cannot be made so.

        :param can_wait: its loss costs work and no money, so that it may wait :data:`LEISURE_SECONDS` for others
        """
        line = json.dumps(fact, separators=(",", ":"))  # ASCII: one character is one byte
        done: Future[None] = Future()
        with self._ready:
            if self._failure is not None or self._closed:
                done.set_exception(_not_writable(self._store, self._failure))
                return done
            self._waiting.append((line, done))
            self._due = min(self._due, time.monotonic() + (LEISURE_SECONDS if can_wait else 0))
            self._ready.notify()
        return done

    def commit(self, fact: Fact) -> None:
        """
        Write a fact and return when it is durable.

        :raises JournalError: it could not be made durable
        """
        self.append(fact).result()

    def close(self, timeout_seconds: float = 30.0) -> None:
        """
        Write what is waiting, then stop. Raises nothing: who needs a fact durable has waited for it.

        :param timeout_seconds: how long a store that does not answer is waited for
        """
        with self._ready:
            self._closed = True
            self._ready.notify()
        if self._thread is not None:
            self._thread.join(timeout_seconds)

    def _write_forever(self) -> None:
        while True:
            with self._ready:
                while not self._closed and (seconds := self._due - time.monotonic()) > 0:
                    self._ready.wait(None if seconds == math.inf else seconds)
            if not self._closed:
                time.sleep(GATHERING_SECONDS)
            with self._ready:
                batch, self._waiting = self._waiting, []
                self._due = math.inf
                if not batch:
                    return
            try:
                self._write(line for line, _ in batch)
            except BaseException as error:
                with self._ready:
                    self._failure = error
                    batch += self._waiting
                    self._waiting = []
                for _, done in batch:
                    done.set_exception(_not_writable(self._store, error))
                return
            for _, done in batch:
                done.set_result(None)

    def _write(self, lines: Iterable[str]) -> None:
        """Add to the segment that grows, and put full ones aside; what is in them counts once segment 0 is written."""
        for line in lines:
            heading = _heading(_FULL, self._full)
            if len(self._segment) > len(heading) and len(self._segment) + len(line) + 1 > SEGMENT_BYTES:
                self._full += 1
                self._store_segment(self._full, self._segment.removeprefix(heading))
                self._segment = _heading(_FULL, self._full)
            self._segment += line + "\n"
        self._store_segment(0, self._segment)

    def _store_segment(self, number: int, text: str) -> None:
        self._store.write(number, text)
        self.writes += 1


def forget(store: JournalStore, *, segments: int | None = None) -> None:
    """
    Delete every segment of a store.

    One write makes all of it void, so that a crash in between leaves either everything known or nothing.

    :param segments: how many there are, from who wrote them; ``None`` looks
    """
    if segments is None:
        text = store.read(0) or ""
        full = _count(_FULL, text) or _count(_FORGOTTEN, text)
    else:
        full = segments - 1
    if full:
        store.write(0, _heading(_FORGOTTEN, full))
    for number in range(full, -1, -1):
        store.delete(number)


def _heading(key: str, full: int) -> str:
    return f'{{"{key}":{full}}}\n' if full else ""


def _count(key: str, segment: str) -> int:
    """Read a number of full segments from the first line of segment 0; 0 when it does not say."""
    start = f'{{"{key}":'
    if not segment.startswith(start):
        return 0
    found = re.match(r"([1-9][0-9]{0,8})\}\n", segment[len(start) :])
    if found is None:
        raise _damaged("Segment 0 of the journal")
    return int(found[1])


def _parse(text: str, *, segment: int) -> list[Fact]:
    facts: list[Fact] = []
    for line in filter(None, text.split("\n")):
        try:
            fact = json.loads(line)
            if not isinstance(fact["k"], str) or not isinstance(fact["t"], str):
                raise TypeError
        except (ValueError, TypeError, KeyError, RecursionError):
            raise _damaged(f"Segment {segment} of the journal") from None
        facts.append(fact)
    return facts


def _damaged(what: str) -> JournalError:
    return JournalError(
        f"{what} is damaged, so what was already paid for is unknown; nothing was sent. Compare with "
        f"GET /v2/billing/transactions, then delete the journal to start anew."
    )


def _not_writable(store: JournalStore, cause: BaseException | None) -> JournalError:
    error = JournalError(
        f"The journal in {store.description} cannot be written"
        f"{f' ({type(cause).__name__})' if cause is not None else ''}, so nothing more is bought."
    )
    error.__cause__ = cause
    return error
