"""The sandbox's account: balance, charges, and the request log."""

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
    One request as ``GET /v2/logs`` lists it.

    :param created: arrival by the sandbox's clock, in seconds since the epoch
    :param finished: end of the request, without clock skew; the row appears ``log_lag_seconds`` later
    :param usd: amount charged; 0 if it failed
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
    Balance, charges and request log of the account. Thread-safe.

    Money is held when a request is accepted, and charged or released when it ends, so that concurrent requests cannot
    overdraw the account.

    :param balance_usd: initial balance in USD
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
        """Number of resets; requests that began before the last reset are no longer counted."""

    def reset(self, balance_usd: Decimal) -> None:
        """Drop all charges and log rows, and set the balance."""
        with self._lock:
            self.epoch += 1
            self.in_flight = 0
            self._balance, self._held = balance_usd, Decimal(0)
            self._charges.clear()
            self._log.clear()

    def set_balance(self, balance_usd: Decimal) -> None:
        """Set the balance."""
        with self._lock:
            self._balance = balance_usd

    @property
    def balance_usd(self) -> Decimal:
        """Balance in USD; held money is not deducted."""
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
        """Reserve money for a request; return ``False`` if the balance is too low."""
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

    def log_unbilled(self, row: LogRow, *, epoch: int) -> None:
        """Log a request that cost nothing."""
        with self._lock:
            if epoch == self.epoch:
                self._log.append(row)

    def charges(self) -> list[Charge]:
        """Return the charges, oldest first."""
        with self._lock:
            return list(self._charges)

    def log(self, *, lag_seconds: float) -> list[LogRow]:
        """Return the visible log rows, newest first."""
        visible_until = self._clock() - lag_seconds
        with self._lock:
            rows = [row for row in self._log if row.finished <= visible_until]
        return sorted(rows, key=lambda row: row.created, reverse=True)
