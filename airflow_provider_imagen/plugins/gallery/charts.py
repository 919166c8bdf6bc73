"""Bar charts over days, as numbers that a template can draw as SVG without styles of its own."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, ClassVar, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import date

Amount = Decimal | int

MAX_SERIES: Final = 6
"""Maximum number of series in a chart, each with its own colour in the style sheet."""

_DAY_WIDTH: Final = 10


@dataclass(frozen=True)
class Series:
    """
    Amounts of one kind.

    :param values: one amount per day of the chart, none negative
    """

    name: str
    values: tuple[Amount, ...]

    @property
    def total(self) -> Amount:
        """Sum over all days."""
        return sum(self.values)


@dataclass(frozen=True)
class Bar:
    """
    The part of a day's bar that belongs to one series. The origin of the drawing is at the top left.

    :param number: index of its series, from 0
    :param text: what it stands for
    """

    number: int
    x: float
    y: float
    height: float
    text: str


@dataclass(frozen=True)
class Chart:
    """
    A stacked bar chart, one bar per day.

    :param key: identifies the chart on its page
    :param days: dates, in order and without gaps
    :param series: at most :data:`MAX_SERIES`, stacked from the bottom
    :param write: returns an amount as text
    """

    height: ClassVar[int] = 100
    bar_width: ClassVar[int] = 8
    key: str
    title: str
    days: tuple[date, ...]
    series: tuple[Series, ...]
    write: Callable[[Amount], str] = str

    @property
    def total(self) -> Amount:
        """Sum over all series and days."""
        return sum(each.total for each in self.series)

    @property
    def day_totals(self) -> tuple[Amount, ...]:
        """Sum over all series, for each day."""
        return tuple(sum(amounts) for amounts in zip(*(each.values for each in self.series), strict=True))

    @property
    def top(self) -> Decimal:
        """The amount at the upper end of the scale: 1, 2 or 5 times a power of ten, at least the largest amount."""
        largest = Decimal(max(self.day_totals, default=0))
        if not largest:
            return Decimal(1)
        power = Decimal(1).scaleb(largest.adjusted())
        return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= largest)

    @property
    def width(self) -> int:
        """Width of the drawing; like all sizes, in units of its own, since it is stretched to its place on the page."""
        return _DAY_WIDTH * len(self.days)

    @property
    def description(self) -> str:
        """The gist in one sentence, for those who cannot see the drawing."""
        totals = self.day_totals
        most = max(totals)
        return f"{self.write(self.total)} in all; the most, {self.write(most)}, on {self.days[totals.index(most)]}."

    def bars(self) -> Iterator[Bar]:
        """Yield the bars of all days, without those of height 0."""
        for at, day in enumerate(self.days):
            below = Decimal(0)
            for number, each in enumerate(self.series):
                if not (amount := each.values[at]):
                    continue
                below += amount
                yield Bar(
                    number=number,
                    x=_DAY_WIDTH * at + (_DAY_WIDTH - self.bar_width) / 2,
                    y=round(float(self.height * (1 - below / self.top)), 2),
                    height=round(float(self.height * amount / self.top), 2),
                    text=f"{day}: {each.name}, {self.write(amount)}",
                )
