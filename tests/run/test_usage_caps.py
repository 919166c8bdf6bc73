"""Caps on what the API key spends per day and month."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from airflow_provider_imagen.exceptions import (
    BudgetExceededError,
    InvalidRequestError,
    OutOfCreditsError,
    ServerError,
    UnreadableResponseError,
)
from airflow_provider_imagen.run.budget import Budget
from airflow_provider_imagen.run.shared_state import Cancellation, RunState
from airflow_provider_imagen.run.usage_caps import UsageCap, UsageCaps, read_limit

PRICE = Decimal("0.04")
NAMES = [f"prompt {number}" for number in range(10)]


def day(usd):
    return UsageCap("day", Decimal(str(usd)))


def month(usd):
    return UsageCap("month", Decimal(str(usd)))


def run(world, prompts=NAMES, *, caps, max_age_seconds=0.0, **options):
    return world.run(prompts, usage_caps=tuple(caps), usage_max_age_seconds=max_age_seconds, **options)


@pytest.mark.parametrize(("cap", "when"), [(day, "today"), (month, "this month")])
def test_a_plan_that_does_not_fit_under_what_is_left_sends_nothing(world, cap, when):
    world.ports.others_usd = Decimal("1.00")
    with pytest.raises(BudgetExceededError) as caught:
        run(world, caps=[cap("1.39")])
    error = caught.value
    assert (error.spent_usd, error.max_usd, error.items_left) == (1.0, 1.39, 10)
    assert str(error).startswith(
        f"max_usd_per_{error.period}=$1.39 of the connection: the API key has spent $1.00 {when}, "
        f"and the remaining requests cost about $0.40. Nothing was sent. To go on, clear the task after "
    )
    assert world.ports.posts == []
    assert len(run(world, caps=[cap("1.40")]).made) == 10


def test_the_tightest_of_several_caps_counts(world):
    world.ports.others_usd = Decimal("1.00")
    for caps, field in [([day(5), month("1.1")], "max_usd_per_month"), ([day("1.1"), month(5)], "max_usd_per_day")]:
        with pytest.raises(BudgetExceededError, match=field):
            run(world, caps=caps)
    with pytest.raises(BudgetExceededError, match=r"^max_usd="):
        run(world, caps=[day(5), month(5)], max_usd=Decimal("0.1"))


@pytest.mark.parametrize("max_age_seconds", [0.0, 60.0])
@pytest.mark.parametrize("concurrency", [1, 8])
@pytest.mark.parametrize("lags", [False, True])
def test_a_task_whose_quote_just_fits_is_never_stopped_by_its_own_requests(world, max_age_seconds, concurrency, lags):
    world.ports.usage_lags = lags
    world.ports.latency_seconds = 0.002
    result = run(
        world, NAMES, caps=[day("0.40"), month("0.40")], max_age_seconds=max_age_seconds, concurrency=concurrency
    )
    assert (result.abort_reason, len(result.made)) == (None, 10)


@pytest.mark.parametrize("lags", [False, True])
@pytest.mark.parametrize("max_age_seconds", [0.0, 60.0])
def test_a_price_above_the_quote_is_noticed_even_if_the_figures_lag(world, steps, lags, max_age_seconds):
    world.ports.usage_lags = lags
    for name in NAMES:
        world.ports.script(name, steps.pictures(usd=Decimal("0.10")))
    result = run(world, caps=[day("0.45")], max_age_seconds=max_age_seconds, concurrency=1)
    assert isinstance(result.abort_reason, BudgetExceededError)
    assert world.ports.billed_usd == Decimal("0.40")
    assert "$0.40 today, and the next request costs about $0.10" in str(result.abort_reason)


def test_what_others_spend_during_a_run_stops_it(world):
    def spend(_):
        world.ports.others_usd += Decimal("0.10")

    world.ports.before_post = spend
    result = run(world, caps=[day("0.60")], concurrency=1)
    assert isinstance(result.abort_reason, BudgetExceededError)
    assert (len(result.made), len(result.not_sent)) == (5, 4)
    assert result.abort_reason.spent_usd == 0.70


def test_a_recent_reading_is_not_repeated_and_without_a_cap_there_is_none(world):
    run(world, caps=[day(9), month(9)], max_age_seconds=60.0)
    assert len(world.ports.usage_windows) == 2
    world.run([f"{name} again" for name in NAMES])
    assert len(world.ports.usage_windows) == 2


def test_a_task_that_only_reuses_is_not_stopped_and_reads_nothing(world):
    world.run(NAMES)
    world.ports.others_usd = Decimal(100)
    world.ports.usage_error = lambda: ServerError("The API failed (500).", status=500)
    result = run(world, caps=[day(1)])
    assert (result.abort_reason, len(result.made), world.ports.usage_windows) == (None, 10, [])


def test_a_retry_keeps_what_is_paid_and_sends_nothing_more(world, steps):
    world.ports.script(NAMES[5], steps.fails(lambda: OutOfCreditsError("money", status=403)))
    world.run(NAMES, concurrency=1)
    posts = len(world.ports.posts)
    world.ports.others_usd = Decimal("0.70")
    result = run(world, caps=[day("1.00")])
    assert isinstance(result.abort_reason, BudgetExceededError)
    assert (result.abort_reason.items_done, result.abort_reason.items_left) == (5, 5)
    assert (len(result.made), len(world.ports.posts)) == (5, posts)
    world.ports.others_usd = Decimal("0.60")
    assert len(run(world, caps=[day("1.00")]).made) == 10


def test_without_a_price_the_run_ends_when_the_cap_is_reached(world):
    world.ports.others_usd = Decimal("0.90")
    result = run(world, world.plan(NAMES, price=None), caps=[day("1.00")], concurrency=4)
    assert isinstance(result.abort_reason, BudgetExceededError)
    assert world.ports.billed_usd == Decimal("0.08")


# --- figures that cannot be read --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make_error", "retry_helps"),
    [
        (lambda: ServerError("The API failed (500).", status=500), True),
        (lambda: InvalidRequestError("Not found (404).", status=404), False),
        (lambda: UnreadableResponseError("No amount."), False),
    ],
)
def test_unreadable_figures_stop_the_task_before_it_pays(world, make_error, retry_helps):
    world.ports.usage_error = make_error
    with pytest.raises(type(make_error())) as caught:
        run(world, caps=[month(5)])
    assert world.ports.posts == []
    assert caught.value.retry_helps is retry_helps
    text = str(caught.value)
    assert text.startswith("max_usd_per_month of the connection cannot be checked, so nothing more is sent: ")
    assert text.endswith("Try again later, or remove the cap from the connection.")


def test_figures_that_become_unreadable_end_the_run_and_keep_what_is_paid(world):
    def fail(_):
        if len(world.ports.posts) == 3:
            world.ports.usage_error = lambda: InvalidRequestError("Not found (404).", status=404)

    world.ports.before_post = fail
    result = run(world, caps=[day(5)], concurrency=1)
    assert isinstance(result.abort_reason, InvalidRequestError)
    assert (len(result.made), len(world.ports.posts)) == (4, 4)
    world.ports.usage_error = None
    assert len(run(world, caps=[day(5)]).made) == 10


def test_a_reading_that_fails_for_a_moment_is_repeated(world):
    world.ports.usage_error = lambda: ServerError("The API failed (503).", status=503)
    world.ports.usage_failures = 2
    assert len(run(world, caps=[day(5)], max_age_seconds=60.0).made) == 10
    assert len(world.ports.usage_windows) == 3


# --- periods ----------------------------------------------------------------------------------------------------------


class Clocked:
    """An API whose clock is ahead of ours by a fixed time, and that keeps the windows it is asked about."""

    def __init__(self, now, *, usage=Decimal(0)):
        self.usage = usage
        self.clock_offset_seconds = (now - datetime.now(UTC)).total_seconds()
        self.windows = []

    def get_usage(self, *, start, end):
        self.windows.append((start.isoformat(), end.isoformat()))
        return self.usage


@pytest.mark.parametrize(
    ("now", "day_window", "month_window"),
    [
        ("2026-12-31T12:00", ("2026-12-31", "2027-01-01"), ("2026-12-01", "2027-01-01")),
        ("2028-02-01T00:00:30", ("2028-02-01", "2028-02-02"), ("2028-02-01", "2028-03-01")),
        ("2027-01-31T23:59", ("2027-01-31", "2027-02-01"), ("2027-01-01", "2027-02-01")),
    ],
)
def test_periods_are_those_of_the_calendar_in_utc_by_the_apis_clock(now, day_window, month_window):
    api = Clocked(datetime.fromisoformat(now).replace(tzinfo=UTC))
    resets = [read_limit(cap, api).resets_at for cap in (day(1), month(1))]
    assert api.windows == [tuple(f"{date}T00:00:00+00:00" for date in window) for window in (day_window, month_window)]
    assert [f"{each:%Y-%m-%d}" for each in resets] == [day_window[1], month_window[1]]


def test_a_new_day_starts_with_nothing_spent(world):
    def turn_the_day(_):
        if len(world.ports.posts) == 4 and not world.ports.clock_offset_seconds:
            world.ports.clock_offset_seconds = 86400.0
            world.ports.others_usd = -world.ports.billed_usd  # yesterday's are not in the new day's usage

    world.ports.before_post = turn_the_day
    result = run(world, world.plan(NAMES, price=None), caps=[day("0.20")], concurrency=1)
    assert isinstance(result.abort_reason, BudgetExceededError)
    assert world.ports.billed_usd == 4 * PRICE + Decimal("0.20")


# --- tasks at the same time -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 4])
def test_tasks_at_the_same_time_exceed_the_cap_by_no_more_than_their_requests_in_flight(new_world, concurrency):
    """If every request is preceded by a reading, each task sees all charges but those of requests in flight."""
    worlds = [new_world() for _ in range(5)]
    cap, ports = Decimal("0.50"), worlds[0].ports
    for world in worlds:
        world.ports = ports
        world.ports.stores = False
    ports.latency_seconds = 0.002
    errors = []

    def work(world, number):
        try:
            errors.append(
                run(
                    world, [f"{number} {name}" for name in NAMES], caps=[day(cap)], concurrency=concurrency
                ).abort_reason
            )
        except BudgetExceededError as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(world, number)) for number, world in enumerate(worlds)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert any(isinstance(error, BudgetExceededError) for error in errors)
    assert cap - PRICE < ports.billed_usd <= cap + PRICE * concurrency * len(worlds)


# --- previous attempts ------------------------------------------------------------------------------------------------


def test_a_retry_while_the_figures_lag_counts_what_the_previous_attempt_spent(world, steps):
    world.ports.script(NAMES[5], steps.fails(lambda: OutOfCreditsError("money", status=403)))
    world.run(NAMES, concurrency=1)
    spent = world.ports.billed_usd
    assert spent == 5 * PRICE
    world.ports.usage_lags = True
    with_room_for_two = run(world, world.plan(NAMES, price=None), caps=[day(spent + 2 * PRICE)], concurrency=1)
    assert isinstance(with_room_for_two.abort_reason, BudgetExceededError)
    assert world.ports.billed_usd == spent + 2 * PRICE


@pytest.mark.parametrize(
    ("days_ago", "used", "room"),
    [
        (0, "0", "0.60"),  # its figures lag
        (0, "0.40", "0.60"),
        (0, "0.70", "0.30"),
        (2, "0", "1.00"),
        (2, "0.30", "0.70"),
    ],
)
def test_what_a_previous_attempt_spent_counts_in_its_own_period(days_ago, used, room):
    at = datetime.now(UTC) - timedelta(days=days_ago)
    budget = Budget()
    budget.count_own("id", Decimal("0.40"), model="m", at=at.timestamp())
    api = Clocked(datetime.now(UTC), usage=Decimal(used))
    caps = UsageCaps(
        [day("1.00")],
        reader=api,
        budget=budget,
        state=RunState(Cancellation()),
        max_age_seconds=0.0,
        first_wait_seconds=0.0,
    )
    for _ in range(2):
        caps.refresh()
        assert budget.tightest_limit.most_usd - budget.committed_usd == Decimal(room)
