"""Line items and their subtotals: the arithmetic behind ``airflow-imagen bill`` and the gallery's charts."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime, tzinfo
from decimal import Decimal
from typing import TYPE_CHECKING, Final, Literal

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Iterable

Dimension = Literal["dag", "task", "model", "day", "key"]

UNKNOWN: Final = "unknown"
"""Group of the line items that lack the value to group by."""


class LineItem(Struct, frozen=True, kw_only=True):
    """
    One charge.

    :param at: when it was made, with a time zone
    :param usd: amount in USD
    :param dag_id: DAG that made it; ``None`` if unknown
    :param task_id: task that made it; ``None`` if unknown
    :param model: model id; ``None`` if unknown
    :param key: name of the API key; ``None`` if unknown
    """

    at: datetime
    usd: Decimal
    dag_id: str | None = None
    task_id: str | None = None
    model: str | None = None
    key: str | None = None


class Tally(Struct, frozen=True):
    """
    How many amounts there are, and their sum.

    :param usd: in USD; negative amounts are possible
    """

    count: int = 0
    usd: Decimal = Decimal(0)

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.count + other.count, self.usd + other.usd)

    def to_json(self) -> dict[str, int | float]:
        """Return the tally as JSON values."""
        return {"count": self.count, "usd": float(self.usd)}


def tally(amounts: Iterable[Decimal]) -> Tally:
    """Return the number and the sum of amounts in USD."""
    return sum((Tally(1, usd) for usd in amounts), Tally())


def add_costs(costs: Iterable[Decimal | None]) -> Decimal | None:
    """Return the sum of amounts in USD; ``None`` if one of them is unknown."""
    amounts = list(costs)
    known = [amount for amount in amounts if amount is not None]
    return sum(known, Decimal(0)) if len(known) == len(amounts) else None


class Subtotal(Struct, frozen=True):
    """
    The line items that agree in some dimensions.

    :param group: their value in each of these dimensions
    :param count: number of line items
    :param usd: sum of their amounts in USD
    """

    group: tuple[str, ...]
    count: int
    usd: Decimal


def subtotals(items: Iterable[LineItem], by: Iterable[Dimension], *, zone: tzinfo | None = UTC) -> list[Subtotal]:
    """
    Return the subtotals of line items, in the order of their groups; they add up to the total exactly.

    :param items: line items
    :param by: dimensions to group by; a task is named ``dag_id.task_id``, a day ``2026-11-29``
    :param zone: time zone in which days begin; ``None`` for the machine's
    """
    dimensions = tuple(by)
    groups: defaultdict[tuple[str, ...], Tally] = defaultdict(Tally)
    for item in items:
        groups[tuple(_value(item, dimension, zone) for dimension in dimensions)] += Tally(1, item.usd)
    return [Subtotal(group, total.count, total.usd) for group, total in sorted(groups.items())]


def _value(item: LineItem, dimension: Dimension, zone: tzinfo | None) -> str:
    match dimension:
        case "day":
            return item.at.astimezone(zone).date().isoformat()
        case "dag":
            return item.dag_id or UNKNOWN
        case "task":
            return f"{item.dag_id}.{item.task_id}" if item.dag_id and item.task_id else UNKNOWN
        case "model":
            return item.model or UNKNOWN
        case "key":
            return item.key or UNKNOWN
