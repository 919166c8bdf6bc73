from __future__ import annotations

import threading
import time

import pytest

from airflow_provider_imagen.exceptions import ServerError, StoppedError
from airflow_provider_imagen.run.shared_state import Cancellation, RunState


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
