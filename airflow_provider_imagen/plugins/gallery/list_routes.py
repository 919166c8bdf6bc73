"""Pages that list images: of a task, a run, a DAG, and all DAGs."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal

from airflow.api_fastapi.core_api.security import GetUserDep  # noqa: TC002 - FastAPI reads it
from fastapi import APIRouter, Request
from fastapi.responses import Response  # noqa: TC002 - FastAPI reads it

from airflow_provider_imagen.plugins.gallery import shared_readers as shared
from airflow_provider_imagen.plugins.gallery.airflow_api import (
    HUMAN_OPERATORS,
    WAITING_STATES,
    AirflowApi,
    TaskInstance,
)
from airflow_provider_imagen.plugins.gallery.all_dags import DagSection, Period
from airflow_provider_imagen.plugins.gallery.collection import COUNT_SECONDS
from airflow_provider_imagen.plugins.gallery.image_search import sort_entries
from airflow_provider_imagen.plugins.gallery.page_response import MissingError, gallery_root, page_response, pager_for
from airflow_provider_imagen.plugins.gallery.pages import Pages, Section, SelectionForm, ViewForm, time_zone
from airflow_provider_imagen.plugins.gallery.permissions import Visitor
from airflow_provider_imagen.plugins.gallery.progress import (
    ALL_DAGS_REFRESH_SECONDS,
    COUNTING_REFRESH_SECONDS,
    IDLE_REFRESH_SECONDS,
    refresh_seconds,
    shared_by_viewers,
)
from airflow_provider_imagen.plugins.gallery.request_parameters import (
    Id,
    MapIndex,
    PageNumber,
    View,
    may_read,
    may_read_states,
)
from airflow_provider_imagen.plugins.gallery.run_results import Matches, RunResults, TaskResult
from airflow_provider_imagen.plugins.gallery.task_results import GalleryImage
from airflow_provider_imagen.plugins.gallery.view_state import ViewState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from airflow_provider_imagen.plugins.gallery.airflow_api import DagRun
    from airflow_provider_imagen.plugins.gallery.run_results import TaskEntries

router = APIRouter()

IMAGES_PER_PAGE: Final = 60
TASKS_PER_PAGE: Final = 30
RUNS_PER_PAGE: Final = 8
DAGS_PER_PAGE: Final = 24
IMAGES_PER_RUN: Final = 8


@router.get("/task", dependencies=[may_read, *may_read_states])
@shared_by_viewers
async def show_task(
    request: Request, view: View, dag_id: Id, run_id: Id, task_id: Id, map_index: MapIndex = -1
) -> Response:
    """Show the images of one task instance and what is missing, or a selection of it."""
    ti = TaskInstance(dag_id, run_id, task_id, map_index)
    pages = Pages(gallery_root(request))
    async with AirflowApi(request) as api:
        status = await api.get_status(ti)  # first, because a task publishes its results before it ends
        if status is None:
            raise MissingError("This run has no such task, or it was deleted.")
        found = await shared.collection.get_task(api, ti, await shared.collection.get_summary(api, ti))
        task = TaskResult(status, found.summary)
        if view.is_plain:
            matches = Matches([await shared.collection.read_entries(api, task)])
        else:
            matches = await shared.collection.search(api, [task], view)
    results = RunResults([task])
    entries = sort_entries(matches.entries, view, statuses=results.statuses)
    if view.show == "problems":
        entries = [entry for entry in entries if not isinstance(entry, GalleryImage)]
    pager = pager_for(view.page, len(entries), IMAGES_PER_PAGE, lambda n: pages.task(ti, **view.at(n).query))
    part = slice((pager.number - 1) * IMAGES_PER_PAGE, pager.number * IMAGES_PER_PAGE)
    notes = list(dict.fromkeys([*([found.notice] if found.notice else []), *matches.notes, *matches.task_notes]))
    form = selection = None
    if found.images and view.show == "pictures":
        models = {image.model for image in found.images if image.model}
        form = ViewForm(pages.task(ti), view, matches.count, models=models)
        selection = SelectionForm(pages.task(ti), view, matches.count) if matches.count else None
    has_sheet = found.summary is not None and found.summary.contact_sheet is not None
    return _grid_page(
        request,
        title=status.title,
        kind="task",
        view=view,
        ti=ti,
        dag_id=dag_id,
        run_id=run_id,
        task=status,
        results=results,
        form=form,
        selection=selection,
        sections=[
            Section(entries=entries[part], notes=notes, contact_sheet=pages.contact_sheet(ti) if has_sheet else None)
        ],
        pager=pager,
        empty="" if view.is_filtered or entries or notes else _explain_empty_task(task),
        more_problems=pages.task(ti, show="problems") if view.show == "pictures" and task.has_problems else None,
        refresh_seconds=refresh_seconds([results]),
    )


@router.get("/run", dependencies=[may_read, *may_read_states])
@shared_by_viewers
async def show_run(request: Request, view: View, dag_id: Id, run_id: Id) -> Response:
    """Show the images of all tasks in a run and what is missing, a selection of it, or only what is missing."""
    pages = Pages(gallery_root(request))
    form = selection = None
    compares_models = False

    def address(number: int) -> str:
        return pages.run(dag_id, run_id, **view.at(number).query)

    async with AirflowApi(request) as api:
        run = await api.get_run(dag_id=dag_id, run_id=run_id)
        if run is None:
            raise MissingError("This run does not exist, or was deleted.")
        ids = {"dag_id": dag_id, "run_id": run_id}
        waiting = await api.list_task_instances(**ids, operators=HUMAN_OPERATORS) if run.is_active else []
        results = await shared.collection.read_run(api, run)
        notes = results.notes
        if view.show == "problems":
            incomplete = [task for task in results.tasks if task.has_problems]
            pager = pager_for(view.page, len(incomplete), TASKS_PER_PAGE, address)
            first = (pager.number - 1) * TASKS_PER_PAGE
            part = incomplete[first : first + TASKS_PER_PAGE]
            sections = [await _problem_section(api, pages, task) for task in part]
        else:
            compares_models = await shared.collection.compares_models(api, run, results.tasks)
            matches = None if view.is_plain else await shared.collection.search(api, results.tasks, view)
            places = sum(task.places for task in results.tasks) if matches is None else matches.places
            pager = pager_for(view.page, places, IMAGES_PER_PAGE, address)
            first = (pager.number - 1) * IMAGES_PER_PAGE
            if matches is None:
                tasks = await shared.collection.read_slice(api, results.tasks, first=first, most=IMAGES_PER_PAGE)
                sections = _sections(pages, results, tasks)
            else:
                tasks = matches.tasks
                sections = _matching_sections(pages, results, matches, view, first=first)
                notes = [*notes, *matches.notes]
            if results.total.made:
                count = results.total.made if matches is None else matches.count
                models = results.models.union(*(task.models for task in tasks))
                form = ViewForm(pages.run(dag_id, run_id), view, count, models=models, labels=results.labels_to_choose)
                selection = SelectionForm(pages.run(dag_id, run_id), view, count) if count else None
    empty = "" if results.tasks else _explain_empty_run(run)
    if results.tasks and not sections and not view.is_filtered:
        empty = "All requested images were generated." if view.show == "problems" else _explain_empty_run(run)
    return _grid_page(
        request,
        title=run_id,
        kind="run",
        view=view,
        dag_id=dag_id,
        run_id=run_id,
        results=results,
        form=form,
        selection=selection,
        sections=sections,
        pager=pager,
        empty=empty,
        waiting=[each for each in waiting if each.state in WAITING_STATES],
        notes=notes,
        compares_models=compares_models,
        more_problems=pages.run(dag_id, run_id, show="problems")
        if view.show == "pictures" and any(task.has_problems for task in results.tasks)
        else None,
        refresh_seconds=refresh_seconds([results]),
    )


@router.get("/dag", dependencies=[may_read, *may_read_states])
@shared_by_viewers
async def show_dag(request: Request, view: View, dag_id: Id) -> Response:
    """Show the runs of a DAG, the latest first, each with its first images or with a selection of them."""
    pages = Pages(gallery_root(request))
    sections = []
    async with AirflowApi(request) as api:
        listed = await api.list_runs(dag_id, offset=(view.page - 1) * RUNS_PER_PAGE, limit=RUNS_PER_PAGE)
        if listed is None:
            raise MissingError("This DAG does not exist, or was deleted.")
        runs, count = listed
        pager = pager_for(view.page, count, RUNS_PER_PAGE, lambda n: pages.dag(dag_id, **view.at(n).query))
        if pager.number != view.page:
            offset = (pager.number - 1) * RUNS_PER_PAGE
            runs, _ = await api.list_runs(dag_id, offset=offset, limit=RUNS_PER_PAGE) or ([], 0)
        for run in runs:
            section = await _run_section(api, pages, run, view)
            if section is not None:
                sections.append(section)
    made = sum(section.count for section in sections)
    empty = ""
    if not sections and not view.is_filtered:
        empty = (
            "No run of this DAG has generated images yet."
            if count <= RUNS_PER_PAGE
            else "None of these runs has generated images."
        )
    shown = [section.results for section in sections if section.results]
    form = ViewForm(
        pages.dag(dag_id, **ViewState(page=pager.number).query),
        view,
        made,
        models={model for section in sections for model in section.models},
        labels=(label for results in shown for label in results.labels_to_choose),
    )
    return _grid_page(
        request,
        title=dag_id,
        kind="dag",
        view=view,
        dag_id=dag_id,
        form=form if made or view.is_filtered else None,
        sections=sections,
        pager=pager,
        empty=empty,
        refresh_seconds=refresh_seconds(shown) or IDLE_REFRESH_SECONDS,
    )


@router.get("/dags")
async def show_all_dags(
    request: Request, user: GetUserDep, days: Literal["7", "30"] = "7", page: PageNumber = 1
) -> Response:
    """Show the costs and failures of all DAGs whose images the visitor may see, and their newest images."""
    pages = Pages(gallery_root(request))
    period = Period.until(datetime.now(UTC), days=int(days), zone=time_zone())
    sections = []
    async with AirflowApi(request) as api:
        found = await shared.all_dags.read(api, Visitor(request, user), period, page=page, dags_per_page=DAGS_PER_PAGE)
        dag_ids = found.dag_ids if found else []
        pager = pager_for(page, len(dag_ids), DAGS_PER_PAGE, lambda n: pages.all_dags(days=days, page=n))
        if found is not None:
            shown = dag_ids[(pager.number - 1) * DAGS_PER_PAGE : pager.number * DAGS_PER_PAGE]
            newest = await shared.all_dags.read_newest(api, found, shown)
            sections = [DagSection(found, dag_id, newest[dag_id]) for dag_id in shown]
    return page_response(
        request,
        "all_dags.html",
        title="All DAGs",
        found=found,
        days=days,
        sections=sections,
        pager=pager,
        refresh_seconds=COUNTING_REFRESH_SECONDS if found and found.is_counting else ALL_DAGS_REFRESH_SECONDS,
    )


_ABSENT: Final[dict[str, Any]] = {
    **dict.fromkeys(("run_id", "ti", "task", "results", "form", "selection", "more_problems")),
    "waiting": (),
    "notes": (),
    "compares_models": False,
}
"""Parts of a grid's page that not every such page has."""


def _grid_page(request: Request, **values: Any) -> Response:
    return page_response(request, "gallery.html", **(_ABSENT | values))


def _sections(pages: Pages, results: RunResults, tasks: Iterable[TaskEntries]) -> list[Section]:
    """Return one section per task; the instances of a mapped task share a section."""
    with_sheets = {task.ti for task in results.tasks if task.summary is not None and task.summary.contact_sheet}
    sections: dict[str, Section] = {}
    for found in tasks:
        ti = found.ti
        is_mapped = ti.map_index >= 0
        section = sections.setdefault(
            ti.task_id,
            Section(
                title=ti.task_id,
                href=None if is_mapped else pages.task(ti),
                contact_sheet=pages.contact_sheet(ti) if ti in with_sheets and not is_mapped else None,
            ),
        )
        section.entries.extend(found.entries)
        section.notes.extend(note for note in found.notes if note not in section.notes)
    return list(sections.values())


def _matching_sections(
    pages: Pages, results: RunResults, matches: Matches, view: ViewState, *, first: int
) -> list[Section]:
    """Return the sections of a page: one per task in prompt order, otherwise one for all, as their images mingle."""
    if view.sort == "prompt":
        return _sections(pages, results, matches.slice(first=first, most=IMAGES_PER_PAGE))
    entries = sort_entries(matches.entries, view, statuses=results.statuses)[first : first + IMAGES_PER_PAGE]
    return [Section(entries=entries, notes=matches.task_notes)] if entries or matches.task_notes else []


async def _run_section(api: AirflowApi, pages: Pages, run: DagRun, view: ViewState) -> Section | None:
    """Return the section of a run on the page of its DAG; ``None`` if it has nothing to show."""
    seconds = COUNT_SECONDS / RUNS_PER_PAGE
    results = await shared.collection.read_run(api, run, seconds=seconds)
    if not results.tasks:
        return None
    if view.is_plain:
        matches = Matches(await shared.collection.read_slice(api, results.tasks, first=0, most=IMAGES_PER_RUN))
        count = results.total.made
    else:
        matches = await shared.collection.search(api, results.tasks, view, seconds=seconds)
        count = matches.count
    entries = sort_entries(matches.entries, view, statuses=results.statuses)
    if not view.is_plain:
        entries = entries[:IMAGES_PER_RUN]
    notes = [*results.notes, *matches.notes, *matches.task_notes]
    if view.is_filtered and not entries and not notes:
        return None
    return Section(
        title=run.run_id,
        href=pages.run(run.dag_id, run.run_id, **view.at(1).query),
        results=results,
        entries=entries,
        count=count,
        notes=notes,
        models=results.models.union(*(task.models for task in matches.tasks)),
    )


async def _problem_section(api: AirflowApi, pages: Pages, task: TaskResult) -> Section:
    found = await shared.collection.read_entries(api, task)
    notes = found.notes
    if task.summary is not None and task.summary.not_sent:
        notes = [*notes, f"{task.summary.not_sent} were not requested, because the task ended first."]
    return Section(
        title=task.status.title,
        href=pages.task(task.ti),
        entries=[entry for entry in found.entries if not isinstance(entry, GalleryImage)],
        notes=notes,
    )


def _explain_empty_task(task: TaskResult) -> str:
    if not task.status.is_finished:
        return "This task has not finished yet. Its images are shown here as soon as they are stored."
    if task.summary is not None:
        return "This task generated no images."
    if task.status.state == "success":
        return "This task has no images. If it generated any, Airflow has since deleted their records."
    return f"This task was {task.status.state}, so it has no images."


def _explain_empty_run(run: DagRun) -> str:
    if run.is_active:
        return "No task in this run has generated images yet. They are shown here as soon as they are stored."
    return "No task in this run has generated images."
