"""The purse of a task: what was spent over all its tries, what is promised to requests in flight, and the cap."""

from __future__ import annotations

import threading
from decimal import Decimal
from typing import TYPE_CHECKING

from airflow_provider_imagen.exceptions import BudgetExceededError, StoppedError

if TYPE_CHECKING:
    from collections.abc import Callable


class Budget:
    """
    Counts money, and stops before the cap is passed.

    A request takes its expected price out of what is left before it is sent and settles with its real cost after. While
    no price is known at all, one request goes alone, and what it costs is expected of the others.

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
        self._in_flight = 0
        self._dearest_picture: Decimal | None = None
        self._should_stop = should_stop
        self._settled = threading.Condition()

    @property
    def spent_usd(self) -> Decimal:
        """Charged so far, over all tries, in USD."""
        with self._settled:
            return self._spent

    def reserve(self, *, expected_usd: Decimal | None, pictures: int) -> Decimal:
        """
        Set money aside for a request, waiting for others to settle when that may make room.

        :param expected_usd: the request's price as known beforehand
        :param pictures: how many it asks for
        :return: what was set aside; give it to :meth:`settle`
        :raises BudgetExceededError: the cap could be passed
        """
        cap = self._max_usd
        if cap is None:
            return Decimal(0)
        with self._settled:
            while True:
                if self._should_stop():
                    raise StoppedError("The task was told to stop; nothing new was sent.")
                seen = self._dearest_picture * pictures if self._dearest_picture is not None else None
                price = max((price for price in (expected_usd, seen) if price is not None), default=None)
                room = cap - self._spent - self._promised
                if price is None:
                    if self._in_flight == 0 and room > 0:
                        price = room  # the pilot: nothing else may run beside it
                    elif self._in_flight == 0:
                        raise self._exceeded(cap, None)
                if price is not None and price <= room:
                    self._promised += price
                    self._in_flight += 1
                    return price
                if price is not None and self._spent + price > cap:
                    raise self._exceeded(cap, price)
                self._settled.wait(0.2)

    def settle(self, reserved_usd: Decimal, *, actual_usd: Decimal, pictures: int = 0) -> None:
        """
        Put back what was set aside and count what was charged.

        :param reserved_usd: what :meth:`reserve` gave
        :param actual_usd: the charge; 0 when nothing was bought
        :param pictures: how many pictures the charge was for
        """
        with self._settled:
            self._spent += actual_usd
            if self._max_usd is not None:
                self._promised -= reserved_usd
                self._in_flight -= 1
            if pictures and actual_usd:
                each = actual_usd / pictures
                self._dearest_picture = max(each, self._dearest_picture or each)
            self._settled.notify_all()

    def add(self, usd: Decimal) -> None:
        """Count a charge that was found out later, such as a lost answer's."""
        with self._settled:
            self._spent += usd
            self._settled.notify_all()

    def _exceeded(self, cap: Decimal, price: Decimal | None) -> BudgetExceededError:
        wanted = (
            f"the next request costs about {price:.4f}" if price is not None else "nothing is left for another request"
        )
        return BudgetExceededError(
            f"max_usd={cap}: {self._spent:.4f} USD are spent and {wanted}.",
            spent_usd=float(self._spent),
            max_usd=float(cap),
            items_done=0,
            items_left=0,
        )
