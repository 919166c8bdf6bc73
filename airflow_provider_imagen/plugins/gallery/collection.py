"""
Read the XComs and manifests of tasks, with a short-lived cache.

Pages and their previews need the same records many times. Only content is cached, never permission: every request is
authorized before it gets here.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import anyio
from anyio import to_thread

from airflow_provider_imagen.plugins.gallery.airflow_api import MAX_TASK_INSTANCES
from airflow_provider_imagen.plugins.gallery.expiring_cache import ExpiringCache
from airflow_provider_imagen.plugins.gallery.files import (
    MAX_LISTED,
    FileUnavailableError,
    read_failures_file,
    read_manifest_images,
    read_progress_images,
    read_run_images,
)
from airflow_provider_imagen.plugins.gallery.image_search import find_entries, has_label
from airflow_provider_imagen.plugins.gallery.matrix import compares_models
from airflow_provider_imagen.plugins.gallery.run_results import (
    Matches,
    RunResults,
    TaskEntries,
    TaskImages,
    TaskResult,
    place_of,
)
from airflow_provider_imagen.plugins.gallery.task_results import (
    TaskProblem,
    manifest_of,
    read_failure,
    read_images,
    read_summary,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from airflow_provider_imagen.plugins.gallery.airflow_api import AirflowApi, DagRun, TaskInstance, TaskStatus
    from airflow_provider_imagen.plugins.gallery.task_results import Entry, GalleryImage, Problem
    from airflow_provider_imagen.plugins.gallery.view_state import ViewState
    from airflow_provider_imagen.run_report import RunSummary, TaskFailure

FRESH_SECONDS: Final = 10.0
"""How long records are cached: long enough for a page and its previews."""

DAG_SECONDS: Final = 60.0
"""How long it is cached which operators of a DAG belong to this provider."""

RUN_SECONDS: Final = 60.0
"""How long it is cached whether a run compares models."""

COUNT_SECONDS: Final = 3.0
"""Time that a page may spend on reading summaries that are not cached."""

_MAX_IMAGE_BYTES: Final = 64 * 1024 * 1024
_MAX_SUMMARY_BYTES: Final = 32 * 1024 * 1024
_FILE_THREADS: Final = 8
_READS_AT_ONCE: Final = 8

_MAX_TASKS_COMPARED: Final = 8
"""Maximum number of task instances whose records are read to find out whether a run compares models."""

Result = TypeVar("Result")


def _estimated_bytes(images: Iterable[GalleryImage]) -> int:
    """Return an estimate of the memory that these records take."""
    listed = list(images)
    texts = (
        text
        for image in listed
        for values in (image.metadata or {},)
        for text in (
            image.prompt,
            image.enhanced_prompt,
            image.path,
            image.url,
            image.name,
            image.arguments,
            image.file_name,
            image.created_at,
            *values,
            *values.values(),
        )
    )
    return 500 * (1 + len(listed)) + sum(sys.getsizeof(text) for text in texts if text)


def _summary_bytes(summary: RunSummary | None) -> int:
    """Return an estimate of the memory that a summary takes."""
    if summary is None:
        return 1000
    paths = sum(len(path or "") for path in (summary.manifest, summary.contact_sheet))
    return 1000 + paths + sum(200 + len(model) for model in summary.usd_by_model)


class Collection:
    """The images of an Airflow deployment, read through the :class:`AirflowApi` of each call's visitor."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tasks: ExpiringCache[TaskImages] = ExpiringCache(
            entries=64,
            seconds=FRESH_SECONDS,
            max_bytes=_MAX_IMAGE_BYTES,
            size_of=lambda found: _estimated_bytes(found.images),
            clock=clock,
        )
        self._manifests: ExpiringCache[dict[TaskInstance, list[GalleryImage]]] = ExpiringCache(
            entries=16,
            seconds=FRESH_SECONDS,
            max_bytes=_MAX_IMAGE_BYTES,
            size_of=lambda found: _estimated_bytes(image for images in found.values() for image in images),
            clock=clock,
        )
        # The timestamp is part of the key, so a cached summary is never out of date.
        self._summaries: ExpiringCache[RunSummary | None] = ExpiringCache(
            entries=20_000,
            seconds=86_400.0,
            max_bytes=_MAX_SUMMARY_BYTES,
            size_of=_summary_bytes,
            clock=clock,
        )
        self._ended_runs: ExpiringCache[RunResults] = ExpiringCache(
            entries=64,
            seconds=FRESH_SECONDS,
            max_bytes=_MAX_SUMMARY_BYTES,
            size_of=lambda results: sum(1000 + len(task.status.prompt or "") for task in results.tasks),
            clock=clock,
        )
        self._operators: ExpiringCache[frozenset[str]] = ExpiringCache(
            entries=256, seconds=DAG_SECONDS, max_bytes=_MAX_SUMMARY_BYTES, size_of=lambda _: 1000, clock=clock
        )
        self._comparisons: ExpiringCache[bool] = ExpiringCache(
            entries=1000, seconds=RUN_SECONDS, max_bytes=_MAX_SUMMARY_BYTES, size_of=lambda _: 1000, clock=clock
        )
        self._file_threads: anyio.CapacityLimiter | None = None

    async def in_thread(self, work: Callable[[], Result]) -> Result:
        """Return the result of blocking work, run on a few threads of our own to keep Airflow's free."""
        if self._file_threads is None:
            self._file_threads = anyio.CapacityLimiter(_FILE_THREADS)
        return await to_thread.run_sync(work, limiter=self._file_threads)

    async def get_task(self, api: AirflowApi, ti: TaskInstance, summary: RunSummary | None = None) -> TaskImages:
        """
        Return the images of a task instance.

        :param summary: its current summary, if known; without it, the result may be some seconds old
        """
        return await self._tasks.get(
            ti,
            lambda: self._read_task(api, ti, summary),
            is_current=lambda found: summary is None or found.summary == summary,
        )

    async def get_task_with(self, api: AirflowApi, ti: TaskInstance, wanted: Iterable[tuple[int, int]]) -> TaskImages:
        """
        Return the images of a task instance, read again if one of them may have been stored since the last time.

        :param wanted: prompt and image indexes of images that the result should have
        """
        return await self._tasks.get(
            ti,
            lambda: self._read_task(api, ti),
            is_current=lambda found: all(found.find(*indexes) is not None for indexes in wanted),
        )

    async def get_summary(self, api: AirflowApi, ti: TaskInstance) -> RunSummary | None:
        """Return the current summary of a task instance; ``None`` if it has none that can be read."""
        xcom = await api.get_xcom(ti, "summary")
        return read_summary(xcom.value) if xcom else None

    async def read_run(self, api: AirflowApi, run: DagRun, *, seconds: float = COUNT_SECONDS) -> RunResults:
        """
        Return the task instances of a run that belong to this provider, and their summaries.

        For a run that has ended, they may be some seconds old: with thousands of task instances, listing them takes
        seconds, and each page, search and order needs them.

        :param seconds: time after which no more summaries are read
        """
        if run.is_active:
            return await self._read_run(api, run, seconds=seconds)
        return await self._ended_runs.get(
            run,
            lambda: self._read_run(api, run, seconds=seconds),
            is_current=lambda results: all(task.is_counted for task in results.tasks),
        )

    async def _read_run(self, api: AirflowApi, run: DagRun, *, seconds: float) -> RunResults:
        """
        Return the task instances of a run and their summaries, as they are now.

        They belong to this provider by their operator, or because an instance of their task has published a summary.
        Each summary takes a call to Airflow's API, so very many are read only as far as the time allows; the cache lets
        the next page load continue from there.
        """
        ids = {"dag_id": run.dag_id, "run_id": run.run_id}
        operators = await self._operators.get(run.dag_id, lambda: api.list_operators(run.dag_id))
        # In this order, because a task publishes its results before it ends.
        statuses = await api.list_task_instances(**ids, operators=operators)
        timestamps = await api.list_xcoms(**ids, key="summary")
        summaries = await self.read_summaries(api, sorted(timestamps.items()), seconds=seconds)
        # A DAG may have changed since, so that the class names of its subclasses are no longer known.
        known = {status.ti.task_id for status in statuses}
        others = {ti.task_id for ti in timestamps if ti not in summaries or summaries[ti] is not None} - known
        everything = await api.list_task_instances(**ids) if others else []
        statuses += [status for status in everything if status.ti.task_id in others]
        is_cut = max(map(len, (statuses, timestamps, everything))) > MAX_TASK_INSTANCES
        tasks = [
            TaskResult(
                status,
                summary=summaries.get(status.ti),
                is_counted=status.ti in summaries or status.ti not in timestamps,
            )
            for status in sorted(statuses, key=lambda status: status.ti)
            if status.state != "removed" or status.ti in timestamps
        ]
        return RunResults(tasks, run, is_cut=is_cut)

    async def read_entries(
        self, api: AirflowApi, task: TaskResult, images: list[GalleryImage] | None = None
    ) -> TaskEntries:
        """
        Return what a grid shows of a task instance.

        :param images: its images, if known already
        """
        problems: list[Problem] = []
        notes: list[str | None] = []
        if task.summary is not None:
            if images is None:
                found = await self.get_task(api, task.ti, task.summary)
                images, notes = found.images, [found.notice]
            problems, unreadable = await self.read_problems(task.ti, task.summary)
            notes.append(unreadable)
        unexplained: list[Entry] = []
        if task.status.has_failed:
            failure = await self._read_failure(api, task.status)
            if not _is_explained(failure, problems):
                unexplained = [TaskProblem(task.status, failure)]
        ordered: list[GalleryImage | Problem] = [*(images or []), *problems]
        if problems:
            await self.in_thread(partial(ordered.sort, key=place_of))
        return TaskEntries(
            task.ti,
            [*unexplained, *ordered],
            [note for note in notes if note],
            models=frozenset(entry.model for entry in ordered if entry.model),
        )

    async def search(
        self, api: AirflowApi, tasks: list[TaskResult], view: ViewState, *, seconds: float = COUNT_SECONDS
    ) -> Matches:
        """
        Search task instances, in their order.

        Those that share a folder are read from its manifest at once. All others take a call to Airflow's API each, so
        very many are searched only as far as the time allows.

        :param seconds: time after which no more task instances are read by themselves
        """
        tasks = [task for task in tasks if (task.places or not task.is_counted) and has_label(task.status, view.label)]
        deadline = self._clock() + seconds
        # The time of an image is only in its manifest.
        least = 1 if view.sort in ("time", "-time") and len(tasks) <= _READS_AT_ONCE else 2
        listed = await self._read_shared_manifests(tasks, least=least)
        found: list[TaskEntries] = []
        unsearched: list[TaskResult] = []
        images = 0
        for start in range(0, len(tasks), _READS_AT_ONCE):
            wanted = tasks[start : start + _READS_AT_ONCE]
            part = [task for task in wanted if task.is_counted or task.ti in listed]
            if start and (images >= MAX_LISTED or self._clock() > deadline):
                part = [task for task in part if task.ti in listed and not task.has_problems and images < MAX_LISTED]
            unsearched += [task for task in wanted if task not in part]
            read = await asyncio.gather(*(self.read_entries(api, task, listed.get(task.ti)) for task in part))
            matching = await self.in_thread(partial(_find, read, view))
            images += sum(len(each.entries) for each in matching)
            found += matching
        return Matches(found, unsearched=unsearched)

    async def _read_shared_manifests(
        self, tasks: list[TaskResult], *, least: int
    ) -> dict[TaskInstance, list[GalleryImage]]:
        """
        Return the images of task instances as the manifests of their folders list them.

        Those of which a manifest lists fewer or more images than their summary counts are left out: they may have
        changed since, or use images of others.

        :param least: number of task instances that make it worth while to read the manifest of their folder
        """
        shared = Counter(
            task.summary.manifest
            for task in tasks
            if task.summary and task.summary.manifest and not task.summary.in_progress
        )
        by_ti = {task.ti: task for task in tasks}
        listed: dict[TaskInstance, list[GalleryImage]] = {}
        for manifest in [path for path, count in shared.items() if count >= least]:
            ids = (tasks[0].ti.dag_id, tasks[0].ti.run_id, manifest)
            with suppress(FileUnavailableError):
                found = await self._manifests.get(ids, partial(self.in_thread, partial(read_run_images, *ids)))
                for ti, images in found.items():
                    task = by_ti.get(ti)
                    if task is not None and _lists_all(task, images, manifest):
                        listed[ti] = images
        return listed

    async def compares_models(self, api: AirflowApi, run: DagRun, tasks: list[TaskResult]) -> bool:
        """
        Return whether two models made images of one prompt of a run, as far as a few calls to Airflow's API tell.

        The rendered arguments tell it of task instances with one prompt, and their records of the first few others.
        """
        key = (run.dag_id, run.run_id, run.is_active)
        return await self._comparisons.get(key, lambda: self._find_comparison(api, tasks))

    async def _find_comparison(self, api: AirflowApi, tasks: list[TaskResult]) -> bool:
        made: list[tuple[str, str | None]] = []
        unknown: list[TaskResult] = []
        for task in tasks:
            if task.summary is None or not task.summary.made:
                continue
            if task.status.prompt and task.status.model:
                made.append((task.status.prompt, task.status.model))
            else:
                unknown.append(task)
        if not compares_models(made):
            parts = [self.get_task(api, task.ti, task.summary) for task in unknown[:_MAX_TASKS_COMPARED]]
            made += [(image.prompt, image.model) for found in await asyncio.gather(*parts) for image in found.images]
        return compares_models(made)

    async def read_slice(self, api: AirflowApi, tasks: list[TaskResult], *, first: int, most: int) -> list[TaskEntries]:
        """
        Return a slice of the grid of several task instances. Only those with a place in it are read.

        :param first: number of the first place
        :param most: maximum number of places
        """
        start = 0
        wanted: list[tuple[TaskResult, int]] = []
        for task in tasks:
            if task.places and start + task.places > first and start < first + most:
                wanted.append((task, start))
            start += task.places
        listed = await self._read_shared_manifests([task for task, _ in wanted], least=_READS_AT_ONCE)
        found: list[TaskEntries] = []
        for at in range(0, len(wanted), _READS_AT_ONCE):
            part = wanted[at : at + _READS_AT_ONCE]
            read = await asyncio.gather(*(self.read_entries(api, task, listed.get(task.ti)) for task, _ in part))
            found += [
                entries.between(first - start, first + most - start, places=task.places)
                for (task, start), entries in zip(part, read, strict=True)
            ]
        return found

    async def read_problems(self, ti: TaskInstance, summary: RunSummary) -> tuple[list[Problem], str | None]:
        """Return the prompts of a task instance that lack images and, if they cannot be read, a notice."""
        if not summary.filtered and not summary.failed:
            return [], None
        if not summary.manifest:
            return [], "The task stored nothing, so the reasons are in its log only."
        try:
            return await self.in_thread(partial(read_failures_file, ti, summary.manifest)), None
        except FileUnavailableError as error:
            return [], str(error)

    async def _read_failure(self, api: AirflowApi, status: TaskStatus) -> TaskFailure | None:
        xcom = None if status.state == "upstream_failed" else await api.get_xcom(status.ti, "failure")
        return read_failure(xcom.value) if xcom else None

    async def read_summaries(
        self, api: AirflowApi, entries: list[tuple[TaskInstance, str]], *, seconds: float
    ) -> dict[TaskInstance, RunSummary | None]:
        """
        Return the summaries of task instances, in their order as far as the time allows.

        :param entries: task instances, each with the timestamp of its summary
        :param seconds: time after which only cached summaries are read
        """
        deadline = self._clock() + seconds
        is_late = False
        summaries: dict[TaskInstance, RunSummary | None] = {}
        for start in range(0, len(entries), _READS_AT_ONCE):
            part = entries[start : start + _READS_AT_ONCE]
            if is_late:
                part = [entry for entry in part if self._summaries.knows(entry)]
            is_work = not all(self._summaries.knows(entry) for entry in part)
            read = await asyncio.gather(*(self._read_summary(api, *entry) for entry in part))
            summaries |= {ti: summary for (ti, _), summary in zip(part, read, strict=True)}
            is_late = is_late or (is_work and self._clock() > deadline)
        return summaries

    async def _read_summary(self, api: AirflowApi, ti: TaskInstance, timestamp: str) -> RunSummary | None:
        async def work() -> RunSummary | None:
            xcom = await api.get_xcom(ti, "summary")
            return read_summary(xcom.value) if xcom else None

        return await self._summaries.get((ti, timestamp), work)

    async def _read_task(self, api: AirflowApi, ti: TaskInstance, summary: RunSummary | None = None) -> TaskImages:
        if summary is None:
            counts = await api.get_xcom(ti, "summary")
            summary = read_summary(counts.value) if counts else None
            if summary is None:
                elsewhere = counts is not None and counts.is_elsewhere
                return TaskImages(ti, None, [], _ELSEWHERE if elsewhere else None)
        if summary.in_progress and summary.manifest:
            with suppress(FileUnavailableError):  # XCom may have the images as of some seconds ago
                if images := await self.in_thread(partial(read_progress_images, ti, summary.manifest)):
                    return TaskImages(ti, summary, images)
        xcom = await api.get_xcom(ti, "images")
        if xcom is None:
            gone = "The task's records were deleted."
            if summary.in_progress:
                gone = "The task has not listed its images yet; it does so about every ten seconds."
            return TaskImages(ti, summary, [], gone if summary.made else None)
        if xcom.is_elsewhere:
            return TaskImages(ti, summary, [], _ELSEWHERE)
        manifest = manifest_of(xcom.value)
        try:
            if manifest is None:
                records = xcom.value[:MAX_LISTED] if isinstance(xcom.value, list) else []
                images = await self.in_thread(partial(read_images, ti, records, manifest=summary.manifest))
            else:
                images = await self.in_thread(partial(read_manifest_images, ti, manifest))
        except FileUnavailableError as error:
            return TaskImages(ti, summary, [], str(error))
        is_cut = len(images) == MAX_LISTED
        return TaskImages(
            ti, summary, images, f"Only {MAX_LISTED:,} images of this task are listed." if is_cut else None
        )


def _find(read: list[TaskEntries], view: ViewState) -> list[TaskEntries]:
    return [replace(each, entries=find_entries(each.entries, view)) for each in read]


def _lists_all(task: TaskResult, images: list[GalleryImage], manifest: str) -> bool:
    """Return whether a manifest lists all images of a task instance, as far as its summary has been read."""
    if task.summary is None:
        return not task.is_counted
    is_final = task.summary.manifest == manifest and not task.summary.in_progress
    return is_final and len(images) == task.summary.made + task.summary.superseded


def _is_explained(failure: TaskFailure | None, problems: list[Problem]) -> bool:
    """Return whether the problems of prompts say why a task has failed."""
    if failure is None or failure.error == "ItemsFailedError":
        return bool(problems)
    return failure.message in (problem.message for problem in problems)


_ELSEWHERE: Final = (
    "An XCom backend of this deployment keeps the records outside Airflow's database, and Airflow's web server does "
    "not hand them out. The images themselves are in the task's output folder."
)
