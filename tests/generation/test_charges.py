from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial

import pytest

from airflow_provider_imagen.exceptions import AuthenticationError, ConnectionFailedError, StoppedError
from airflow_provider_imagen.generation.charges import ChargeLookup

pytestmark = pytest.mark.timeout(30)


class Log:
    """The API's request log, and a clock that moves only while somebody waits."""

    def __init__(self) -> None:
        self.now = 1_000_000.0
        self.rows: list[tuple[float, dict]] = []
        self.windows: list[tuple[datetime, datetime]] = []
        self.errors: list[Exception] = []
        self.seconds = 0.0
        self.waits: list[float] = []

    def iter_rows(self, *, start, end):
        self.windows.append((start, end))
        if self.seconds:
            time.sleep(self.seconds)
        if self.errors:
            raise self.errors.pop(0)
        yield from (row for shows_at, row in self.rows if shows_at <= self.now)

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds

    def show(self, name: str, *, at: float = 0.0, status: str = "succeeded", **cost) -> None:
        row = {"client_request_id": name, "status": status, "inference_id": "inf", "cost": cost or {"usd": 0.04}}
        self.rows.append((at, row))

    def lookup(self, patience: float = 90.0) -> ChargeLookup:
        return ChargeLookup(
            iter_request_logs=self.iter_rows, wait=self.wait, patience_seconds=patience, now=lambda: self.now
        )


def find(log: Log, name: str = "r1", patience: float = 90.0):
    return log.lookup(patience).find(name, sent_at=log.now - 5, lost_at=log.now)


def test_a_billed_request_is_told_with_its_cost_and_inference_id():
    log = Log()
    log.show("other")
    log.show("r1", usd=0.04, credits=80000)
    charge = find(log)
    assert (charge.billed, charge.usd, charge.inference_id) == (True, Decimal("0.04"), "inf")


def test_credits_stand_in_for_dollars():
    log = Log()
    log.show("r1", credits=52000)
    assert find(log).usd == Decimal("0.026")


def test_a_failed_request_was_billed_nothing():
    log = Log()
    log.show("r1", status="failed", usd=0, credits=0)
    charge = find(log)
    assert (charge.billed, charge.usd) == (False, Decimal(0))


def test_an_outcome_that_is_not_documented_counts_as_billed():
    log = Log()
    log.show("r1", status="processing", usd=0, credits=0)
    assert find(log).billed


def test_a_row_that_shows_up_late_is_waited_for():
    log = Log()
    log.show("r1", at=log.now + 60)
    assert find(log).billed
    assert sum(log.waits) >= 60
    assert len(log.windows) < 12


def test_a_request_the_log_never_shows_counts_as_never_billed_only_after_the_patience():
    log = Log()
    before = log.now
    assert find(log) is None
    assert log.now >= before + 90


def test_a_log_that_is_away_for_good_leaves_it_unknown():
    log = Log()
    log.errors = [ConnectionFailedError("away") for _ in range(99)]
    with pytest.raises(ConnectionFailedError):
        find(log)
    assert sum(log.waits) >= 90


def test_a_log_that_is_away_for_a_moment_is_asked_again():
    log = Log()
    log.errors = [ConnectionFailedError("away"), ConnectionFailedError("away")]
    log.show("r1")
    assert find(log).billed


def test_a_log_that_refuses_the_key_is_not_waited_for():
    log = Log()
    log.errors = [AuthenticationError("no")]
    with pytest.raises(AuthenticationError):
        find(log)
    assert log.waits == []


def test_being_told_to_stop_ends_the_wait():
    log = Log()

    def stop(seconds: float) -> None:
        raise StoppedError("stop")

    lookup = ChargeLookup(iter_request_logs=log.iter_rows, wait=stop, patience_seconds=90, now=lambda: log.now)
    with pytest.raises(StoppedError):
        lookup.find("r1", sent_at=log.now, lost_at=log.now)


def test_the_window_holds_the_request_and_both_clocks_errors_and_no_more():
    log = Log()
    sent_at = log.now - 7200
    log.lookup(0).find("r1", sent_at=sent_at, lost_at=sent_at)
    (start, end) = log.windows[0]
    sent = datetime.fromtimestamp(sent_at, UTC)
    assert start <= sent - timedelta(minutes=5)
    assert sent + timedelta(minutes=5) <= end <= sent + timedelta(minutes=15)


def test_a_window_is_never_longer_than_the_api_takes():
    log = Log()
    log.lookup().look_once({"old": log.now - 200 * 86400, "new": log.now})
    (start, end) = log.windows[0]
    assert end - start <= timedelta(days=92)


def test_threads_that_seek_at_the_same_time_share_the_looks():
    log = Log()
    log.seconds = 0.05
    lookup = log.lookup()
    names = [f"r{number}" for number in range(40)]
    for name in names:
        log.show(name)
    found: list[bool] = []
    threads = [
        threading.Thread(
            target=lambda name=name: found.append(lookup.find(name, sent_at=log.now, lost_at=log.now).billed)
        )
        for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 40
    assert len(log.windows) <= 4


def test_a_shared_look_never_stands_in_for_one_that_did_not_seek_the_request():
    """Three threads at once: the second look must have sought whatever the third thread waits for."""
    names = [f"r{number}" for number in range(6)]
    for _ in range(30):
        log = Log()
        log.seconds = 0.005
        for name in names:
            log.show(name)
        find_at_once = partial(log.lookup(patience=0).find, sent_at=log.now, lost_at=0)
        with ThreadPoolExecutor(len(names)) as pool:
            assert None not in list(pool.map(find_at_once, names))


def test_the_last_look_finds_what_came_late_and_is_quiet_when_the_log_is_away():
    log = Log()
    log.show("r2")
    lookup = log.lookup()
    assert list(lookup.look_once({"r1": log.now, "r2": log.now})) == ["r2"]
    log.errors = [ConnectionFailedError("away")]
    assert lookup.look_once({"r3": log.now}) == {}
