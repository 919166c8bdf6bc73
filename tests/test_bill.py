"""Subtotals of line items."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from zoneinfo import ZoneInfo

from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_imagen.bill import LineItem, Subtotal, subtotals

EVENING = datetime(2026, 11, 28, 23, 30, tzinfo=UTC)
NIGHT = datetime(2026, 11, 29, 1, 0, tzinfo=UTC)

items = st.builds(
    LineItem,
    at=st.datetimes(timezones=st.just(UTC), min_value=datetime(2026, 1, 1), max_value=datetime(2026, 12, 30)),
    usd=st.decimals(0, 1000, places=7),
    dag_id=st.sampled_from([None, "a", "b"]),
    task_id=st.sampled_from([None, "paint"]),
    model=st.sampled_from([None, "m1", "m2"]),
)


def test_line_items_are_grouped_by_each_dimension() -> None:
    found = [
        LineItem(at=EVENING, usd=Decimal("0.04"), dag_id="cards", task_id="paint", model="m1", key="prod"),
        LineItem(at=NIGHT, usd=Decimal("0.02"), dag_id="cards", task_id="paint", model="m2", key="prod"),
        LineItem(at=NIGHT, usd=Decimal("0.01")),
    ]
    assert subtotals(found, ["day"]) == [
        Subtotal(("2026-11-28",), 1, Decimal("0.04")),
        Subtotal(("2026-11-29",), 2, Decimal("0.03")),
    ]
    assert subtotals(found, ["task"]) == [
        Subtotal(("cards.paint",), 2, Decimal("0.06")),
        Subtotal(("unknown",), 1, Decimal("0.01")),
    ]
    assert [each.group for each in subtotals(found, ["dag", "model", "key"])] == [
        ("cards", "m1", "prod"),
        ("cards", "m2", "prod"),
        ("unknown", "unknown", "unknown"),
    ]


def test_days_begin_in_the_time_zone() -> None:
    found = [LineItem(at=EVENING, usd=Decimal(1))]
    assert subtotals(found, ["day"], zone=ZoneInfo("Europe/Berlin"))[0].group == ("2026-11-29",)


@given(st.lists(items), st.lists(st.sampled_from(["dag", "task", "model", "day", "key"]), unique=True))
def test_subtotals_add_up_to_the_total(found: list[LineItem], by: list[str]) -> None:
    result = subtotals(found, by)  # type: ignore[arg-type]
    assert sum((each.usd for each in result), Decimal(0)) == sum((item.usd for item in found), Decimal(0))
    assert sum(each.count for each in result) == len(found)
