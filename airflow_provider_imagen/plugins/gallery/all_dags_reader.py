"""
Reads what all DAGs that a visitor may see have generated.

Airflow's API lists the summaries of all DAGs, but without their values. Each value takes a call, but only once: a
summary that is published again has another timestamp. Only content is cached, never permission.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Final

from fastapi import HTTPException

from airflow_provider_imagen._compat import HAS_SORTED_XCOMS
from airflow_provider_imagen.plugins.gallery.airflow_api import OPERATORS
from airflow_provider_imagen.plugins.gallery.all_dags import MAX_FAILED, MAX_TASKS, AllDags
from airflow_provider_imagen.plugins.gallery.expiring_cache import ExpiringCache

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable
    from datetime import datetime

    from airflow_provider_imagen.plugins.gallery.airflow_api import AirflowApi, TaskEvent
    from airflow_provider_imagen.plugins.gallery.all_dags import Period
    from airflow_provider_imagen.plugins.gallery.collection import Collection
    from airflow_provider_imagen.plugins.gallery.permissions import Visitor
    from airflow_provider_imagen.plugins.gallery.task_results import GalleryImage
    from airflow_provider_imagen.run_report import RunSummary

IMAGES_PER_DAG: Final = 6

COUNT_SECONDS: Final = 1.0
"""Time that a page may spend on reading summaries that are not cached."""

_LIST_SECONDS: Final = 20.0
"""How long visitors who may read the same DAGs share a list."""

_WHOLE_LIST_SECONDS: Final = 600.0
"""Until the list of summaries is read as a whole again, without those deleted; meanwhile only new ones are added."""

_OVERLAP: Final = timedelta(minutes=1)
"""How much later than its timestamp an XCom may become visible, when its transaction ends."""

_KEEP_SECONDS: Final = 3600.0
_MAX_BYTES: Final = 16 * 1024 * 1024
_DAGS_AT_ONCE: Final = 8


class AllDagsReader:
    """
    Reads the results of all DAGs, with a cache.

    :param collection: reads summaries and images
    :param clock: returns the time in seconds
    """

    def __init__(self, collection: Collection, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._collection = collection
        self._clock = clock
        self._lists: ExpiringCache[list[TaskEvent]] = ExpiringCache(
            entries=32,
            seconds=_LIST_SECONDS,
            max_bytes=2 * _MAX_BYTES,
            size_of=lambda found: 600 * len(found),
            clock=clock,
        )
        self._whole_lists: ExpiringCache[list[TaskEvent]] = ExpiringCache(
            entries=8,
            seconds=_WHOLE_LIST_SECONDS,
            max_bytes=_MAX_BYTES,
            size_of=lambda found: 600 * len(found),
            clock=clock,
        )
        self._operators: ExpiringCache[frozenset[str]] = ExpiringCache(
            entries=2_000, seconds=_KEEP_SECONDS, max_bytes=_MAX_BYTES, size_of=lambda _: 1000, clock=clock
        )
        self._newest: ExpiringCache[list[GalleryImage]] = ExpiringCache(
            entries=2_000,
            seconds=_KEEP_SECONDS,
            max_bytes=_MAX_BYTES,
            size_of=lambda found: 4000 * len(found),
            clock=clock,
        )

    async def read(
        self, api: AirflowApi, visitor: Visitor, period: Period, *, page: int, dags_per_page: int
    ) -> AllDags | None:
        """
        Return the results of all DAGs whose images a visitor may see; ``None`` if there can be no such DAG.

        Summaries of the DAGs on a page are read first.

        :param page: number of the page, from 1
        """
        readable = await self._collection.in_thread(visitor.readable_dag_ids)
        if not readable:
            return None
        scope = readable, period.since
        try:
            published = await self._lists.get(("summary", *scope), lambda: self._list_published(api, period, scope))
            others = await self._lists.get(
                ("any failed", *scope), lambda: api.list_failed((), since=period.since, limit=MAX_FAILED)
            )
            operators, has_all = await self._list_operators(api, [*published, *others])
            failed = await self._lists.get(
                ("failed", operators, *scope), lambda: api.list_failed(operators, since=period.since, limit=MAX_FAILED)
            )
        except HTTPException as error:
            if error.status_code == 403:  # a right that is not bound to a DAG is missing
                return None
            raise
        dag_ids = {event.ti.dag_id for event in (*published, *failed)}
        visible = await self._collection.in_thread(
            lambda: {dag_id for dag_id in dag_ids if visitor.may_see_images_of(dag_id)}
        )
        found = AllDags(
            period,
            published=[event for event in published if event.ti.dag_id in visible and period.holds(event)],
            failed=[event for event in failed if event.ti.dag_id in visible and period.holds(event)],
            is_cut=len(published) >= MAX_TASKS or len(failed) >= MAX_FAILED,
            has_all_operators=has_all,
        )
        shown = set(found.dag_ids[(page - 1) * dags_per_page : page * dags_per_page])
        order = sorted(found.published, key=lambda event: event.ti.dag_id not in shown)
        summaries = await self._collection.read_summaries(
            api, [(event.ti, event.timestamp) for event in order], seconds=COUNT_SECONDS
        )
        ours = [event for event in found.published if summaries.get(event.ti, event) is not None]  # or not read yet
        return replace(found, published=ours, summaries=summaries)

    async def _list_published(self, api: AirflowApi, period: Period, scope: Hashable) -> list[TaskEvent]:
        """Return the task instances that have published a summary, the latest first."""

        def list_since(moment: datetime) -> Awaitable[list[TaskEvent]]:
            return api.list_published("summary", since=moment, limit=MAX_TASKS)

        if not HAS_SORTED_XCOMS:
            return await list_since(period.since)
        known = await self._whole_lists.get(scope, lambda: list_since(period.since))
        fresh = await list_since(max(known[0].at - _OVERLAP, period.since) if known else period.since)
        newest = {event.ti: event for event in (*known, *fresh)}
        return sorted(newest.values(), key=lambda event: event.at, reverse=True)

    async def read_newest(self, api: AirflowApi, found: AllDags, dag_ids: list[str]) -> dict[str, list[GalleryImage]]:
        """Return the newest images of some DAGs."""
        events: dict[str, list[TaskEvent]] = {dag_id: [] for dag_id in dag_ids}
        for event in found.published:
            if event.ti.dag_id in events:
                events[event.ti.dag_id].append(event)
        newest: dict[str, list[GalleryImage]] = {}
        for start in range(0, len(dag_ids), _DAGS_AT_ONCE):
            part = dag_ids[start : start + _DAGS_AT_ONCE]
            read = await asyncio.gather(*(self._read_newest(api, found, events[dag_id]) for dag_id in part))
            newest |= dict(zip(part, read, strict=True))
        return newest

    async def _read_newest(self, api: AirflowApi, found: AllDags, events: list[TaskEvent]) -> list[GalleryImage]:
        images: list[GalleryImage] = []
        generated = [event for event in events if (summary := found.summaries.get(event.ti)) and summary.made]
        for event in generated[:IMAGES_PER_DAG]:
            if len(images) < IMAGES_PER_DAG:
                images += await self._read_first_images(api, event, found.summaries[event.ti])
        return images[:IMAGES_PER_DAG]

    async def _read_first_images(
        self, api: AirflowApi, event: TaskEvent, summary: RunSummary | None
    ) -> list[GalleryImage]:
        async def work() -> list[GalleryImage]:
            return (await self._collection.get_task(api, event.ti, summary)).images[:IMAGES_PER_DAG]

        return await self._newest.get(event, work)

    async def _list_operators(self, api: AirflowApi, events: list[TaskEvent]) -> tuple[frozenset[str], bool]:
        """Return the class names of this provider's operators in the DAGs of events, and whether these are all."""
        deadline = self._clock() + COUNT_SECONDS / 2
        operators, has_all = OPERATORS, True
        for dag_id in dict.fromkeys(event.ti.dag_id for event in events):
            if self._clock() > deadline and not self._operators.knows(dag_id):
                has_all = False
                continue
            try:
                operators |= await self._operators.get(dag_id, partial(api.list_operators, dag_id))
            except HTTPException:  # the visitor may not read its tasks, or it cannot be deserialized
                continue
        return operators, has_all
