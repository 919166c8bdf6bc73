"""The images of a run that compares models: one row per prompt or name, one column per model."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from airflow_provider_imagen.plugins.gallery.comparison import MAX_COMPARED
from airflow_provider_imagen.plugins.gallery.task_results import GalleryImage

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from airflow_provider_imagen.plugins.gallery.task_results import Entry, Problem, TaskProblem

RowsBy = Literal["prompt", "name"]

MAX_MODELS: Final = 24
"""Maximum number of columns."""

IMAGES_PER_CELL: Final = 4

_UNKNOWN: Final = "unknown model"


@dataclass
class Cell:
    """
    What one model made of one prompt.

    :param problems: why images are missing
    """

    images: list[GalleryImage] = field(default_factory=list)
    problems: list[Problem | TaskProblem] = field(default_factory=list)

    @property
    def shown(self) -> list[GalleryImage]:
        """The images that a page shows."""
        return self.images[:IMAGES_PER_CELL]


@dataclass(frozen=True)
class Row:
    """
    What all models made of one prompt.

    :param heading: the prompt or the name
    :param cells: by model; without those for which there is nothing
    """

    heading: str
    cells: dict[str, Cell] = field(default_factory=dict)

    def cell(self, model: str) -> Cell:
        """Return what a model made."""
        return self.cells.get(model) or Cell()

    def choose(self, models: Iterable[str]) -> list[GalleryImage]:
        """Return an image of each model for a comparison; empty if fewer than two of the models made one."""
        first = [cell.images[0] for model in models if (cell := self.cell(model)).images]
        return first[:MAX_COMPARED] if len(first) > 1 else []


@dataclass
class Column:
    """
    The total of one model.

    :param images: number of images
    :param usd: known cost, that of requests without an image included
    :param unpriced: number of images whose cost is unknown
    """

    images: int = 0
    usd: float = 0.0
    unpriced: int = 0


@dataclass(frozen=True)
class Matrix:
    """
    The images of a run by prompt and model.

    :param columns: by model, in the order of their first image
    :param rows: in the order of their first image
    :param left_out: entries without a prompt or, in rows by name, without a name; no column counts them
    """

    columns: dict[str, Column]
    rows: list[Row]
    left_out: list[Entry]

    @property
    def models(self) -> list[str]:
        """The models that a page shows."""
        return list(self.columns)[:MAX_MODELS]


def arrange(entries: Iterable[Entry], *, by: RowsBy = "prompt") -> Matrix:
    """
    Return images and problems by prompt and model.

    :param by: what the rows are
    """
    columns: defaultdict[str, Column] = defaultdict(Column)
    rows: dict[str, Row] = {}
    left_out: list[Entry] = []
    for entry in entries:
        heading = entry.prompt if by == "prompt" else entry.name
        if not heading:
            left_out.append(entry)
            continue
        model = entry.model or _UNKNOWN
        column = columns[model]
        cell = rows.setdefault(heading, Row(heading)).cells.setdefault(model, Cell())
        if isinstance(entry, GalleryImage):
            cell.images.append(entry)
            column.images += 1
            column.unpriced += entry.usd is None
        else:
            cell.problems.append(entry)
        column.usd += entry.usd or 0.0
    return Matrix(dict(columns), list(rows.values()), left_out)


def compares_models(made: Iterable[tuple[str, str | None]]) -> bool:
    """
    Return whether at least two models made images of one prompt.

    :param made: prompt and model of images; images of unknown models do not count
    """
    models: dict[str, str] = {}
    return any(model and models.setdefault(prompt, model) != model for prompt, model in made if prompt)


def shown_images(rows: Iterable[Row], models: Sequence[str]) -> list[GalleryImage]:
    """Return the images that a page with these rows and columns shows."""
    return [image for row in rows for model in models for image in row.cell(model).shown]
