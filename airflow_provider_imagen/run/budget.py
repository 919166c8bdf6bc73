"""All money of a task over all its attempts: spent, lost, reserved, in doubt, and its limits."""

from __future__ import annotations

import threading
from collections import defaultdict
from decimal import Decimal
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from airflow_provider_imagen.exceptions import BudgetExceededError, StoppedError
from airflow_provider_imagen.money import format_usd

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from airflow_provider_imagen.journal.records import Intent, JournalState

ZERO = Decimal(0)

Period = Literal["day", "month"]
"""A period of the calendar in UTC."""


class Limit(Struct, frozen=True, kw_only=True):
    """
    A limit on what the task spends.

    :param max_usd: the cap, in USD
    :param used_usd: the part of the cap that the task's own spending does not account for, in USD: what others have
        spent, less what the task spent before the period
    :param period: of a cap on what the API key spends; ``None`` for the task's own cap
    :param starts_at: when the period began
    :param resets_at: when the period ends
    """

    max_usd: Decimal
    used_usd: Decimal = ZERO
    period: Period | None = None
    starts_at: datetime | None = None
    resets_at: datetime | None = None

    @property
    def most_usd(self) -> Decimal:
        """The most that the task can have spent in total, in USD."""
        return self.max_usd - self.used_usd

    @property
    def when(self) -> str:
        """The period, for sentences."""
        return "today" if self.period == "day" else "this month"

    def exceeded(
        self, spent_usd: Decimal, because: str, *, items_done: int = 0, items_left: int = 0
    ) -> BudgetExceededError:
        """
        Return the error for a request that does not fit.

        :param spent_usd: what the task has spent, in USD
        :param because: rest of the sentence: what the request costs
        """
        charged_usd = spent_usd + self.used_usd
        message = f"max_usd={format_usd(self.max_usd)}: {format_usd(charged_usd)} has been spent{because}"
        if self.period is not None:
            message = (
                f"max_usd_per_{self.period}={format_usd(self.max_usd)} of the connection: the API key has spent "
                f"{format_usd(charged_usd)} {self.when}{because} To go on, clear the task "
                f"after {self.resets_at:%Y-%m-%d %H:%M} UTC, or raise the cap."
            )
        return BudgetExceededError(
            message,
            spent_usd=float(charged_usd),
            max_usd=float(self.max_usd),
            items_done=items_done,
            items_left=items_left,
            period=self.period,
        )


class Reservation(Struct, eq=False):
    """
    Money reserved for one request.

    :param model: model id
    :param images: number of images requested
    :param quoted_usd: price known in advance, in USD; ``None`` when unknown
    :param client_request_id: the id it is sent with; ``None`` until right before it is sent
    """

    model: str
    images: int
    quoted_usd: Decimal | None
    client_request_id: str | None = None


class Budget:
    """
    Counts money, and stops spending before a limit is exceeded. Safe to use from any number of threads.

    With a limit, a request may start only if it and all requests in flight fit into what is left, each at the highest
    price per image seen or quoted for its model. Until a charge of its model has been seen, only a single request is in
    flight, because its cost decides about the others. A price that rises during a run can therefore exceed the limit by
    at most one round of requests in flight.

    Requests with an unknown outcome, or presumed unbilled, keep their money reserved because they may still be charged.

    :param max_usd: cap over all attempts, in USD; ``None`` for no cap
    :param is_over: polled while waiting; once true, waiting ends in :class:`StoppedError`
    """

    def __init__(self, *, max_usd: Decimal | None = None, is_over: Callable[[], bool] = lambda: False) -> None:
        self._limits: dict[Period | None, Limit] = {}
        if max_usd is not None:
            self._limits[None] = Limit(max_usd=max_usd)
        self._is_over = is_over
        self._changed = threading.Condition(threading.RLock())
        self._spent = ZERO
        self._spent_by_model: defaultdict[str, Decimal] = defaultdict(Decimal)
        self._lost = ZERO
        self._is_estimate = False
        self._previous: list[tuple[float, Decimal]] = []  # when it was charged, in seconds since the epoch, and USD
        self._in_flight: set[Reservation] = set()
        self._own: set[str] = set()  # client request ids
        self._in_doubt: dict[str, Reservation] = {}
        self._highest: dict[str, tuple[Decimal, int]] = {}  # by model: charge and image count of the dearest image

    # --- what previous attempts did -----------------------------------------------------------------------------------

    def count_previous(self, state: JournalState) -> None:
        """Count what previous attempts spent, and learn prices from their charges."""
        with self._changed:
            for request in state.requests.values():
                self._spend(request.usd_spent, request.model)
                self._lost += request.usd_lost
                if (response := request.response) is None:
                    continue
                self._is_estimate = self._is_estimate or response.usd_is_estimate
                images = request.target.images if request.target is not None else len(response.images)
                if response.usd:
                    self._previous.append((response.at, response.usd))
                    self._learn(response.model, images, response.usd)
            unpriced = [intent for request in state.requests.values() for intent in request.unpriced.values()]
            for intent in (*unpriced, *state.all_unresolved().values()):
                self.hold_in_doubt(reservation_for(intent))

    def count_own(self, client_request_id: str, usd: Decimal | None, *, model: str, at: float) -> None:
        """
        Count what this task instance paid, before it was cleared, for a request that it reuses; only once.

        :param at: when, in seconds since the epoch
        """
        with self._changed:
            if client_request_id not in self._own:
                self._own.add(client_request_id)
                self._previous.append((at, usd or ZERO))
                self._spend(usd or ZERO, model)

    def previous_usd_since(self, at: float) -> Decimal:
        """
        Return what previous attempts were charged since a moment, in USD, without responses that were lost or replaced.

        :param at: in seconds since the epoch
        """
        with self._changed:
            return sum((usd for charged_at, usd in self._previous if charged_at >= at), ZERO)

    # --- limits -------------------------------------------------------------------------------------------------------

    def set_limit(self, limit: Limit) -> None:
        """Add a limit, or replace the one for the same period."""
        with self._changed:
            self._limits[limit.period] = limit
            self._changed.notify_all()

    @property
    def tightest_limit(self) -> Limit | None:
        """The limit that leaves the least; ``None`` without limits."""
        with self._changed:
            return min(self._limits.values(), key=lambda limit: limit.most_usd, default=None)

    # --- requests -----------------------------------------------------------------------------------------------------

    def reserve(self, *, model: str, quoted_usd: Decimal | None, images: int) -> Reservation:
        """
        Reserve money for a request, waiting for others to settle if that may make room.

        :return: the reservation; pass it to :meth:`count_charge`, :meth:`release` or :meth:`hold_in_doubt`
        :raises BudgetExceededError: a limit could be exceeded
        :raises StoppedError: the task was cancelled while waiting
        """
        reservation = Reservation(model, images, quoted_usd)
        with self._changed:
            while not self._fits(reservation):
                if self._is_over():
                    raise StoppedError("The task was cancelled; nothing new was sent.")
                self._refuse_what_never_fits(reservation)
                self._changed.wait(0.2)
            self._in_flight.add(reservation)
        return reservation

    def _fits(self, reservation: Reservation) -> bool:
        limit = self.tightest_limit
        if limit is None:
            return True
        if self._in_flight and any(each.model not in self._highest for each in (reservation, *self._in_flight)):
            return False  # the real cost of a model is not known yet
        if self._has_doubt_of_unknown_price():
            return False
        price = self.price(reservation)
        room = limit.most_usd - self.committed_usd
        return room > 0 if price is None else price <= room

    def _refuse_what_never_fits(self, reservation: Reservation) -> None:
        """Raise if there would be no room even if every request in flight cost nothing."""
        limit = self.tightest_limit
        assert limit is not None  # noqa: S101 - a type check
        left = limit.most_usd - self._spent - sum(map(self._worth, self._in_doubt.values()), ZERO)
        price = self.price(reservation)
        if (price or ZERO) > left or (not self._in_flight and (left <= 0 or self._has_doubt_of_unknown_price())):
            raise self.exceeded_error(next_usd=price)

    def _has_doubt_of_unknown_price(self) -> bool:
        return any(self.price(each) is None for each in self._in_doubt.values())

    def count_charge(self, reservation: Reservation, *, usd: Decimal | None) -> None:
        """Count a charge. An unknown amount stays in doubt; 0 says nothing about the model's price."""
        if usd is None:
            self.hold_in_doubt(reservation)
            return
        with self._changed:
            self._drop(reservation)
            self._spend(usd, reservation.model)
            if usd:
                self._learn(reservation.model, reservation.images, usd)
            self._changed.notify_all()

    def _spend(self, usd: Decimal, model: str | None) -> None:
        self._spent += usd
        if usd and model is not None:
            self._spent_by_model[model] += usd

    def release(self, reservation: Reservation) -> None:
        """Free the money reserved for a request that was not billed."""
        with self._changed:
            self._drop(reservation)
            self._changed.notify_all()

    def hold_in_doubt(self, reservation: Reservation) -> None:
        """Keep money reserved for a request that may have been billed."""
        with self._changed:
            self._in_flight.discard(reservation)
            if reservation.client_request_id is not None:
                self._in_doubt[reservation.client_request_id] = reservation
            self._changed.notify_all()

    def reopen(self, client_request_id: str) -> Reservation | None:
        """
        Treat an in-doubt request as in flight while its outcome is looked up, so that others wait for it.

        :return: its reservation, as from :meth:`reserve`; ``None`` if it is not in doubt
        """
        with self._changed:
            reservation = self._in_doubt.pop(client_request_id, None)
            if reservation is not None:
                self._in_flight.add(reservation)
            return reservation

    def is_in_doubt(self, client_request_id: str) -> bool:
        """Return whether a request may have been billed and is not being looked up."""
        with self._changed:
            return client_request_id in self._in_doubt

    def _drop(self, reservation: Reservation) -> None:
        self._in_flight.discard(reservation)
        if reservation.client_request_id is not None:
            self._in_doubt.pop(reservation.client_request_id, None)

    # --- prices -------------------------------------------------------------------------------------------------------

    def price(self, reservation: Reservation) -> Decimal | None:
        """Return a request's price, the highest seen or quoted for its model; ``None`` if no price is known."""
        seen = self._highest.get(reservation.model)
        if seen is None:
            return reservation.quoted_usd
        usd, images = seen
        return max(reservation.quoted_usd or ZERO, usd * reservation.images / images)

    def cost(self, reservation: Reservation, stated_usd: Decimal | None, *, has_images: bool) -> Decimal | None:
        """
        Return the cost to count for a response.

        That is the stated cost. If none is stated, or 0 despite images, it is the known price.

        :return: ``None`` when no price is known either
        """
        if stated_usd or (stated_usd is not None and not has_images):
            return stated_usd
        with self._changed:
            self._is_estimate = True
            return self.price(reservation)

    def _learn(self, model: str, images: int, usd: Decimal) -> None:
        before = self._highest.get(model)
        if before is None or usd * before[1] > before[0] * images:
            self._highest[model] = (usd, images)

    def _worth(self, reservation: Reservation) -> Decimal:
        return self.price(reservation) or ZERO

    # --- totals -------------------------------------------------------------------------------------------------------

    def count_lost(self, usd: Decimal | None) -> None:
        """Count as lost what is already counted as spent; a negative amount takes it back."""
        with self._changed:
            self._lost += usd or ZERO

    @property
    def spent_usd(self) -> Decimal:
        """Charged by all attempts so far, in USD."""
        with self._changed:
            return self._spent

    @property
    def spent_usd_by_model(self) -> dict[str, Decimal]:
        """The parts of :attr:`spent_usd` whose model is known, by model id."""
        with self._changed:
            return dict(self._spent_by_model)

    @property
    def lost_usd(self) -> Decimal:
        """The part of :attr:`spent_usd` without an image, in USD."""
        with self._changed:
            return self._lost

    @property
    def is_estimate(self) -> bool:
        """Whether some cost is a known price, because the response did not state it."""
        return self._is_estimate

    @property
    def committed_usd(self) -> Decimal:
        """Charged so far, plus the price of all requests that are in flight or in doubt, in USD."""
        with self._changed:
            return self._spent + sum(map(self._worth, [*self._in_flight, *self._in_doubt.values()]), ZERO)

    def in_doubt(self) -> tuple[Decimal, list[str]]:
        """Return the money that may have been charged on top, in USD, and the client request ids it is for."""
        with self._changed:
            open_requests = [*self._in_doubt.values(), *self._in_flight]
            sent = {each.client_request_id: each for each in open_requests if each.client_request_id is not None}
            return sum(map(self._worth, sent.values()), ZERO), sorted(sent)

    def exceeded_error(self, *, next_usd: Decimal | None) -> BudgetExceededError:
        """
        Return the error for the tightest limit.

        :param next_usd: what the next request would cost, in USD; ``None`` when unknown
        """
        with self._changed:
            doubt, _ = self.in_doubt()
        price = (
            f"the next request costs about {format_usd(next_usd)}" if next_usd else "the price of the next is unknown"
        )
        may_be = f", {format_usd(doubt)} more may have been charged" if doubt else ""
        if self._has_doubt_of_unknown_price():
            may_be = ", an unknown amount more may have been charged"
        limit = self.tightest_limit
        assert limit is not None  # noqa: S101 - a type check
        return limit.exceeded(self._spent, f"{may_be}, and {price}.")


def reservation_for(intent: Intent) -> Reservation:
    """Return the reservation for a POST of a previous attempt."""
    return Reservation(intent.model, intent.target.images, intent.usd, intent.client_request_id)
