"""
Decide when a task may send its next request, and learn from each 429 how fast the API lets it.

Nothing here waits or looks at a clock: :mod:`airflow_provider_imagen.generation.pace` does.

The API documents neither its limits nor a ``Retry-After`` (page "Errors", 2026-08). So nobody knows whether a 429 means
too many requests in a window, an empty token bucket, or too many under way, and this works for all of them:

- **Stop.** A 429 stops the whole task, for as long as it asks, else for two spacings. Then one request goes ahead as a
  scout. While scouts are refused, the pauses grow; once one is taken, all go on, at a pace learned from the refusal.
- **Rate.** The refused rate is approached again from 3 % below, along a cubic curve as in TCP CUBIC (RFC 9438): fast at
  first, hardly at all near the rate that was refused, and ever faster beyond it. So most requests start just below the
  limit, and a limit that was lifted is found. What was far too fast is not approached but measured: the limit lies
  between what was taken per second until the last refusal, and until the first request that was taken after it.
- **In flight.** When those refused had more company than those taken, the limit is on requests under way. Then the task
  keeps to that number, without spacing, for a while, and tries the rate again afterwards.
- **Patience.** The longer a limit stands and the longer its pauses are, the more requests pass between two attempts to
  exceed it: pauses may cost about 1 % of the time.

The constants were found by simulating these limits (``tests/generation/test_throttle.py`` holds what they achieve).
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Final

from msgspec import Struct

_DIP: Final = 0.03
"""How far below the refused rate the next approach begins."""

_HASTE: Final = 2
"""How much faster the rate moves away from the refused one beyond it than it came near."""

_LEAST_PATIENCE: Final = 20
_FIRST_PATIENCE: Final = 50
_MOST_PATIENCE: Final = 200
_MOST_PATIENCE_IN_FLIGHT: Final = 400
"""Starts from the beginning of an approach to the limit; doubled each time the limit stands."""

_FEW_REFUSED: Final = 6
_SHORT_STOPS: Final = 0.4
_WEIGHT_OF_LAST: Final = 0.3
"""Requests taken per refusal, and share of the time that stops take, in averages that a stop weighs so much in."""

_LEAST_CUT: Final = 0.02
"""What a refusal costs at most while few are refused and stops are short."""

_EVIDENCE: Final = 25
"""Requests that must have been taken before a limit on those under way is believed in; grows when that was wrong."""

_STARTS_PER_PAUSE: Final = 100
"""Starts, per start that a pause cost, until the next pause is risked."""

_LONGEST_PAUSE_COUNTED: Final = 2.0
"""Seconds of a pause that count for this: a longer one waits for the window's end and loses nothing more."""

_PAUSE_GROWTH: Final = 0.5
_LONGEST_PAUSE: Final = 5.0
"""Length of the next pause, as a share of the time since the first refusal; and in seconds, at most."""

_WHOLE_SECOND: Final = 1.0
"""``Retry-After`` counts in whole seconds (RFC 9110, 10.2.3), so the limit may have ended so much earlier."""

_MINUTE_SECONDS: Final = 60.25
"""A minute, and what the way to the API may add or take: evenly spaced over it, no minute there sees one too many."""


class Turn(Struct, eq=False):
    """
    One request that is about to start, or on its way.

    :param started: when, in seconds; may be some time ahead
    :param others: requests that were under way when it started, without those that were refused
    """

    started: float
    others: int


class _Flow(Struct):
    """
    What was let through since the last stop.

    :param taken: requests started, without those that were refused
    :param marks: two earlier moments with their :attr:`taken`, moved on while the refused rate is exceeded
    """

    began: float
    taken: int = 0
    marks: tuple[tuple[float, int], tuple[float, int]] = ((0.0, 0), (0.0, 0))

    def __post_init__(self) -> None:
        self.marks = ((self.began, 0), (self.began, 0))

    def mark(self, now: float, *, every: float) -> None:
        """Move the marks on, so that the earlier one is at least ``every`` requests back."""
        if self.taken - self.marks[1][1] >= every:
            self.marks = (self.marks[1], (now, self.taken))


class _Stop(Struct):
    """
    A time without starts but those of scouts.

    :param since: when the first refusal came
    :param until: when the next scout may start
    :param last_refusal: when the last request started that was refused, as far as it is known
    :param refused_with: fewest requests under way at a refusal
    :param is_told: the API said how long to wait
    """

    since: float
    until: float
    last_refusal: float
    pause_seconds: float
    refused_with: int
    is_told: bool = False
    scout: Turn | None = None


class _Lesson(Struct, frozen=True):
    """
    What a stop taught, once a scout was taken.

    :param taken: requests taken since the stop before, with the scout
    :param seconds: from the end of the stop before to the scout
    :param fastest: most that the limit can be, in requests per second
    :param measured: what it is likely to be: between what was taken per second until it may have ended at the
        earliest, and until the scout
    :param recent: requests taken per second shortly before the refusal
    :param pause_seconds: how long the task stood still
    :param refused_with: fewest requests under way at a refusal
    :param scout_with: requests under way when the scout started
    """

    taken: int
    seconds: float
    fastest: float
    measured: float
    recent: float
    pause_seconds: float
    refused_with: int
    scout_with: int

    @classmethod
    def of(cls, flow: _Flow, stop: _Stop, scout: Turn) -> _Lesson:
        """Put together what is known when a scout was taken."""
        taken = max(0, flow.taken) + 1  # late refusals may outnumber what was counted since
        until = max(stop.last_refusal, stop.until - _WHOLE_SECOND if stop.is_told else -math.inf)
        fastest = taken / max(until - flow.began, 1e-9)
        seconds = max(scout.started - flow.began, 1e-9)
        since, taken_then = flow.marks[0]
        return cls(
            taken=taken,
            seconds=seconds,
            fastest=fastest,
            measured=math.sqrt(fastest * taken / seconds),
            recent=max(0, taken - taken_then) / max(until - since, 1e-9),
            pause_seconds=scout.started - stop.since,
            refused_with=stop.refused_with,
            scout_with=scout.others,
        )

    def starts_worth(self, per_second: float) -> float:
        """Give the starts after which another such stop is cheap."""
        return _STARTS_PER_PAUSE * min(self.pause_seconds, _LONGEST_PAUSE_COUNTED) * per_second


class _Rate:
    """How many requests may start per second."""

    def __init__(self) -> None:
        self.refused_at = math.inf
        self.patience = float(_FIRST_PATIENCE)
        self.starts = 0
        self._early_refusals = 0
        self._found_it_used_up = False
        self._mean_taken = 0.0
        self._mean_stopped = 1.0

    @property
    def per_second(self) -> float:
        way = self.starts / self.patience - 1
        return self.refused_at * (1 + _DIP * (way if way < 0 else _HASTE * way) ** 3)

    @property
    def is_beyond(self) -> bool:
        """Whether the rate that was refused last is exceeded by now."""
        return self.starts > self.patience

    def start_from(self, per_second: float) -> None:
        """Go on at a rate that is known to be let through."""
        self.refused_at, self.patience = per_second, _FIRST_PATIENCE
        self.starts, self._early_refusals = _FIRST_PATIENCE, 0

    def learn(self, lesson: _Lesson) -> None:
        """Choose the rate to approach next, and how patiently."""
        if lesson.taken == 1 and math.isinf(self.refused_at) and not self._found_it_used_up:
            self._found_it_used_up = True  # by others, before this task began: that says nothing about the limit
            return
        now, approached = self.per_second, self.starts / self.patience
        if math.isinf(now):
            new, approached = lesson.measured, 0.0
        elif approached < 1 and lesson.taken >= 10 and lesson.fastest < (1 - _DIP) * now:  # far too fast
            new = min(now, lesson.measured)
        elif approached < 0.5:  # too early: each time in a row, the cut is deeper, but not below what was measured
            self._early_refusals += 1
            cut = min(0.5, max(0.04, 0.01 * 2**self._early_refusals))
            new = max((1 - cut) * now, min(now, lesson.measured))
        else:
            self._early_refusals = 0
            new = min(now, max(math.sqrt(lesson.recent * now), self.refused_at)) if self.is_beyond else now
        if approached >= 0.5:
            self.patience = max(min(_MOST_PATIENCE, 2 * self.patience), lesson.starts_worth(new))
        elif self._early_refusals not in (1, 2):  # there is much to find out
            self.patience = max(
                _LEAST_PATIENCE if self._early_refusals else _FIRST_PATIENCE,
                3 * lesson.pause_seconds * new,
                self.patience / 4,
            )
        self._mean_taken += _WEIGHT_OF_LAST * (min(lesson.taken, 100) - self._mean_taken)
        self._mean_stopped += _WEIGHT_OF_LAST * (lesson.pause_seconds / lesson.seconds - self._mean_stopped)
        if self._mean_taken > _FEW_REFUSED and self._mean_stopped < _SHORT_STOPS and not math.isinf(self.refused_at):
            new = max(new, (1 - _LEAST_CUT) * self.refused_at)  # some APIs refuse a few at any rate
        self.refused_at, self.starts = new, 0


class _InFlight:
    """How many requests may be under way, while that seems to be what the API limits."""

    def __init__(self) -> None:
        self.limit: int | None = None
        self._taken_with: Counter[int] = Counter()
        self._starts_left = 0.0
        self._confirmed = 0
        self._is_corrected = False
        self._patience = _FIRST_PATIENCE
        self._evidence = _EVIDENCE

    def take(self, others: int) -> None:
        """Count a request that was taken while so many others were under way."""
        self._taken_with[others] += 1

    def count_start(self) -> bool:
        """Count a start under the limit, and say whether the limit is dropped now, to try the rate again."""
        self._starts_left -= 1
        if self._starts_left <= 0:
            self.limit = None
        return self.limit is None

    def doubt(self, lesson: _Lesson) -> None:
        """Take in that the limit was kept and a request refused all the same."""
        if self.limit is not None and lesson.refused_with == self.limit - 1 >= 1 and not self._is_corrected:
            self.limit = self._confirmed = lesson.refused_with  # answers on their way back had been counted in
            self._is_corrected = True
        else:
            self.limit, self._confirmed = None, 0
            self._evidence *= 4
        self._taken_with.clear()

    def learn(self, lesson: _Lesson, *, per_second: float, is_first: bool) -> None:
        """Set a limit if those refused had more company than those taken."""
        at, taken = lesson.refused_with, self._taken_with.total()
        with_as_many = sum(count for others, count in self._taken_with.items() if others >= at)
        self._taken_with.clear()
        is_likely = with_as_many <= 0.05 * taken and (is_first or taken >= self._evidence)
        if at < 2 or lesson.scout_with >= at or not is_likely:
            return
        if self._confirmed <= at <= 1.25 * self._confirmed:
            self.limit, self._evidence = self._confirmed, _EVIDENCE
            self._patience = min(_MOST_PATIENCE_IN_FLIGHT, 2 * self._patience)
        else:
            self.limit, self._patience = at, max(_FIRST_PATIENCE, 2 * at)
        self._confirmed, self._is_corrected = self.limit, False
        is_proved = self._patience > 2 * _FIRST_PATIENCE
        self._starts_left = max(self._patience, lesson.starts_worth(per_second) if is_proved else 0)


class Throttle:
    """
    The pace of one task. Not safe to use from several threads at once.

    All times are seconds of one clock that only goes forward.

    :param concurrency: most requests under way, 1 or more
    :param requests_per_minute: most requests started in a minute, evenly spaced; ``None`` for no such limit
    """

    def __init__(self, *, concurrency: int, requests_per_minute: float | None = None) -> None:
        self._concurrency = concurrency
        self._asked_spacing = _MINUTE_SECONDS / requests_per_minute if requests_per_minute else 0.0
        self._rate = _Rate()
        self._in_flight = _InFlight()
        self._turns: set[Turn] = set()
        self._last_start = -math.inf
        self._refusal_seconds = 0.0
        self._flow: _Flow | None = None
        self._stop: _Stop | None = None

    @property
    def stopped_since(self) -> float | None:
        """When the refusals began that stop the task, ``None`` while it goes on."""
        return None if self._stop is None else self._stop.since

    def seconds_until_start(self, now: float, *, ahead: float = 0.0) -> float:
        """
        Say when the next request may start: 0 = now, infinite = not before one under way has ended.

        :param ahead: how many seconds before its start a request is to be prepared; 0 is then said so much earlier
        """
        if len(self._turns) >= self._concurrency:
            return math.inf
        if (stop := self._stop) is not None and stop.scout is not None:
            if (left := stop.scout.started + 2 * self._refusal_seconds - now) > 1e-9:
                return left
            self._go_on(stop, stop.scout)  # a refusal would be here by now
        limit = self._in_flight.limit
        if self._stop is None and limit is not None and len(self._turns) >= limit:
            return math.inf
        return max(self._next_start - ahead - now, 0.0)

    def start(self, now: float) -> Turn:
        """Give the next request its turn. To be called when :meth:`seconds_until_start` is 0."""
        turn = Turn(max(now, self._next_start), len(self._turns))
        self._turns.add(turn)
        if self._flow is None:
            self._flow = _Flow(turn.started)
        if self._stop is not None:
            self._stop.scout = turn
        else:
            self._flow.taken += 1
            self._count_start(self._flow, turn.started)
        self._last_start = turn.started
        return turn

    def is_held_up(self, turn: Turn) -> bool:
        """Say whether a request that was given a turn is not to be sent now, because others were refused since."""
        stop = self._stop
        return stop is not None and (turn is not stop.scout or turn.started < stop.until)

    def withdraw(self, turn: Turn) -> None:
        """Take in that a request was not sent after all."""
        self._turns.discard(turn)
        if self._stop is not None and turn is self._stop.scout:
            self._stop.scout = None
        elif self._flow is not None:
            self._flow.taken -= 1

    def end(self, turn: Turn) -> None:
        """Take in that a request was answered, or came to nothing, with anything but a 429."""
        self._turns.discard(turn)
        self._in_flight.take(turn.others)
        if self._stop is not None and turn is self._stop.scout:
            self._go_on(self._stop, turn)

    def refuse(self, turn: Turn, now: float, *, retry_after: float | None = None) -> None:
        """Take in that a request was answered 429: nothing starts for a while, and then more slowly."""
        self._turns.discard(turn)
        self._refusal_seconds = max(0.9 * self._refusal_seconds, now - turn.started)
        for later in self._turns:
            if later.started >= turn.started:
                later.others -= 1
        flow = self._flow or _Flow(turn.started)
        if (stop := self._stop) is None:
            spacing = self._spacing or (now - flow.began) / max(1, flow.taken)
            stop = self._stop = _Stop(now, now, now, min(1.0, 2 * spacing), self._concurrency)
        if turn is stop.scout:
            stop.scout = None
            stop.last_refusal = turn.started
            stop.refused_with = min(stop.refused_with, turn.others)
            longer = min(_LONGEST_PAUSE, _PAUSE_GROWTH * (now - stop.since))
            stop.pause_seconds = max(stop.pause_seconds, longer)
        else:
            flow.taken -= 1
            stop.refused_with = min(stop.refused_with, len(self._turns))
        stop.is_told = retry_after is not None
        stop.until = max(stop.until, now + max(stop.pause_seconds, retry_after or 0.0))

    @property
    def _next_start(self) -> float:
        """Before when nothing may start, however few are under way."""
        if self._stop is not None:
            return max(self._stop.until, self._last_start + self._asked_spacing)
        return self._last_start + self._spacing

    @property
    def _spacing(self) -> float:
        return max(self._asked_spacing, 0.0 if self._in_flight.limit is not None else 1 / self._rate.per_second)

    def _count_start(self, flow: _Flow, now: float) -> None:
        """Count a start for the limit that it was held to."""
        if self._in_flight.limit is not None:
            if self._in_flight.count_start():
                self._rate.start_from(flow.taken / max(now - flow.began, 1e-9))
                self._flow = _Flow(now)
            return
        if now - self._last_start <= 1.1 * self._spacing:  # else something else holds the task up
            self._rate.starts += 1
        if self._rate.is_beyond:
            flow.mark(now, every=self._rate.patience / 4)

    def _go_on(self, stop: _Stop, scout: Turn) -> None:
        """End a stop, and learn from it."""
        lesson = _Lesson.of(self._flow or _Flow(scout.started), stop, scout)
        if self._in_flight.limit is not None:
            self._in_flight.doubt(lesson)
        else:
            is_first = math.isinf(self._rate.per_second)
            self._rate.learn(lesson)
            self._in_flight.learn(lesson, per_second=self._rate.refused_at, is_first=is_first)
        self._stop, self._flow = None, _Flow(scout.started)
