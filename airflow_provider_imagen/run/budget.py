"""All money of a task, over all its attempts: spent, lost, reserved, in doubt, and the cap."""

from __future__ import annotations

import threading
from decimal import Decimal
from typing import TYPE_CHECKING

from msgspec import Struct

from airflow_provider_imagen.exceptions import BudgetExceededError, StoppedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_imagen.journal.records import Intent, JournalState

ZERO = Decimal(0)


class Reservation(Struct, eq=False):
    """
    Money set aside for one request.

    :param model: id of the model it goes to
    :param images: how many images it asks for
    :param quoted_usd: its price as known beforehand, in USD; ``None`` when it is not known
    :param client_request_id: the id it is sent with; ``None`` until it is about to be sent
    """

    model: str
    images: int
    quoted_usd: Decimal | None
    client_request_id: str | None = None


class Budget:
    """
    Counts money, and stops before the cap is exceeded. Safe to use from any number of threads.

    With a cap, a request is let through only if it and all requests in flight fit into what is left, each at the
    highest price per image seen or quoted for its model. While no charge of a model has been seen, a single request is
    in flight: what it costs decides about the others. So a price that rises in the middle of a run can cost at most one
    round of requests in flight more than the cap.

    Requests of unknown outcome, and those that are presumed unbilled, keep their money reserved: they may still turn
    out to be charged.

    :param max_usd: cap over all attempts, in USD; ``None`` for no cap
    :param is_over: asked while waiting; when true, waiting ends in :class:`StoppedError`
    """

    def __init__(self, *, max_usd: Decimal | None = None, is_over: Callable[[], bool] = lambda: False) -> None:
        self._max_usd = max_usd
        self._is_over = is_over
        self._changed = threading.Condition(threading.RLock())
        self._spent = ZERO
        self._lost = ZERO
        self._is_estimate = False
        self._in_flight: set[Reservation] = set()
        self._in_doubt: dict[str, Reservation] = {}
        self._highest: dict[str, tuple[Decimal, int]] = {}  # by model: the dearest charge per image, and its images

    # --- what earlier attempts did ------------------------------------------------------------------------------------

    def inherit(self, state: JournalState) -> None:
        """Count what earlier attempts spent, and learn their prices."""
        with self._changed:
            for request in state.requests.values():
                self._spent += request.usd_spent
                self._lost += request.usd_lost
                if (response := request.response) is None:
                    continue
                self._is_estimate = self._is_estimate or response.usd_is_estimate
                images = request.target.images if request.target is not None else len(response.images)
                if response.usd:
                    self._learn(response.model, images, response.usd)
            unpriced = [intent for request in state.requests.values() for intent in request.unpriced.values()]
            for intent in (*unpriced, *state.all_unresolved().values()):
                self.doubt(reservation_for(intent))

    # --- requests -----------------------------------------------------------------------------------------------------

    def reserve(self, *, model: str, quoted_usd: Decimal | None, images: int) -> Reservation:
        """
        Set money aside for a request, waiting for others to settle where that may make room.

        :return: what was set aside; hand it to :meth:`settle`, :meth:`release` or :meth:`doubt`
        :raises BudgetExceededError: the cap could be exceeded
        :raises StoppedError: the task was cancelled meanwhile
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
        if self._max_usd is None:
            return True
        if self._in_flight and any(each.model not in self._highest for each in (reservation, *self._in_flight)):
            return False  # what a request of this model really costs is not known yet
        if self._has_doubt_of_unknown_price():
            return False
        price = self.price(reservation)
        room = self._max_usd - self._spent - sum(map(self._worth, [*self._in_flight, *self._in_doubt.values()]), ZERO)
        return room > 0 if price is None else price <= room

    def _refuse_what_never_fits(self, reservation: Reservation) -> None:
        """Raise if not even the end of every request in flight would make room."""
        assert self._max_usd is not None  # noqa: S101 - a type check
        left = self._max_usd - self._spent - sum(map(self._worth, self._in_doubt.values()), ZERO)
        price = self.price(reservation)
        if (price or ZERO) > left or (not self._in_flight and (left <= 0 or self._has_doubt_of_unknown_price())):
            raise self.exceeded(next_usd=price)

    def _has_doubt_of_unknown_price(self) -> bool:
        return any(self.price(each) is None for each in self._in_doubt.values())

    def settle(self, reservation: Reservation, *, usd: Decimal | None) -> None:
        """Count a charge; one of unknown amount stays in doubt, and one of 0 does not tell its model's price."""
        if usd is None:
            self.doubt(reservation)
            return
        with self._changed:
            self._drop(reservation)
            self._spent += usd
            if usd:
                self._learn(reservation.model, reservation.images, usd)
            self._changed.notify_all()

    def release(self, reservation: Reservation) -> None:
        """Give back what was set aside for a request that bought nothing."""
        with self._changed:
            self._drop(reservation)
            self._changed.notify_all()

    def doubt(self, reservation: Reservation) -> None:
        """Keep money reserved for a request that may have been billed."""
        with self._changed:
            self._in_flight.discard(reservation)
            if reservation.client_request_id is not None:
                self._in_doubt[reservation.client_request_id] = reservation
            self._changed.notify_all()

    def examine(self, client_request_id: str) -> Reservation | None:
        """
        Treat a request in doubt as one in flight while its outcome is looked up, so that others wait for it.

        :return: what is reserved for it; hand it to :meth:`settle`, :meth:`release` or :meth:`doubt`
        """
        with self._changed:
            reservation = self._in_doubt.pop(client_request_id, None)
            if reservation is not None:
                self._in_flight.add(reservation)
            return reservation

    def is_in_doubt(self, client_request_id: str) -> bool:
        """Return whether money is reserved for a request that may have been billed, and that nobody looks up."""
        with self._changed:
            return client_request_id in self._in_doubt

    def _drop(self, reservation: Reservation) -> None:
        self._in_flight.discard(reservation)
        if reservation.client_request_id is not None:
            self._in_doubt.pop(reservation.client_request_id, None)

    # --- prices -------------------------------------------------------------------------------------------------------

    def price(self, reservation: Reservation) -> Decimal | None:
        """Return what a request costs at the highest price seen or quoted for its model; ``None`` if none is known."""
        seen = self._highest.get(reservation.model)
        if seen is None:
            return reservation.quoted_usd
        usd, images = seen
        return max(reservation.quoted_usd or ZERO, usd * reservation.images / images)

    def cost(self, reservation: Reservation, stated_usd: Decimal | None, *, has_images: bool) -> Decimal | None:
        """
        Return what a response is counted at: the stated cost, or the known price if it states none, or zero for images.

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

    def lose(self, usd: Decimal | None) -> None:
        """Count money, already counted as spent, for which there is no image; a negative amount takes that back."""
        with self._changed:
            self._lost += usd or ZERO

    @property
    def spent_usd(self) -> Decimal:
        """Charged by all attempts so far, in USD."""
        with self._changed:
            return self._spent

    @property
    def lost_usd(self) -> Decimal:
        """The part of it for which there is no image, in USD."""
        with self._changed:
            return self._lost

    @property
    def is_estimate(self) -> bool:
        """Whether some cost is a quoted price, because the response did not state one."""
        return self._is_estimate

    def in_doubt(self) -> tuple[Decimal, list[str]]:
        """Return the money that may have been charged beyond what is known, and the client request ids it is for."""
        with self._changed:
            open_requests = [*self._in_doubt.values(), *self._in_flight]
            sent = {each.client_request_id: each for each in open_requests if each.client_request_id is not None}
            return sum(map(self._worth, sent.values()), ZERO), sorted(sent)

    def exceeded(self, *, next_usd: Decimal | None) -> BudgetExceededError:
        """
        Return the error for a cap that is reached.

        :param next_usd: what the next request would cost, ``None`` when that is not known
        """
        with self._changed:
            doubt, _ = self.in_doubt()
        following = f"the next request costs about ${next_usd:.4f}" if next_usd else "the price of the next is unknown"
        may_be = f", ${doubt:.4f} more may have been charged" if doubt else ""
        if self._has_doubt_of_unknown_price():
            may_be = ", an unknown amount more may have been charged"
        return BudgetExceededError(
            f"max_usd={self._max_usd}: ${self._spent:.4f} are spent{may_be}, and {following}.",
            spent_usd=float(self._spent),
            max_usd=float(self._max_usd or 0),
            items_done=0,
            items_left=0,
        )


def reservation_for(intent: Intent) -> Reservation:
    """Return what is to be reserved for a POST of an earlier attempt."""
    return Reservation(intent.model, intent.target.images, intent.usd, intent.client_request_id)
