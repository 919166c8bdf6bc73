"""The purse of a task: what was spent over all its tries, what is promised to requests in flight, and the cap."""

from __future__ import annotations

import threading
from decimal import Decimal
from typing import TYPE_CHECKING

from msgspec import Struct

from airflow_provider_imagen.exceptions import BudgetExceededError, StoppedError

if TYPE_CHECKING:
    from collections.abc import Callable


class Reservation(Struct, frozen=True):
    """
    Money set aside for one request in flight.

    :param usd: what was set aside, in USD; 0 without a cap
    :param model: id of the model it is for
    :param pictures: how many pictures it asks for
    :param expected_usd: its price as known beforehand, in USD
    """

    usd: Decimal
    model: str
    pictures: int
    expected_usd: Decimal | None


class Budget:
    """
    Counts money, and stops before the cap is passed.

    A request takes its expected price out of what is left before it is sent and settles with its real cost after. A
    model that turns out dearer than its known price is expected to stay so. While no price of a model is known at all,
    one request takes all that is left, and what it costs is expected of the others.

    :param max_usd: cap over all tries, in USD; ``None`` for no cap
    :param spent_usd: what earlier tries spent, in USD
    :param should_stop: asked while waiting for others to settle
    """

    def __init__(
        self,
        *,
        max_usd: Decimal | None = None,
        spent_usd: Decimal = Decimal(0),
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._max_usd = max_usd
        self._spent = spent_usd
        self._promised = Decimal(0)
        self._in_doubt = Decimal(0)
        self._in_flight = 0
        self._dearest_picture: dict[str, Decimal] = {}
        self._dearest: dict[str, tuple[Decimal, Decimal]] = {}
        self._should_stop = should_stop
        self._settled = threading.Condition()

    @property
    def spent_usd(self) -> Decimal:
        """Charged so far, over all tries, in USD."""
        with self._settled:
            return self._spent

    def reserve(self, *, model: str, expected_usd: Decimal | None, pictures: int) -> Reservation:
        """
        Set money aside for a request, waiting for others to settle when that may make room.

        :param model: id of the model it goes to
        :param expected_usd: the request's price as known beforehand
        :param pictures: how many it asks for
        :return: what was set aside; give it to :meth:`settle`
        :raises BudgetExceededError: the cap could be passed
        :raises StoppedError: the task was told to stop meanwhile
        """
        cap = self._max_usd
        if cap is None:
            return Reservation(Decimal(0), model, pictures, expected_usd)
        with self._settled:
            while True:
                if self._should_stop():
                    raise StoppedError("The task was told to stop; nothing new was sent.")
                price = self._price(model, expected_usd, pictures)
                gone = self._spent + self._in_doubt
                room = cap - gone - self._promised
                if price is None and self._in_flight == 0 and room > 0:
                    price = room  # the pilot: nothing else fits beside it
                if price is not None and price <= room:
                    self._promised += price
                    self._in_flight += 1
                    return Reservation(price, model, pictures, expected_usd)
                if gone + price > cap if price is not None else self._in_flight == 0:
                    raise self._exceeded(cap, price)
                self._settled.wait(0.2)

    def promise(self, *, model: str, usd: Decimal | None, pictures: int) -> Reservation:
        """Set money aside for a request of an earlier try whose outcome is still to be found out."""
        aside = usd if usd is not None and self._max_usd is not None else Decimal(0)
        with self._settled:
            self._promised += aside
            self._in_flight += 1
        return Reservation(aside, model, pictures, usd)

    def settle(self, reservation: Reservation, *, actual_usd: Decimal | None) -> None:
        """
        Count what was charged in place of what was set aside.

        :param reservation: from :meth:`reserve` or :meth:`promise`, settled once
        :param actual_usd: the charge; 0 when nothing was bought; ``None``, which keeps it aside, when nobody knows
        """
        with self._settled:
            self._in_flight -= 1
            self._promised -= reservation.usd
            if actual_usd is None:
                self._in_doubt += reservation.usd
            else:
                self._spent += actual_usd
                self._learn(reservation, actual_usd)
            self._settled.notify_all()

    def add(self, usd: Decimal) -> None:
        """Count a charge that was found out later."""
        with self._settled:
            self._spent += usd
            self._settled.notify_all()

    def _price(self, model: str, expected_usd: Decimal | None, pictures: int) -> Decimal | None:
        """Give what a request should cost, after what was learnt; multiplied before divided, which keeps it exact."""
        if expected_usd is None:
            each = self._dearest_picture.get(model)
            return each * pictures if each is not None else None
        if (seen := self._dearest.get(model)) is None:
            return expected_usd
        actual, expected = seen
        return expected_usd * actual / expected

    def _learn(self, reservation: Reservation, actual: Decimal) -> None:
        if not actual or not reservation.pictures:
            return
        model, expected = reservation.model, reservation.expected_usd
        each = actual / reservation.pictures
        self._dearest_picture[model] = max(each, self._dearest_picture.get(model, each))
        if expected and actual > expected:
            before = self._dearest.get(model)
            if before is None or actual * before[1] > before[0] * expected:
                self._dearest[model] = (actual, expected)

    def _exceeded(self, cap: Decimal, price: Decimal | None) -> BudgetExceededError:
        wanted = f"the next request costs about {price:.4f}" if price is not None else "the next one's price is unknown"
        doubt = f", {self._in_doubt:.4f} more may have been" if self._in_doubt else ""
        return BudgetExceededError(
            f"max_usd={cap}: {self._spent:.4f} USD are spent{doubt}, and {wanted}.",
            spent_usd=float(self._spent),
            max_usd=float(cap),
            items_done=0,
            items_left=0,
        )
