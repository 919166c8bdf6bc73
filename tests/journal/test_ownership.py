"""Two attempts of one task at the same time: only one sends, both record, and neither loses a record of the other."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from decimal import Decimal
from itertools import combinations
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_store import MemoryStore

from airflow_provider_imagen.exceptions import JournalError, OwnershipLostError
from airflow_provider_imagen.image_record import ResponseImage
from airflow_provider_imagen.journal import log as log_module
from airflow_provider_imagen.journal.log import HEADER, Journal, NoStore, read_journal
from airflow_provider_imagen.journal.records import Intent, JournalState, Rejected, Response, Target, new_intent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

pytestmark = pytest.mark.timeout(60)

TARGET = Target(prompt_index=0, image_index=0, images=1, prompt_images=1, prompt="a cat")


def opened(store: Any, try_number: int = 1, takeover_lock: Any = None) -> Journal:
    journal = Journal(store, try_number=try_number, takeover_lock=takeover_lock)
    journal.open()
    return journal


def intent(name: str, key: str = "a#1") -> Intent:
    return new_intent(key, client_request_id=name, model="m", usd=Decimal("0.04"), target=TARGET)


def response(name: str, key: str = "a#1") -> Response:
    return Response(key=key, client_request_id=name, images=(ResponseImage(url="https://x/y"),), model="m", at=1.0)


def rejected(name: str, key: str = "a#1") -> Rejected:
    return Rejected(key=key, client_request_id=name)


def may_send(journal: Journal, record: Intent) -> bool:
    try:
        journal.commit(record)
    except OwnershipLostError:
        return False
    return True


def header_of(store: MemoryStore) -> dict[str, Any]:
    return json.loads(store.texts[HEADER])


@pytest.fixture
def _silent(caplog):
    """Silence the log in tests that lose the journal dozens of times."""
    caplog.set_level("CRITICAL", logger=log_module.log.name)


# --- taking over ------------------------------------------------------------------------------------------------------


def test_the_header_names_the_owner_and_all_previous_owners(memory_store):
    journals = [opened(memory_store, try_number) for try_number in (1, 2, 3)]
    owners = [journal.owner for journal in journals]
    assert header_of(memory_store) == {"version": 2, "owner": owners[2], "owners": owners}
    assert [owner.partition("-")[0] for owner in owners] == ["1", "2", "3"]
    assert len(set(owners)) == 3


def test_opening_a_journal_takes_it_over(memory_store, caplog):
    earlier = opened(memory_store)
    earlier.commit(intent("r1"))
    later = opened(memory_store, 2)
    with pytest.raises(OwnershipLostError, match=f"taken over by another attempt of this task .{later.owner}.") as lost:
        earlier.commit(intent("r2"))
    assert earlier.owner in str(lost.value)
    assert not earlier.is_owner
    assert caplog.messages == [str(lost.value)], "reported once"
    assert later.is_owner
    later.commit(intent("r3"))
    assert later.unresolved.keys() == {"r1", "r3"}


def test_an_intent_that_finds_the_journal_taken_over_is_still_written(memory_store):
    """The write cannot be taken back; the new owner may have read it."""
    earlier = opened(memory_store)
    opened(memory_store)
    assert not may_send(earlier, intent("r1"))
    assert read_journal(memory_store).all_unresolved().keys() == {"r1"}


def test_no_intent_is_written_once_the_journal_is_lost(memory_store):
    earlier = opened(memory_store)
    opened(memory_store)
    assert not may_send(earlier, intent("r1"))
    memory_store.calls.clear()
    with pytest.raises(OwnershipLostError):
        earlier.append(intent("r2")).result(timeout=0)
    assert memory_store.calls == []


def test_of_records_that_share_a_write_only_intents_fail(memory_store):
    earlier = opened(memory_store)
    earlier.commit(intent("r1"))
    opened(memory_store)
    futures = {each: earlier.append(each) for each in (response("r1"), intent("r2"), rejected("r2"))}
    errors = {type(each).__name__: future.exception(timeout=10) for each, future in futures.items()}
    assert errors == {"Response": None, "Intent": errors["Intent"], "Rejected": None}
    assert isinstance(errors["Intent"], OwnershipLostError)


def test_an_attempt_that_lost_the_journal_still_records_its_responses(memory_store):
    earlier = opened(memory_store)
    earlier.commit(intent("r1"))
    later = opened(memory_store)
    later.commit(intent("r2", "b#1"))
    later_text = memory_store.texts[f"{later.owner}/0"]
    assert not may_send(earlier, intent("r3"))
    earlier.commit(response("r1"))
    assert memory_store.texts[f"{later.owner}/0"] == later_text
    later.commit(response("r2", "b#1"))
    state = read_journal(memory_store)
    assert [request.response and request.response.client_request_id for request in state.requests.values()] == [
        "r1",
        "r2",
    ]


def test_the_owner_can_read_later_records_of_previous_owners(memory_store):
    earlier = opened(memory_store)
    earlier.commit(intent("r1"))
    later = opened(memory_store)
    assert later.state.requests["a#1"].response is None
    later.commit(intent("r2", "b#1"))
    earlier.commit(response("r1"))
    reloaded = later.reload()
    assert reloaded.requests.keys() == {"a#1"}, "its own records are not among them"
    assert reloaded.requests["a#1"].response == response("r1")
    assert opened(MemoryStore()).reload() == JournalState()


@pytest.mark.parametrize("away", [True, False])
def test_reloading_reports_an_unreadable_store(memory_store, away):
    opened(memory_store).commit(intent("r1"))
    journal = opened(memory_store)
    memory_store.is_away = away
    if not away:
        memory_store.texts[f"{header_of(memory_store)['owners'][0]}/0"] = "{"
    with pytest.raises(JournalError):
        journal.reload()


# --- at the same moment -----------------------------------------------------------------------------------------------


class Turns:
    """Makes the store calls of several attempts happen in a given order, one at a time."""

    def __init__(self) -> None:
        self._order: deque[str] = deque()
        self._changed = threading.Condition()

    def start(self, order: str) -> None:
        self._order = deque(order)

    def take(self, attempt: str, act: Callable[[], Any]) -> Any:
        with self._changed:
            assert self._changed.wait_for(lambda: not self._order or self._order[0] == attempt, timeout=20), "stuck"
            try:
                return act()
            finally:
                if self._order:
                    self._order.popleft()
                self._changed.notify_all()

    @contextmanager
    def hold(self, attempt: str) -> Iterator[None]:
        """Make several calls in a single turn."""
        with self._changed:
            assert self._changed.wait_for(lambda: not self._order or self._order[0] == attempt, timeout=20), "stuck"
            try:
                yield
            finally:
                if self._order:
                    self._order.popleft()
                self._changed.notify_all()

    def end(self, attempt: str) -> None:
        """Let the others proceed: this attempt makes no more calls."""
        with self._changed:
            self._order = deque(each for each in self._order if each != attempt)
            self._changed.notify_all()


class InTurn:
    """A store as one attempt sees it, whose calls wait for their turn."""

    description = "memory"

    def __init__(self, store: MemoryStore, turns: Turns, attempt: str) -> None:
        self._store = store
        self._turns = turns
        self._attempt = attempt
        self._has_turn = False

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Act as a lock shared by both attempts: calls made under it happen in one turn."""
        with self._turns.hold(self._attempt):
            self._has_turn = True
            yield
            self._has_turn = False

    def read(self, name: str) -> str | None:
        if self._has_turn:
            return self._store.read(name)
        return self._turns.take(self._attempt, lambda: self._store.read(name))

    def write(self, name: str, text: str) -> None:
        if self._has_turn:
            self._store.write(name, text)
            return
        self._turns.take(self._attempt, lambda: self._store.write(name, text))

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            self._turns.take(self._attempt, lambda name=name: self._store.delete([name]))


def interleavings(first: int, second: int) -> list[str]:
    """Return every order in which A can make its calls and B can make its own."""
    return [
        "".join("A" if place in places else "B" for place in range(first + second))
        for places in combinations(range(first + second), first)
    ]


def in_order(turns: Turns, order: str, *, a: Callable[[], Any], b: Callable[[], Any]) -> tuple[Any, Any]:
    """Run two attempts at the same time, and return what each of them returns."""

    def run(attempt: str, act: Callable[[], Any]) -> Any:
        try:
            return act()
        finally:
            turns.end(attempt)

    turns.start(order)
    with ThreadPoolExecutor(2) as threads:
        both = threads.submit(run, "A", a), threads.submit(run, "B", b)
        return both[0].result(), both[1].result()


@pytest.mark.usefixtures("_silent")
def test_no_request_is_sent_without_the_new_owner_knowing():
    """Whatever the order of "write the intent, read the header" and "write the header, read the segments"."""
    sent_before: set[int] = set()
    for order in interleavings(4, 3):
        store, turns = MemoryStore(), Turns()
        earlier = opened(InTurn(store, turns, "A"))

        def send_two(earlier: Journal = earlier) -> set[str]:
            return {name for name in ("r1", "r2") if may_send(earlier, intent(name))}

        def take_over(store: MemoryStore = store, turns: Turns = turns) -> Journal:
            return opened(InTurn(store, turns, "B"))

        sent, later = in_order(turns, order, a=send_two, b=take_over)
        assert sent <= later.unresolved.keys() == later.state.all_unresolved().keys(), order
        assert may_send(later, intent("r3"))
        assert not may_send(earlier, intent("r4"))
        sent_before.add(len(sent))
        earlier.close()
        later.close()
    assert sent_before == {0, 1, 2}


@pytest.mark.usefixtures("_silent")
def test_a_new_owner_misses_nothing_while_the_previous_one_starts_a_new_segment(monkeypatch):
    monkeypatch.setattr(log_module, "SEGMENT_BYTES", 300)
    for order in interleavings(3, 4):
        store, turns = MemoryStore(), Turns()
        earlier = opened(InTurn(store, turns, "A"))
        earlier.commit(intent("r1"))

        def send(earlier: Journal = earlier) -> set[str]:
            return {"r2"} if may_send(earlier, intent("r2")) else set()

        def take_over(store: MemoryStore = store, turns: Turns = turns) -> Journal:
            return opened(InTurn(store, turns, "B"))

        sent, later = in_order(turns, order, a=send, b=take_over)
        assert {"r1"} | sent <= later.unresolved.keys(), order
        assert f"{earlier.owner}/1" in store.texts
        earlier.close()
        later.close()


@pytest.mark.usefixtures("_silent")
def test_two_attempts_that_open_the_journal_at_once_see_each_others_requests():
    """They take the journal over one after the other because of the shared lock; all else may happen in any order."""
    unknown = []
    for order in interleavings(4, 4):
        store, turns = MemoryStore(), Turns()

        def open_and_send(attempt: str, store: MemoryStore = store, turns: Turns = turns) -> tuple[Journal, bool]:
            own = InTurn(store, turns, attempt)
            journal = opened(own, takeover_lock=own.lock())
            return journal, may_send(journal, intent(f"r{attempt}"))

        (one, one_sent), (other, other_sent) = in_order(
            turns, order, a=lambda send=open_and_send: send("A"), b=lambda send=open_and_send: send("B")
        )
        if one_sent and other_sent and "rA" not in other.state.all_unresolved() and "rB" not in one.unresolved:
            unknown.append(order)
        one.close()
        other.close()
    assert unknown == [], "in these orders of their calls both send, and neither sees the other's intent"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.just("open") | st.tuples(st.integers(0, 3), st.sampled_from(["intent", "response", "rejected"])),
        max_size=25,
    ),
    st.sampled_from([1, 400, 48 * 1024]),
)
def test_records_of_several_owners_never_overwrite_each_other(steps, segment_bytes):
    store = MemoryStore()
    written: list[tuple[Journal, list[Any]]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_module, "SEGMENT_BYTES", segment_bytes)
        for number, step in enumerate(("open", *steps)):
            if step == "open":
                written.append((opened(store), []))
                continue
            place, kind = step
            journal, records = written[place % len(written)]
            make = {"intent": intent, "response": response, "rejected": rejected}[kind]
            record = make(f"r{number}", f"{place}#1")
            is_owner = journal is written[-1][0]
            if isinstance(record, Intent):
                knew_before = not journal.is_owner
                assert may_send(journal, record) is is_owner
                if knew_before:
                    continue
            else:
                journal.commit(record)
            records.append(record)
        for journal, _ in written:
            journal.close()
    expected = JournalState()
    for record in (record for _, records in written for record in records):
        expected.apply(record)
    assert read_journal(store) == expected


# --- ownership checks -------------------------------------------------------------------------------------------------


def test_ownership_is_checked_again_only_if_the_last_check_is_stale(memory_store):
    journal = opened(memory_store)
    memory_store.calls.clear()
    journal.confirm_ownership(max_age_seconds=3600)
    assert memory_store.calls == []
    journal.confirm_ownership(max_age_seconds=0)
    assert memory_store.calls == [("read", HEADER)]
    memory_store.calls.clear()
    time.sleep(0.06)
    journal.confirm_ownership(max_age_seconds=0.05)
    journal.confirm_ownership(max_age_seconds=3600)
    assert memory_store.calls == [("read", HEADER)]
    opened(memory_store)
    journal.confirm_ownership(max_age_seconds=3600)
    with pytest.raises(OwnershipLostError):
        journal.confirm_ownership(max_age_seconds=0)
    assert not journal.is_owner
    with pytest.raises(OwnershipLostError):
        journal.confirm_ownership(max_age_seconds=3600)


@pytest.mark.parametrize("jump_seconds", [3600, -3600])
def test_an_ownership_check_from_before_a_sleep_or_a_clock_change_is_stale(memory_store, monkeypatch, jump_seconds):
    """While a machine sleeps, its monotonic clock may stop; the wall clock keeps running."""
    journal = opened(memory_store)
    opened(memory_store)
    clock = time.time
    journal.confirm_ownership(max_age_seconds=60)
    monkeypatch.setattr("airflow_provider_imagen.journal.log.time.time", lambda: clock() + jump_seconds)
    with pytest.raises(OwnershipLostError):
        journal.confirm_ownership(max_age_seconds=60)


def test_an_intent_counts_as_an_ownership_check(memory_store):
    journal = opened(memory_store)
    time.sleep(0.3)
    started = time.monotonic()
    journal.commit(intent("r1"))
    memory_store.calls.clear()
    journal.confirm_ownership(max_age_seconds=time.monotonic() - started + 0.25)
    assert memory_store.calls == []


def test_an_ownership_check_is_as_old_as_the_header_it_read(memory_store):
    """Reading long segments takes time, and meanwhile another attempt may take the journal over."""
    opened(memory_store).commit(intent("r1"))
    journal = Journal(memory_store)
    read = memory_store.read

    def slow(name: str) -> str | None:
        if name != HEADER:
            memory_store.read = read
            opened(memory_store)
            time.sleep(0.2)
        return read(name)

    memory_store.read = slow
    journal.open()
    with pytest.raises(OwnershipLostError):
        journal.confirm_ownership(max_age_seconds=0.1)


def test_ownership_that_cannot_be_checked_for_too_long_is_an_error(memory_store, monkeypatch):
    monkeypatch.setattr(log_module, "WRITE_TIMEOUT_SECONDS", 0.1)
    monkeypatch.setattr(log_module, "RETRY_PAUSE_SECONDS", 0.02)
    journal = opened(memory_store)
    memory_store.is_away = True
    journal.confirm_ownership(max_age_seconds=3600)
    with pytest.raises(JournalError, match="StoreUnavailableError") as caught:
        journal.confirm_ownership(max_age_seconds=0)
    assert not isinstance(caught.value, OwnershipLostError)
    memory_store.is_away = False
    journal.confirm_ownership(max_age_seconds=0)


def test_confirming_ownership_waits_for_a_briefly_unavailable_store(memory_store, monkeypatch):
    monkeypatch.setattr(log_module, "RETRY_PAUSE_SECONDS", 0.02)
    journal = opened(memory_store)
    memory_store.is_away = True
    threading.Timer(0.2, lambda: setattr(memory_store, "is_away", False)).start()
    journal.confirm_ownership(max_age_seconds=0)


def test_still_owns_checks_the_current_header(memory_store):
    journal = opened(memory_store)
    assert journal.still_owns()
    memory_store.is_away = True
    assert journal.still_owns(), "nothing says otherwise"
    memory_store.is_away = False
    later = opened(memory_store)
    assert not journal.still_owns()
    assert not journal.is_owner
    memory_store.is_away = True
    assert not journal.still_owns()
    assert (later.still_owns(), later.is_gone, journal.is_gone) == (True, False, False)


@pytest.mark.parametrize("kind", ["refused", "damaged"])
def test_an_attempt_rejected_by_the_store_has_lost_the_journal(memory_store, kind, caplog):
    """Airflow denies the store to a task instance that has meanwhile started another try."""
    journal = opened(memory_store)

    def refuse(name: str) -> str | None:
        raise PermissionError("404 for https://airflow/?token=secret")

    if kind == "refused":
        memory_store.read = refuse
    else:
        memory_store.texts[HEADER] = "{"
    assert not journal.still_owns()
    assert "rejected this attempt" in caplog.text
    assert "secret" not in caplog.text


def test_a_journal_without_a_store_is_never_taken_over():
    journal = opened(NoStore())
    assert journal.still_owns()
    journal.close()


def test_only_the_takeover_of_the_header_happens_under_the_shared_lock(memory_store):
    opened(memory_store).commit(intent("r1"))
    memory_store.calls.clear()

    @contextmanager
    def lock() -> Iterator[None]:
        memory_store.calls.append(("lock", ""))
        yield
        memory_store.calls.append(("unlock", ""))

    opened(memory_store, takeover_lock=lock())
    assert memory_store.calls[:4] == [("lock", ""), ("read", HEADER), ("write", HEADER), ("unlock", "")]
    assert len(memory_store.calls) == 5


# --- a deleted journal ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("look", ["commit", "confirm"])
def test_a_journal_deleted_while_in_use_stops_sending_and_the_error_explains_it(memory_store, look):
    journal = opened(memory_store)
    journal.commit(intent("r1"))
    memory_store.delete(list(memory_store.texts))
    with pytest.raises(OwnershipLostError) as lost:
        journal.commit(intent("r2")) if look == "commit" else journal.confirm_ownership(max_age_seconds=0)
    assert str(lost.value) == (
        "The journal in memory is gone: it was deleted, or another attempt of this task has finished. No new requests "
        "are sent, and the images already received are stored. Without the journal, a retry does not know what was "
        "paid for and pays again."
    )
    assert (journal.is_owner, journal.is_gone, journal.still_owns()) == (False, True, False)
    journal.commit(response("r1"))
    journal.close()
    assert '"response"' in memory_store.texts[f"{journal.owner}/0"]


# --- the end ----------------------------------------------------------------------------------------------------------


def test_only_the_owner_finishes_the_journal(memory_store):
    earlier = opened(memory_store)
    earlier.commit(intent("r1"))
    earlier.commit(response("r1"))
    later = opened(memory_store)
    later.commit(intent("r2", "b#1"))
    earlier.close()
    before = dict(memory_store.texts)
    earlier.finish()
    assert memory_store.texts == before
    assert later.is_owner
    later.commit(response("r2", "b#1"))
    assert read_journal(memory_store).requests.keys() == {"a#1", "b#1"}


def test_only_the_owner_finishes_a_journal_with_unresolved_requests(memory_store):
    earlier = opened(memory_store)
    earlier.commit(intent("r1"))
    later = opened(memory_store)
    earlier.close()
    earlier.finish()
    assert later.reload().requests["a#1"].open_intents.keys() == {"r1"}


def test_finishing_twice_or_after_the_owner_has_finished_does_nothing(memory_store):
    earlier = opened(memory_store)
    later = opened(memory_store)
    later.close()
    later.finish()
    later.finish()
    assert memory_store.texts == {}
    earlier.close()
    earlier.finish()
    assert memory_store.texts == {}


def test_records_of_a_previous_owner_create_no_journal_after_the_task_has_finished(memory_store):
    earlier = opened(memory_store)
    earlier.commit(intent("r1"))
    earlier.commit(response("r1"))
    later = opened(memory_store)
    later.close()
    later.finish()
    earlier.commit(rejected("r1"))
    earlier.close()
    assert opened(memory_store).state == JournalState()
