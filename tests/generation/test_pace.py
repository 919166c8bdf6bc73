from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from airflow_provider_imagen.exceptions import RateLimitedError, ServerError, StoppedError
from airflow_provider_imagen.generation.pace import Pace, sleep_unless

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

pytestmark = pytest.mark.timeout(20)


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def turn_of(pace: Pace) -> AbstractContextManager[None]:
    """Take a turn that nothing has to be prepared for."""
    return pace.turn(lambda: None, undo=lambda _: None)


def most_in_flight(pace: Pace, *, awaited: int, threads: int = 40) -> int:
    """Count the turns held at once; each is held until as many are as awaited, and a little longer."""
    changed, now, most = threading.Condition(), 0, 0

    def work() -> None:
        nonlocal now, most
        with turn_of(pace):
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
    with pytest.raises(RateLimitedError), turn_of(pace):
        raise RateLimitedError("429", retry_after=30.0)
    entered = threading.Event()

    def work() -> None:
        with turn_of(pace):
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
        with pytest.raises(RateLimitedError), turn_of(pace):
            raise RateLimitedError("429")
        clock.now += 10
    assert pace.refused_for_seconds == 20
    with turn_of(pace):
        pass
    assert pace.refused_for_seconds == 0


def test_any_other_error_slows_nobody_down():
    pace = Pace(concurrency=8, clock=Clock())
    with pytest.raises(ServerError), turn_of(pace):
        raise ServerError("503")
    assert most_in_flight(pace, awaited=8) == 8


def test_the_log_says_once_that_the_api_limits_the_task(caplog):
    clock = Clock()
    pace = Pace(concurrency=8, clock=clock)
    for _ in range(3):
        with pytest.raises(RateLimitedError), turn_of(pace):
            raise RateLimitedError("429")
        clock.now += 10
    (record,) = caplog.records
    assert record.levelname == "WARNING"


def test_requests_per_minute_are_spaced_evenly():
    clock = Clock()
    pace = Pace(concurrency=8, requests_per_minute=6, clock=clock)
    starts: list[float] = []

    def work() -> None:
        with turn_of(pace):
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
    with turn_of(pace), pytest.raises(StoppedError), turn_of(pace):
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
    with pytest.raises(ValueError, match="x"), turn_of(pace):
        raise ValueError("x")
    with turn_of(pace):
        pass


@contextmanager
def time_goes_by(clock: Clock) -> Iterator[None]:
    """Let a clock go on, slowly enough that whoever waits for a turn looks at it after each step."""

    def pass_time() -> None:
        while not is_over.wait(0.25):  # each wait for a turn lasts 0.2 s at most
            clock.now += 0.5

    is_over = threading.Event()
    thread = threading.Thread(target=pass_time)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


class Preparing:
    """Something to be done before a request is sent, which takes a while by the clock."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self.clock = clock
        self.seconds = seconds
        self.prepared: list[float] = []
        self.undone: list[float] = []

    def prepare(self) -> float:
        self.prepared.append(self.clock.now)
        self.clock.now += self.seconds
        return self.prepared[-1]


def test_what_takes_a_while_before_a_request_is_done_ahead_of_its_turn():
    clock = Clock()
    pace = Pace(concurrency=1, requests_per_minute=6, clock=clock)
    preparing = Preparing(clock, 2.0)
    for _ in range(5):
        with pace.turn(preparing.prepare, undo=preparing.undone.append):
            clock.now += 60  # long after the next turn could come: it is not waited for
    turn = preparing.prepared[-1]
    clock.now = turn + 2

    with time_goes_by(clock), pace.turn(preparing.prepare, undo=preparing.undone.append):
        pass
    assert turn + 5 <= preparing.prepared[-1] <= turn + 9.5
    assert clock.now >= turn + 10


def test_what_was_prepared_is_undone_when_others_are_refused_before_its_turn_and_done_again():
    clock = Clock()
    pace = Pace(concurrency=2, clock=clock)
    preparing = Preparing(clock, 0)

    def prepare() -> float:
        if not preparing.prepared:
            with pytest.raises(RateLimitedError), turn_of(pace):
                raise RateLimitedError("429", retry_after=5.0)
            threading.Timer(0.3, lambda: setattr(clock, "now", clock.now + 6)).start()
        return preparing.prepare()

    with pace.turn(prepare, undo=preparing.undone.append) as prepared:
        assert prepared == preparing.prepared[1] == preparing.prepared[0] + 6
    assert preparing.undone == preparing.prepared[:1]


def test_what_was_prepared_too_long_ago_is_prepared_anew():
    clock = Clock()
    pace = Pace(concurrency=1, clock=clock)
    preparing = Preparing(clock, 31)

    def prepare() -> float:
        prepared = preparing.prepare()
        preparing.seconds = 1
        return prepared

    with pace.turn(prepare, undo=preparing.undone.append) as prepared:
        assert prepared == preparing.prepared[1]
    assert preparing.undone == preparing.prepared[:1]


def test_what_was_prepared_is_undone_when_the_task_is_told_to_stop_before_its_turn():
    clock, stop = Clock(), threading.Event()
    pace = Pace(concurrency=1, should_stop=stop.is_set, clock=clock)
    preparing = Preparing(clock, 0)

    def prepare() -> float:
        stop.set()
        return preparing.prepare()

    with pytest.raises(StoppedError), pace.turn(prepare, undo=preparing.undone.append):
        pytest.fail("it was sent")
    assert preparing.undone == preparing.prepared == [clock.now]


def test_a_preparation_that_fails_gives_its_turn_back():
    pace = Pace(concurrency=1)

    def fail() -> None:
        raise OSError("full")

    with pytest.raises(OSError, match="full"), pace.turn(fail, undo=pytest.fail):
        pytest.fail("it was sent")
    with turn_of(pace):
        pass
