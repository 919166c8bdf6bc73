"""The controller's throughput in virtual time, against an API (``limited_api``) with a limit unknown to the task."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from limited_api import AtOnce, Bucket, FixedWindow, Moody, SlidingWindow, send

from airflow_provider_imagen.rate_limit.controller import Controller

PER_SECOND = 20
LIMITS = {
    "bucket, burst 1": lambda: Bucket(PER_SECOND, burst=1),
    "bucket, burst 10": lambda: Bucket(PER_SECOND, burst=10),
    "window of 1 s": lambda: FixedWindow(PER_SECOND, seconds=1),
    "window of 10 s": lambda: FixedWindow(PER_SECOND, seconds=10),
    "sliding window of 6 s": lambda: SlidingWindow(PER_SECOND, seconds=6),
}
TEN_MINUTES = 600
MAX_LOSS = 0.1


def share_lost(found, known):
    """Return the share of throughput lost compared with a limit known in advance."""
    return 1 - known.seconds / found.seconds


@pytest.mark.slow
@pytest.mark.parametrize("retry_after", [False, True])
@pytest.mark.parametrize("latency_seconds", [0.05, 1, 4])
@pytest.mark.parametrize("limit", LIMITS)
def test_the_highest_rate_is_found(limit, latency_seconds, retry_after):
    requests, concurrency = PER_SECOND * TEN_MINUTES, 128
    known = send(
        Controller(concurrency=concurrency, requests_per_minute=60 * PER_SECOND),
        LIMITS[limit](),
        requests=requests,
        latency_seconds=latency_seconds,
    )
    found = send(
        Controller(concurrency=concurrency),
        LIMITS[limit](),
        requests=requests,
        latency_seconds=latency_seconds,
        retry_after=retry_after,
    )

    assert known.refused == []
    assert share_lost(found, known) < MAX_LOSS
    assert found.share_refused(since=30) < 0.06


@pytest.mark.slow
@pytest.mark.parametrize("retry_after", [False, True])
@pytest.mark.parametrize("spread", [0, 0.5])
@pytest.mark.parametrize(("most", "latency_seconds"), [(2, 0.05), (8, 0.05), (2, 1), (8, 1), (32, 1), (8, 4), (32, 4)])
def test_the_highest_number_in_flight_is_found(most, latency_seconds, spread, retry_after):
    requests = round(most / latency_seconds * TEN_MINUTES)
    api = {"requests": min(20_000, max(2_000, requests)), "latency_seconds": latency_seconds, "spread": spread}
    known = send(Controller(concurrency=most), AtOnce(most), **api)
    found = send(Controller(concurrency=64), AtOnce(most), **api, retry_after=retry_after)

    assert known.refused == []
    assert share_lost(found, known) < MAX_LOSS
    assert found.share_refused(since=30) < 0.06


@pytest.mark.parametrize("retry_after", [False, True])
@pytest.mark.parametrize("limit", LIMITS)
def test_a_rate_limit_that_falls_or_rises_is_found_again(limit, retry_after):
    found = send(
        Controller(concurrency=64),
        LIMITS[limit](),
        requests=100_000,
        latency_seconds=1,
        retry_after=retry_after,
        changes=[(200, 0.5), (400, 2)],
        until=1000,
    )

    half = PER_SECOND / 2
    assert found.per_second(100, 200) > 0.9 * PER_SECOND
    assert found.per_second(230, 400) > 0.88 * half
    is_dear = retry_after or limit == "window of 10 s"  # probing a higher rate costs a second or more, so it is rare
    assert found.per_second(800 if is_dear else 460, 1000) > 0.88 * PER_SECOND


def test_an_in_flight_limit_that_falls_or_rises_is_found_again():
    found = send(
        Controller(concurrency=64),
        AtOnce(8),
        requests=100_000,
        latency_seconds=1,
        spread=0.5,
        changes=[(200, 0.5), (400, 2)],
        until=1000,
    )

    assert found.per_second(100, 200) > 0.9 * 8
    assert found.per_second(230, 400) > 0.9 * 4
    assert found.per_second(600, 1000) > 0.9 * 8


@pytest.mark.parametrize("way_seconds", [0.1, 0.5])
def test_many_late_refusals_at_once_are_handled(way_seconds):
    """When a limit collapses, requests in flight come back refused after the count has restarted."""
    found = send(
        Controller(concurrency=64),
        AtOnce(40),
        requests=100_000,
        latency_seconds=0.05,
        spread=0.5,
        way_seconds=way_seconds,
        changes=[(5, 1 / 40), (6.5, 40)],
        until=60,
    )

    assert found.per_second(40, 60) > 0.5 * found.per_second(2, 5)


@pytest.mark.parametrize("limit", sorted(LIMITS.keys() - {"bucket, burst 1"}))  # there, the first task gets everything
def test_tasks_that_share_a_limit_use_all_of_it(limit):
    first, second = send(
        [Controller(concurrency=32), Controller(concurrency=32)],
        LIMITS[limit](),
        requests=100_000,
        latency_seconds=1,
        until=600,
    )

    shares = [outcome.per_second(60, 600) / PER_SECOND for outcome in (first, second)]
    assert sum(shares) > 0.9
    assert min(shares) > 0.05
    assert first.share_refused(since=60) < 0.08


def test_a_window_used_up_by_others_does_not_lower_the_limits():
    limit = FixedWindow(PER_SECOND, seconds=60, used_up=True)
    found = send(Controller(concurrency=64), limit, requests=100_000, latency_seconds=1, until=600)

    assert found.per_second(120, 600) > 0.9 * PER_SECOND


@pytest.mark.parametrize("share", [0.01, 0.03])
def test_occasional_429s_at_any_rate_do_not_stop_the_task(share):
    found = send(Controller(concurrency=16), Moody(share), requests=100_000, latency_seconds=1, until=1800)

    assert found.per_second(600, 1800) > 16 / 4


def test_the_first_429_stops_the_whole_task_until_a_probe_is_accepted():
    controller = Controller(concurrency=8)
    permits = [controller.acquire(0.0) for _ in range(8)]
    controller.throttle(permits[0], 0.1)
    assert controller.delay(0.1) > 0
    assert controller.throttled_since == 0.1

    now = 0.1 + controller.delay(0.1)
    probe = controller.acquire(now)
    for permit in permits[1:]:
        controller.release(permit)
    assert controller.delay(now) > 0  # one at a time
    controller.release(probe)
    assert controller.throttled_since is None


def test_the_retry_after_of_a_429_applies_to_all_threads():
    controller = Controller(concurrency=8)
    first, second = controller.acquire(0.0), controller.acquire(0.0)
    controller.throttle(first, 1.0, retry_after=30.0)
    controller.throttle(second, 1.0, retry_after=5.0)

    assert controller.delay(1.0) == 30.0
    assert controller.delay(31.0) == 0


def test_pauses_grow_while_probes_are_refused():
    controller = Controller(concurrency=1)
    now, pauses = 0.0, []
    for _ in range(12):
        permit = controller.acquire(now)
        now += 0.01
        controller.throttle(permit, now, retry_after=0.0)
        pauses.append(controller.delay(now))
        now += pauses[-1]

    assert all(later >= earlier > 0 for earlier, later in pairwise(pauses))
    assert 0.1 < pauses[-1] < pauses[0] + 5


def test_a_probe_that_is_not_refused_in_time_counts_as_accepted():
    """A refusal arrives quickly, a response takes seconds: the task does not wait for the response."""
    controller = Controller(concurrency=8)
    controller.acquire(0.0)
    controller.throttle(controller.acquire(0.0), 0.1)
    now = 0.1 + controller.delay(0.1)
    controller.acquire(now)

    now += controller.delay(now)
    controller.delay(now)
    assert controller.throttled_since is None


steps = st.lists(
    st.tuples(
        st.sampled_from(["start", "start", "start", "end", "refuse"]),
        st.floats(0, 5),
        st.none() | st.floats(0, 20),
    ),
    max_size=120,
)


@settings(deadline=None, max_examples=200)
@given(steps=steps, concurrency=st.integers(1, 5), per_minute=st.integers(1, 120))
def test_neither_limit_is_ever_exceeded(steps, concurrency, per_minute):
    controller = Controller(concurrency=concurrency, requests_per_minute=per_minute)
    now, in_flight, starts = 0.0, [], []
    for what, seconds, retry_after in steps:
        now += seconds
        if what == "start":
            while (wait := controller.delay(now)) > 0:
                if wait == math.inf:
                    controller.release(in_flight.pop(0))
                else:
                    now += wait
            in_flight.append(controller.acquire(now))
            starts.append(now)
        elif in_flight and what == "end":
            controller.release(in_flight.pop(0))
        elif in_flight:
            controller.throttle(in_flight.pop(), now, retry_after=retry_after)
        assert len(in_flight) <= concurrency
        assert sum(start > now - 60 for start in starts) <= per_minute


def test_a_request_prepared_ahead_starts_on_time():
    controller = Controller(concurrency=8, requests_per_minute=60)
    first = controller.acquire(0.0)
    assert controller.delay(0.5, lead=0.4) == pytest.approx(0.104, abs=0.01)
    second, third = controller.acquire(0.7), controller.acquire(0.8)
    assert second.start - first.start == third.start - second.start == pytest.approx(1, abs=0.01)


def test_nothing_is_prepared_while_a_probe_is_in_flight():
    controller = Controller(concurrency=8)
    controller.throttle(controller.acquire(0.0), 0.5, retry_after=2.0)
    assert controller.delay(1.0, lead=2.0) == 0
    probe = controller.acquire(1.0)
    assert probe.start == 2.5
    assert not controller.is_revoked(probe)
    assert controller.delay(2.4, lead=2.0) > 0


def test_a_probe_that_is_not_sent_yet_respects_the_retry_after_of_a_late_429():
    controller = Controller(concurrency=8)
    first, late = controller.acquire(0.0), controller.acquire(0.0)
    controller.throttle(first, 0.5, retry_after=2.0)
    probe = controller.acquire(2.4)
    controller.throttle(late, 2.45, retry_after=9.0)
    assert controller.is_revoked(probe)
    controller.cancel(probe)
    assert controller.delay(2.45) == 9.0


def test_requests_held_up_by_a_429_and_not_sent_do_not_count():
    controller = Controller(concurrency=3)
    sent, unsent = controller.acquire(0.0), controller.acquire(0.0)
    controller.throttle(sent, 0.1)
    assert controller.is_revoked(unsent)
    controller.cancel(unsent)

    now = 0.1 + controller.delay(0.1)
    probe = controller.acquire(now)
    assert probe.others == 0
    controller.cancel(probe)
    assert controller.delay(now) == 0  # another one may start instead
    controller.release(controller.acquire(now))
    assert controller.throttled_since is None


def test_requests_are_still_spaced_after_an_idle_period():
    controller = Controller(concurrency=8, requests_per_minute=60)
    for now in (0.0, 100.0):
        assert controller.delay(now) == 0
        controller.acquire(now)
        assert controller.delay(now) >= 1
