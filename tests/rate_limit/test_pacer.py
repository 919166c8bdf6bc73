from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_imagen.exceptions import RateLimitedError, ServerError, StoppedError
from airflow_provider_imagen.rate_limit.pacer import Pacer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

pytestmark = pytest.mark.timeout(20)


class Clock:
    """A clock that moves only when set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def new_pacer(**options: Any) -> Pacer:
    return Pacer(throttled=RateLimitedError, **options)


def raise_if(stop: threading.Event) -> Callable[[], None]:
    """Return a check that raises once the task is cancelled."""

    def check() -> None:
        if stop.is_set():
            raise StoppedError("cancelled")

    return check


def permit_of(pacer: Pacer) -> AbstractContextManager[None]:
    """Take a permit that needs no preparation."""
    return pacer.permit(lambda: None, undo=lambda _: None)


def most_in_flight(pacer: Pacer, *, awaited: int, threads: int = 40) -> int:
    """Return the most permits held at once; each is held until ``awaited`` are, and a little longer."""
    changed, now, most = threading.Condition(), 0, 0

    def work() -> None:
        nonlocal now, most
        with permit_of(pacer):
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
def test_exactly_concurrency_requests_are_in_flight(concurrency):
    assert most_in_flight(new_pacer(concurrency=concurrency), awaited=concurrency) == concurrency


def test_a_429_holds_all_requests_for_its_retry_after():
    clock = Clock()
    pacer = new_pacer(concurrency=8, clock=clock)
    with pytest.raises(RateLimitedError), permit_of(pacer):
        raise RateLimitedError("429", retry_after=30.0)
    entered = threading.Event()

    def work() -> None:
        with permit_of(pacer):
            entered.set()

    thread = threading.Thread(target=work)
    thread.start()
    clock.now += 29.9
    assert not entered.wait(0.3)
    clock.now += 0.2
    assert entered.wait(2)
    thread.join()


def test_the_duration_of_consecutive_429s_is_known():
    clock = Clock()
    pacer = new_pacer(concurrency=8, clock=clock)
    assert pacer.refused_for_seconds == 0
    for _ in range(2):
        with pytest.raises(RateLimitedError), permit_of(pacer):
            raise RateLimitedError("429")
        clock.now += 10
    assert pacer.refused_for_seconds == 20
    with permit_of(pacer):
        pass
    assert pacer.refused_for_seconds == 0


def test_other_errors_do_not_slow_the_task_down():
    pacer = new_pacer(concurrency=8, clock=Clock())
    with pytest.raises(ServerError), permit_of(pacer):
        raise ServerError("503")
    assert most_in_flight(pacer, awaited=8) == 8


def test_the_rate_limit_is_logged_once(caplog):
    clock = Clock()
    pacer = new_pacer(concurrency=8, clock=clock)
    for _ in range(3):
        with pytest.raises(RateLimitedError), permit_of(pacer):
            raise RateLimitedError("429")
        clock.now += 10
    (record,) = caplog.records
    assert record.levelname == "WARNING"


def test_requests_per_minute_are_spaced_evenly():
    clock = Clock()
    pacer = new_pacer(concurrency=8, requests_per_minute=6, clock=clock)
    starts: list[float] = []

    def work() -> None:
        with permit_of(pacer):
            starts.append(clock.now)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        clock.now += 0.5
        time.sleep(0.005)
    assert len(starts) == 3
    assert all(later - earlier >= 9.5 for earlier, later in pairwise(starts))


def test_waiting_for_a_permit_ends_on_cancellation():
    stop = threading.Event()
    pacer = new_pacer(concurrency=1, check=raise_if(stop))
    threading.Timer(0.1, stop.set).start()
    started = time.monotonic()
    with permit_of(pacer), pytest.raises(StoppedError), permit_of(pacer):
        pytest.fail("there was only one permit")
    assert time.monotonic() - started < 30


def test_a_permit_is_released_when_its_request_fails():
    pacer = new_pacer(concurrency=1)
    with pytest.raises(ValueError, match="x"), permit_of(pacer):
        raise ValueError("x")
    with permit_of(pacer):
        pass


@contextmanager
def running_clock(clock: Clock) -> Iterator[None]:
    """Advance a clock, slowly enough that a thread waiting for a permit checks it after each step."""

    def pass_time() -> None:
        while not is_over.wait(0.25):  # each wait for a permit lasts 0.2 s at most
            clock.now += 0.5

    is_over = threading.Event()
    thread = threading.Thread(target=pass_time)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


class Preparation:
    """A step before a request is sent, which takes ``seconds`` by the clock."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self.clock = clock
        self.seconds = seconds
        self.prepared: list[float] = []
        self.undone: list[float] = []

    def prepare(self) -> float:
        self.prepared.append(self.clock.now)
        self.clock.now += self.seconds
        return self.prepared[-1]


def test_slow_preparation_is_done_ahead_of_the_start():
    clock = Clock()
    pacer = new_pacer(concurrency=1, requests_per_minute=6, clock=clock)
    preparing = Preparation(clock, 2.0)
    for _ in range(5):
        with pacer.permit(preparing.prepare, undo=preparing.undone.append):
            clock.now += 60  # long past the next start, so no permit has to be waited for
    permit = preparing.prepared[-1]
    clock.now = permit + 2

    with running_clock(clock), pacer.permit(preparing.prepare, undo=preparing.undone.append):
        pass
    assert permit + 5 <= preparing.prepared[-1] <= permit + 9.5
    assert clock.now >= permit + 10


def test_preparation_is_undone_and_redone_if_others_are_refused_before_the_start():
    clock = Clock()
    pacer = new_pacer(concurrency=2, clock=clock)
    preparing = Preparation(clock, 0)

    def prepare() -> float:
        if not preparing.prepared:
            with pytest.raises(RateLimitedError), permit_of(pacer):
                raise RateLimitedError("429", retry_after=5.0)
            threading.Timer(0.3, lambda: setattr(clock, "now", clock.now + 6)).start()
        return preparing.prepare()

    with pacer.permit(prepare, undo=preparing.undone.append) as prepared:
        assert prepared == preparing.prepared[1] == preparing.prepared[0] + 6
    assert preparing.undone == preparing.prepared[:1]


def test_a_stale_preparation_is_redone():
    clock = Clock()
    pacer = new_pacer(concurrency=1, clock=clock)
    preparing = Preparation(clock, 31)

    def prepare() -> float:
        prepared = preparing.prepare()
        preparing.seconds = 1
        return prepared

    with pacer.permit(prepare, undo=preparing.undone.append) as prepared:
        assert prepared == preparing.prepared[1]
    assert preparing.undone == preparing.prepared[:1]


def test_preparation_is_undone_if_the_task_is_cancelled_before_the_start():
    clock, stop = Clock(), threading.Event()
    pacer = new_pacer(concurrency=1, check=raise_if(stop), clock=clock)
    preparing = Preparation(clock, 0)

    def prepare() -> float:
        stop.set()
        return preparing.prepare()

    with pytest.raises(StoppedError), pacer.permit(prepare, undo=preparing.undone.append):
        pytest.fail("it was sent")
    assert preparing.undone == preparing.prepared == [clock.now]


def test_a_failed_preparation_releases_its_permit():
    pacer = new_pacer(concurrency=1)

    def fail() -> None:
        raise OSError("full")

    with pytest.raises(OSError, match="full"), pacer.permit(fail, undo=pytest.fail):
        pytest.fail("it was sent")
    with permit_of(pacer):
        pass


def test_a_request_is_prepared_just_before_its_start():
    """Time passes only during preparation and at each cancellation check."""
    clock = Clock()

    def pass_time(seconds: float) -> float:
        clock.now += seconds
        return clock.now - seconds

    spacing, preparing, look = 0.005, 0.001, 0.00025
    pacer = new_pacer(concurrency=1, requests_per_minute=60.25 / spacing, check=lambda: pass_time(look), clock=clock)
    prepared_times, sent = [], []
    for _ in range(30):
        with pacer.permit(lambda: pass_time(preparing), undo=lambda _: None) as prepared_at:
            prepared_times.append(prepared_at)
            sent.append(clock.now)

    leads = [start - earlier for earlier, start in zip(prepared_times, sent, strict=True)]
    assert all(preparing <= lead <= 2 * preparing for lead in leads[15:])
    assert sent[-1] - sent[15] == pytest.approx(14 * spacing, abs=3 * look)


def test_nothing_is_prepared_once_the_task_is_cancelled():
    cancelled = threading.Event()
    cancelled.set()
    pacer = new_pacer(concurrency=1, check=raise_if(cancelled))
    with pytest.raises(StoppedError), pacer.permit(pytest.fail, undo=pytest.fail):
        pytest.fail("was sent")
