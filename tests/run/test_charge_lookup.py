from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial

import pytest

from airflow_provider_imagen.exceptions import (
    AuthenticationError,
    ConnectionFailedError,
    InvalidRequestError,
    RateLimitedError,
    ServerError,
    StoppedError,
    UnreadableResponseError,
)
from airflow_provider_imagen.run.charge_lookup import ChargeLookup

pytestmark = pytest.mark.timeout(30)

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
PAGE_ROWS = 100


class Log:
    """
    The API's request log, and a clock that moves only while a caller waits.

    :param skew: how far the API's clock is ahead of ours, in seconds
    :param is_measured: whether an earlier response has revealed that
    """

    def __init__(self, *, skew: float = 0.0, is_measured: bool = True) -> None:
        self.now = 1_700_000_000.0
        self.skew = skew
        self.offset = skew if is_measured else None
        self.rows: list[tuple[float, float, dict]] = []
        self.windows: list[tuple[datetime, datetime]] = []
        self.pages = 0
        self.errors: list[Exception] = []
        self.seconds = 0.0
        self.waits: list[float] = []

    def iter_rows(self, *, start, end):
        assert timedelta(0) <= end - start <= timedelta(days=92)
        self.windows.append((start, end))
        shown = sorted(
            (
                (created, row)
                for created, shows_at, row in self.rows
                if shows_at <= self.now and start.timestamp() <= created <= end.timestamp()
            ),
            key=lambda entry: -entry[0],
        )
        for first in range(0, max(len(shown), 1), PAGE_ROWS):
            self.pages += 1
            if self.seconds:
                time.sleep(self.seconds)
            self.offset = self.skew
            if self.errors:
                raise self.errors.pop(0)
            yield from (row for _, row in shown[first : first + PAGE_ROWS])

    def wait(self, seconds: float) -> None:
        if seconds:
            self.waits.append(seconds)
            self.now += seconds

    def show(
        self, name: str, *, created: float | None = None, shows_at: float = 0.0, status: str = "succeeded", **cost
    ) -> None:
        """Write a row; ``created`` and ``shows_at`` are by our clock; the row itself carries the API's time."""
        row = {"client_request_id": name, "status": status, "inference_id": "inf", "cost": cost or {"usd": 0.04}}
        self.rows.append(((self.now if created is None else created) + self.skew, shows_at, row))

    def lookup(self, patience: float = 90.0) -> ChargeLookup:
        return ChargeLookup(
            iter_request_logs=self.iter_rows,
            wait=self.wait,
            patience_seconds=patience,
            now=lambda: self.now,
            clock_offset_seconds=lambda: self.offset,
        )


def find(log: Log, name: str = "r1", patience: float = 90.0):
    return log.lookup(patience).find(name, sent_at=log.now - 5, lost_at=log.now)


# --- what a row says --------------------------------------------------------------------------------------------------


def test_a_billed_request_is_found_with_its_cost_and_inference_id():
    log = Log()
    log.show("other")
    log.show("r1", usd=0.04, credits=80000)
    charge = find(log)
    assert (charge.billed, charge.usd, charge.inference_id) == (True, Decimal("0.04"), "inf")


def test_credits_are_converted_when_dollars_are_missing():
    log = Log()
    log.show("r1", credits=52000)
    assert find(log).usd == Decimal("0.026")


def test_a_failed_request_was_billed_nothing():
    log = Log()
    log.show("r1", status="failed", usd=0, credits=0)
    charge = find(log)
    assert (charge.billed, charge.usd) == (False, Decimal(0))


def test_an_undocumented_status_counts_as_billed():
    log = Log()
    log.show("r1", status="processing", usd=0, credits=0)
    assert find(log).billed


def test_a_request_billed_without_an_amount_still_counts_as_billed():
    log = Log()
    log.show("r1", currency="USD")
    charge = find(log)
    assert (charge.billed, charge.usd) == (True, None)


@pytest.mark.parametrize("name", [None, [], {}, 7])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_row_with_an_invalid_id_is_skipped_at_any_position(name, place):
    log = Log()
    rows = ["r1", "r2"]
    rows.insert(place, name)
    for age, shown in enumerate(rows):
        log.show(shown, created=log.now - age)
    assert log.lookup().look_once({"r1": log.now - 5, "r2": log.now - 5}).keys() == {"r1", "r2"}


@pytest.mark.parametrize("cost", [None, "0.04", [], {"usd": None}, {"usd": "much"}, {"usd": -1, "credits": True}])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_row_without_a_readable_amount_counts_as_billed_and_hides_no_other(cost, place):
    log = Log()
    rows = ["r1", "r2"]
    rows.insert(place, "odd")
    for age, shown in enumerate(rows):
        log.show(shown, created=log.now - age)
        if shown == "odd":
            log.rows[-1][2]["cost"] = cost
    found = log.lookup().look_once(dict.fromkeys(["r1", "odd", "r2"], log.now - 5))
    assert {name: (charge.billed, charge.usd) for name, charge in found.items()} == {
        "r1": (True, Decimal("0.04")),
        "odd": (True, None),
        "r2": (True, Decimal("0.04")),
    }


# --- patience ---------------------------------------------------------------------------------------------------------


def test_a_row_that_appears_late_is_waited_for():
    log = Log()
    log.show("r1", shows_at=log.now + 60)
    assert find(log).billed
    assert sum(log.waits) >= 60
    assert len(log.windows) < 12


def test_a_request_missing_from_the_log_counts_as_unbilled_only_after_the_patience():
    log = Log()
    before = log.now
    assert find(log) is None
    assert log.now >= before + 90


def test_a_cancellation_ends_the_wait():
    log = Log()

    def stop(seconds: float) -> None:
        raise StoppedError("stop")

    lookup = ChargeLookup(iter_request_logs=log.iter_rows, wait=stop, patience_seconds=90, now=lambda: log.now)
    with pytest.raises(StoppedError):
        lookup.find("r1", sent_at=log.now, lost_at=log.now)


def test_a_cancellation_ends_the_reading_of_a_long_log():
    log = Log()
    for _ in range(1000):
        log.show("other")
    waits = []

    def stop(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) > 150:
            raise StoppedError("stop")

    lookup = ChargeLookup(iter_request_logs=log.iter_rows, wait=stop, patience_seconds=90, now=lambda: log.now)
    with pytest.raises(StoppedError):
        lookup.find("r1", sent_at=log.now, lost_at=log.now)
    assert log.pages == 2


# --- the window -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gap", [11 * MINUTE, 5 * HOUR, 3 * DAY])
def test_two_lost_requests_are_both_found_however_far_apart_they_were_sent(gap):
    log = Log()
    sent = {"early": log.now - gap - 60, "late": log.now - 60}
    for name, sent_at in sent.items():
        log.show(name, created=sent_at)
    assert log.lookup().look_once(sent).keys() == {"early", "late"}
    log.seconds = 0.02
    lookup = log.lookup()
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda name: lookup.find(name, sent_at=sent[name], lost_at=log.now), sent))
    assert [charge.billed for charge in found] == [True, True]


@pytest.mark.parametrize("took", [0.0, 290.0, 40 * MINUTE])
@pytest.mark.parametrize("is_measured", [True, False])
@pytest.mark.parametrize("skew", [-3 * HOUR, -10 * MINUTE, 0.0, 10 * MINUTE, 3 * HOUR])
def test_a_request_is_found_by_its_start_or_its_end_whatever_the_clock_of_the_api(skew, is_measured, took):
    log = Log(skew=skew, is_measured=is_measured)
    sent_at = log.now - 40 * MINUTE
    log.show("r1", created=sent_at + took)
    charge = log.lookup().find("r1", sent_at=sent_at, lost_at=sent_at + took)
    assert charge.billed
    assert log.waits == []


@pytest.mark.parametrize("sender_ahead", [-3 * HOUR, -10 * MINUTE, 0.0, 10 * MINUTE, 15 * MINUTE])
@pytest.mark.parametrize("skew", [-3 * HOUR, -10 * MINUTE, 0.0, 10 * MINUTE, 3 * HOUR])
@pytest.mark.parametrize("age", [1.0, 5 * HOUR])
def test_a_request_is_found_whatever_the_clock_of_the_machine_that_sent_it(age, skew, sender_ahead):
    """That clock may be ahead of the later of ours and the API's by up to the slack, and behind by any amount."""
    log = Log(skew=skew)
    sent_at = log.now - age
    log.show("r1", created=sent_at)
    journalled_at = sent_at + max(skew, 0) + sender_ahead
    assert log.lookup(patience=0).find("r1", sent_at=journalled_at, lost_at=journalled_at).billed


def test_the_clock_of_the_api_is_requested_only_until_a_response_has_revealed_it():
    log = Log(skew=HOUR, is_measured=False)
    log.show("r1")
    log.show("r2")
    lookup = log.lookup()
    assert lookup.find("r1", sent_at=log.now, lost_at=log.now).billed
    assert lookup.find("r2", sent_at=log.now, lost_at=log.now).billed
    assert [(end - start).total_seconds() for start, end in log.windows] == [0, 1.5 * HOUR, 1.5 * HOUR]


def test_an_api_that_never_reveals_its_time_is_assumed_to_share_ours():
    log = Log()
    log.show("r1", created=log.now - 10 * MINUTE)
    lookup = ChargeLookup(
        iter_request_logs=log.iter_rows,
        wait=log.wait,
        patience_seconds=90,
        now=lambda: log.now,
        clock_offset_seconds=lambda: None,
    )
    assert lookup.find("r1", sent_at=log.now, lost_at=log.now).billed


@pytest.mark.parametrize("sent_at", [1_700_000_000 - 200 * DAY, -1e15, 1e15])
def test_a_window_is_never_longer_than_the_api_accepts(sent_at):
    log = Log()
    log.show("new")
    assert log.lookup().look_once({"old": sent_at, "new": log.now}).keys() == {"new"}
    assert log.lookup(patience=0).find("old", sent_at=sent_at, lost_at=log.now) is None


@pytest.mark.parametrize("place", [0, 50, 99, 100, 150, 199, 200, 250])
def test_pages_are_read_up_to_the_wanted_row_and_no_further(place):
    log = Log()
    for number in range(251):
        log.show("r1" if number == place else f"other-{number}", created=log.now - number)
    assert log.lookup().find("r1", sent_at=log.now - 250, lost_at=log.now).billed
    assert log.pages == place // PAGE_ROWS + 1


@pytest.mark.parametrize("places", [(0, 99), (0, 250), (99, 100), (120, 180), (249, 250)])
def test_two_requests_are_found_in_one_pass_over_the_pages(places):
    log = Log()
    for number in range(251):
        log.show(f"r{number}", created=log.now - number)
    sent = {f"r{place}": log.now - place for place in places}
    assert log.lookup().look_once(sent).keys() == sent.keys()
    assert len(log.windows) == 1
    assert log.pages == max(places) // PAGE_ROWS + 1


# --- a log that cannot be read ----------------------------------------------------------------------------------------

PASSING = [
    ConnectionFailedError("away"),
    ServerError("failed", status=500),
    RateLimitedError("too many", status=429),
    UnreadableResponseError("no JSON", status=200),
]


@pytest.mark.parametrize("error", PASSING, ids=lambda error: type(error).__name__)
def test_a_briefly_unavailable_log_is_read_again(error):
    log = Log()
    log.errors = [error, error]
    log.show("r1")
    assert find(log).billed
    assert log.waits == [1.0, 2.0]


@pytest.mark.parametrize("lost_ago", [0.0, 5 * HOUR])
@pytest.mark.parametrize("error", PASSING, ids=lambda error: type(error).__name__)
def test_an_unavailable_log_leaves_the_outcome_unknown_after_the_patience(error, lost_ago):
    """Even for an old request whose own patience has run out: its age says nothing about the log."""
    log = Log()
    log.errors = [error] * 99
    with pytest.raises(type(error)):
        log.lookup().find("r1", sent_at=log.now - lost_ago, lost_at=log.now - lost_ago)
    assert 90 <= sum(log.waits) <= 91


@pytest.mark.parametrize(
    "error", [AuthenticationError("no", status=401), AuthenticationError("no", status=403), InvalidRequestError("?")]
)
def test_a_log_that_refuses_access_is_not_waited_for(error):
    log = Log()
    log.errors = [error]
    with pytest.raises(type(error)):
        find(log)
    assert log.waits == []


def test_a_rate_limit_is_waited_out_for_as_long_as_the_api_says():
    log = Log()
    log.errors = [RateLimitedError("too many", retry_after=37)]
    log.show("r1")
    assert find(log).billed
    assert log.waits == [37]


def test_a_rate_limit_is_waited_out_for_no_longer_than_the_patience():
    log = Log()
    log.errors = [RateLimitedError("too many", retry_after=3600)]
    log.show("r1")
    with pytest.raises(RateLimitedError):
        find(log)
    assert log.waits == [90]
    assert log.pages == 1


def test_the_log_is_not_read_again_before_its_retry_after():
    log = Log()
    log.errors = [RateLimitedError("too many", retry_after=37)]
    log.show("r1")
    lookup = log.lookup()
    assert lookup.look_once({"r1": log.now}) == lookup.look_once({"r1": log.now}) == {}
    assert log.pages == 1
    assert lookup.find("r1", sent_at=log.now, lost_at=log.now).billed
    assert log.pages == 2


def test_a_page_that_fails_halfway_loses_nothing_already_found():
    log = Log()
    for number in range(150):
        log.show(f"r{number}", created=log.now - number)
    reads = log.iter_rows

    def second_page_fails(**window):
        for number, row in enumerate(reads(**window)):
            if number == 100 and len(log.windows) == 1:
                raise ServerError("failed", status=500)
            yield row

    log.iter_rows = second_page_fails
    lookup = log.lookup()
    assert lookup.look_once({"r0": log.now, "r120": log.now}).keys() == {"r0"}
    assert lookup.look_once({"r0": log.now, "r120": log.now}).keys() == {"r0", "r120"}


# --- threads ----------------------------------------------------------------------------------------------------------


def test_concurrent_lookups_share_reads_of_the_log():
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


def test_a_lookup_never_relies_on_a_read_that_did_not_cover_its_request():
    """Three threads at once: the second read must have covered whatever the third thread waits for."""
    names = [f"r{number}" for number in range(6)]
    for _ in range(30):
        log = Log()
        log.seconds = 0.005
        for name in names:
            log.show(name)
        find_at_once = partial(log.lookup(patience=0).find, sent_at=log.now, lost_at=0)
        with ThreadPoolExecutor(len(names)) as pool:
            assert None not in list(pool.map(find_at_once, names))


def test_a_read_that_crashes_fails_every_thread_that_shares_it():
    log = Log()
    log.seconds = 0.02
    log.errors = [RuntimeError("crash")] * 9
    find_at_once = partial(log.lookup(patience=0).find, sent_at=log.now, lost_at=0)
    with ThreadPoolExecutor(6) as pool:
        futures = [pool.submit(find_at_once, f"r{number}") for number in range(6)]
    assert all(future.exception() is not None for future in futures)


# --- late charges -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lag", [2 * MINUTE, 5 * HOUR])
@pytest.mark.parametrize("skew", [-3 * HOUR, 0.0, 3 * HOUR])
def test_a_charge_logged_after_the_patience_is_found_by_a_later_lookup(skew, lag):
    log = Log(skew=skew)
    sent = {"r1": log.now, "r2": log.now - 11 * MINUTE}
    log.show("r1", shows_at=log.now + lag)
    log.show("r2", created=sent["r2"], shows_at=log.now + lag)
    lookup = log.lookup()
    assert lookup.find("r1", sent_at=log.now, lost_at=log.now) is None
    assert lookup.look_once(sent) == {}
    log.now += lag
    assert lookup.look_once(sent).keys() == {"r1", "r2"}
    assert log.lookup().look_once(sent).keys() == {"r1", "r2"}


def test_a_request_no_longer_looked_for_does_not_widen_the_window():
    log = Log()
    lookup = log.lookup()
    lookup.look_once({"old": log.now - 30 * DAY})
    lookup.look_once({"new": log.now})
    start, end = log.windows[-1]
    assert end - start == timedelta(minutes=30)


def test_the_final_lookup_finds_late_charges_and_ignores_an_unavailable_log():
    log = Log()
    log.show("r2")
    lookup = log.lookup()
    assert list(lookup.look_once({"r1": log.now, "r2": log.now})) == ["r2"]
    log.errors = [ConnectionFailedError("away")]
    assert lookup.look_once({"r3": log.now}) == {}


def test_a_strict_lookup_raises_only_if_the_log_is_unavailable():
    log = Log()
    lookup = log.lookup()
    assert lookup.look_once({"r1": log.now}, strict=True) == {}
    log.errors = [ConnectionFailedError("away")]
    with pytest.raises(ConnectionFailedError):
        lookup.look_once({"r1": log.now}, strict=True)


def test_a_failed_request_with_a_charge_counts_as_billed():
    log = Log()
    log.show("r1", status="failed", usd=0.04)
    charge = find(log)
    assert (charge.billed, charge.usd) == (True, Decimal("0.04"))


def test_concurrent_lookups_share_reads_for_requests_missing_from_the_log():
    log = Log()
    log.seconds = 0.1
    find_at_once = partial(log.lookup(patience=0).find, sent_at=log.now, lost_at=0)
    with ThreadPoolExecutor(20) as pool:
        assert set(pool.map(find_at_once, [f"r{number}" for number in range(20)])) == {None}
    assert len(log.windows) <= 4


def test_without_the_time_of_the_api_the_window_follows_our_clock():
    log = Log()
    options = {"iter_request_logs": log.iter_rows, "wait": log.wait, "patience_seconds": 0, "now": lambda: log.now}
    for offset in ({}, {"clock_offset_seconds": lambda: None}):
        ChargeLookup(**options, **offset).look_once({"r1": log.now})
        assert [moment.timestamp() - log.now for moment in log.windows[-1]] == [-15 * MINUTE, 15 * MINUTE]


def test_dollars_take_precedence_over_credits():
    log = Log()
    log.show("r1", usd=0.05, credits=52000)
    assert find(log).usd == Decimal("0.05")
