from __future__ import annotations

import threading
import time

import pytest

from airflow_provider_imagen.exceptions import JournalError, ServerError, StoppedError, StorageError
from airflow_provider_imagen.run.shared_state import Cancellation, RunState

pytestmark = pytest.mark.timeout(30)


def test_both_waits_end_early_when_the_attempt_is_cancelled():
    cancellation = Cancellation()
    state = RunState(cancellation)
    threading.Timer(0.1, lambda: cancellation.cancel("killed", grace_seconds=0)).start()
    began = time.monotonic()
    for wait in (state.wait, cancellation.wait):
        with pytest.raises(StoppedError):
            wait(60)
    assert time.monotonic() - began < 30


def test_a_wait_ends_early_when_the_run_is_aborted_or_crashes():
    for end in (RunState.abort, RunState.record_crash):
        state = RunState(Cancellation())
        threading.Timer(0.1, end, (state, ServerError("503"))).start()
        began = time.monotonic()
        with pytest.raises(StoppedError):
            state.wait(60)
        assert time.monotonic() - began < 30


def test_a_wait_of_nothing_still_reports_a_cancellation():
    cancellation = Cancellation()
    state = RunState(cancellation)
    for wait in (state.wait, cancellation.wait):
        wait(0)
    cancellation.cancel("killed", grace_seconds=0)
    for wait in (state.wait, cancellation.wait):
        with pytest.raises(StoppedError):
            wait(0)


def test_of_several_cancellations_the_first_reason_and_the_earliest_end_count():
    cancellation = Cancellation()
    assert not cancellation.is_cancelled()
    assert not cancellation.is_overdue(0)
    cancellation.cancel("first", grace_seconds=60)
    assert cancellation.is_cancelled()
    assert not cancellation.is_overdue(0)
    cancellation.cancel("second", grace_seconds=0.01)
    cancellation.cancel("third", grace_seconds=60)
    assert cancellation.abandoned.wait(10)
    assert cancellation.reason == "first"
    assert cancellation.is_overdue(0)
    assert not cancellation.is_overdue(60)


def test_the_first_abort_reason_and_the_first_crash_are_reported():
    state = RunState(Cancellation())
    errors = [JournalError("first"), JournalError("second")]
    crashes = [ValueError("first"), ValueError("second")]
    for error, crash in zip(errors, crashes, strict=True):
        state.abort(error)
        state.record_crash(crash)
    assert state.abort_reason is errors[0]
    assert state.crash is crashes[0]


@pytest.mark.parametrize("end", [RunState.abort, RunState.record_crash])
def test_an_abort_or_a_crash_alone_ends_a_run(end):
    state = RunState(Cancellation())
    state.check()
    end(state, JournalError("away"))
    with pytest.raises(StoppedError):
        state.check()


def test_images_that_disappear_are_not_counted_as_finished():
    state = RunState(Cancellation())
    assert [state.record_finished(slot, image) for slot, image in ((0, "a"), (None, "old"), (1, "b"))] == [1, 1, 2]
    state.take_back(0, "a")
    state.take_back(None, "old")
    assert state.superseded() == []
    assert state.record_finished(0, "a again") == 2
    assert {slot: result.made for slot, result in state.results().items()} == {0: ["a again"], 1: ["b"]}


def test_results_are_copies():
    state = RunState(Cancellation())
    state.record_finished(0, "a")
    state.results()[0].made.clear()
    state.superseded().append("b")
    assert (state.results()[0].made, state.superseded()) == (["a"], [])


def test_only_storage_failures_in_a_row_end_a_run():
    state = RunState(Cancellation())
    for _ in range(3):
        state.count_not_written(StorageError("full"))
        state.count_not_written(StorageError("full"))
        assert state.abort_reason is None
        state.count_written()
    errors = [StorageError("full") for _ in range(4)]
    for error in errors:
        state.count_not_written(error)
    assert state.abort_reason is errors[2]


def test_the_errors_of_one_request_are_forgotten_when_its_response_is_found():
    state = RunState(Cancellation())
    for name in ("lost", "other"):
        state.record_error(0, ServerError("503", client_request_id=name))
    state.forget_error(0, "lost")
    state.forget_error(1, "lost")
    assert [error.client_request_id for error in state.results()[0].errors] == ["other"]


def test_the_earliest_end_of_several_grace_periods_counts():
    cancellation = Cancellation()
    for grace_seconds in (60, 0.05, 60):
        cancellation.cancel("killed", grace_seconds=grace_seconds)
    assert cancellation.abandoned.wait(30)


def test_a_cancellation_that_a_signal_handler_interrupts_can_be_repeated(monkeypatch):
    """Airflow raises AirflowTaskTimeout in the thread that cancels, at any point."""

    def interrupted(timer):
        raise TimeoutError

    cancellation = Cancellation()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Timer, "start", interrupted)
        with pytest.raises(TimeoutError):
            cancellation.cancel("killed", grace_seconds=0.05)
    assert cancellation.is_cancelled()
    cancellation.cancel("timed out", grace_seconds=0.05)
    assert cancellation.abandoned.wait(30)
    assert cancellation.reason == "killed"
