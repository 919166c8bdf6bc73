"""What ends a run before its plan is done: errors that every request would hit, the cap, and cancellation."""

from __future__ import annotations

import threading
import time
from decimal import Decimal
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_imagen.exceptions import (
    AuthenticationError,
    BudgetExceededError,
    ChargedButLostError,
    ConnectionFailedError,
    InvalidRequestError,
    JournalError,
    OutOfCreditsError,
    RateLimitedError,
    ServerError,
    StoppedError,
    StorageError,
)

pytestmark = pytest.mark.timeout(40)

NAMES = [f"prompt {number}" for number in range(40)]


@pytest.mark.parametrize(
    "error",
    [
        AuthenticationError("key", status=401),
        OutOfCreditsError("money", status=403),
        RateLimitedError("429", status=429, retry_after=600),
        ServerError("503", status=503, retry_after=600),
    ],
)
def test_an_error_that_every_request_would_hit_ends_the_run_but_keeps_what_is_in_flight(world, steps, error):
    in_flight = threading.Barrier(4, timeout=5)

    def refuse(ports, request, name):
        in_flight.wait()
        raise error

    def slow(ports, request, name):
        in_flight.wait()
        time.sleep(0.2)
        return steps.pictures()(ports, request, name)

    world.ports.script("prompt 0", refuse)
    for number in (1, 2, 3):
        world.ports.script(f"prompt {number}", slow)
    result = world.run(NAMES, concurrency=4)
    assert result.abort_reason is error
    assert len(result.made) == 3
    assert len(world.ports.posts) == 4
    assert len(result.not_sent) == 36
    assert len(result.failures) == 1
    world.ports.script("prompt 0")
    assert len(world.run(NAMES).made) == 40
    assert world.ports.billed_usd == Decimal("1.60")


@pytest.mark.parametrize("concurrency", [1, 8])
@pytest.mark.parametrize("ending", ["key", "cap", "log"])
def test_images_of_previous_attempts_are_listed_even_if_the_run_ends_at_once(world, steps, ending, concurrency):
    names = ["prompt 0", "removed", *NAMES[1:12]]
    world.ports.script("prompt 0", steps.fails(lambda: InvalidRequestError("no", status=400)))
    world.run(world.plan(names, price=None))
    if ending == "key":
        world.ports.script("prompt 0", steps.fails(lambda: AuthenticationError("key", status=401)))
    elif ending == "log":
        world.ports.script("prompt 0", steps.loses())
        world.ports.log_error = AuthenticationError("key", status=401)
    for _ in range(3):
        result = world.run(
            world.plan(NAMES[:12], price=None),
            concurrency=concurrency,
            max_usd=Decimal("0.48") if ending == "cap" else None,
        )
        assert (result.abort_reason is None) == (ending == "log")
        assert [record.prompt for record in result.records] == NAMES[1:12]
        assert [made.record.prompt for made in result.superseded] == ["removed"]
        assert result.reused == 11
        if ending == "key":
            world.ports.script("prompt 0", steps.fails(lambda: AuthenticationError("key", status=401)))


@pytest.mark.parametrize(
    "make_error",
    [lambda: RateLimitedError("429", status=429), lambda: ConnectionFailedError("no connection")],
)
def test_an_api_that_accepts_no_request_ends_the_run(world, steps, make_error):
    for name in NAMES:
        world.ports.script(name, *[steps.fails(make_error) for _ in range(20)])
    result = world.run(NAMES, concurrency=4, rate_limit_patience_seconds=0.05)
    assert isinstance(result.abort_reason, (RateLimitedError, ConnectionFailedError))
    assert len(world.ports.posts) <= 4 * 6
    assert result.made == []
    assert result.usd_spent == 0


def test_a_request_waiting_for_its_retry_is_not_sent_once_the_run_is_aborted(world, steps):
    world.ports.script("prompt 0", steps.fails(lambda: ServerError("503", status=503, retry_after=0.5)))

    def refuse(ports, request, name):
        time.sleep(0.1)
        raise AuthenticationError("key", status=401)

    world.ports.script("prompt 1", refuse)
    result = world.run(NAMES[:2], concurrency=2)
    assert isinstance(result.abort_reason, AuthenticationError)
    assert world.ports.sent("prompt 0") == 1
    assert [item.prompt for item in result.not_sent] == ["prompt 0"]


def test_a_429_slows_the_whole_run_and_its_retry_after_is_obeyed(world, steps):
    times = []
    world.ports.before_post = lambda name: times.append(time.monotonic())
    world.ports.script("prompt 0", steps.fails(lambda: RateLimitedError("429", status=429, retry_after=0.4)))
    world.ports.latency_seconds = 0.03
    result = world.run(NAMES[:8], concurrency=2)
    assert len(result.made) == 8
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert max(gaps) >= 0.35
    assert times[-1] - times[0] >= 0.4


def test_a_failing_journal_stops_sending_but_paid_images_are_stored(world):
    all_in_flight = threading.Barrier(8, action=lambda: setattr(world.store, "fails_after", world.store.writes))
    world.ports.before_post = lambda _: all_in_flight.wait(60)
    result = world.run(NAMES, concurrency=8)
    assert isinstance(result.abort_reason, JournalError)
    assert len(world.ports.posts) == 8 == len(result.made) == len(world.ports.files)
    assert result.usd_spent == world.ports.billed_usd


def test_nothing_is_sent_if_the_journal_accepts_no_record(world):
    world.store.fails_after = 1  # the header
    result = world.run(NAMES, concurrency=8)
    assert isinstance(result.abort_reason, JournalError)
    assert world.ports.posts == []


def test_nothing_is_sent_if_the_journal_cannot_be_taken_over(world):
    world.store.fails_after = 0
    with pytest.raises(JournalError):
        world.run(NAMES, concurrency=8)
    assert world.ports.posts == []


def test_a_full_disk_stops_sending(world):
    world.ports.save_error = StorageError("the disk is full")
    world.ports.latency_seconds = 0.01
    result = world.run(NAMES, concurrency=2)
    assert isinstance(result.abort_reason, StorageError)
    assert len(world.ports.posts) <= 12
    world.ports.save_error = None
    assert len(world.run(NAMES).made) == 40
    assert len(world.ports.posts) == 40


# --- the cap ----------------------------------------------------------------------------------------------------------


def test_a_plan_that_cannot_fit_is_refused_before_the_first_post(world):
    with pytest.raises(BudgetExceededError) as caught:
        world.run(NAMES, max_usd=Decimal("1.59"))
    assert world.ports.posts == []
    assert (caught.value.items_done, caught.value.items_left) == (0, 40)
    assert len(world.run(NAMES, max_usd=Decimal("1.60")).made) == 40


def test_the_cap_holds_over_all_attempts(world, steps):
    for name in NAMES[20:]:
        world.ports.script(name, steps.fails(lambda: OutOfCreditsError("money", status=403)))
    world.run(NAMES, concurrency=1)
    posts = len(world.ports.posts)
    result = world.run(NAMES, max_usd=Decimal("1.59"))
    assert isinstance(result.abort_reason, BudgetExceededError)
    assert (result.abort_reason.items_done, result.abort_reason.items_left) == (20, 20)
    assert result.abort_reason.spent_usd == 0.8
    assert (len(result.made), len(result.not_sent), len(world.ports.posts)) == (20, 20, posts)


def test_a_loss_that_is_not_resent_needs_no_room_under_the_cap(world, steps):
    world.ports.script("prompt 0", steps.loses(billed=True))
    world.run(NAMES[:2])
    result = world.run(NAMES[:2], max_usd=Decimal("0.08"))
    assert (result.abort_reason, result.usd_spent) == (None, Decimal("0.08"))
    assert [type(failure.error) for failure in result.failures] == [ChargedButLostError]


@pytest.mark.parametrize("refused", [[0], [1], [0, 1, 2]])
@pytest.mark.parametrize(("price", "concurrency"), [(Decimal("0.04"), 1), (Decimal("0.04"), 4), (None, 1)])
def test_a_rejection_releases_its_reservation_under_a_tight_cap(world, steps, refused, concurrency, price):
    names = NAMES[:4]
    for number in refused:
        world.ports.script(names[number], steps.fails(lambda: InvalidRequestError("no", status=400)))
    cap = Decimal("0.04") * (4 if price else 4 - len(refused))
    result = world.run(world.plan(names, price=price), max_usd=cap, concurrency=concurrency)
    assert [record.prompt for record in result.records] == [
        name for number, name in enumerate(names) if number not in refused
    ]
    assert [failure.item.index for failure in result.failures] == refused
    assert result.abort_reason is None
    assert (result.usd_spent, result.usd_in_doubt) == (Decimal("0.04") * (4 - len(refused)), 0)
    again = world.run(world.plan(names, price=price), max_usd=Decimal("0.16"), concurrency=concurrency)
    assert len(again.made) == 4
    assert again.usd_spent == Decimal("0.16") == world.ports.billed_usd


@pytest.mark.parametrize("costs", [("0.04", "0.10"), ("0.10", "0.04")])
def test_with_an_unknown_price_the_highest_cost_seen_decides_what_fits(world, steps, costs):
    for name, usd in zip(NAMES, costs, strict=False):
        world.ports.script(name, steps.pictures(usd=Decimal(usd)))
    result = world.run(world.plan(NAMES, price=None), max_usd=Decimal("0.23"), concurrency=1)
    assert [record.usd for record in result.records] == [float(usd) for usd in costs]
    assert isinstance(result.abort_reason, BudgetExceededError)
    assert "the next request costs about $0.10" in str(result.abort_reason)
    second = world.run(world.plan(NAMES, price=None), max_usd=Decimal("0.24"), concurrency=1)
    assert (len(second.made), second.usd_spent) == (3, Decimal("0.18"))


@pytest.mark.parametrize("concurrency", [1, 8])
def test_with_an_unknown_price_the_first_request_goes_alone_and_the_cap_holds(world, concurrency):
    alone = []
    world.ports.before_post = lambda name: alone.append(world.ports.in_flight)
    world.ports.latency_seconds = 0.05
    result = world.run(world.plan(NAMES, price=None), max_usd=Decimal("0.42"), concurrency=concurrency)
    assert isinstance(result.abort_reason, BudgetExceededError)
    assert world.ports.billed_usd == result.usd_spent == Decimal("0.40")
    assert len(result.made) == 10
    assert alone[0] == 0
    assert len(world.run(world.plan(NAMES, price=None), max_usd=Decimal("1.60")).made) == 40


@settings(max_examples=15, deadline=None)
@given(
    cap=st.integers(10, 60).map(lambda number: Decimal(number) / 100),
    concurrency=st.sampled_from([1, 3, 8]),
    costs=st.lists(st.sampled_from(["0.01", "0.02", "0.04"]), min_size=5, max_size=20),
)
def test_the_actual_bill_stays_within_the_cap(new_world, steps, cap, concurrency, costs):
    world = new_world()
    names = [f"p{number}" for number in range(len(costs))]
    for name, cost in zip(names, costs, strict=True):
        world.ports.script(name, steps.pictures(usd=Decimal(cost)))
    plan = world.plan(names, price=None)
    result = world.run(plan, max_usd=cap, concurrency=concurrency)
    assert world.ports.billed_usd == result.usd_spent
    # if later requests cost more than the first one, the requests then in flight may exceed the cap
    dearest = max(map(Decimal, costs))
    assert world.ports.billed_usd <= cap + dearest * concurrency
    plan = world.plan(names, price=dearest or Decimal("0.01"))
    world = new_world()
    for name, cost in zip(names, costs, strict=True):
        world.ports.script(name, steps.pictures(usd=Decimal(cost)))
    try:
        result = world.run(plan, max_usd=cap, concurrency=concurrency)
    except BudgetExceededError:
        assert world.ports.posts == []
    else:
        assert world.ports.billed_usd <= cap


# --- cancellation -----------------------------------------------------------------------------------------------------


def test_after_a_cancellation_nothing_is_sent_and_responses_in_the_grace_period_are_kept(world):
    world.ports.latency_seconds = 0.3
    all_in_flight = threading.Barrier(4, action=world.cancel)
    world.ports.before_post = lambda _: all_in_flight.wait(60)
    result = world.run(NAMES, concurrency=4, grace_seconds=60)
    assert isinstance(result.abort_reason, StoppedError)
    assert len(world.ports.posts) == 4
    assert sum(entry.response is not None for entry in world.requests.values()) == 4
    assert not any(entry.open_intents for entry in world.requests.values())
    world.resume()
    world.ports.latency_seconds = 0
    world.ports.before_post = lambda _: None
    assert len(world.run(NAMES, concurrency=4).made) == 40
    assert len(world.ports.posts) == 40


def test_an_inline_image_in_flight_at_the_cancellation_is_still_stored(world, steps):
    world.ports.latency_seconds = 0.3
    world.ports.script("prompt 0", steps.pictures(inline=True))
    world.ports.before_post = lambda _: world.cancel()
    world.run(NAMES, concurrency=1, grace_seconds=60)
    assert list(world.ports.files) == ["000-0.png"]


def test_a_cancelled_run_ends_in_time_even_if_a_request_hangs(world):
    release = threading.Event()

    def hang(ports, request, name):
        world.cancel()
        release.wait(60)
        raise AssertionError("too late")

    world.ports.script("prompt 2", hang)
    began = time.monotonic()
    result = world.run(NAMES, concurrency=4, grace_seconds=0.5)
    assert time.monotonic() - began < 30  # far less than the hanging request takes
    assert isinstance(result.abort_reason, StoppedError)
    release.set()
    (entry,) = [entry for entry in world.requests.values() if entry.open_intents]
    assert entry.response is None


def test_a_cancelled_run_ends_in_time_even_if_downloads_hang(world):
    release = threading.Event()
    world.ports.fetch = lambda url: (release.wait(60) and b"") or b""
    threading.Timer(0.2, world.cancel).start()
    began = time.monotonic()
    result = world.run(NAMES * 3, concurrency=8, grace_seconds=0.5)
    assert time.monotonic() - began < 30  # far less than the hanging request takes
    assert isinstance(result.abort_reason, StoppedError)
    release.set()


def test_downloads_that_hang_at_the_cancellation_are_repeated_by_the_next_attempt(world):
    release = threading.Event()
    fetch = world.ports.fetch

    def fetch_one(url: str) -> bytes:
        if world.ports.fetched:
            world.cancel()
            release.wait(60)
            raise AssertionError("too late")
        return fetch(url)

    world.ports.fetch = fetch_one
    prompt = {"prompt": "a", "num_images": 3}
    result = world.run(prompt, grace_seconds=0.5)
    assert isinstance(result.abort_reason, StoppedError)
    assert len(result.made) == 1
    assert [item.prompt for item in result.not_sent] == ["a"]
    assert (result.summary().made, result.summary().not_sent) == (1, 2)
    release.set()
    world.resume()
    world.ports.fetch = fetch
    result = world.run(prompt)
    assert result.abort_reason is None
    assert len(result.made) == 3
    assert len(world.ports.posts) == 1


def test_a_run_cancelled_before_its_start_sends_nothing(world):
    world.cancel()
    result = world.run(NAMES)
    assert isinstance(result.abort_reason, StoppedError)
    assert world.ports.posts == []
    assert len(result.not_sent) == 40


def test_a_charge_lookup_that_is_cancelled_is_left_to_the_next_attempt(world, steps):
    world.ports.script("prompt 0", steps.loses(billed=True, logged=False))
    threading.Timer(0.3, world.cancel).start()
    result = world.run(NAMES[:1], lost_answer_patience_seconds=60)
    assert isinstance(result.abort_reason, StoppedError)
    world.resume()
    world.ports.log_row(world.ports.posts[0][1], "succeeded", Decimal("0.04"))
    assert world.run(NAMES[:1]).usd_lost == Decimal("0.04")
