from __future__ import annotations

import json
import threading
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_imagen.exceptions import JournalError
from airflow_provider_imagen.journal import log as journal_module
from airflow_provider_imagen.journal import records as facts
from airflow_provider_imagen.journal.log import SEGMENT_BYTES, Journal, NoStore, forget
from airflow_provider_imagen.journal.records import Entry, Paid, PaidPicture, entries_of

pytestmark = pytest.mark.timeout(30)


class Recorder:
    """Keeps every state the store was in, so that a crash after any write can be replayed."""

    description = "a recorder"

    def __init__(self) -> None:
        self.states: list[dict[int, str]] = [{}]

    def read(self, number: int) -> str | None:
        return self.states[-1].get(number)

    def write(self, number: int, text: str) -> None:
        self.states.append({**self.states[-1], number: text})

    def delete(self, number: int) -> None:
        left = dict(self.states[-1])
        left.pop(number, None)
        self.states.append(left)

    def crashed_after(self, writes: int) -> Recorder:
        again = Recorder()
        again.states = [self.states[writes]]
        return again


def opened(store: Any) -> Journal:
    journal = Journal(store)
    journal.open()
    return journal


def intent(key: str, name: str) -> dict[str, Any]:
    return facts.intent(key, client_request_id=name, model="m", usd=Decimal("0.04"))


def written_by(store: Any) -> list[dict[str, Any]]:
    newest = [json.loads(line) for line in store.read(0).splitlines()]
    full = newest.pop(0)["full_segments"] if "full_segments" in newest[0] else 0
    return [json.loads(line) for number in range(1, full + 1) for line in store.read(number).splitlines()] + newest


texts = st.text(st.characters(), max_size=40) | st.sampled_from(["\ud800", "a\udfffb", "\u2028\n\r\t\0", "é" * 40])
ids = st.sampled_from(["r1", "r2", "r3"])
keys = st.sampled_from(["a#1", "b#1"])
links = st.none() | texts.map(lambda text: f"https://x/{text}")
any_fact = st.one_of(
    st.builds(lambda k, i: facts.intent(k, client_request_id=i, model="m", usd=Decimal("0.04")), keys, ids),
    st.builds(lambda k, i: facts.refused(k, client_request_id=i), keys, ids),
    st.builds(lambda k, i: facts.unbilled(k, client_request_id=i), keys, ids),
    st.builds(lambda k, i: facts.lost(k, client_request_id=i, inference_id=None, usd=Decimal("0.04")), keys, ids),
    st.builds(
        lambda k, i, url, prompt: Paid(
            client_request_id=i,
            pictures=(PaidPicture(url=url, prompt=prompt), PaidPicture(withheld=True)),
            usd=Decimal("0.0800"),
            usd_is_estimate=False,
            inference_id="inf",
            model="m",
            at=1.5,
        ).to_fact(k),
        keys,
        ids,
        links,
        texts,
    ),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(any_fact, max_size=25), st.data())
def test_reading_back_after_a_crash_gives_what_was_durable_and_nothing_else(written, data):
    store = Recorder()
    journal = opened(store)
    durable_after: list[int] = []
    for fact in written:
        journal.commit(fact)
        durable_after.append(len(store.states) - 1)
    journal.close()
    crash = data.draw(st.integers(0, len(store.states) - 1))
    again = opened(store.crashed_after(crash))
    again.close()
    survived = written[: sum(writes <= crash for writes in durable_after)]
    assert again.entries == entries_of(survived)


def test_a_commit_returns_only_when_its_fact_is_durable(memory_store):
    memory_store.delay_seconds = 0.05
    journal = opened(memory_store)
    journal.commit(intent("a#1", "r1"))
    assert '"r1"' in memory_store.text
    journal.close()


def test_commits_that_wait_together_share_a_write(memory_store):
    writing, release = threading.Event(), threading.Event()

    def hold(number: int, text: str) -> None:
        writing.set()
        release.wait(10)

    memory_store.on_write = hold
    journal = opened(memory_store)
    first = journal.append(intent("first#1", "r"))
    assert writing.wait(10)
    others = [journal.append(intent(f"k{number}#1", f"r{number}")) for number in range(64)]
    assert not first.done()
    release.set()
    for future in others:
        future.result(timeout=10)
    journal.close()
    assert journal.writes == 2
    assert len(opened(memory_store).entries) == 65


def test_a_fact_that_can_wait_goes_with_the_next_write(memory_store, monkeypatch):
    monkeypatch.setattr(journal_module, "LEISURE_SECONDS", 3600.0)
    journal = opened(memory_store)
    leisurely = journal.append(intent("a#1", "r1"), can_wait=True)
    assert not leisurely.done()
    journal.commit(intent("b#1", "r2"))
    assert leisurely.done()
    assert [fact["id"] for fact in written_by(memory_store)] == ["r1", "r2"]
    last = journal.append(intent("c#1", "r3"), can_wait=True)
    journal.close()
    assert last.done()
    assert journal.writes == 2
    assert [fact["id"] for fact in written_by(memory_store)] == ["r1", "r2", "r3"]


def test_a_fact_that_can_wait_is_written_soon_all_the_same(memory_store):
    journal = opened(memory_store)
    for name in ("r1", "r2"):
        journal.append(intent("a#1", name), can_wait=True).result(timeout=10)
        assert f'"{name}"' in memory_store.text
    journal.close()


def test_facts_of_one_thread_keep_their_order_over_segments_and_tries(memory_store):
    for start in (0, 700):
        journal = opened(memory_store)
        for number in range(start, start + 700):
            journal.append(intent("a#1", f"request-{number}"))
        journal.close()
    assert [fact["id"] for fact in written_by(memory_store)] == [f"request-{number}" for number in range(1400)]
    assert len(memory_store.segments) > 2


def test_segments_stay_within_their_size_except_for_one_longer_fact(memory_store):
    journal = opened(memory_store)
    for number in range(300):
        journal.append({**intent("a#1", f"r{number}"), "filler": "é" * 60})
    journal.append({**intent("a#1", "giant"), "filler": "x" * (2 * SEGMENT_BYTES)})
    for number in range(300):
        journal.append(intent("a#1", f"s{number}"))
    journal.close()
    long = [text for text in memory_store.segments.values() if len(text.encode()) > SEGMENT_BYTES]
    assert len(long) == 1
    assert long[0].count("giant") == long[0].count("\n") == 1
    assert len(opened(memory_store).entries["a#1"].open_intents) == 601


def test_a_full_segment_is_written_before_the_newest_one_names_it():
    store = Recorder()
    journal = opened(store)
    for number in range(1500):
        journal.append(intent("a#1", f"request-{number}"))
    journal.close()
    for state in store.states[1:]:
        newest = state.get(0, "").partition("\n")[0]
        full = json.loads(newest).get("full_segments", 0) if newest else 0
        assert set(range(1, full + 1)) <= state.keys()
    assert full > 1


def test_a_full_segment_that_was_written_in_vain_does_not_count():
    store = Recorder()
    journal = opened(store)
    while len(store.states[-1]) < 2:
        journal.commit({**intent("a#1", f"r{len(store.states)}"), "filler": "x" * 9_000})
    journal.close()
    before = next(number for number, state in enumerate(store.states) if 1 in state)
    assert store.states[before][0] == store.states[before][1]
    again = opened(store.crashed_after(before))
    assert list(again.entries["a#1"].open_intents) == [f"r{number}" for number in range(1, before)]
    again.close()


def test_a_short_journal_is_read_with_one_call_and_forgotten_with_one():
    class Counting(Recorder):
        calls = 0

        def read(self, number: int) -> str | None:
            self.calls += 1
            return super().read(number)

        def delete(self, number: int) -> None:
            self.calls += 1
            super().delete(number)

    store = Counting()
    for expected in (1, 2):
        journal = opened(store)
        journal.commit(intent("a#1", "r1"))
        journal.close()
        assert store.calls == expected
    forget(store, segments=journal.segments)
    assert store.calls == 3
    assert store.states[-1] == {}


def test_a_write_that_fails_fails_every_waiter_and_all_later_facts(memory_store):
    journal = opened(memory_store)
    journal.commit(intent("a#1", "r1"))
    memory_store.delay_seconds = 0.05
    memory_store.fails_after = 1
    waiting = [journal.append(intent("a#1", f"w{number}")) for number in range(5)]
    for future in waiting:
        with pytest.raises(JournalError, match="nothing more is bought"):
            future.result(timeout=5)
    with pytest.raises(JournalError):
        journal.commit(intent("a#1", "later"))
    journal.close()
    assert len(opened(memory_store).entries["a#1"].open_intents) == 1


def test_a_store_that_cannot_be_read_is_refused():
    class Away(NoStore):
        def read(self, number: int) -> str | None:
            raise ConnectionError("no route to https://store/?sig=secret")

    with pytest.raises(JournalError, match="ConnectionError") as caught:
        opened(Away())
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "{",
        "[]\n",
        '"text"\n',
        '{"k": 1, "t": "intent"}\n',
        '{"k": "a#1"}\n',
        '{"k": "a#1", "t": "intent"}\n',
        '{"k": "a#1", "t": "paid", "id": "r1"}\n',
        '{"k": "a#1", "t": "paid", "id": "r", "pics": [{"bogus": 1}], "model": "m", "at": 1}\n',
        '{"k": "a#1", "t": "stored", "n": 0}\n',
        "[" * 100_000,
        '{"full_segments":0}\n',
        '{"full_segments":-1}\n',
        '{"full_segments":1',
        '{"full_segments":"1"}\n',
        '{"full_segments":' + "9" * 5000 + "}\n",
    ],
)
def test_a_damaged_segment_is_refused_rather_than_guessed(memory_store, text):
    memory_store.segments = {0: text}
    with pytest.raises(JournalError, match="damaged"):
        opened(memory_store)


def test_a_missing_segment_is_refused(memory_store):
    journal = opened(memory_store)
    for number in range(1500):
        journal.append(intent("a#1", f"r{number}"))
    journal.close()
    del memory_store.segments[1]
    with pytest.raises(JournalError, match="no segment 1 of 2: it is damaged"):
        opened(memory_store)


def test_a_last_line_without_its_end_does_not_swallow_the_next_fact(memory_store):
    memory_store.segments = {0: json.dumps(intent("a#1", "r1"))}
    journal = opened(memory_store)
    journal.commit(intent("a#1", "r2"))
    journal.close()
    assert list(opened(memory_store).entries["a#1"].open_intents) == ["r1", "r2"]


def test_a_journal_that_is_not_open_takes_no_fact(memory_store):
    journal = Journal(memory_store)
    with pytest.raises(JournalError):
        journal.commit(intent("a#1", "r1"))
    journal.open()
    journal.close()
    with pytest.raises(JournalError):
        journal.commit(intent("a#1", "r1"))


def test_closing_writes_what_waits_and_does_not_hang_on_a_dead_store(memory_store):
    journal = opened(memory_store)
    memory_store.delay_seconds = 0.05
    futures = [journal.append(intent("a#1", f"r{number}")) for number in range(3)]
    journal.close()
    assert all(future.done() for future in futures)
    stuck = opened(memory_store)
    memory_store.delay_seconds = 3.0
    stuck.append(intent("a#1", "late"))
    stuck.close(timeout_seconds=0.1)


def test_forgetting_that_is_cut_short_leaves_no_journal():
    store = Recorder()
    journal = opened(store)
    for number in range(1000):
        journal.append(intent("a#1", f"request-{number}"))
    journal.close()
    before = len(store.states)
    forget(store)
    assert store.states[-1] == {}
    for crash in range(before - 1, len(store.states)):
        crashed = store.crashed_after(crash)
        again = opened(crashed)
        again.close()
        ids = list(again.entries.get("a#1", Entry()).open_intents)
        assert len(ids) == (1000 if crash == before - 1 else 0)
        assert crash == before - 1 or crashed.states[-1] == {}


def test_an_answer_bought_a_second_time_keeps_the_first_ones_cost():
    def paid(name: str) -> dict[str, Any]:
        return Paid(
            client_request_id=name,
            pictures=(PaidPicture(),),
            usd=Decimal("0.04"),
            usd_is_estimate=False,
            inference_id=None,
            model="m",
            at=1.0,
        ).to_fact("a#1")

    entry = entries_of([paid("r1"), paid("r2")])["a#1"]
    assert entry.paid is not None
    assert entry.paid.client_request_id == "r2"
    assert entry.usd_spent == Decimal("0.08")
    assert entry.usd_lost == Decimal("0.04")


def test_who_knows_the_number_of_segments_forgets_them_without_reading(memory_store):
    journal = Journal(memory_store)
    journal.open()
    for number in range(3):
        journal.append({**intent("a#1", f"r{number}"), "filler": "x" * (SEGMENT_BYTES // 2)})
    journal.close()
    assert journal.segments == len(memory_store.segments) == 3

    def refuse(number: int) -> None:
        raise AssertionError(f"segment {number} was read")

    memory_store.read = refuse
    forget(memory_store, segments=journal.segments)
    assert memory_store.segments == {}
