"""
Read the XComs and manifests of tasks, with a short-lived cache.

Pages and their previews need the same records many times. Only content is cached, never permission: every request is
authorized before it gets here.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import anyio
from anyio import to_thread

from airflow_provider_imagen.plugins.gallery.files import (
    MAX_LISTED,
    FileUnavailableError,
    read_failures_file,
    read_manifest_images,
    read_progress_images,
)
from airflow_provider_imagen.plugins.gallery.task_results import (
    GalleryImage,
    Problem,
    TaskSummary,
    manifest_of,
    read_images,
    read_summary,
    total,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

    from airflow_provider_imagen.plugins.gallery.airflow_api import AirflowApi, TaskInstance
    from airflow_provider_imagen.plugins.gallery.image_search import ImageSearch
    from airflow_provider_imagen.run_report import RunSummary

FRESH_SECONDS: Final = 10.0
"""How long records are cached: long enough for a page and its previews."""

COUNT_SECONDS: Final = 3.0
"""Time that a page may spend on reading summaries that are not cached."""

_MAX_IMAGE_BYTES: Final = 64 * 1024 * 1024
_MAX_SUMMARY_BYTES: Final = 32 * 1024 * 1024
_FILE_THREADS: Final = 8
_READS_AT_ONCE: Final = 8
_LOOK_BACK: Final = 1_000
"""Number of summaries searched for the newest runs."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class TaskImages:
    """
    The results of one task instance.

    :param summary: ``None`` if it has none
    :param images: in prompt order
    :param notice: sentence that says why images are missing; ``None`` if none are
    """

    ti: TaskInstance
    summary: TaskSummary | None
    images: list[GalleryImage]
    notice: str | None = None

    def find(self, prompt_index: int, image_index: int) -> int | None:
        """Return an image's position in the list; ``None`` if it is not there."""
        for place, image in enumerate(self.images):
            if (image.prompt_index, image.image_index) == (prompt_index, image_index):
                return place
        return None


@dataclass(frozen=True)
class Summaries:
    """
    The summaries of a run.

    :param tasks: sorted by task, then map index
    :param uncounted: number of task instances whose summaries have not been read yet
    """

    tasks: list[TaskSummary]
    uncounted: int = 0

    @property
    def total(self) -> RunSummary:
        """Total of the summaries read so far."""
        return total(task.summary for task in self.tasks)

    @property
    def notes(self) -> list[str]:
        """Sentences about what the total leaves out."""
        return [f"{self.uncounted} more tasks are not counted yet. Reload to count on."] if self.uncounted else []


@dataclass(frozen=True)
class Matches:
    """
    The result of a search in task instances.

    :param tasks: those searched, each with its matching images only
    :param unsearched: number of task instances that were not searched for lack of time
    """

    tasks: list[TaskImages]
    unsearched: int = 0

    @property
    def count(self) -> int:
        """Number of matching images."""
        return sum(len(task.images) for task in self.tasks)

    @property
    def notes(self) -> list[str]:
        """Sentences about what was not searched."""
        if not self.unsearched:
            return []
        return [f"{self.unsearched} more tasks could not be searched in time. Search on their own pages."]


class Memory(Generic[Result]):
    """
    A bounded LRU cache with expiry, in which concurrent callers of one key share one computation.

    Over its limits, it evicts the least recently used result first, but never the newest.

    :param entries: maximum number of results
    :param seconds: time until a result expires; one that took longer to compute is kept three times as long as that, so
        that however often it is requested, the server works on it for a quarter of the time at most
    :param max_bytes: maximum estimated size of all results
    :param size_of: returns the estimated size of a result in bytes
    :param clock: returns the time in seconds
    """

    def __init__(
        self,
        *,
        entries: int,
        seconds: float,
        max_bytes: int,
        size_of: Callable[[Result], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._entries = entries
        self._seconds = seconds
        self._max_bytes = max_bytes
        self._size_of = size_of
        self._clock = clock
        self._bytes = 0
        self._kept: OrderedDict[Hashable, tuple[float, int, Result]] = OrderedDict()  # expiry, size, result
        self._locks: dict[Hashable, tuple[asyncio.Lock, int]] = {}
        self._sweep: asyncio.TimerHandle | None = None

    def knows(self, key: Hashable) -> bool:
        """Return whether a result is cached and has not expired."""
        kept = self._kept.get(key)
        return kept is not None and self._clock() < kept[0]

    async def get(
        self,
        key: Hashable,
        work: Callable[[], Awaitable[Result]],
        *,
        is_current: Callable[[Result], bool] = lambda _: True,
    ) -> Result:
        """
        Return the cached result, or compute and cache it.

        :param is_current: returns whether a cached result may still be used
        """
        lock, waiting = self._locks.get(key) or (asyncio.Lock(), 0)
        self._locks[key] = (lock, waiting + 1)
        try:
            async with lock:
                if self.knows(key) and is_current(self._kept[key][2]):
                    self._kept.move_to_end(key)
                    return self._kept[key][2]
                started = self._clock()
                result = await work()
                self._keep(key, result, seconds=max(self._seconds, 3 * (self._clock() - started)))
                return result
        finally:
            lock, waiting = self._locks[key]
            if waiting == 1:
                del self._locks[key]
            else:
                self._locks[key] = (lock, waiting - 1)

    def _keep(self, key: Hashable, result: Result, *, seconds: float) -> None:
        self._drop(key)
        size = self._size_of(result)
        self._kept[key] = (self._clock() + seconds, size, result)
        self._bytes += size
        while len(self._kept) > 1 and (len(self._kept) > self._entries or self._bytes > self._max_bytes):
            self._drop(next(iter(self._kept)))
        loop = asyncio.get_running_loop()
        if self._sweep is None or self._sweep.when() < loop.time():  # overdue: the loop it was for has ended
            self._sweep = loop.call_later(self._seconds, self._drop_stale)

    def _drop(self, key: Hashable) -> None:
        if (kept := self._kept.pop(key, None)) is not None:
            self._bytes -= kept[1]

    def _drop_stale(self) -> None:
        for key in [key for key in self._kept if not self.knows(key)]:
            self._drop(key)
        loop = asyncio.get_running_loop()
        self._sweep = loop.call_later(self._seconds, self._drop_stale) if self._kept else None


def _estimated_bytes(found: TaskImages) -> int:
    """Return an estimate of the memory that these records take."""
    texts = (
        text
        for image in found.images
        for values in (image.metadata or {},)
        for text in (image.prompt, image.enhanced_prompt, image.path, image.url, image.name, *values, *values.values())
    )
    return 500 * (1 + len(found.images)) + sum(sys.getsizeof(text) for text in texts if text)


class Collection:
    """The images of an Airflow deployment, read through the :class:`AirflowApi` of each call's visitor."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tasks: Memory[TaskImages] = Memory(
            entries=64, seconds=FRESH_SECONDS, max_bytes=_MAX_IMAGE_BYTES, size_of=_estimated_bytes, clock=clock
        )
        # The timestamp is part of the key, so a cached summary is never out of date.
        self._summaries: Memory[TaskSummary | None] = Memory(
            entries=20_000,
            seconds=3600.0,
            max_bytes=_MAX_SUMMARY_BYTES,
            size_of=lambda summary: 1000 + len((summary and summary.summary.manifest) or ""),
            clock=clock,
        )
        self._file_threads: anyio.CapacityLimiter | None = None

    async def in_thread(self, work: Callable[[], Result]) -> Result:
        """Return the result of blocking work, run on a few threads of our own to keep Airflow's free."""
        if self._file_threads is None:
            self._file_threads = anyio.CapacityLimiter(_FILE_THREADS)
        return await to_thread.run_sync(work, limiter=self._file_threads)

    async def get_task(self, api: AirflowApi, ti: TaskInstance, summary: TaskSummary | None = None) -> TaskImages:
        """
        Return the results of a task instance.

        :param summary: its current summary, if known; without it, the result may be some seconds old
        """
        return await self._tasks.get(
            ti,
            lambda: self._read_task(api, ti, summary),
            is_current=lambda found: summary is None or found.summary == summary,
        )

    async def get_task_with(
        self, api: AirflowApi, ti: TaskInstance, *, prompt_index: int, image_index: int
    ) -> TaskImages:
        """Return the results of a task instance, read again if an image may have been stored since the last time."""
        return await self._tasks.get(
            ti,
            lambda: self._read_task(api, ti),
            is_current=lambda found: found.find(prompt_index, image_index) is not None,
        )

    async def get_summary(self, api: AirflowApi, ti: TaskInstance) -> TaskSummary | None:
        """Return the current summary of a task instance; ``None`` if it has none that can be read."""
        xcom = await api.get_xcom(ti, "summary")
        return read_summary(ti, xcom.value, xcom.timestamp) if xcom else None

    async def list_summaries(
        self, api: AirflowApi, *, dag_id: str, run_id: str, seconds: float = COUNT_SECONDS
    ) -> Summaries:
        """
        Return the summaries of a run's task instances, sorted by task, then map index.

        Each takes a call to Airflow's API, so a run with very many is read only as far as the time allows; the cache
        lets the next page load continue from there.

        :param seconds: time after which no more summaries are read
        """
        found = sorted([entry async for entry in api.iter_xcoms(dag_id=dag_id, run_id=run_id, key="summary")])
        deadline = self._clock() + seconds
        summaries: list[TaskSummary] = []
        for start in range(0, len(found), _READS_AT_ONCE):
            entries = found[start : start + _READS_AT_ONCE]
            is_work = not all(self._summaries.knows(entry) for entry in entries)
            read = await asyncio.gather(*(self._read_summary(api, *entry) for entry in entries))
            summaries += [summary for summary in read if summary is not None]
            if is_work and self._clock() > deadline:
                return Summaries(summaries, uncounted=len(found) - start - len(entries))
        return Summaries(summaries)

    async def list_newest(self, api: AirflowApi, *, dag_id: str, runs: int) -> dict[str, Summaries]:
        """Return the summaries of the latest runs that made images, newest first."""
        run_ids: list[str] = []
        entries = api.iter_xcoms(dag_id=dag_id, run_id=None, key="summary", newest_first=True, limit=_LOOK_BACK)
        async for ti, _ in entries:
            if ti.run_id not in run_ids:
                run_ids.append(ti.run_id)
            if len(run_ids) == runs:
                break
        seconds = COUNT_SECONDS / runs
        read = {
            run_id: await self.list_summaries(api, dag_id=dag_id, run_id=run_id, seconds=seconds) for run_id in run_ids
        }
        return {run_id: summaries for run_id, summaries in read.items() if summaries.tasks}

    async def search(
        self,
        api: AirflowApi,
        summaries: list[TaskSummary],
        search: ImageSearch,
        *,
        seconds: float = COUNT_SECONDS,
    ) -> Matches:
        """
        Search the images of task instances, in their order.

        Each takes two calls to Airflow's API, so very many are searched only as far as the time allows.

        :param seconds: time after which no more task instances are searched
        """
        tis = [summary.ti for summary in summaries if summary.summary.made]
        deadline = self._clock() + seconds
        tasks: list[TaskImages] = []
        for start in range(0, len(tis), _READS_AT_ONCE):
            if start and self._clock() > deadline:
                return Matches(tasks, unsearched=len(tis) - start)
            found = await asyncio.gather(*(self.get_task(api, ti) for ti in tis[start : start + _READS_AT_ONCE]))
            tasks += [await self.filter(task, search) for task in found]
        return Matches(tasks)

    async def filter(self, task: TaskImages, search: ImageSearch) -> TaskImages:
        """Return the results of a task instance with the images that match a search; all of them without one."""
        return replace(task, images=await self.in_thread(partial(search.filter, task.images))) if search else task

    async def read_problems(self, summary: TaskSummary) -> tuple[list[Problem], str | None]:
        """Return the failed items and, if they cannot be read, a notice."""
        counts = summary.summary
        if not counts.filtered and not counts.failed:
            return [], None
        if not counts.manifest:
            return [], "The task stored nothing, so the reasons are in its log only."
        try:
            return await self.in_thread(partial(read_failures_file, summary.ti, counts.manifest)), None
        except FileUnavailableError as error:
            return [], str(error)

    async def _read_summary(self, api: AirflowApi, ti: TaskInstance, timestamp: str) -> TaskSummary | None:
        async def work() -> TaskSummary | None:
            xcom = await api.get_xcom(ti, "summary")
            return read_summary(ti, xcom.value, timestamp) if xcom else None

        return await self._summaries.get((ti, timestamp), work)

    async def _read_task(self, api: AirflowApi, ti: TaskInstance, summary: TaskSummary | None = None) -> TaskImages:
        if summary is None:
            counts = await api.get_xcom(ti, "summary")
            summary = read_summary(ti, counts.value, counts.timestamp) if counts else None
            if summary is None:
                elsewhere = counts is not None and counts.is_elsewhere
                return TaskImages(ti, None, [], _ELSEWHERE if elsewhere else None)
        if summary.summary.in_progress and summary.summary.manifest:
            with suppress(FileUnavailableError):  # XCom may have the images as of some seconds ago
                if images := await self.in_thread(partial(read_progress_images, ti, summary.summary.manifest)):
                    return TaskImages(ti, summary, images)
        xcom = await api.get_xcom(ti, "images")
        if xcom is None:
            return TaskImages(ti, summary, [], "The task's records were deleted." if summary.summary.made else None)
        if xcom.is_elsewhere:
            return TaskImages(ti, summary, [], _ELSEWHERE)
        manifest = manifest_of(xcom.value)
        if manifest is None:
            return TaskImages(ti, summary, read_images(ti, xcom.value))
        try:
            images = await self.in_thread(partial(read_manifest_images, ti, manifest))
        except FileUnavailableError as error:
            return TaskImages(ti, summary, [], str(error))
        is_cut = len(images) == MAX_LISTED
        return TaskImages(
            ti, summary, images, f"Only {MAX_LISTED:,} images of this task are shown." if is_cut else None
        )


_ELSEWHERE: Final = (
    "An XCom backend of this deployment keeps the records outside Airflow's database, and Airflow's web server does "
    "not hand them out. The images themselves are in the task's output folder."
)
