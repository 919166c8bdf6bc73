from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_imagen.exceptions import JournalError, OwnershipLostError
from airflow_provider_imagen.image_record import ResponseImage, StoredFile
from airflow_provider_imagen.journal import log as log_module
from airflow_provider_imagen.journal.log import (
    HEADER,
    SEGMENT_BYTES,
    Journal,
    NoStore,
    StoreUnavailableError,
    read_journal,
)
from airflow_provider_imagen.journal.records import (
    ChargeLost,
    Finished,
    Intent,
    JournalState,
    Missing,
    PresumedUnbilled,
    Rejected,
    Response,
    Target,
    WriteCommitted,
    WriteStarted,
    encode_record,
    new_intent,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

pytestmark = pytest.mark.timeout(60)

EARLIER = "1-0123456789ab"
HEADER_OF_EARLIER = json.dumps({"version": 2, "owner": EARLIER, "owners": [EARLIER]})


class Recorder:
    """A store that keeps all its past states, so that a crash after any write or deletion can be replayed."""

    description = "a recorder"

    def __init__(self, texts: dict[str, str] | None = None) -> None:
        self.states: list[dict[str, str]] = [texts or {}]

    @property
    def texts(self) -> dict[str, str]:
        return self.states[-1]

    def read(self, name: str) -> str | None:
        return self.texts.get(name)

    def write(self, name: str, text: str) -> None:
        self.states.append({**self.texts, name: text})

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            self.states.append({each: text for each, text in self.texts.items() if each != name})

    def crashed_after(self, changes: int) -> Recorder:
        return Recorder(dict(self.states[changes]))


def opened(store: Any, try_number: int = 1) -> Journal:
    journal = Journal(store, try_number=try_number)
    journal.open()
    return journal


def target(prompt: str = "a cat") -> Target:
    return Target(prompt_index=0, image_index=0, images=1, prompt_images=1, prompt=prompt)


def intent(key: str, name: str, *, prompt: str = "a cat") -> Intent:
    return new_intent(key, client_request_id=name, model="m", usd=Decimal("0.04"), target=target(prompt))


def response(key: str, name: str) -> Response:
    return Response(key=key, client_request_id=name, images=(ResponseImage(url="https://x/y"),), model="m", at=1.0)


def rejected(key: str, name: str) -> Rejected:
    return Rejected(key=key, client_request_id=name)


def replay(records: Iterable[Any]) -> JournalState:
    state = JournalState()
    for record in records:
        state.apply(record)
    return state


def ids_in(store: Any) -> list[str]:
    return [record["client_request_id"] for record in store.records]


def full_segments(texts: dict[str, str], owner: str) -> int:
    first = texts.get(f"{owner}/0", "").partition("\n")[0]
    return json.loads(first).get("full_segments", 0) if first else 0


# --- durability -------------------------------------------------------------------------------------------------------

texts = st.text(st.characters(), max_size=40) | st.sampled_from(["\ud800", "a\udfffb", "\u2028\n\r\t\0", "é" * 40])
ids = st.sampled_from(["r1", "r2", "r3"])
keys = st.sampled_from(["a#1", "b#1"])
places = st.integers(0, 2)
times = st.floats(0, 4e9)
money = st.none() | st.decimals(0, 100, places=4)
images = st.builds(
    ResponseImage,
    url=st.none() | texts,
    prompt=st.none() | texts,
    seed=st.none() | st.integers(-(2**31), 2**64),
    withheld=st.booleans(),
    broken=st.none() | texts,
)
files = st.builds(
    StoredFile,
    path=texts,
    file_name=texts,
    sha256=texts,
    bytes=st.integers(0, 2**50),
    mime_type=texts,
    width=st.integers(0, 9999),
    height=st.integers(0, 9999),
    thumbnail=st.none() | texts,
    original=st.none() | texts,
    original_sha256=st.none() | texts,
)
targets = st.builds(
    Target,
    prompt_index=places,
    image_index=places,
    images=places,
    prompt_images=places,
    prompt=texts,
    name=st.none() | texts,
    has_input_images=st.booleans(),
)
any_record = st.one_of(
    st.builds(
        Intent,
        key=keys,
        client_request_id=ids,
        model=texts,
        at=times,
        target=targets,
        usd=money,
        clock_offset=st.none() | st.floats(-9, 9),
    ),
    st.builds(Rejected, key=keys, client_request_id=ids),
    st.builds(
        Response,
        key=keys,
        client_request_id=ids,
        images=st.lists(images, max_size=3).map(tuple),
        model=texts,
        at=times,
        usd=money,
        usd_is_estimate=st.booleans(),
        usd_undelivered=st.decimals(0, 100, places=4),
        inference_id=st.none() | texts,
    ),
    st.builds(WriteStarted, key=keys, image=places, file=files),
    st.builds(WriteCommitted, key=keys, image=places, file=files),
    st.builds(Missing, key=keys, image=places),
    st.builds(ChargeLost, key=keys, client_request_id=ids, usd=money, inference_id=st.none() | texts),
    st.builds(PresumedUnbilled, key=keys, client_request_id=ids),
    st.just(Finished()),
)


@settings(max_examples=60, deadline=None)
@given(
    attempts=st.lists(st.lists(any_record, max_size=12), min_size=1, max_size=3),
    segment_bytes=st.sampled_from([1, 400, SEGMENT_BYTES]),
    data=st.data(),
)
def test_reading_after_a_crash_returns_exactly_what_was_durable(attempts, segment_bytes, data):
    store = Recorder()
    durable: list[tuple[int, Any]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_module, "SEGMENT_BYTES", segment_bytes)
        for records in attempts:
            journal = opened(store)
            for record in records:
                journal.commit(record)
                durable.append((len(store.states) - 1, record))
            journal.close()
    crash = data.draw(st.integers(0, len(store.states) - 1))
    again = opened(store.crashed_after(crash))
    again.close()
    assert again.state == replay(record for changes, record in durable if changes <= crash)
    assert again.unresolved == again.state.all_unresolved()


def test_a_commit_returns_only_when_its_record_is_durable(memory_store):
    journal = opened(memory_store)
    memory_store.delay_seconds = 0.05
    journal.commit(intent("a#1", "r1"))
    assert ids_in(memory_store) == ["r1"]
    journal.close()


def test_records_of_one_thread_keep_their_order_over_segments_and_attempts(memory_store):
    for start in (0, 400):
        journal = opened(memory_store)
        for number in range(start, start + 400):
            journal.append(intent("a#1", f"request-{number}"))
        journal.close()
    names = [f"request-{number}" for number in range(800)]
    assert ids_in(memory_store) == names
    assert list(read_journal(memory_store).requests["a#1"].open_intents) == names
    assert all(full_segments(memory_store.texts, owner) for owner in json.loads(memory_store.texts[HEADER])["owners"])


def test_records_of_many_threads_all_become_durable_in_order_per_thread(memory_store, monkeypatch):
    monkeypatch.setattr(log_module, "SEGMENT_BYTES", 2000)
    journal = opened(memory_store)

    def write(thread: int) -> None:
        for number in range(40):
            journal.commit(intent(f"t{thread}#1", f"{thread}.{number}"))

    with ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(write, thread) for thread in range(8)]:
            done.result()
    journal.close()
    requests = read_journal(memory_store).requests
    assert {key: list(request.open_intents) for key, request in requests.items()} == {
        f"t{thread}#1": [f"{thread}.{number}" for number in range(40)] for thread in range(8)
    }


def test_a_last_line_without_a_newline_is_read(memory_store):
    memory_store.texts = {HEADER: HEADER_OF_EARLIER, f"{EARLIER}/0": encode_record(intent("a#1", "r1"))}
    journal = opened(memory_store)
    journal.commit(intent("a#1", "r2"))
    journal.close()
    assert list(read_journal(memory_store).requests["a#1"].open_intents) == ["r1", "r2"]


def test_a_journal_that_is_not_open_accepts_no_record(memory_store):
    journal = Journal(memory_store)
    with pytest.raises(JournalError):
        journal.commit(intent("a#1", "r1"))
    journal.open()
    journal.close()
    with pytest.raises(JournalError):
        journal.commit(intent("a#1", "r1"))
    assert memory_store.texts.keys() == {HEADER}


def test_a_journal_without_a_store_lets_requests_be_sent():
    journal = opened(NoStore())
    journal.commit(intent("a#1", "r1"))
    journal.confirm_ownership(max_age_seconds=0)
    journal.commit(response("a#1", "r1"))
    journal.close()
    journal.finish()
    assert journal.state == JournalState()
    assert journal.is_owner


def test_unresolved_requests_follow_the_records(memory_store):
    journal = opened(memory_store)
    journal.commit(intent("a#1", "r1"))
    journal.commit(PresumedUnbilled(key="a#1", client_request_id="r1"))
    journal.commit(intent("a#1", "r2"))
    journal.commit(intent("b#1", "r3"))
    assert list(journal.unresolved) == ["r1", "r2", "r3"]
    journal.commit(rejected("a#1", "r2"))
    journal.commit(ChargeLost(key="a#1", client_request_id="r1"))
    journal.commit(response("b#1", "r3"))
    assert journal.unresolved == {}
    journal.close()


# --- group commit -----------------------------------------------------------------------------------------------------


def test_commits_that_wait_together_share_a_write(memory_store):
    journal = opened(memory_store)
    writing, release = threading.Event(), threading.Event()

    def hold(name: str, text: str) -> None:
        writing.set()
        release.wait(10)

    memory_store.on_write = hold
    first = journal.append(intent("first#1", "r"))
    assert writing.wait(10)
    others = [journal.append(intent(f"k{number}#1", f"r{number}")) for number in range(64)]
    assert not first.done()
    release.set()
    for future in others:
        future.result(timeout=10)
    journal.close()
    assert journal.writes == 2
    assert len(read_journal(memory_store).requests) == 65


def test_a_response_and_the_intent_of_the_next_request_share_a_write(memory_store, monkeypatch):
    monkeypatch.setattr(log_module, "GROUP_COMMIT_DELAY_SECONDS", 0.2)
    journal = opened(memory_store)
    journal.commit(intent("a#1", "r1"))
    journal.append(response("a#1", "r1"))
    journal.commit(intent("b#1", "r2"))
    journal.close()
    assert journal.writes == 2


def test_a_record_that_can_wait_joins_the_next_write(memory_store, monkeypatch):
    monkeypatch.setattr(log_module, "MAXIMUM_FLUSH_DELAY_SECONDS", 3600.0)
    journal = opened(memory_store)
    leisurely = journal.append(rejected("a#1", "r1"), can_wait=True)
    assert not leisurely.done()
    journal.commit(rejected("b#1", "r2"))
    assert leisurely.done()
    assert ids_in(memory_store) == ["r1", "r2"]
    last = journal.append(rejected("c#1", "r3"), can_wait=True)
    journal.close()
    assert last.done()
    assert journal.writes == 2
    assert ids_in(memory_store) == ["r1", "r2", "r3"]


def test_a_record_that_can_wait_is_still_written_soon(memory_store):
    journal = opened(memory_store)
    for name in ("r1", "r2"):
        journal.append(rejected("a#1", name), can_wait=True).result(timeout=10)
        assert ids_in(memory_store)[-1] == name
    journal.close()


def test_flushing_writes_pending_records_at_once(memory_store, monkeypatch):
    monkeypatch.setattr(log_module, "MAXIMUM_FLUSH_DELAY_SECONDS", 3600.0)
    journal = opened(memory_store)
    waiting = [journal.append(rejected("a#1", f"r{number}"), can_wait=True) for number in range(3)]
    journal.flush(20)
    assert all(future.done() for future in waiting)
    assert ids_in(memory_store) == ["r0", "r1", "r2"]
    assert journal.writes == 1
    journal.close()


def test_flushing_durable_records_returns_at_once(memory_store):
    journal = opened(memory_store)
    for name in ("r1", "r2"):
        journal.flush(3600)
        journal.commit(rejected("a#1", name))
        journal.flush(3600)
        time.sleep(0.02)
    assert ids_in(memory_store) == ["r1", "r2"]
    journal.close()
    journal.flush(3600)


def test_an_intent_takes_one_write_and_one_header_read_and_any_other_record_one_write(memory_store):
    journal = opened(memory_store)
    memory_store.calls.clear()
    journal.commit(intent("a#1", "r1"))
    assert memory_store.calls == [("write", f"{journal.owner}/0"), ("read", HEADER)]
    memory_store.calls.clear()
    journal.commit(response("a#1", "r1"))
    assert memory_store.calls == [("write", f"{journal.owner}/0")]
    journal.close()


# --- segments ---------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 500), min_size=1, max_size=20))
def test_segments_stay_within_their_size_except_for_one_longer_record(sizes):
    store = Recorder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_module, "SEGMENT_BYTES", 600)
        journal = opened(store)
        for number, size in enumerate(sizes):
            journal.commit(intent("a#1", f"r{number}", prompt="x" * size))
        journal.close()
    written = {text for state in store.states for name, text in state.items() if name != HEADER}
    for text in written:
        lines = [line for line in text.splitlines() if "full_segments" not in line]
        assert len(text) <= 600 or len(lines) == 1, f"{len(text)} bytes in {len(lines)} records"
    assert len(read_journal(store).requests["a#1"].open_intents) == len(sizes)


def test_segments_of_ordinary_records_stay_below_airflows_warning_size(memory_store):
    """Airflow's task state store warns from 64 KB on."""
    journal = opened(memory_store)
    for number in range(600):
        journal.append(intent("a#1", f"r{number}", prompt="é" * (number % 200)))
    journal.close()
    assert full_segments(memory_store.texts, journal.owner) > 1
    assert max(map(len, memory_store.texts.values())) < SEGMENT_BYTES + 100


def test_a_full_segment_is_written_before_the_active_one_counts_it():
    store = Recorder()
    journal = opened(store)
    for number in range(700):
        journal.append(intent("a#1", f"request-{number}"))
    journal.close()
    for state in store.states:
        full = full_segments(state, journal.owner)
        assert {f"{journal.owner}/{number}" for number in range(1, full + 1)} <= state.keys()
    assert full > 1


def test_a_full_segment_that_was_never_counted_is_ignored(monkeypatch):
    monkeypatch.setattr(log_module, "SEGMENT_BYTES", 1000)
    store = Recorder()
    journal = opened(store)
    written = 0
    while f"{journal.owner}/1" not in store.texts:
        journal.commit(intent("a#1", f"r{written}"))
        written += 1
    journal.close()
    before = next(number for number, state in enumerate(store.states) if f"{journal.owner}/1" in state)
    assert store.states[before][f"{journal.owner}/0"] == store.states[before][f"{journal.owner}/1"]
    state = read_journal(store.crashed_after(before))
    assert list(state.requests["a#1"].open_intents) == [f"r{number}" for number in range(written - 1)]


def test_opening_short_journals_takes_one_read_per_previous_attempt(memory_store):
    owners: list[str] = []
    for number in range(3):
        memory_store.calls.clear()
        journal = opened(memory_store)
        assert memory_store.calls == [
            ("read", HEADER),
            ("write", HEADER),
            *(("read", f"{owner}/0") for owner in owners),
        ]
        journal.commit(intent("a#1", f"r{number}"))
        journal.close()
        owners.append(journal.owner)


# --- an unavailable store ---------------------------------------------------------------------------------------------


@pytest.fixture
def _impatient(monkeypatch):
    monkeypatch.setattr(log_module, "RETRY_PAUSE_SECONDS", 0.005)


def wait_until(condition: Any) -> None:
    give_up_at = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.002)


@pytest.mark.usefixtures("_impatient")
def test_records_wait_for_an_unavailable_store_and_are_then_written_in_order(memory_store, caplog):
    journal = opened(memory_store)
    journal.commit(intent("a#1", "r0"))
    memory_store.is_away = True
    waiting = []
    for number in range(1, 6):
        waiting.append(journal.append(rejected("a#1", f"r{number}")))
        attempts = len(memory_store.calls)
        wait_until(lambda attempts=attempts: len(memory_store.calls) > attempts)
    assert not any(future.done() for future in waiting)
    assert ids_in(memory_store) == ["r0"]
    memory_store.is_away = False
    for future in waiting:
        future.result(timeout=10)
    journal.commit(intent("b#1", "r6"))
    journal.close()
    assert ids_in(memory_store) == [f"r{number}" for number in range(7)]
    assert [message for message in caplog.messages if "unavailable" in message] == [
        "The journal in memory is unavailable (the store is away). Until it is available again, responses are kept in "
        "memory and no new request is sent."
    ], "reported once, not after every retry"


@pytest.mark.usefixtures("_impatient")
def test_a_full_segment_also_waits_for_an_unavailable_store(memory_store, monkeypatch):
    monkeypatch.setattr(log_module, "SEGMENT_BYTES", 600)
    journal = opened(memory_store)
    memory_store.is_away = True
    waiting = [journal.append(intent("a#1", f"r{number}")) for number in range(20)]
    attempts = len(memory_store.calls)
    wait_until(lambda: len(memory_store.calls) > attempts + 2)
    memory_store.is_away = False
    for future in waiting:
        future.result(timeout=10)
    journal.close()
    assert full_segments(memory_store.texts, journal.owner) > 2
    assert ids_in(memory_store) == [f"r{number}" for number in range(20)]


@pytest.mark.usefixtures("_impatient")
def test_an_intent_is_not_durable_before_the_header_has_been_read(memory_store):
    journal = opened(memory_store)
    memory_store.on_write = lambda name, text: setattr(memory_store, "is_away", True)
    waiting = journal.append(intent("a#1", "r1"))
    wait_until(lambda: memory_store.calls.count(("read", HEADER)) > 3)
    assert ids_in(memory_store) == ["r1"]
    assert not waiting.done()
    memory_store.is_away = False
    waiting.result(timeout=10)
    journal.close()


@pytest.mark.usefixtures("_impatient")
def test_the_journal_reports_its_delay(memory_store):
    journal = opened(memory_store)
    assert journal.behind_seconds == 0
    journal.commit(intent("a#1", "r1"))
    wait_until(lambda: journal.behind_seconds == 0)
    memory_store.is_away = True
    started = time.monotonic()
    journal.append(response("a#1", "r1"))
    wait_until(lambda: journal.behind_seconds > 0.05)
    late = journal.append(rejected("a#1", "r2"))
    earlier = journal.behind_seconds
    wait_until(lambda: journal.behind_seconds > earlier + 0.02)
    assert journal.behind_seconds <= time.monotonic() - started
    memory_store.is_away = False
    late.result(timeout=10)
    wait_until(lambda: journal.behind_seconds == 0)
    journal.close()


def test_a_journal_that_can_never_be_written_is_not_delayed(memory_store):
    journal = opened(memory_store)
    memory_store.fails_after = 0
    with pytest.raises(JournalError):
        journal.commit(intent("a#1", "r1"))
    wait_until(lambda: journal.behind_seconds == 0)
    journal.close()


@pytest.mark.usefixtures("_impatient")
def test_a_commit_times_out_but_its_record_is_still_written(memory_store):
    journal = opened(memory_store)
    memory_store.is_away = True
    with pytest.raises(JournalError, match="cannot be written, so no new requests are sent"):
        journal.commit(intent("a#1", "r1"), timeout_seconds=0.02)
    memory_store.is_away = False
    journal.commit(rejected("a#1", "r1"))
    journal.close()
    assert [record["t"] for record in memory_store.records] == ["intent", "rejected"]
    assert journal.unresolved == {}


@pytest.mark.usefixtures("_impatient")
def test_flushing_while_the_store_is_unavailable_times_out(memory_store):
    journal = opened(memory_store)
    memory_store.is_away = True
    waiting = journal.append(rejected("a#1", "r1"))
    started = time.monotonic()
    journal.flush(0.1)
    assert 0.05 < time.monotonic() - started < 10
    assert not waiting.done()
    memory_store.is_away = False
    journal.flush(20)
    assert waiting.done()
    journal.close()


@pytest.mark.usefixtures("_impatient")
def test_closing_while_the_store_is_unavailable_times_out(memory_store):
    journal = opened(memory_store)
    memory_store.is_away = True
    lost = journal.append(response("a#1", "r1"))
    started = time.monotonic()
    journal.close(timeout_seconds=0.1)
    assert 0.05 < time.monotonic() - started < 10
    with pytest.raises(JournalError, match="StoreUnavailableError"):
        lost.result(timeout=10)


@pytest.mark.usefixtures("_impatient")
def test_closing_while_the_store_is_unavailable_writes_everything_if_it_comes_back_in_time(memory_store):
    journal = opened(memory_store)
    memory_store.is_away = True
    waiting = [journal.append(rejected("a#1", f"r{number}")) for number in range(3)]
    threading.Timer(0.05, lambda: setattr(memory_store, "is_away", False)).start()
    journal.close(timeout_seconds=20)
    assert all(future.done() and future.exception() is None for future in waiting)
    assert ids_in(memory_store) == ["r0", "r1", "r2"]


def test_closing_writes_queued_records_and_does_not_hang_on_an_unresponsive_store(memory_store):
    journal = opened(memory_store)
    memory_store.delay_seconds = 0.05
    futures = [journal.append(rejected("a#1", f"r{number}")) for number in range(3)]
    journal.close()
    assert all(future.done() for future in futures)
    memory_store.delay_seconds = 0
    stuck, release = opened(memory_store), threading.Event()
    memory_store.on_write = lambda name, text: release.wait(30)
    stuck.append(rejected("a#1", "late"))
    started = time.monotonic()
    stuck.close(timeout_seconds=0.1)
    assert time.monotonic() - started < 10
    release.set()


def test_a_permanent_store_error_fails_every_waiter_and_all_later_records(memory_store):
    journal = opened(memory_store)
    journal.commit(intent("a#1", "r1"))
    memory_store.delay_seconds = 0.05
    memory_store.fails_after = memory_store.writes
    waiting = [journal.append(intent("a#1", f"w{number}")) for number in range(5)]
    waiting += [journal.append(response("a#1", "r1"))]
    for future in waiting:
        with pytest.raises(JournalError, match=r"cannot be written \(OSError\), so no new requests are sent"):
            future.result(timeout=10)
    memory_store.fails_after = None
    for record in (intent("a#1", "later"), response("a#1", "r1")):
        with pytest.raises(JournalError):
            journal.commit(record)
    journal.close()
    assert ids_in(memory_store) == ["r1"]


def test_the_text_of_a_store_error_is_not_repeated(memory_store):
    journal = opened(memory_store)

    def refuse(name: str, text: str) -> None:
        raise OSError("403 for https://store/?sig=secret")

    memory_store.on_write = refuse
    with pytest.raises(JournalError, match="OSError") as caught:
        journal.commit(intent("a#1", "r1"))
    assert "secret" not in str(caught.value)
    journal.close()


# --- a journal that cannot be trusted ---------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ConnectionError, StoreUnavailableError])
def test_an_unreadable_store_is_rejected(memory_store, error):
    def away(name: str) -> str | None:
        raise error("no route to https://store/?sig=secret")

    memory_store.read = away
    with pytest.raises(JournalError, match=rf"cannot be used \({error.__name__}\).*nothing was sent") as caught:
        opened(memory_store)
    assert "secret" not in str(caught.value)
    assert memory_store.calls == []


def test_an_unreadable_segment_is_rejected(memory_store):
    opened(memory_store).commit(intent("a#1", "r1"))
    read = memory_store.read

    def only_header(name: str) -> str | None:
        if name != HEADER:
            raise ConnectionError("no route to https://store/?sig=secret")
        return read(name)

    memory_store.read = only_header
    with pytest.raises(JournalError, match="ConnectionError"):
        opened(memory_store)


def test_an_unwritable_store_is_rejected_on_opening(memory_store):
    memory_store.fails_after = 0
    with pytest.raises(JournalError, match="nothing was sent"):
        opened(memory_store)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "{",
        "[]\n",
        '"text"\n',
        '{"key":"a#1"}\n',
        '{"t":"intent","key":1}\n',
        '{"t":"intent","key":"a#1"}\n',
        '{"t":"refunded","key":"a#1","client_request_id":"r1"}\n',
        '{"t":"rejected","key":"a#1","client_request_id":"r1","because":"new"}\n',
        '{"t":"response","key":"a#1","client_request_id":"r","images":[{"bogus":1}],"model":"m","at":1}\n',
        '{"t":"write_committed","key":"a#1","image":0}\n',
        "[" * 100_000,
        '{"full_segments":0}\n',
        '{"full_segments":-1}\n',
        '{"full_segments":1',
        '{"full_segments":"1"}\n',
        '{"full_segments":1.5}\n',
        '{"full_segments":null}\n',
        '{"full_segments":1000000000}\n',
        '{"full_segments":' + "9" * 5000 + "}\n",
    ],
    ids=lambda text: repr(text[:50]),
)
def test_a_damaged_segment_is_rejected(memory_store, text):
    memory_store.texts = {HEADER: HEADER_OF_EARLIER, f"{EARLIER}/0": text}
    with pytest.raises(JournalError, match=r"is damaged or was written by another version.*nothing was sent"):
        opened(memory_store)
    with pytest.raises(JournalError, match="damaged"):
        read_journal(memory_store)


def test_a_missing_segment_is_rejected(memory_store):
    journal = opened(memory_store)
    for number in range(600):
        journal.append(intent("a#1", f"r{number}"))
    journal.close()
    del memory_store.texts[f"{journal.owner}/1"]
    full = full_segments(memory_store.texts, journal.owner)
    assert full > 1
    with pytest.raises(JournalError, match=rf"The journal \(segment 1 of {full} is missing\) is damaged"):
        opened(memory_store)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "\n",
        "{",
        "[]",
        '"text"',
        "[" * 100_000,
        '{"version":2}',
        '{"version":2,"owner":"1-0123456789ab"}',
        '{"version":2,"owner":1,"owners":[]}',
        '{"version":2,"owner":"1-0123456789ab","owners":"all"}',
        '{"version":2,"owner":"1-0123456789ab","owners":[null]}',
        '{"version":2,"owner":"../../x","owners":["../../x"]}',
        '{"version":2,"owner":"1-0123456789ab","owners":["../../x","1-0123456789ab"]}',
        '{"version":2,"owner":"1-0123456789ab","owners":["/etc/passwd","1-0123456789ab"]}',
        '{"version":2,"owner":"1-0123456789ab","owners":["1-0123456789ab/..","1-0123456789ab"]}',
        '{"version":2,"owner":"1-0123456789ab","owners":["1-0123456789ab\\n","1-0123456789ab"]}',
        '{"version":2,"owner":"1-0123456789ab","owners":["","1-0123456789ab"]}',
        '{"version":2,"owner":"1-0123456789ab","owners":["\\u0661-0123456789ab","1-0123456789ab"]}',
    ],
    ids=lambda text: repr(text[:70]),
)
def test_a_damaged_header_is_rejected_and_left_unchanged(memory_store, header):
    memory_store.texts = {HEADER: header}
    with pytest.raises(JournalError, match=r"The header of the journal is damaged.*nothing was sent"):
        opened(memory_store)
    assert memory_store.texts == {HEADER: header}
    assert memory_store.calls == [("read", HEADER)]


@pytest.mark.parametrize("owners", [[], ["1-ba9876543210"]])
def test_a_header_whose_owner_is_not_among_its_owners_is_rejected(memory_store, owners):
    """Otherwise the records of an unlisted owner would be skipped and its requests paid for again."""
    memory_store.texts = {
        HEADER: json.dumps({"version": 2, "owner": EARLIER, "owners": owners}),
        f"{EARLIER}/0": encode_record(intent("a#1", "r1")),
    }
    with pytest.raises(JournalError, match="damaged"):
        opened(memory_store)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ('{"version":3,"owner":"1-0123456789ab","owners":["1-0123456789ab"]}', "3"),
        ('{"version":"2","owner":"1-0123456789ab","owners":["1-0123456789ab"]}', "'2'"),
        ('{"version":null}', "None"),
        ('{"k":"a#1","t":"intent","id":"r1","model":"m","at":1.0,"usd":"0.04"}\n', "1"),
        ('{"full_segments":2}\n{"k":"a#1","t":"intent","id":"r1","model":"m","at":1.0,"usd":"0.04"}\n', "1"),
    ],
)
def test_a_journal_of_another_format_is_rejected_and_left_unchanged(memory_store, text, version):
    memory_store.texts = {HEADER: text}
    with pytest.raises(
        JournalError, match=f"has format {version}, but this version .* supports only format 2; nothing was sent"
    ):
        opened(memory_store)
    with pytest.raises(JournalError, match=f"has format {version}"):
        read_journal(memory_store)
    assert memory_store.texts == {HEADER: text}


def test_reading_a_journal_does_not_take_it_over(memory_store):
    assert read_journal(memory_store) == JournalState()
    journal = opened(memory_store)
    journal.commit(intent("a#1", "r1"))
    before = dict(memory_store.texts)
    assert list(read_journal(memory_store).requests) == ["a#1"]
    assert memory_store.texts == before
    journal.commit(intent("a#1", "r2"))
    journal.close()


# --- the end ----------------------------------------------------------------------------------------------------------


def test_finishing_leaves_nothing_in_the_store(memory_store):
    journal = opened(memory_store)
    journal.commit(intent("a#1", "r1"))
    journal.commit(response("a#1", "r1"))
    journal.close()
    journal.finish()
    assert memory_store.texts == {}


def test_finishing_deletes_all_segments_of_all_owners(memory_store, monkeypatch):
    monkeypatch.setattr(log_module, "SEGMENT_BYTES", 600)
    for attempt in range(3):
        journal = opened(memory_store, try_number=attempt)
        for number in range(5):
            journal.commit(intent("a#1", f"{attempt}-{number}"))
            journal.commit(rejected("a#1", f"{attempt}-{number}"))
        journal.close()
    assert len(memory_store.texts) > 7
    journal.finish()
    assert memory_store.texts == {}


def test_finishing_a_journal_without_records_leaves_nothing(memory_store):
    journal = opened(memory_store)
    journal.close()
    journal.finish()
    assert memory_store.texts == {}


def test_finishing_leaves_nothing_wherever_the_previous_attempt_was_killed(monkeypatch):
    """Otherwise prompts and URLs stay in the store until the DAG run or the folder is deleted."""
    monkeypatch.setattr(log_module, "SEGMENT_BYTES", 600)
    store = Recorder()
    journal = opened(store)
    for number in range(6):
        journal.commit(intent("a#1", f"r{number}"))
        journal.commit(rejected("a#1", f"r{number}"))
    journal.close()
    left = {}
    for crash in range(len(store.states)):
        crashed = store.crashed_after(crash)
        again = opened(crashed)
        for name in list(again.unresolved):
            again.append(rejected("a#1", name))
        again.close()
        again.finish()
        if crashed.texts:
            left[crash] = sorted(crashed.texts)
    assert left == {}


def test_finishing_deletes_segments_that_a_previous_owner_wrote_after_losing_the_journal(memory_store):
    earlier = opened(memory_store)
    later = opened(memory_store)
    with pytest.raises(OwnershipLostError):
        earlier.commit(intent("a#1", "r1"))
    earlier.commit(rejected("a#1", "r1"))
    later.close()
    later.finish()
    assert memory_store.texts == {}
    earlier.close()


def test_interrupted_finishing_leaves_everything_or_no_journal(monkeypatch):
    monkeypatch.setattr(log_module, "SEGMENT_BYTES", 600)
    store = Recorder()
    for attempt in range(2):
        journal = opened(store)
        for number in range(5):
            journal.commit(intent("a#1", f"{attempt}-{number}"))
            journal.commit(rejected("a#1", f"{attempt}-{number}"))
        journal.close()
    before = len(store.states) - 1
    journal.finish()
    assert len(store.states) > before + 4
    assert read_journal(store.crashed_after(before)).requests.keys() == {"a#1"}
    for crash in range(before + 1, len(store.states)):
        assert read_journal(store.crashed_after(crash)) == JournalState()


def test_finishing_keeps_unresolved_requests_but_nothing_to_reuse(memory_store):
    journal = opened(memory_store)
    journal.commit(intent("a#1", "r1"))
    journal.commit(response("a#1", "r1"))
    journal.commit(intent("b#1", "r2"))
    journal.commit(PresumedUnbilled(key="b#1", client_request_id="r2"))
    journal.close()
    journal.finish()
    assert [record["t"] for record in memory_store.records][-2:] == ["presumed_unbilled", "finished"]
    cleared = opened(memory_store)
    assert cleared.state.requests == {}
    assert cleared.unresolved.keys() == cleared.state.all_unresolved().keys() == {"r2"}
    cleared.commit(intent("a#1", "r3"))
    cleared.commit(response("a#1", "r3"))
    cleared.commit(ChargeLost(key="b#1", client_request_id="r2"))
    cleared.close()
    cleared.finish()
    assert memory_store.texts == {}


def test_finishing_keeps_requests_unresolved_since_a_previous_attempt(memory_store):
    earlier = opened(memory_store)
    earlier.commit(intent("a#1", "r1"))
    earlier.close()
    journal = opened(memory_store)
    journal.close()
    journal.finish()
    assert opened(memory_store).unresolved.keys() == {"r1"}


def test_a_response_recorded_late_by_a_previous_owner_resolves_its_request(memory_store):
    """The new owner must then neither look up the charge nor keep the journal for it."""
    earlier = opened(memory_store)
    earlier.commit(intent("a#1", "r1"))
    journal = opened(memory_store)
    earlier.commit(response("a#1", "r1"))
    assert journal.reload().requests["a#1"].response == response("a#1", "r1")
    assert journal.unresolved == {}
    journal.close()
    journal.finish()
    assert memory_store.texts == {}
    earlier.close()


def test_finishing_while_the_store_is_unavailable_is_an_error(memory_store):
    journal = opened(memory_store)
    journal.close()
    memory_store.is_away = True
    with pytest.raises(JournalError, match="StoreUnavailableError"):
        journal.finish()
