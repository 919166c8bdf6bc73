"""The sandbox's account: balance, charges, and the log of requests."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_imagen.sandbox.control_types import Charge

CREDITS_PER_USD = 2_000_000
"""docs, FAQ "How can I track my funds", 2026-08-21."""


@dataclass(frozen=True)
class LogRow:
    """
    One request as ``GET /v2/logs`` shows it.

    :param created: when the request arrived by the sandbox's clock, seconds since the epoch
    :param finished: when its outcome was known, without clock skew; the row appears ``log_lag_seconds`` later
    :param usd: what it was charged; 0 when it failed
    """

    created: float
    finished: float
    status: Literal["succeeded", "failed"]
    model: str
    usd: Decimal
    request_id: str
    inference_id: str
    client_request_id: str | None


class Account:
    """
    Keep the money and the log. Safe to use from several threads.

    Money is held when a request is accepted and either charged or released when it ends, so that
    concurrent requests cannot overdraw the account.

    :param balance_usd: what the account starts with, in USD
    :param clock: returns seconds since the epoch, without clock skew
    """

    def __init__(self, balance_usd: Decimal, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._balance = balance_usd
        self._held = Decimal(0)
        self._charges: list[Charge] = []
        self._log: list[LogRow] = []
        self.in_flight = 0
        self.epoch = 0
        """Number of resets; requests that began before the last one are no longer booked."""

    def reset(self, balance_usd: Decimal) -> None:
        """Drop every charge and log row, and start with a balance in USD."""
        with self._lock:
            self.epoch += 1
            self.in_flight = 0
            self._balance, self._held = balance_usd, Decimal(0)
            self._charges.clear()
            self._log.clear()

    def set_balance(self, balance_usd: Decimal) -> None:
        """Replace the balance."""
        with self._lock:
            self._balance = balance_usd

    @property
    def balance_usd(self) -> Decimal:
        """Balance in USD, including held money."""
        with self._lock:
            return self._balance

    def enter(self, *, epoch: int) -> None:
        """Count a request as in flight."""
        with self._lock:
            if epoch == self.epoch:
                self.in_flight += 1

    def leave(self, *, epoch: int) -> None:
        """Stop counting a request as in flight."""
        with self._lock:
            if epoch == self.epoch:
                self.in_flight -= 1

    def hold(self, usd: Decimal, *, epoch: int) -> bool:
        """Reserve money for a request; return ``False`` when there is not enough."""
        with self._lock:
            if epoch != self.epoch:
                return True
            if self._balance - self._held < usd:
                return False
            self._held += usd
            return True

    def release(self, usd: Decimal, *, epoch: int) -> None:
        """Return held money to the balance."""
        with self._lock:
            if epoch == self.epoch:
                self._held -= usd

    def charge(self, charge: Charge, row: LogRow, *, held_usd: Decimal, epoch: int) -> None:
        """Turn held money into a charge, and log the request as succeeded."""
        with self._lock:
            if epoch == self.epoch:
                self._held -= held_usd
                self._balance -= charge.usd
                self._charges.append(charge)
                self._log.append(row)

    def note(self, row: LogRow, *, epoch: int) -> None:
        """Log a request that was charged nothing."""
        with self._lock:
            if epoch == self.epoch:
                self._log.append(row)

    def charges(self) -> list[Charge]:
        """Return the charges, oldest first."""
        with self._lock:
            return list(self._charges)

    def log(self, *, lag_seconds: float) -> list[LogRow]:
        """Return the log rows that are visible by now, newest first."""
        shows_until = self._clock() - lag_seconds
        with self._lock:
            rows = [row for row in self._log if row.finished <= shows_until]
        return sorted(rows, key=lambda row: row.created, reverse=True)
