"""
A write-ahead log with group commit, shared by all threads of an attempt and read by later attempts.

Only one attempt owns a journal at a time. A small header names the current owner and all previous ones; an attempt
takes a journal over by writing the header. Each owner appends to its own segments, so overlapping attempts never
overwrite each other's records.

Before a POST may be sent, its intent is written and *then* the header is read again. A new owner works in the opposite
order: it writes the header and *then* reads all segments. So either the old owner sees that it has lost the journal, or
the new owner sees the intent: no request goes out without the new owner knowing about it.

Threads that append at the same time share one write (group commit): records that arrive during a write, or just before
it starts, all go into the next one. While a store is unavailable, the write is retried and the records stay in memory.

Each owner appends to its segment 0, the active one. When that reaches :data:`SEGMENT_BYTES`, it is copied to the next
free number and restarted with a first line that counts the full segments. A short journal is thus read with one call.
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
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

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

    from tenacity import RetryCallState

    from airflow_provider_imagen.journal.records import Record

log = logging.getLogger(__name__)

T = TypeVar("T")

HEADER = "header"
"""Name of the header in a store; segments are named ``<owner>/<number>``."""

SEGMENT_BYTES = 48 * 1024
"""Maximum segment size; Airflow's task state store warns from 64 KB (Airflow 3.3, ``max_value_storage_bytes``)."""

GROUP_COMMIT_DELAY_SECONDS = 0.002
"""
How long a write waits for more records: a tenth of its own duration (about 20 ms in Airflow 3.3's task state store).

This lets the response to one request share a write with the next intent, which the same thread appends next.
"""

OWNERSHIP_MAX_AGE_SECONDS = 2.0
"""
How old the last ownership check may be when a request is sent or an XCom is pushed.

Committing an intent includes a check, so another one is made only if the request has waited since.
"""

MAXIMUM_FLUSH_DELAY_SECONDS = 0.5
"""How long a record that is not urgent waits to share a write with others."""

WRITE_TIMEOUT_SECONDS = 120.0
"""
How long an intent waits for an unavailable store before the attempt gives up.

Long enough for an API server to restart: Airflow's own retries last about ten seconds (``[workers]
execution_api_retries``). Unless ``[workers] max_failed_heartbeats`` is raised, Airflow ends a task without heartbeats
sooner than this.
"""

RETRY_PAUSE_SECONDS = 1.0

MAX_SEGMENTS = 10_000
"""Upper bound on full segments, far above any real journal; a file that claims more is rejected as damaged."""

MAX_OWNERS = 1_000
"""Upper bound on attempts in a header, far above any real task."""

MAX_JOURNAL_CHARACTERS = 256 * 2**20
"""Upper bound on a journal's size; the records of half a million images take less."""

_OWNER = re.compile(r"[0-9]{1,9}-[0-9a-f]{12}")

_FULL_SEGMENTS_KEY = "full_segments"
"""Key of the full-segment count in the first line of segment 0; absent while there are none."""


class StoreUnavailableError(Exception):
    """A store is temporarily unreachable or refusing requests; a retry may succeed."""


class JournalStore(Protocol):
    """A store of texts by name. Every call is durable on return: its effect survives the loss of this process."""

    description: str
    """Name of the store in logs and errors."""

    def read(self, name: str) -> str | None:
        """Return a text, or ``None`` if it does not exist."""

    def write(self, name: str, text: str) -> None:
        """
        Write a text, replacing any existing one.

        :raises StoreUnavailableError: the write may succeed later
        """

    def delete(self, names: Iterable[str]) -> None:
        """Delete texts in the order given, along with anything that held them; ignore texts that do not exist."""


class NoStore:
    """A store that keeps nothing, so a retry would pay again."""

    description = "nowhere"

    def read(self, name: str) -> str | None:  # noqa: ARG002 - the protocol's signature
        """Return ``None``, as nothing is ever kept."""
        return None

    def write(self, name: str, text: str) -> None:
        """Discard the text."""

    def delete(self, names: Iterable[str]) -> None:
        """Do nothing, as there is nothing to delete."""


class Header(Struct, frozen=True):
    """
    The owner of a journal and all owners before it.

    :param version: format version of the header and of all records
    :param owner: the attempt that may send requests
    :param owners: all attempts that may have records, oldest first
    """

    version: int
    owner: str
    owners: tuple[str, ...]


class Journal:
    """
    The journal of one task instance, as one attempt sees it.

    :param store: where it is kept
    :param try_number: Airflow's try number, which becomes part of the owner name
    :param takeover_lock: held while the journal is taken over. A takeover is a read and then a write, so if two
        attempts overlapped there, one would overwrite the other's header and never read its records. Airflow starts
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
        """State recorded by previous attempts."""
        self.unresolved: dict[str, Intent] = {}
        """In-doubt requests of all attempts (POSTs that may have been billed), by client request id."""
        self.is_gone = False
        """Whether the journal was found deleted, by a person or by another attempt that has finished."""
        self.writes = 0
        self.store = store
        self._takeover_lock = takeover_lock or nullcontext()
        self._header: Header | None = None  # stays None with NoStore
        self._lost_reason: str | None = None  # why no more requests may be sent
        self._checked_at = -math.inf  # wall-clock time of the last ownership check
        self._full_segments = 0  # of this owner
        self._lines: list[str] = []  # of this owner's active segment
        self._thread: threading.Thread | None = None
        self._ready = threading.Condition()  # guards the queue, and wakes the writer thread
        self._queued: list[tuple[Record, Future[None]]] = []
        self._newest: Future[None] | None = None  # of the record queued last
        self._due = math.inf  # when the queue is to be written
        self._busy_since = math.inf  # when the write in progress started
        self._failure: BaseException | None = None  # why nothing more can be written
        self._closed = threading.Event()
        self._close_by = math.inf  # until when a closed journal retries

    # --- opening ------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """
        Take the journal over from previous attempts, read their records, and start the writer thread.

        :raises JournalError: the store cannot be used, or its content cannot be read by this version, so it is unknown
            what was already paid for
        """
        if not isinstance(self.store, NoStore):
            self.state = self._use_store(
                self._take_over, consequence=", so it is unknown what previous attempts paid for; nothing was sent"
            )
        self.unresolved = self.state.all_unresolved()
        self._thread = threading.Thread(target=self._write_forever, name="imagen-journal", daemon=True)
        self._thread.start()

    def _take_over(self) -> JournalState:
        with self._takeover_lock:
            before = _read_header(self.store)
            owners = before.owners if before is not None else ()
            self._header = Header(FORMAT_VERSION, self.owner, (*owners, self.owner))
            self._checked_at = time.time()
            self.store.write(HEADER, json.dumps(to_builtins(self._header)))
        # From here on, every request that a previous owner may still send is already in its segments.
        return _state_of(_read_segments(self.store, owners))

    def _use_store(self, act: Callable[[], T], *, consequence: str = "") -> T:
        """Call ``act`` and turn any failure into a JournalError, whose message ends with the consequence."""
        try:
            return act()
        except JournalError:
            raise
        except Exception as error:
            raise JournalError(
                f"The journal in {self.store.description} cannot be used ({type(error).__name__}){consequence}."
            ) from error

    def reload(self) -> JournalState:
        """
        Return what previous attempts have recorded by now; one that lost the journal still records its responses.

        :raises JournalError: the store cannot be used, or its content is damaged
        """
        state = _state_of(self._read_previous())
        self._drop_resolved(state)
        return state

    def _read_previous(self) -> dict[str, list[str]]:
        """Return the segments of the other owners."""
        owners = [owner for owner in self._header.owners if owner != self.owner] if self._header is not None else []
        return self._use_store(lambda: _read_segments(self.store, owners)) if owners else {}

    def _drop_resolved(self, now: JournalState) -> None:
        """
        Drop requests from ``unresolved`` that previous attempts have resolved since this one opened the journal.

        :param now: what previous attempts have recorded by now
        """
        for client_request_id in self.state.all_unresolved().keys() - now.all_unresolved().keys():
            self.unresolved.pop(client_request_id, None)

    # --- appending ----------------------------------------------------------------------------------------------------

    def append(self, record: Record, *, can_wait: bool = False) -> Future[None]:
        """
        Queue a record and return a future that completes once it is durable, or fails if it cannot be written.

        :param can_wait: losing the record costs work but no money, so it may wait
            :data:`MAXIMUM_FLUSH_DELAY_SECONDS` to share a write
        """
        done: Future[None] = Future()
        with self._ready:
            if isinstance(record, (Rejected, Response, ChargeLost)):
                self.unresolved.pop(record.client_request_id, None)
            if self._failure is not None or self._closed.is_set() or self._thread is None:
                done.set_exception(_not_writable(self.store, self._failure))
            elif isinstance(record, Intent) and self._lost_reason is not None:
                done.set_exception(OwnershipLostError(self._lost_reason))
            else:
                if isinstance(record, Intent):
                    self.unresolved[record.client_request_id] = record
                self._queued.append((record, done))
                self._newest = done
                self._due = min(self._due, time.monotonic() + (MAXIMUM_FLUSH_DELAY_SECONDS if can_wait else 0))
                self._ready.notify()
        return done

    def commit(self, record: Record, *, timeout_seconds: float = WRITE_TIMEOUT_SECONDS) -> None:
        """
        Append a record and wait until it is durable; after an intent, its POST may be sent.

        :raises OwnershipLostError: the record is an intent, and this attempt no longer owns the journal
        :raises JournalError: the record could not be written, or not in time
        """
        try:
            self.append(record).result(timeout_seconds)
        except TimeoutError:
            raise _not_writable(self.store, None) from None

    def confirm_ownership(self, *, max_age_seconds: float) -> None:
        """
        Raise unless this attempt still owns the journal, so that requests may be sent.

        :param max_age_seconds: how old the last check of the header may be
        :raises OwnershipLostError: the journal is gone, or another attempt has taken it over
        :raises JournalError: the store failed, or was unavailable for too long
        """
        if not self._is_checked_within(max_age_seconds):
            try:
                _retrying(stop=stop_after_delay(WRITE_TIMEOUT_SECONDS))(self._check_ownership)
            except Exception as error:
                raise _not_writable(self.store, error) from error
        if self._lost_reason is not None:
            raise OwnershipLostError(self._lost_reason)

    def _is_checked_within(self, seconds: float) -> bool:
        # Wall-clock time, because monotonic clocks stop while the machine sleeps.
        return 0 <= time.time() - self._checked_at <= seconds

    def _check_ownership(self) -> bool:
        """Re-read the header unless the journal is already lost; return whether this attempt owns it."""
        if self._lost_reason is None and self._header is not None:
            checked_at = time.time()
            header = _read_header(self.store)
            if header is None:
                self.is_gone = True
                self._lost_reason = (
                    f"The journal in {self.store.description} is gone: it was deleted, or another attempt of this task "
                    f"has finished. No new requests are sent, and the images already received are stored. Without the "
                    f"journal, a retry does not know what was paid for and pays again."
                )
            elif header.owner != self.owner:
                self._lost_reason = (
                    f"The journal in {self.store.description} has been taken over by another attempt of this task "
                    f"({header.owner}). This attempt ({self.owner}) sends no new requests and stores the images it has "
                    f"already received."
                )
            else:
                self._header = header  # annotate_journal may have added an owner
            if self._lost_reason is not None:
                log.error("%s", self._lost_reason)
            self._checked_at = checked_at
        return self._lost_reason is None

    def flush(self, timeout_seconds: float) -> None:
        """Write all queued records now; return once they are durable or have failed, or when the time is up."""
        with self._ready:
            newest = self._newest
            self._due = min(self._due, time.monotonic())
            self._ready.notify()
        if newest is not None:
            wait([newest], timeout_seconds)

    @property
    def behind_seconds(self) -> float:
        """Duration of the write in progress, in seconds; 0 if there is none."""
        return max(0.0, time.monotonic() - self._busy_since)

    @property
    def is_owner(self) -> bool:
        """Whether this attempt owned the journal at the last check."""
        return self._lost_reason is None

    @property
    def is_closed_to_this_attempt(self) -> bool:
        """Whether this attempt has lost the journal, or writing has failed for good."""
        return not self.is_owner or self._failure is not None

    def still_owns(self, *, max_age_seconds: float = -1.0) -> bool:
        """
        Return whether this attempt still owns the journal, without raising.

        While the store is unavailable, the last known state counts; any other failure counts as lost.

        :param max_age_seconds: how old the last check may be; negative to check again in any case
        """
        try:
            return self.is_owner if self._is_checked_within(max_age_seconds) else self._check_ownership()
        except StoreUnavailableError:
            return self._lost_reason is None
        except Exception as error:
            log.warning("The journal in %s rejected this attempt (%s).", self.store.description, type(error).__name__)
            return False

    # --- ending -------------------------------------------------------------------------------------------------------

    def close(self, timeout_seconds: float = 30.0) -> None:
        """
        Write queued records, then stop. Never raises; callers that need durability have already awaited it.

        :param timeout_seconds: how long to wait for a store that does not respond
        """
        self._close_by = time.monotonic() + timeout_seconds
        with self._ready:
            self._closed.set()
            self._ready.notify()
        if self._thread is not None:
            self._thread.join(timeout_seconds)

    def finish(self) -> None:
        """
        Delete the journal of a task that has succeeded, so that clearing the task creates new images.

        A journal with in-doubt requests is marked finished instead, and kept until someone has resolved them. An
        attempt that does not own the journal leaves it alone.

        :raises JournalError: the store cannot be used
        """
        if self._header is None or not self._use_store(self._check_ownership):
            return
        segments = self._read_previous()
        self._drop_resolved(_state_of(segments))
        if self.unresolved:
            self._lines.append(encode_record(Finished()))
            self._use_store(self._write_active)
            return
        counts = {owner: len(segments.get(owner, ())) for owner in self._header.owners}
        counts[self.owner] = self._full_segments
        names = _segments_to_delete(counts)
        self._use_store(lambda: self.store.delete([HEADER, *names]))

    # --- the writer thread --------------------------------------------------------------------------------------------

    def _write_forever(self) -> None:
        while batch := self._next_batch():
            self._busy_since = time.monotonic()
            try:
                self._write_batch(batch)
            except BaseException as error:
                with self._ready:
                    self._failure = error
                    batch += self._queued
                for _, done in batch:
                    done.set_exception(_not_writable(self.store, error))
                return
            finally:
                self._busy_since = math.inf

    def _next_batch(self) -> list[tuple[Record, Future[None]]]:
        """Wait until records are due, and take them off the queue; empty once the journal is closed and written."""
        while True:
            with self._ready:
                while not self._closed.is_set() and (seconds := self._due - time.monotonic()) > 0:
                    self._ready.wait(None if seconds == math.inf else seconds)
            if not self._closed.is_set():
                time.sleep(GROUP_COMMIT_DELAY_SECONDS)
            with self._ready:
                batch, self._queued = self._queued, []
                self._due = math.inf
                if batch or self._closed.is_set():
                    return batch

    def _write_batch(self, batch: list[tuple[Record, Future[None]]]) -> None:
        """Make records durable, then check ownership if any are intents, and complete the futures."""
        for record, _ in batch:
            self._add(record)
        self._until_available(self._write_active)
        if any(isinstance(record, Intent) for record, _ in batch):
            self._until_available(self._check_ownership)
        for record, done in batch:
            if isinstance(record, Intent) and self._lost_reason is not None:
                done.set_exception(OwnershipLostError(self._lost_reason))
            else:
                done.set_result(None)

    def _until_available(self, act: Callable[[], object]) -> None:
        """Call ``act``, retrying while the store is unavailable; once closed, only until the close deadline."""

        def warn_once(attempt: RetryCallState) -> None:
            if attempt.attempt_number == 1 and attempt.outcome is not None:
                log.warning(
                    "The journal in %s is unavailable (%s). Until it is available again, responses are kept in memory "
                    "and no new request is sent.",
                    self.store.description,
                    attempt.outcome.exception(),
                )

        def is_overdue(_: RetryCallState) -> bool:
            return self._closed.is_set() and time.monotonic() >= self._close_by

        _retrying(stop=is_overdue, before_sleep=warn_once)(act)

    def _add(self, record: Record) -> None:
        """Append a record to the active segment, rotating it first if the record does not fit."""
        line = encode_record(record)
        if self._lines and len(self._active_text([*self._lines, line])) > SEGMENT_BYTES:
            self._until_available(self._rotate)
        self._lines.append(line)

    def _rotate(self) -> None:
        """Store the full segment under the next free number; readers ignore it until the new segment 0 counts it."""
        self._write_segment(self._full_segments + 1, _join(self._lines))
        self._full_segments += 1
        self._lines = []

    def _write_active(self) -> None:
        self._write_segment(0, self._active_text(self._lines))

    def _active_text(self, lines: Iterable[str]) -> str:
        """Return the text of the active segment, headed by the number of full segments if there are any."""
        counted = [f'{{"{_FULL_SEGMENTS_KEY}":{self._full_segments}}}'] if self._full_segments else []
        return _join([*counted, *lines])

    def _write_segment(self, number: int, text: str) -> None:
        self.store.write(_segment(self.owner, number), text)
        self.writes += 1


def _retrying(
    *, stop: Callable[[RetryCallState], bool], before_sleep: Callable[[RetryCallState], None] | None = None
) -> Retrying:
    """Return the retry loop around a call to a store, which ends with the store's own error."""
    return Retrying(
        retry=retry_if_exception_type(StoreUnavailableError),
        wait=wait_fixed(RETRY_PAUSE_SECONDS),
        stop=stop,
        before_sleep=before_sleep,
        reraise=True,
    )


def read_journal(store: JournalStore) -> JournalState:
    """
    Return the state of a journal without taking it over.

    :raises JournalError: the journal is damaged or has another format version
    """
    header = _read_header(store)
    return _state_of(_read_segments(store, header.owners if header is not None else ()))


def annotate_journal(store: JournalStore, records: Iterable[Record]) -> None:
    """
    Append records, such as resolutions of in-doubt requests, to a journal that no attempt is using.

    Ownership does not change. Afterwards, the journal of a finished task is deleted if nothing in it is unresolved.
    Call this under the takeover lock.

    :raises JournalError: the journal is damaged or has another format version
    """
    author = f"0-{secrets.token_hex(6)}"
    text = _join(map(encode_record, records))
    if not text or _read_header(store) is None:
        return
    store.write(_segment(author, 0), text)
    header = _read_header(store)
    if header is None:  # a task has finished and deleted the journal in the meantime
        return
    header = Header(FORMAT_VERSION, header.owner, (*header.owners, author))
    store.write(HEADER, json.dumps(to_builtins(header)))
    segments = _read_segments(store, header.owners)
    state = _state_of(segments)
    if not state.requests and not state.unresolved:
        store.delete([HEADER, *_segments_to_delete({owner: len(texts) for owner, texts in segments.items()})])


def _segment(owner: str, number: int) -> str:
    return f"{owner}/{number}"


def _segments_to_delete(counts: Mapping[str, int]) -> list[str]:
    """
    Return the names of all segments, and one more for each owner.

    An owner may have died between storing a full segment and counting it.
    """
    return [_segment(owner, number) for owner, count in counts.items() for number in range(count + 1)]


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
            f"The journal in {store.description} has format {version!r:.40}, but this version of the provider supports "
            f"only format {FORMAT_VERSION}; nothing was sent. Finish the task with the version that wrote the journal, "
            f"or compare with GET /v2/billing/transactions and delete the journal to start over."
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
    """Return each owner's segments in the order they were written, the active one last."""
    segments: dict[str, list[str]] = {}
    left = MAX_JOURNAL_CHARACTERS

    def read(owner: str, number: int) -> str | None:
        nonlocal left
        text = store.read(_segment(owner, number))
        left -= len(text or "")
        if left < 0:
            raise _damaged(f"The journal (more than {MAX_JOURNAL_CHARACTERS} characters)")
        return text

    for owner in dict.fromkeys(owners):
        text = read(owner, 0)
        if text is None:  # this owner never wrote a record
            continue
        segments[owner] = []
        full, active = _split_active(text)
        if not active.strip():  # never written by this package
            raise _damaged(f"A segment of attempt {owner} in the journal")
        for number in range(1, full + 1):
            text = read(owner, number)
            if text is None:
                raise _damaged(f"The journal (segment {number} of {full} is missing)")
            segments[owner].append(text)
        segments[owner].append(active)
    return segments


def _split_active(text: str) -> tuple[int, str]:
    """Return the number of full segments and the records of the active segment, given its text."""
    first, _, rest = text.partition("\n")
    if not first.startswith(f'{{"{_FULL_SEGMENTS_KEY}"'):
        return 0, text
    try:
        full = json.loads(first)[_FULL_SEGMENTS_KEY]
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


def _damaged(subject: str) -> JournalError:
    return JournalError(
        f"{subject} is damaged or was written by another version, so it is unknown what was already paid for; nothing "
        f"was sent. Compare with GET /v2/billing/transactions, then delete the journal to start over."
    )


def _not_writable(store: JournalStore, cause: BaseException | None) -> JournalError:
    error = JournalError(
        f"The journal in {store.description} cannot be written"
        f"{f' ({type(cause).__name__})' if cause is not None else ''}, so no new requests are sent."
    )
    error.__cause__ = cause
    return error
