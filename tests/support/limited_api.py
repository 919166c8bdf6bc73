"""A simulated rate-limited API and tasks that use it, in virtual time: minutes pass in milliseconds."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow_provider_imagen.rate_limit.controller import Controller

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Bucket:
    """A token bucket: tokens arrive evenly, and each request takes one."""

    def __init__(self, per_second: float, *, burst: int) -> None:
        self.per_second, self.burst = per_second, burst
        self.tokens, self.filled_at = float(burst), 0.0

    def take(self, now: float) -> float:
        """Accept a request and return 0, or return the seconds until one would be accepted."""
        self.tokens = min(self.burst, self.tokens + (now - self.filled_at) * self.per_second)
        self.filled_at = now
        if self.tokens < 1 - 1e-9:
            return (1 - self.tokens) / self.per_second
        self.tokens -= 1
        return 0.0

    def scale(self, factor: float) -> None:
        self.per_second *= factor

    def release(self) -> None:
        pass


class FixedWindow:
    """A fixed number of requests per clock window; windows do not start with the task."""

    def __init__(self, per_second: float, *, seconds: float, used_up: bool = False) -> None:
        self.most, self.seconds = round(per_second * seconds), seconds
        self.window, self.count = (0, self.most) if used_up else (-1, 0)

    def take(self, now: float) -> float:
        window = math.floor(now / self.seconds + 0.7)
        if window != self.window:
            self.window, self.count = window, 0
        if self.count >= self.most:
            return (window + 0.3) * self.seconds - now
        self.count += 1
        return 0.0

    def scale(self, factor: float) -> None:
        self.most = round(self.most * factor)

    def release(self) -> None:
        pass


class SlidingWindow:
    """A fixed number of requests within a sliding window."""

    def __init__(self, per_second: float, *, seconds: float) -> None:
        self.most, self.seconds = round(per_second * seconds), seconds
        self.past: deque[float] = deque()

    def take(self, now: float) -> float:
        while self.past and self.past[0] <= now - self.seconds + 1e-9:
            self.past.popleft()
        if len(self.past) >= self.most:
            return self.past[-self.most] + self.seconds - now
        self.past.append(now)
        return 0.0

    def scale(self, factor: float) -> None:
        self.most = round(self.most * factor)

    def release(self) -> None:
        pass


class AtOnce:
    """A fixed number of requests in flight."""

    def __init__(self, most: int) -> None:
        self.most, self.now = most, 0

    def take(self, now: float) -> float:
        if self.now >= self.most:
            return 1.0
        self.now += 1
        return 0.0

    def scale(self, factor: float) -> None:
        self.most = round(self.most * factor)

    def release(self) -> None:
        self.now -= 1


class Moody:
    """Rejects a share of the requests, whatever their rate."""

    def __init__(self, share: float) -> None:
        self.share, self.dice = share, random.Random(3)

    def take(self, now: float) -> float:
        return 1.0 if self.dice.random() < self.share else 0.0

    def release(self) -> None:
        pass


@dataclass
class Outcome:
    """
    The outcome of one task.

    :param starts: when requests were sent
    :param taken: when the API accepted requests
    :param refused: when rejections came back
    :param seconds: until the last response
    """

    starts: list[float] = field(default_factory=list)
    taken: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    answered: int = 0
    under_way: int = 0
    most_under_way: int = 0
    seconds: float = 0.0

    def per_second(self, since: float, until: float) -> float:
        """Return the requests accepted per second in a time span."""
        return sum(since <= at < until for at in self.taken) / (until - since)

    def share_refused(self, *, since: float = 0.0) -> float:
        """Return the share of requests that were rejected."""
        refused, taken = (sum(at >= since for at in times) for times in (self.refused, self.taken))
        return refused / max(1, refused + taken)


def send(
    controllers: Controller | Sequence[Controller],
    limit: Any,
    *,
    requests: int,
    latency_seconds: float,
    spread: float = 0.0,
    way_seconds: float = 0.01,
    retry_after: bool = False,
    changes: Sequence[tuple[float, float]] = (),
    until: float = math.inf,
) -> Any:
    """
    Send requests to an API with a limit, as fast as the controllers allow.

    :param controllers: one, or one for each task that shares the limit
    :param requests: how many each task sends
    :param latency_seconds: how long the API works on an accepted request
    :param spread: relative variation of the latency
    :param way_seconds: round trip to the API
    :param retry_after: rejections state the seconds to wait, rounded up as the header requires
    :param changes: times, each with a factor by which the limit is multiplied then
    :return: the outcome, or a list with one for each task
    """
    tasks = [controllers] if isinstance(controllers, Controller) else list(controllers)
    outcomes, left = [Outcome() for _ in tasks], [requests for _ in tasks]
    dice, order, now = random.Random(7), itertools.count(), 0.0
    events: list[tuple[float, int, Callable[[], None]]] = []
    wakes: list[float] = [-1.0 for _ in tasks]

    def at(when: float, what: Callable[[], None]) -> None:
        heapq.heappush(events, (when, next(order), what))

    def start(task: int) -> None:
        """Start the requests that may start now, and schedule the next start."""
        outcome = outcomes[task]
        while left[task]:
            wait = tasks[task].delay(now)
            if wait > 0:
                if wait < math.inf and not now < wakes[task] <= now + wait:
                    wakes[task] = now + max(wait, 1e-6)
                    at(wakes[task], lambda: None)
                return
            permit = tasks[task].acquire(now)
            left[task] -= 1
            outcome.starts.append(now)
            outcome.under_way += 1
            outcome.most_under_way = max(outcome.most_under_way, outcome.under_way)
            at(now + way_seconds / 2, lambda permit=permit: arrive(task, permit))  # type: ignore[misc]

    def arrive(task: int, permit: Any) -> None:
        wait = limit.take(now)
        if wait:
            delay_seconds = float(math.ceil(wait)) if retry_after else None
            at(now + way_seconds / 2, lambda: reject(task, permit, delay_seconds))
        else:
            outcomes[task].taken.append(now)
            at(now + latency_seconds * (1 + dice.uniform(-spread, spread)), lambda: serve(task, permit))

    def serve(task: int, permit: Any) -> None:
        limit.release()
        at(now + way_seconds / 2, lambda: respond(task, permit))

    def respond(task: int, permit: Any) -> None:
        tasks[task].release(permit)
        outcomes[task].answered += 1
        outcomes[task].under_way -= 1
        outcomes[task].seconds = now

    def reject(task: int, permit: Any, delay_seconds: float | None) -> None:
        tasks[task].throttle(permit, now, retry_after=delay_seconds)
        left[task] += 1
        outcomes[task].refused.append(now)
        outcomes[task].under_way -= 1

    for when, factor in changes:
        at(when, lambda factor=factor: limit.scale(factor))  # type: ignore[misc]
    at(0.0, lambda: None)
    while events and now < until and any(outcome.answered < requests for outcome in outcomes):
        now, _, happen = heapq.heappop(events)
        happen()
        for task in range(len(tasks)):
            start(task)
    return outcomes[0] if isinstance(controllers, Controller) else outcomes
