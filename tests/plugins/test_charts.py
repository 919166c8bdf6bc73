"""What the charts of all DAGs add up to, and how they are drawn."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_imagen.bill import subtotals
from airflow_provider_imagen.plugins.gallery.airflow_api import TaskEvent, TaskInstance
from airflow_provider_imagen.plugins.gallery.all_dags import AllDags, Period, line_items
from airflow_provider_imagen.plugins.gallery.charts import MAX_SERIES, Chart, Series
from airflow_provider_imagen.run_report import RunSummary

NOW = datetime(2026, 11, 29, 13, 0, tzinfo=UTC)
WEEK = Period.until(NOW, days=7, zone=UTC)


def event(number: int, at: datetime = NOW) -> TaskEvent:
    return TaskEvent(TaskInstance(f"dag_{number % 3}", f"run_{number}", "paint"), at.isoformat())


usd = st.decimals(0, 1000, places=7)
tasks = st.lists(
    st.tuples(
        st.timedeltas(timedelta(0), timedelta(days=6)),
        st.dictionaries(st.sampled_from([f"model-{n}" for n in range(9)]), usd),
        usd,
        st.integers(0, 9),
    ),
    max_size=12,
)


def found_of(generated: list[tuple[timedelta, dict[str, Decimal], Decimal, int]]) -> AllDags:
    summaries = {}
    events = []
    for number, (ago, by_model, rest, failed) in enumerate(generated):
        events.append(event(number, NOW - ago))
        summaries[events[-1].ti] = RunSummary(
            usd_spent=float(sum(by_model.values(), rest)),
            usd_by_model={model: float(amount) for model, amount in by_model.items()},
            failed=failed,
        )
    return AllDags(WEEK, events, failed=events[:3], is_cut=False, has_all_operators=True, summaries=summaries)


@given(tasks)
def test_every_chart_adds_up_to_what_it_shows(generated) -> None:
    found = found_of(generated)
    cost, missing, failed = found.charts()

    spent = sum((sum(by_model.values(), rest) for _, by_model, rest, _ in generated), Decimal(0))
    assert found.usd == cost.total == sum(found.usd_by_dag.values()) == spent
    assert missing.total == sum(failures for *_, failures in generated)
    assert failed.total == len(generated[:3])
    for chart in (cost, missing, failed):
        assert sum(chart.day_totals) == chart.total
        assert len(chart.series) <= MAX_SERIES


@given(tasks)
def test_costs_per_day_are_the_subtotals_of_the_bill(generated) -> None:
    found = found_of(generated)
    cost, *_ = found.charts()

    by_day = {day: amount for day, amount in zip(map(str, cost.days), cost.day_totals, strict=False) if amount}
    assert by_day == {total.group[0]: total.usd for total in subtotals(found.items, ["day"])}
    by_model = {total.group[0]: total.usd for total in subtotals(found.items, ["model"])}
    assert {each.name: each.total for each in cost.series if each.name != "Other models"}.items() <= by_model.items()


@given(tasks)
def test_bars_are_stacked_within_the_drawing(generated) -> None:
    for chart in found_of(generated).charts():
        top_of: dict[float, float] = {}
        for bar in chart.bars():
            assert 0 <= bar.x <= chart.width - chart.bar_width
            assert bar.y >= 0
            assert bar.y + bar.height == pytest.approx(top_of.get(bar.x, chart.height), abs=0.02)
            top_of[bar.x] = bar.y


@pytest.mark.parametrize(
    ("largest", "top"),
    [("0.0000005", "0.0000005"), ("0.042", "0.05"), ("1", "1"), ("1.01", "2"), ("7", "10"), ("99.5", "100")],
)
def test_the_scale_ends_at_a_round_amount(largest: str, top: str) -> None:
    chart = Chart("cost", "Cost", WEEK.days[:1], (Series("m", (Decimal(largest),)),))
    assert chart.top == Decimal(top)


def test_the_models_beyond_the_colours_share_a_series() -> None:
    by_model = {f"model-{number}": Decimal(number + 1) for number in range(MAX_SERIES + 2)}
    cost, *_ = found_of([(timedelta(0), by_model, Decimal(0), 0)]).charts()

    assert [each.name for each in cost.series] == [*(f"model-{n}" for n in (7, 6, 5, 4, 3)), "Other models"]
    assert cost.series[-1].total == 1 + 2 + 3


@pytest.mark.parametrize(
    "summary",
    [
        RunSummary(usd_spent=0.3),  # of an earlier release
        RunSummary(usd_spent=0.3, usd_by_model={"a": 5.0}),  # forged
        RunSummary(usd_spent=0.3, usd_by_model={"a": 0.1, "b": 0.2}),  # as floats, these add up to more
        RunSummary(usd_spent=0.3, usd_by_model={"a": 0.1}),
        RunSummary(usd_spent=1e15, usd_by_model={"a": 1e15}),
        RunSummary(),
    ],
)
def test_line_items_add_up_to_what_a_task_has_spent(summary: RunSummary) -> None:
    items = list(line_items(event(0), summary))

    assert sum((item.usd for item in items), Decimal(0)) == Decimal(str(summary.usd_spent))
    assert all(item.usd > 0 for item in items)


@pytest.mark.parametrize(("zone", "day"), [("UTC", "2026-11-28"), ("Asia/Tokyo", "2026-11-29")])
def test_days_begin_in_airflows_time_zone(zone: str, day: str) -> None:
    period = Period.until(NOW, days=7, zone=ZoneInfo(zone))
    evening = event(0, datetime(2026, 11, 28, 20, 0, tzinfo=UTC))
    found = AllDags(period, [evening], [evening], False, True, {evening.ti: RunSummary(usd_spent=1.0, failed=1)})

    for chart in found.charts():
        (amount,) = [amount for date, amount in zip(chart.days, chart.day_totals, strict=True) if str(date) == day]
        assert amount == 1


def test_a_period_holds_the_days_up_to_now_and_no_other() -> None:
    assert [str(day) for day in (WEEK.days[0], WEEK.days[-1])] == ["2026-11-23", "2026-11-29"]
    assert WEEK.since == datetime(2026, 11, 23, tzinfo=UTC)
    assert WEEK.holds(event(0, WEEK.since))
    assert not WEEK.holds(event(0, WEEK.since - timedelta(microseconds=1)))
    assert not WEEK.holds(event(0, NOW + timedelta(days=1)))
