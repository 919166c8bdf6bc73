"""
A write-ahead log with group commit, shared by all threads of an attempt, and read by the attempts after it.

Only one attempt at a time owns a journal. A small header names the owner and every owner before it; taking a journal
over means writing the header. Each owner appends its records to segments of its own, so that two attempts that overlap
never overwrite each other's records.

Before a POST may be sent, its intent is written and *after that* the header is read again. The new owner does it the
other way round: it writes the header and *after that* reads all segments. So either the old owner sees that it has lost
the journal, or the new owner sees the intent: no request goes out that the new owner does not know of.

Threads that append at the same time share one write (group commit): while a write is under way, and for a moment before
it, records gather, and the next write takes them all. A store that is away is tried again until it is back; the records
stay in memory meanwhile.

An owner's segment 0 is the one that grows. When it is :data:`SEGMENT_BYTES` long, it is copied to the next free number
and started anew, with a first line that says how many full ones there are: a short journal is read with one call.
"""

from __future__ import annotations

import json
import logging
import math
import re
import secrets
import threading
import time
from concurrent.futures import Future, wait
from contextlib import nullcontext
from typing import TYPE_CHECKING, Protocol, TypeVar

from msgspec import Struct, ValidationError, convert, to_builtins

from airflow_provider_imagen.exceptions import JournalError, OwnershipLostError
from airflow_provider_imagen.journal.records import (
    FORMAT_VERSION,
    ChargeLost,
    Finished,
    Intent,
    JournalState,
    Rejected,
    Response,
    decode_record,
    encode_record,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from contextlib import AbstractContextManager

    from airflow_provider_imagen.journal.records import Record

log = logging.getLogger(__name__)

T = TypeVar("T")

HEADER = "header"
"""Name of the header among the texts of a store; segments are called ``<owner>/<number>``."""

SEGMENT_BYTES = 48 * 1024
"""Longest segment; from 64 KB on Airflow's task state store warns (Airflow 3.3, ``max_value_storage_bytes``)."""

GROUP_COMMIT_DELAY_SECONDS = 0.002
"""
How long a write waits for more records, a tenth of what it takes (about 20 ms in Airflow's task state store, 3.3).

The response to one request and the intent of the next, which the same thread appends right after it, share a write.
"""

MAXIMUM_FLUSH_DELAY_SECONDS = 0.5
"""Longest time that a record of no urgency waits to share the write of another."""

WRITE_PATIENCE_SECONDS = 120.0
"""
How long an intent waits for a store that is away, until the attempt gives up.

An API server needs some time to restart, and Airflow itself tries for about ten seconds only (``[workers]
execution_api_retries``). Airflow ends a task whose heartbeats fail sooner than this (``[workers]
max_failed_heartbeats``), unless that setting is raised.
"""

RETRY_PAUSE_SECONDS = 1.0

MAX_SEGMENTS = 10_000
"""More full segments than any journal has; a larger number in a file that somebody wrote is not believed."""

MAX_OWNERS = 1_000
"""More attempts than any task has."""

MAX_JOURNAL_CHARACTERS = 256 * 2**20
"""More than the records of half a million images take."""

_OWNER = re.compile(r"[0-9]{1,9}-[0-9a-f]{12}")

_FULL = "full_segments"
"""Key in the first line of segment 0 that says how many full ones there are; without it there is none."""


class StoreUnavailableError(Exception):
    """A store cannot be reached, or refuses to work, at the moment; trying again later makes sense."""


class JournalStore(Protocol):
    """Keeps texts by name. Each call returns only when its effect would survive the loss of this process."""

    description: str
    """What to call the place in a log line."""

    def read(self, name: str) -> str | None:
        """Return a text, ``None`` when there is none."""

    def write(self, name: str, text: str) -> None:
        """
        Write a text, replacing what was there.

        :raises StoreUnavailableError: worth trying again
        """

    def delete(self, names: Iterable[str]) -> None:
        """Remove texts in the order given, and whatever kept them; no error when one does not exist."""


class NoStore:
    """Keeps nothing: a retry would pay again."""

    description = "nowhere"

    def read(self, name: str) -> str | None:  # noqa: ARG002 - the protocol's signature
        """Return ``None``: nothing was kept."""
        return None

    def write(self, name: str, text: str) -> None:
        """Keep nothing."""

    def delete(self, names: Iterable[str]) -> None:
        """Nothing to remove."""


class Header(Struct, frozen=True):
    """
    Who owns a journal.

    :param version: of the header and of all records
    :param owner: the attempt that may send requests
    :param owners: every attempt that has records, the first one first, ``owner`` last
    """

    version: int
    owner: str
    owners: tuple[str, ...]


class Journal:
    """
    The journal of one task instance, as one attempt sees it.

    :param store: where it is kept
    :param try_number: number of this attempt, to recognize its records by
    :param takeover_lock: held while the journal is taken over, which takes a read and a write: of two attempts that do
        so within the same instant, the one whose header is overwritten would not be known to the other. Airflow starts
        only one attempt at a time, but a person may start two on one machine
    """

    def __init__(
        self,
        store: JournalStore,
        *,
        try_number: int = 0,
        takeover_lock: AbstractContextManager[object] | None = None,
    ) -> None:
        self.owner = f"{try_number}-{secrets.token_hex(6)}"
        self.state = JournalState()
        """What earlier attempts wrote."""
        self.unresolved: dict[str, Intent] = {}
        """POSTs of all attempts that may have been billed, by client request id."""
        self.writes = 0
        self.store = store
        self._takeover_lock = takeover_lock or nullcontext()
        self._header: Header | None = None  # stays None where nothing is kept
        self._lost: str | None = None  # why no more requests may be sent
        self.is_gone = False
        """Whether the journal was found deleted: by somebody, or by another attempt that has finished."""
        self._owned_at = -math.inf
        self._full = 0  # full segments of this owner
        self._lines: list[str] = []  # of its segment that grows
        self._ready = threading.Condition()
        self._waiting: list[tuple[Record, Future[None]]] = []
        self._due = math.inf
        self._closed = threading.Event()
        self._close_by = math.inf
        self._newest: Future[None] | None = None
        self._busy_since = math.inf
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None

    # --- opening ------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """
        Take the journal over from earlier attempts, read what they wrote, and get ready to append.

        :raises JournalError: the store cannot be read, or holds what this version does not understand, so nobody knows
            what was already paid for
        """
        if not isinstance(self.store, NoStore):
            self.state = self._ask(
                self._take_over, so=", so what earlier attempts paid for is unknown; nothing was sent"
            )
        self.unresolved = self.state.all_unresolved()
        self._thread = threading.Thread(target=self._write_forever, name="imagen-journal", daemon=True)
        self._thread.start()

    def _take_over(self) -> JournalState:
        with self._takeover_lock:
            before = _read_header(self.store)
            owners = before.owners if before is not None else ()
            self._header = Header(FORMAT_VERSION, self.owner, (*owners, self.owner))
            self._owned_at = time.time()
            self.store.write(HEADER, json.dumps(to_builtins(self._header)))
        # From here on an earlier owner sends nothing more that is not in its segments.
        return _state_of(_read_segments(self.store, owners))

    def _ask(self, act: Callable[[], T], *, so: str = "") -> T:
        """Do something with the store, with any failure as a JournalError; ``so`` says what it means."""
        try:
            return act()
        except JournalError:
            raise
        except Exception as error:
            reason = type(error).__name__
            raise JournalError(f"The journal in {self.store.description} cannot be used ({reason}){so}.") from error

    def reload(self) -> JournalState:
        """
        Return what earlier attempts have written by now: one that has lost the journal still records what it receives.

        :raises JournalError: the store cannot be read at the moment
        """
        return _state_of(self._read_earlier())

    def _read_earlier(self) -> dict[str, list[str]]:
        """Read the segments of others again, and drop what is resolved by now from the unresolved requests."""
        owners = [owner for owner in self._header.owners if owner != self.owner] if self._header is not None else []
        segments = self._ask(lambda: _read_segments(self.store, owners)) if owners else {}
        unresolved = _state_of(segments).all_unresolved()
        for client_request_id in self.state.all_unresolved().keys() - unresolved.keys():
            self.unresolved.pop(client_request_id, None)
        return segments

    # --- appending ----------------------------------------------------------------------------------------------------

    def append(self, record: Record, *, can_wait: bool = False) -> Future[None]:
        """
        Hand a record in. The future is done once it is durable, and fails when it cannot become so.

        :param can_wait: its loss costs work and no money, so it may wait :data:`MAXIMUM_FLUSH_DELAY_SECONDS` for others
        """
        done: Future[None] = Future()
        with self._ready:
            if isinstance(record, (Rejected, Response, ChargeLost)):
                self.unresolved.pop(record.client_request_id, None)
            if self._failure is not None or self._closed.is_set() or self._thread is None:
                done.set_exception(_not_writable(self.store, self._failure))
            elif isinstance(record, Intent) and self._lost is not None:
                done.set_exception(OwnershipLostError(self._lost))
            else:
                if isinstance(record, Intent):
                    self.unresolved[record.client_request_id] = record
                self._waiting.append((record, done))
                self._newest = done
                self._due = min(self._due, time.monotonic() + (MAXIMUM_FLUSH_DELAY_SECONDS if can_wait else 0))
                self._ready.notify()
        return done

    def commit(self, record: Record, *, timeout_seconds: float = WRITE_PATIENCE_SECONDS) -> None:
        """
        Append a record and return when it is durable. Of an intent this says: its POST may be sent now.

        :raises OwnershipLostError: it is an intent, and another attempt has taken the journal over
        :raises JournalError: it is not durable, nor was within the time
        """
        try:
            self.append(record).result(timeout_seconds)
        except TimeoutError:
            raise _not_writable(self.store, None) from None

    def confirm_ownership(self, *, max_age_seconds: float) -> None:
        """
        Make sure that requests may still be sent.

        :param max_age_seconds: how old the last look at the header may be
        :raises OwnershipLostError: another attempt has taken the journal over
        :raises JournalError: the store refuses, or was away for too long
        """
        give_up_at = time.monotonic() + WRITE_PATIENCE_SECONDS
        while self._lost is None and self._header is not None and self._is_older_than(max_age_seconds):
            try:
                self._check_ownership()
            except StoreUnavailableError as error:
                if time.monotonic() >= give_up_at:
                    raise _not_writable(self.store, error) from error
                time.sleep(RETRY_PAUSE_SECONDS)
            except Exception as error:
                raise _not_writable(self.store, error) from error
            else:
                break
        if self._lost is not None:
            raise OwnershipLostError(self._lost)

    def _is_older_than(self, seconds: float) -> bool:
        """Return whether the last look at the header is too old. A monotonic clock stops while a machine sleeps."""
        return not 0 <= time.time() - self._owned_at <= seconds

    def _check_ownership(self) -> bool:
        """Look who owns the journal, and return whether it is this attempt."""
        if self._lost is None and self._header is not None:
            looked_at = time.time()
            header = _read_header(self.store)
            if header is None:
                self.is_gone = True
                self._lost = (
                    f"The journal in {self.store.description} is gone: somebody deleted it, or another attempt of "
                    f"this task has finished. Nothing more is sent. Without the journal, a retry does not know what "
                    f"was paid for, and pays again; what this attempt has received is stored all the same."
                )
            elif header.owner != self.owner:
                self._lost = (
                    f"The journal in {self.store.description} belongs to another attempt of this task now "
                    f"({header.owner}). This one ({self.owner}) sends nothing more and stores what it has already "
                    f"received."
                )
            else:
                self._header = header  # somebody may have added to it
            if self._lost is not None:
                log.error("%s", self._lost)
            self._owned_at = looked_at
        return self._lost is None

    def flush(self, timeout_seconds: float) -> None:
        """Write what can wait now, and return when everything is durable, has failed, or the time is up."""
        with self._ready:
            newest = self._newest
            self._due = min(self._due, time.monotonic())
            self._ready.notify()
        if newest is not None:
            wait([newest], timeout_seconds)

    @property
    def behind_seconds(self) -> float:
        """How long the oldest records have been on their way into the store; 0 while nothing holds them up."""
        return max(0.0, time.monotonic() - self._busy_since)

    @property
    def is_owner(self) -> bool:
        """Whether this attempt owned the journal when it last looked."""
        return self._lost is None

    @property
    def is_closed_to_this_attempt(self) -> bool:
        """Whether another attempt owns the journal, or its store refuses this one for good."""
        return self._lost is not None or self._failure is not None

    def still_owns(self) -> bool:
        """Look whether this attempt still owns the journal; a store that refuses it says no."""
        try:
            return self._check_ownership()
        except StoreUnavailableError:
            return self._lost is None
        except Exception as error:
            log.warning("The journal in %s refuses this attempt (%s).", self.store.description, type(error).__name__)
            return False

    # --- ending -------------------------------------------------------------------------------------------------------

    def close(self, timeout_seconds: float = 30.0) -> None:
        """
        Write what is waiting, then stop. Never raises; callers that need durability have already awaited it.

        :param timeout_seconds: how long a store that does not respond is waited for
        """
        self._close_by = time.monotonic() + timeout_seconds
        with self._ready:
            self._closed.set()
            self._ready.notify()
        if self._thread is not None:
            self._thread.join(timeout_seconds)

    def finish(self) -> None:
        """
        End the journal of a task that has succeeded, so that clearing the task creates new images.

        It is deleted, unless requests in it may have been billed: then it stays until someone has resolved them. An
        attempt that does not own the journal leaves it as it is.

        :raises JournalError: the store cannot be reached
        """
        if self._header is None or not self._ask(self._check_ownership):
            return
        segments = self._read_earlier()
        if self.unresolved:
            self._lines.append(encode_record(Finished()))
            self._ask(self._store_segment)
            return
        # An earlier owner may have died after it put a segment aside and before it counted it.
        counts = {owner: len(segments.get(owner, ())) + 1 for owner in self._header.owners}
        counts[self.owner] = self._full + 1
        names = [_segment(owner, number) for owner, count in counts.items() for number in range(count)]
        self._ask(lambda: self.store.delete([HEADER, *names]))

    # --- the writing thread -------------------------------------------------------------------------------------------

    def _write_forever(self) -> None:
        while True:
            with self._ready:
                while not self._closed.is_set() and (seconds := self._due - time.monotonic()) > 0:
                    self._ready.wait(None if seconds == math.inf else seconds)
            if not self._closed.is_set():
                time.sleep(GROUP_COMMIT_DELAY_SECONDS)
            with self._ready:
                batch, self._waiting = self._waiting, []
                self._due = math.inf
                if not batch:
                    if self._closed.is_set():
                        return
                    continue
            self._busy_since = time.monotonic()
            try:
                self._write_batch(batch)
            except BaseException as error:
                with self._ready:
                    self._failure = error
                    batch += self._waiting
                    self._waiting = []
                for _, done in batch:
                    done.set_exception(_not_writable(self.store, error))
                return
            self._busy_since = math.inf

    def _write_batch(self, batch: list[tuple[Record, Future[None]]]) -> None:
        """Make records durable; after that, if there are intents, check whether their POSTs may still be sent."""
        for record, _ in batch:
            self._add(record)
        self._until_available(self._store_segment)
        if any(isinstance(record, Intent) for record, _ in batch):
            self._until_available(self._check_ownership)
        for record, done in batch:
            if isinstance(record, Intent) and self._lost is not None:
                done.set_exception(OwnershipLostError(self._lost))
            else:
                done.set_result(None)

    def _until_available(self, act: Callable[[], object]) -> None:
        """Do something with the store, again and again while it is away."""
        has_failed = False
        while True:
            try:
                act()
            except StoreUnavailableError as error:
                if self._closed.is_set() and time.monotonic() >= self._close_by:
                    raise
                if not has_failed:
                    log.warning(
                        "The journal in %s is not available (%s). Responses are kept in memory until it is, and no new "
                        "request is sent.",
                        self.store.description,
                        error,
                    )
                has_failed = True
                time.sleep(RETRY_PAUSE_SECONDS)
            else:
                return

    def _add(self, record: Record) -> None:
        """Append a record to the segment that grows, which is put aside when it is full."""
        line = encode_record(record)
        if self._lines and len(self._text([*self._lines, line])) > SEGMENT_BYTES:
            self._until_available(self._put_aside)
        self._lines.append(line)

    def _put_aside(self) -> None:
        """Store the full segment under the next free number; it counts once the new one says so."""
        self._write(self._full + 1, _join(self._lines))
        self._full += 1
        self._lines = []

    def _store_segment(self) -> None:
        self._write(0, self._text(self._lines))

    def _text(self, lines: Iterable[str]) -> str:
        """Return the segment that grows, which says how many full ones there are."""
        first = [f'{{"{_FULL}":{self._full}}}'] if self._full else []
        return _join([*first, *lines])

    def _write(self, number: int, text: str) -> None:
        self.store.write(_segment(self.owner, number), text)
        self.writes += 1


def read_journal(store: JournalStore) -> JournalState:
    """
    Read a journal without taking it over.

    :raises JournalError: it is damaged, or of another version
    """
    header = _read_header(store)
    return _state_of(_read_segments(store, header.owners if header is not None else ()))


def annotate_journal(store: JournalStore, records: Iterable[Record]) -> None:
    """
    Add records to a journal without taking it over, such as what became of requests in doubt; for no running attempt.

    A journal of a finished task in which nothing is left unresolved is deleted. To be called under the takeover lock.

    :raises JournalError: it is damaged, or of another version
    """
    author = f"0-{secrets.token_hex(6)}"
    text = _join(map(encode_record, records))
    if not text or _read_header(store) is None:
        return
    store.write(_segment(author, 0), text)
    header = _read_header(store)
    if header is None:
        return
    header = Header(FORMAT_VERSION, header.owner, (*header.owners, author))
    store.write(HEADER, json.dumps(to_builtins(header)))
    segments = _read_segments(store, header.owners)
    state = _state_of(segments)
    if not state.requests and not state.unresolved:
        names = [_segment(owner, number) for owner, texts in segments.items() for number in range(len(texts))]
        store.delete([HEADER, *names])


def _segment(owner: str, number: int) -> str:
    return f"{owner}/{number}"


def _join(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _read_header(store: JournalStore) -> Header | None:
    text = store.read(HEADER)
    if text is None:
        return None
    try:
        found = json.loads(text.partition("\n")[0])
        version = found.get("version", 1)
    except (ValueError, AttributeError, RecursionError):
        raise _damaged("The header of the journal") from None
    if version != FORMAT_VERSION:
        raise JournalError(
            f"The journal in {store.description} has format {version!r:.40}, and this version of this provider "
            f"understands format {FORMAT_VERSION} only; nothing was sent. Let the version that wrote it finish the "
            f"task, or compare with GET /v2/billing/transactions and delete the journal to start anew."
        )
    try:
        header = convert(found, type=Header)
    except ValidationError:
        raise _damaged("The header of the journal") from None
    are_names = all(map(_OWNER.fullmatch, header.owners))  # they become file names
    if header.owner not in header.owners or not are_names or len(header.owners) > MAX_OWNERS:
        raise _damaged("The header of the journal")
    return header


def _read_segments(store: JournalStore, owners: Iterable[str]) -> dict[str, list[str]]:
    """Read the segments of some owners, each owner's in the order they were written: the one that grows is last."""
    segments: dict[str, list[str]] = {}
    left = MAX_JOURNAL_CHARACTERS

    def read(owner: str, number: int) -> str | None:
        nonlocal left
        text = store.read(_segment(owner, number))
        left -= len(text or "")
        if left < 0:
            raise _damaged("The journal is larger than any task's: it")
        return text

    for owner in dict.fromkeys(owners):
        newest = read(owner, 0)
        if newest is None:  # it took the journal over and wrote nothing
            continue
        segments[owner] = []
        full, newest = _count_full(newest)
        if not newest.strip():  # no write of ours leaves it like that
            raise _damaged(f"A segment of attempt {owner} in the journal")
        for number in range(1, full + 1):
            text = read(owner, number)
            if text is None:
                raise _damaged(f"The journal has no segment {number} of {full}: it")
            segments[owner].append(text)
        segments[owner].append(newest)
    return segments


def _count_full(newest: str) -> tuple[int, str]:
    """Take the first line off the segment that grows, if it says how many full ones there are."""
    first, _, rest = newest.partition("\n")
    if not first.startswith(f'{{"{_FULL}"'):
        return 0, newest
    try:
        full = json.loads(first)[_FULL]
    except (ValueError, RecursionError):
        full = 0
    if type(full) is not int or not 1 <= full <= MAX_SEGMENTS:
        raise _damaged("The first line of a segment of the journal")
    return full, rest


def _state_of(segments: Mapping[str, Iterable[str]]) -> JournalState:
    state = JournalState()
    for owner, texts in segments.items():
        for line in filter(None, (line for text in texts for line in text.split("\n"))):
            try:
                record = decode_record(line)
            except ValueError as error:
                raise _damaged(f"A record of attempt {owner} in the journal ({error})") from None
            state.apply(record)
    return state


def _damaged(what: str) -> JournalError:
    return JournalError(
        f"{what} is damaged or was written by another version, so what was already paid for is unknown; nothing was "
        f"sent. Compare with GET /v2/billing/transactions, then delete the journal to start anew."
    )


def _not_writable(store: JournalStore, cause: BaseException | None) -> JournalError:
    error = JournalError(
        f"The journal in {store.description} cannot be written"
        f"{f' ({type(cause).__name__})' if cause is not None else ''}, so nothing more is sent."
    )
    error.__cause__ = cause
    return error
