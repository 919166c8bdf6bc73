"""Results, costs and failures of all DAGs in the last days."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, tzinfo
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from airflow_provider_imagen.bill import LineItem, subtotals
from airflow_provider_imagen.money import format_usd
from airflow_provider_imagen.plugins.gallery.charts import MAX_SERIES, Chart, Series
from airflow_provider_imagen.run_report import add_summaries

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from airflow_provider_imagen.plugins.gallery.airflow_api import TaskEvent, TaskInstance
    from airflow_provider_imagen.plugins.gallery.task_results import GalleryImage
    from airflow_provider_imagen.run_report import RunSummary

MAX_TASKS: Final = 5_000
"""About the maximum number of task instances that are counted."""

MAX_FAILED: Final = 1_000
"""About the maximum number of failed task instances that are counted."""


@dataclass(frozen=True)
class Period:
    """
    Some whole days, of which the last has not ended.

    :param days: their dates, in order
    :param zone: time zone in which days begin; ``None`` for the machine's
    """

    days: tuple[date, ...]
    zone: tzinfo | None

    @classmethod
    def until(cls, now: datetime, *, days: int, zone: tzinfo | None) -> Period:
        """Return the period of so many days whose last is the present one."""
        today = now.astimezone(zone).date()
        return cls(tuple(today - timedelta(days=ago) for ago in range(days - 1, -1, -1)), zone)

    @property
    def since(self) -> datetime:
        """Its beginning."""
        return datetime(self.days[0].year, self.days[0].month, self.days[0].day, tzinfo=self.zone).astimezone(self.zone)

    @property
    def zone_name(self) -> str:
        """Short name of its time zone, such as ``UTC``."""
        return self.since.tzname() or ""

    def day_of(self, moment: datetime) -> date:
        """Return the date of a moment."""
        return moment.astimezone(self.zone).date()

    def holds(self, event: TaskEvent) -> bool:
        """Return whether something happened in it."""
        return self.days[0] <= self.day_of(event.at) <= self.days[-1]


@dataclass(frozen=True)
class AllDags:
    """
    Results of task instances in a period.

    :param published: task instances that have published a summary, the latest first
    :param failed: task instances that have failed, the latest first
    :param is_cut: whether there are more task instances than are counted
    :param has_all_operators: whether all operators derived from this provider's are known
    :param summaries: summaries as far as they are counted yet; ``None`` for an XCom of this name that is not ours
    """

    period: Period
    published: list[TaskEvent]
    failed: list[TaskEvent]
    is_cut: bool
    has_all_operators: bool
    summaries: dict[TaskInstance, RunSummary | None] = field(default_factory=dict)

    @cached_property
    def dag_ids(self) -> list[str]:
        """The DAGs, that of the latest task instance first."""
        events = sorted([*self.published, *self.failed], key=lambda event: event.at, reverse=True)
        return list(dict.fromkeys(event.ti.dag_id for event in events))

    @cached_property
    def latest(self) -> dict[str, str]:
        """When the latest task instance of each DAG published or failed."""
        events = sorted([*self.failed, *self.published], key=lambda event: event.at)
        return {event.ti.dag_id: event.timestamp for event in events}

    @cached_property
    def items(self) -> list[LineItem]:
        """The charges."""
        return [item for event, summary in self._counted() for item in line_items(event, summary)]

    @property
    def usd(self) -> Decimal:
        """Sum of the charges, in USD."""
        return sum((item.usd for item in self.items), Decimal(0))

    @cached_property
    def usd_by_dag(self) -> dict[str, Decimal]:
        """Charges of each DAG that has any, in USD."""
        return {subtotal.group[0]: subtotal.usd for subtotal in subtotals(self.items, ["dag"])}

    @cached_property
    def made_by_dag(self) -> Counter[str]:
        """Number of images of each DAG."""
        return _count((event.ti.dag_id, summary.made) for event, summary in self._counted())

    @cached_property
    def failed_by_dag(self) -> Counter[str]:
        """Number of failed task instances of each DAG."""
        return _count((event.ti.dag_id, 1) for event in self.failed)

    @cached_property
    def total(self) -> RunSummary:
        """Total of the summaries."""
        return add_summaries([summary for _, summary in self._counted()])

    @property
    def uncounted(self) -> int:
        """Number of task instances whose summaries have not been read yet."""
        return sum(event.ti not in self.summaries for event in self.published)

    @property
    def is_counting(self) -> bool:
        """Whether the next request will count more."""
        return self.uncounted > 0 or not self.has_all_operators

    @property
    def notes(self) -> list[str]:
        """Sentences about the tasks that are not counted."""
        notes = []
        if self.uncounted:
            tasks = "task is" if self.uncounted == 1 else "tasks are"
            notes.append(f"{self.uncounted:,} more {tasks} not counted yet. This page updates itself.")
        elif not self.has_all_operators:
            notes.append("Not all failed tasks are counted yet. This page updates itself.")
        if self.is_cut:
            notes.append(
                f"Only the latest tasks are counted: about {MAX_TASKS:,} with images and {MAX_FAILED:,} that failed."
            )
        return notes

    def charts(self) -> list[Chart]:
        """Return the costs per day and model, the missing images per day, and the failed tasks per day."""
        missing = {"Failed": "failed", "Withheld by the model": "filtered", "Not sent": "not_sent"}
        counts = {
            name: _count((self.period.day_of(event.at), getattr(summary, field)) for event, summary in self._counted())
            for name, field in missing.items()
        }
        failed = {"Failed tasks": _count((self.period.day_of(event.at), 1) for event in self.failed)}
        return [
            self._cost_chart(),
            Chart("missing", "Missing images per day", self.period.days, self._series(counts)),
            Chart("failed", "Failed tasks per day", self.period.days, self._series(failed)),
        ]

    def _cost_chart(self) -> Chart:
        zone = self.period.zone
        dearest = sorted(subtotals(self.items, ["model"]), key=lambda subtotal: subtotal.usd, reverse=True)
        models = [subtotal.group[0] for subtotal in dearest]
        named = models if len(models) <= MAX_SERIES else models[: MAX_SERIES - 1]
        names = {model: model if model in named else "Other models" for model in models}
        amounts: dict[str, defaultdict[date, Decimal]] = {names[model]: defaultdict(Decimal) for model in models}
        for subtotal in subtotals(self.items, ["model", "day"], zone=zone):
            model, day = subtotal.group
            amounts[names[model]][date.fromisoformat(day)] += subtotal.usd
        return Chart("cost", "Cost per day and model", self.period.days, self._series(amounts), format_usd)

    def _series(self, amounts: dict[str, Any]) -> tuple[Series, ...]:
        """Return series from amounts by date, without those that are 0."""
        series = (Series(name, tuple(by_day[day] for day in self.period.days)) for name, by_day in amounts.items())
        return tuple(each for each in series if each.total)

    def _counted(self) -> Iterator[tuple[TaskEvent, RunSummary]]:
        for event in self.published:
            if (summary := self.summaries.get(event.ti)) is not None:
                yield event, summary


@dataclass(frozen=True)
class DagSection:
    """
    A DAG on the page about all DAGs.

    :param entries: its newest images
    """

    found: AllDags
    dag_id: str
    entries: list[GalleryImage]

    @property
    def made(self) -> int:
        """Number of images in the period."""
        return self.found.made_by_dag[self.dag_id]

    @property
    def usd(self) -> Decimal:
        """Charges in the period, in USD."""
        return self.found.usd_by_dag.get(self.dag_id, Decimal(0))

    @property
    def failed(self) -> int:
        """Number of failed task instances in the period."""
        return self.found.failed_by_dag[self.dag_id]

    @property
    def latest(self) -> str:
        """When a task instance last published or failed, as Airflow's API formats it."""
        return self.found.latest[self.dag_id]

    @property
    def labels(self) -> dict[TaskInstance, str]:
        """No labels of mapped task instances; the pages of their runs have them."""
        return dict.fromkeys((image.ti for image in self.entries), "")


def _count(parts: Iterable[tuple[Any, int]]) -> Counter[Any]:
    counter: Counter[Any] = Counter()
    for key, number in parts:
        counter[key] += number
    return counter


def line_items(event: TaskEvent, summary: RunSummary) -> Iterator[LineItem]:
    """
    Yield the charges of a task instance, one per model and one for the rest.

    They are dated by the publication of the summary and add up to its ``usd_spent``. Summaries of earlier releases do
    not state the costs of each model, so all of it is the rest.
    """
    spent = _exact(summary.usd_spent)
    by_model: dict[str | None, Decimal] = {model: _exact(usd) for model, usd in summary.usd_by_model.items()}
    rest = spent - sum(by_model.values())
    if rest < 0:  # not written by a task of ours
        by_model, rest = {}, spent
    for model, usd in [*by_model.items(), (None, rest)]:
        if usd:
            yield LineItem(at=event.at, usd=usd, dag_id=event.ti.dag_id, task_id=event.ti.task_id, model=model)


def _exact(usd: float) -> Decimal:
    """Return an amount to a billionth of a dollar, less than any charge, so that parts add up."""
    return round(Decimal(str(usd)), 9)
