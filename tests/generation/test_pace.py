from __future__ import annotations

import threading
import time
from itertools import pairwise

import pytest

from airflow_provider_imagen.exceptions import RateLimitedError, ServerError, StoppedError
from airflow_provider_imagen.generation.pace import Pace, sleep_unless

pytestmark = pytest.mark.timeout(20)


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def most_in_flight(pace: Pace, *, awaited: int, threads: int = 40) -> int:
    """Count the turns held at once; each is held until as many are as awaited, and a little longer."""
    changed, now, most = threading.Condition(), 0, 0

    def work() -> None:
        nonlocal now, most
        with pace.turn():
            with changed:
                now += 1
                most = max(most, now)
                changed.notify_all()
                changed.wait_for(lambda: most >= awaited, timeout=5)
            time.sleep(0.01)
            with changed:
                now -= 1

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return most


@pytest.mark.parametrize("concurrency", [1, 3, 16])
def test_never_more_than_concurrency_are_in_flight_and_no_fewer(concurrency):
    assert most_in_flight(Pace(concurrency=concurrency), awaited=concurrency) == concurrency


def test_a_429_holds_everybody_for_the_time_it_asks_for():
    clock = Clock()
    pace = Pace(concurrency=8, clock=clock)
    with pytest.raises(RateLimitedError), pace.turn():
        raise RateLimitedError("429", retry_after=30.0)
    entered = threading.Event()

    def work() -> None:
        with pace.turn():
            entered.set()

    thread = threading.Thread(target=work)
    thread.start()
    clock.now += 29.9
    assert not entered.wait(0.3)
    clock.now += 0.2
    assert entered.wait(2)
    thread.join()


def test_it_is_known_for_how_long_everything_was_refused():
    clock = Clock()
    pace = Pace(concurrency=8, clock=clock)
    assert pace.refused_for_seconds == 0
    for _ in range(2):
        with pytest.raises(RateLimitedError), pace.turn():
            raise RateLimitedError("429")
        clock.now += 10
    assert pace.refused_for_seconds == 20
    with pace.turn():
        pass
    assert pace.refused_for_seconds == 0


def test_any_other_error_slows_nobody_down():
    pace = Pace(concurrency=8, clock=Clock())
    with pytest.raises(ServerError), pace.turn():
        raise ServerError("503")
    assert most_in_flight(pace, awaited=8) == 8


def test_the_log_says_once_that_the_api_limits_the_task(caplog):
    clock = Clock()
    pace = Pace(concurrency=8, clock=clock)
    for _ in range(3):
        with pytest.raises(RateLimitedError), pace.turn():
            raise RateLimitedError("429")
        clock.now += 10
    (record,) = caplog.records
    assert record.levelname == "WARNING"


def test_requests_per_minute_are_spaced_evenly():
    clock = Clock()
    pace = Pace(concurrency=8, requests_per_minute=6, clock=clock)
    starts: list[float] = []

    def work() -> None:
        with pace.turn():
            starts.append(clock.now)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        clock.now += 0.5
        time.sleep(0.005)
    assert len(starts) == 3
    assert all(later - earlier >= 9.5 for earlier, later in pairwise(starts))


def test_waiting_for_a_turn_ends_when_the_task_is_told_to_stop():
    stop = threading.Event()
    pace = Pace(concurrency=1, should_stop=stop.is_set)
    threading.Timer(0.1, stop.set).start()
    began = time.monotonic()
    with pace.turn(), pytest.raises(StoppedError), pace.turn():
        pytest.fail("there was only one turn")
    assert time.monotonic() - began < 30


def test_a_wait_ends_early_when_the_task_is_told_to_stop():
    stop = threading.Event()
    threading.Timer(0.1, stop.set).start()
    began = time.monotonic()
    with pytest.raises(StoppedError):
        Pace(concurrency=1, should_stop=stop.is_set).wait(60)
    assert time.monotonic() - began < 30


def test_a_wait_of_nothing_still_says_that_the_task_is_told_to_stop():
    with pytest.raises(StoppedError):
        sleep_unless(lambda: True, 0)
    sleep_unless(lambda: False, 0)


def test_a_turn_is_given_back_when_its_request_fails():
    pace = Pace(concurrency=1)
    with pytest.raises(ValueError, match="x"), pace.turn():
        raise ValueError("x")
    with pace.turn():
        pass
