"""
The results of runs and task instances, as the gallery's pages need them.

A page is a slice of the places in the grid. Their number is known from the summaries, so only the records of the task
instances on the page are read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from airflow_provider_imagen.plugins.gallery.airflow_api import MAX_TASK_INSTANCES
from airflow_provider_imagen.plugins.gallery.task_results import GalleryImage, Problem
from airflow_provider_imagen.run_report import RunSummary, add_summaries

if TYPE_CHECKING:
    from airflow_provider_imagen.plugins.gallery.airflow_api import DagRun, TaskInstance, TaskStatus
    from airflow_provider_imagen.plugins.gallery.task_results import Entry


@dataclass(frozen=True)
class TaskResult:
    """
    One task instance of a run.

    :param summary: what it has published; ``None`` if it has published nothing, or if that cannot be read
    :param is_counted: whether its summary has been read, if there is one
    """

    status: TaskStatus
    summary: RunSummary | None = None
    is_counted: bool = True

    @property
    def ti(self) -> TaskInstance:
        """The ids of the task instance."""
        return self.status.ti

    @property
    def places(self) -> int:
        """Number of places in the grid for its images and for what is missing; known before its records are read."""
        counts = self.summary or RunSummary()
        images = counts.made + counts.superseded + counts.filtered + counts.failed
        return images + self.status.has_failed or int(counts.usd_in_doubt > 0 or counts.usd_lost > 0)

    @property
    def lacks_summary(self) -> bool:
        """Whether it has not published a summary that can be read, unless it was skipped or removed."""
        return self.summary is None and self.status.state not in ("skipped", "removed")

    @property
    def has_problems(self) -> bool:
        """Whether images are missing, or may be because the task has failed."""
        return self.status.has_failed or (self.summary is not None and self.summary.problems > 0)


@dataclass(frozen=True)
class RunResults:
    """
    The task instances of a run that belong to this provider.

    :param run: ``None`` for a single task instance
    :param tasks: sorted by task, then map index
    :param is_cut: whether the run has more task instances than were listed
    """

    tasks: list[TaskResult]
    run: DagRun | None = None
    is_cut: bool = False

    @property
    def total(self) -> RunSummary:
        """Total of the summaries read so far."""
        return add_summaries([task.summary for task in self.tasks if task.summary is not None])

    @property
    def is_active(self) -> bool:
        """Whether the run or the single task instance has not ended."""
        return self.run.is_active if self.run else not all(task.status.is_finished for task in self.tasks)

    @property
    def is_complete(self) -> bool:
        """Whether everything has succeeded and is counted, so that the total tells how many images were requested."""
        has_succeeded = self.run is None or self.run.state == "success"
        return (
            has_succeeded
            and self.knows_requested
            and all(task.status.state in ("skipped", "removed", "success") for task in self.tasks)
        )

    @property
    def knows_requested(self) -> bool:
        """Whether the total counts every task instance, even those in progress, so that it is the number requested."""
        return not (self.is_cut or any(task.lacks_summary for task in self.tasks))

    @property
    def labels(self) -> dict[TaskInstance, str]:
        """Label of every task instance; empty for those that are not mapped."""
        return {task.ti: task.status.label for task in self.tasks}

    @property
    def statuses(self) -> dict[TaskInstance, TaskStatus]:
        """Status of every task instance."""
        return {task.ti: task.status for task in self.tasks}

    @property
    def titles(self) -> dict[TaskInstance, str]:
        """Task and label of every task instance."""
        return {task.ti: task.status.title for task in self.tasks}

    @property
    def labels_to_choose(self) -> list[str]:
        """Each task and, if it is mapped, the titles of its instances."""
        return list(dict.fromkeys(name for task in self.tasks for name in (task.ti.task_id, task.status.title)))

    @property
    def models(self) -> frozenset[str]:
        """Models that the task instances have as an argument; their images may have others."""
        return frozenset(task.status.model for task in self.tasks if task.status.model)

    @property
    def failed(self) -> int:
        """Number of task instances that have failed for good or cannot run."""
        return sum(task.status.has_failed and task.status.is_finished for task in self.tasks)

    @property
    def skipped(self) -> int:
        """Number of task instances that were skipped."""
        return sum(task.status.state == "skipped" for task in self.tasks)

    @property
    def unfinished(self) -> int:
        """Number of task instances that are still to run or to end."""
        return sum(not task.status.is_finished for task in self.tasks)

    @property
    def notes(self) -> list[str]:
        """Sentences about the task instances that the total leaves out."""
        uncounted = sum(not task.is_counted for task in self.tasks)
        unrecorded = sum(
            task.is_counted and task.summary is None and task.status.state == "success" for task in self.tasks
        )
        notes = []
        if self.is_cut:
            notes.append(f"Only about {MAX_TASK_INSTANCES:,} task instances of this run are counted. It has more.")
        if uncounted:
            tasks = "task has" if uncounted == 1 else "tasks have"
            notes.append(f"{uncounted:,} more {tasks} not been counted yet. Reload to continue.")
        if unrecorded and not self.is_cut:
            tasks = "task" if unrecorded == 1 else "tasks"
            notes.append(f"The records of {unrecorded:,} successful {tasks} cannot be read.")
        return notes


@dataclass(frozen=True)
class TaskImages:
    """
    The images of one task instance.

    :param summary: ``None`` if it has none
    :param images: in prompt order
    :param notice: sentence that says why images are missing; ``None`` if none are
    """

    ti: TaskInstance
    summary: RunSummary | None
    images: list[GalleryImage]
    notice: str | None = None

    def find(self, prompt_index: int, image_index: int) -> int | None:
        """Return an image's position in the list; ``None`` if it is not there."""
        return self._places.get((prompt_index, image_index))

    @cached_property
    def _places(self) -> dict[tuple[int, int], int]:
        places: dict[tuple[int, int], int] = {}
        for place, image in enumerate(self.images):
            places.setdefault((image.prompt_index, image.image_index), place)
        return places


@dataclass(frozen=True)
class TaskEntries:
    """
    What a grid shows of one task instance: its images and, in their places, what is missing.

    :param entries: in prompt order; that of the whole task comes first
    :param notes: sentences about what cannot be shown
    :param models: models of all entries of the task instance, also of those left out here
    """

    ti: TaskInstance
    entries: list[Entry]
    notes: list[str]
    models: frozenset[str] = frozenset()

    @property
    def images(self) -> list[GalleryImage]:
        """The images among the entries."""
        return [entry for entry in self.entries if isinstance(entry, GalleryImage)]

    def between(self, first: int, end: int, *, places: int) -> TaskEntries:
        """
        Return the entries in a range of places, at most twice as many as places.

        :param places: number of places of the task instance; entries beyond them are at the last one
        """
        kept: list[Entry] = []
        place = 0
        for entry in self.entries:
            if first <= min(place, places - 1) < end:
                kept.append(entry)
            place += entry.places
        return replace(self, entries=kept[: 2 * (end - max(first, 0))])


@dataclass(frozen=True)
class Matches:
    """
    The result of a search in task instances.

    :param tasks: those searched, each with its matching entries only
    :param unsearched: task instances that were not searched for lack of time
    """

    tasks: list[TaskEntries]
    unsearched: list[TaskResult] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Number of matching images."""
        return sum(len(task.images) for task in self.tasks)

    @property
    def entries(self) -> list[Entry]:
        """All matching entries."""
        return [entry for task in self.tasks for entry in task.entries]

    @property
    def places(self) -> int:
        """Number of matching entries."""
        return sum(len(task.entries) for task in self.tasks)

    def slice(self, *, first: int, most: int) -> list[TaskEntries]:
        """
        Return a slice of the entries; the first one comes with the notes of all task instances.

        :param first: number of the first entry
        :param most: maximum number of entries
        """
        found = []
        start = 0
        for task in self.tasks:
            entries = task.entries[max(first - start, 0) : max(first + most - start, 0)]
            if entries or (task.notes and first == 0):
                found.append(replace(task, entries=entries))
            start += len(task.entries)
        return found

    @property
    def task_notes(self) -> list[str]:
        """Sentences about results that cannot be shown."""
        return list(dict.fromkeys(note for task in self.tasks for note in task.notes))

    @property
    def notes(self) -> list[str]:
        """Sentences about task instances that were not searched."""
        if not self.unsearched:
            return []
        count = len(self.unsearched)
        rest = "task could not be searched in time. Search on its own page."
        if count > 1:
            rest = "tasks could not be searched in time. Search on their own pages."
        return [f"{count:,} more {rest}"]


def place_of(entry: GalleryImage | Problem) -> tuple[float, bool, int]:
    """Return a sort key: the images of a prompt, then what it lacks; unknown prompts come last."""
    index = math.inf if entry.prompt_index is None else entry.prompt_index
    return index, isinstance(entry, Problem), entry.image_index if isinstance(entry, GalleryImage) else 0
