"""
The gallery's routes.

Every route that shows data of a DAG first checks that the visitor may read that DAG's XComs. The page about all DAGs
shows only those that pass the same checks.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import astuple
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, cast
from urllib.parse import quote

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag
from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from airflow_provider_imagen.plugins.gallery.airflow_api import (
    HUMAN_OPERATORS,
    WAITING_STATES,
    AirflowApi,
    TaskInstance,
)
from airflow_provider_imagen.plugins.gallery.all_dags import DagSection, Period
from airflow_provider_imagen.plugins.gallery.all_dags_reader import AllDagsReader
from airflow_provider_imagen.plugins.gallery.collection import COUNT_SECONDS, Collection
from airflow_provider_imagen.plugins.gallery.comparison import MAX_COMPARED, MIN_COMPARED, compare
from airflow_provider_imagen.plugins.gallery.files import (
    CHUNK_BYTES,
    FileUnavailableError,
    check_image_file,
    image_bytes,
    media_type,
    open_contact_sheet,
    open_image_file,
)
from airflow_provider_imagen.plugins.gallery.image_archive import write_archive
from airflow_provider_imagen.plugins.gallery.image_ids import MAX_INTEGER, parse_image_id
from airflow_provider_imagen.plugins.gallery.image_search import sort_entries
from airflow_provider_imagen.plugins.gallery.matrix import MAX_MODELS, RowsBy, arrange, shown_images
from airflow_provider_imagen.plugins.gallery.pages import (
    STATIC_TYPES,
    Pager,
    Pages,
    Section,
    SelectionForm,
    ViewForm,
    image_sources,
    read_static,
    time_zone,
)
from airflow_provider_imagen.plugins.gallery.permissions import Visitor
from airflow_provider_imagen.plugins.gallery.progress import (
    ALL_DAGS_REFRESH_SECONDS,
    COUNTING_REFRESH_SECONDS,
    IDLE_REFRESH_SECONDS,
    refresh_seconds,
    shared_by_viewers,
)
from airflow_provider_imagen.plugins.gallery.review_page import find_review
from airflow_provider_imagen.plugins.gallery.run_results import Matches, RunResults, TaskResult
from airflow_provider_imagen.plugins.gallery.snippet import snippet
from airflow_provider_imagen.plugins.gallery.task_results import GalleryImage
from airflow_provider_imagen.plugins.gallery.thumbnails import ThumbnailCache
from airflow_provider_imagen.plugins.gallery.view_state import MAX_PAGES, ViewState, read_view_state
from airflow_provider_imagen.storage.contact_sheet import SHEET_MIME_TYPE
from airflow_provider_imagen.storage.inspect_image import SVG_MIME_TYPE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable
    from typing import IO

    from airflow_provider_imagen.plugins.gallery.airflow_api import DagRun
    from airflow_provider_imagen.plugins.gallery.run_results import TaskEntries, TaskImages

log = logging.getLogger(__name__)

IMAGES_PER_PAGE: Final = 60
REVIEWED_PER_PAGE: Final = 24
TASKS_PER_PAGE: Final = 30
ROWS_PER_PAGE: Final = 20
RUNS_PER_PAGE: Final = 8
DAGS_PER_PAGE: Final = 24
IMAGES_PER_RUN: Final = 8

MAX_SELECTED: Final = 1_000
"""Maximum number of images that a URL can name, more than a page has. "Everything" has no such limit."""

DOWNLOAD_SECONDS: Final = 60.0
"""Time that a download may spend on finding its images, before it starts."""

_EXTENSIONS: Final = {"image/jpeg": "jpg", "image/tiff": "tiff", SVG_MIME_TYPE: "svg"}
_SENT_AS_ATTACHMENT: Final = ("image/tiff", SVG_MIME_TYPE)
"""Types sent as downloads, because browsers cannot display them or they may contain scripts."""

may_read = Depends(requires_access_dag(method="GET", access_entity=DagAccessEntity.XCOM))
may_read_states = (
    Depends(requires_access_dag(method="GET", access_entity=DagAccessEntity.RUN)),
    Depends(requires_access_dag(method="GET", access_entity=DagAccessEntity.TASK_INSTANCE)),
)
may_read_question = Depends(requires_access_dag(method="GET", access_entity=DagAccessEntity.HITL_DETAIL))


def _may_answer(request: Request, user: GetUserDep) -> bool:
    """Return whether the visitor has Airflow's permission to answer human-in-the-loop tasks of a DAG."""
    try:
        requires_access_dag(method="PUT", access_entity=DagAccessEntity.HITL_DETAIL)(request, user)
    except HTTPException:
        return False
    return True


MayAnswer = Annotated[bool, Depends(_may_answer)]
Id = Annotated[str, Query(min_length=1, max_length=250)]
MapIndex = Annotated[int, Query(ge=-1, le=MAX_INTEGER)]
Index = Annotated[int, Query(ge=0, le=MAX_INTEGER)]
PageNumber = Annotated[int, Query(ge=1, le=MAX_PAGES)]
View = Annotated[ViewState, Depends(read_view_state)]
ImageIds = Annotated[list[str], Query(default_factory=list)]

app = FastAPI(title="Pictures", docs_url=None, redoc_url=None, openapi_url=None)
collection = Collection()
all_dags = AllDagsReader(collection)
thumbnails = ThumbnailCache()


class ExplainedError(HTTPException):
    """An error whose message is for the visitor."""


class MissingError(ExplainedError):
    """What a URL names does not exist."""

    def __init__(self, message: str) -> None:
        super().__init__(404, message)


class ComparisonError(ExplainedError):
    """The images that a URL names cannot be compared."""

    def __init__(self, message: str) -> None:
        super().__init__(422, message)


@app.middleware("http")
async def add_security_headers(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Add security headers that forbid everything a page or image does not need."""
    response = await call_next(request)
    response.headers.setdefault("Content-Security-Policy", "default-src 'none'; sandbox")
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
    response.headers.setdefault("Cache-Control", "private, no-store")
    return response


@app.exception_handler(StarletteHTTPException)
async def show_error(request: Request, error: StarletteHTTPException) -> Response:
    """Return an error page or a plain-text error, or redirect to the login page."""
    is_page = not request.url.path.endswith("/file")
    if error.status_code == 401 and is_page and "authorization" not in request.headers:
        base = _root(request).rpartition("/")[0]
        here = f"{request.url.path}?{request.url.query}"
        return RedirectResponse(f"{base}/api/v2/auth/login?next={quote(here, safe='')}", status_code=302)
    message = {
        401: "You are not logged in.",
        403: "You do not have permission to see the images of this DAG.",
        404: "There is no such image or page.",
        422: "This URL is incomplete or invalid.",
        502: "Airflow's API returned an error. Try again in a moment.",
    }.get(error.status_code, "Something went wrong.")
    if isinstance(error, ExplainedError):
        message = error.detail
    if not is_page:
        return Response(
            error.detail if error.status_code == 410 else message, error.status_code, media_type="text/plain"
        )
    back = _way_back(request) if isinstance(error, ExplainedError) else None
    return _page(request, "message.html", status=error.status_code, title="Pictures", message=message, back=back)


def _way_back(request: Request) -> tuple[str, str] | None:
    """Return the text and URL of a link from a page that cannot be shown to the one above it; ``None`` without one."""
    pages, ids = Pages(_root(request)), request.query_params
    place = request.url.path.rpartition("/")[2]
    if place == "download":
        place = "sheet" if "task_id" in ids else "task"
    match place:
        case "picture" | "sheet":
            ti = TaskInstance(ids["dag_id"], ids["run_id"], ids["task_id"], int(ids.get("map_index", -1)))
            return "All images of this task", pages.task(ti)
        case "task" | "review" | "compare" | "matrix":
            return "All images of this run", pages.run(ids["dag_id"], ids["run_id"])
        case "run":
            return "All runs of this DAG", pages.dag(ids["dag_id"])
    return None


@app.exception_handler(RequestValidationError)
async def show_invalid_request(request: Request, _: RequestValidationError) -> Response:
    """Return an error page for invalid parameters, without echoing them."""
    return await show_error(request, HTTPException(422))


@app.get("/task", dependencies=[may_read, *may_read_states])
@shared_by_viewers
async def show_task(
    request: Request, view: View, dag_id: Id, run_id: Id, task_id: Id, map_index: MapIndex = -1
) -> Response:
    """Show the images of one task instance and what is missing, or a selection of it."""
    ti = TaskInstance(dag_id, run_id, task_id, map_index)
    pages = Pages(_root(request))
    async with AirflowApi(request) as api:
        status = await api.get_status(ti)  # first, because a task publishes its results before it ends
        if status is None:
            raise MissingError("This run has no such task, or it was deleted.")
        found = await collection.get_task(api, ti, await collection.get_summary(api, ti))
        task = TaskResult(status, found.summary)
        if view.is_plain:
            matches = Matches([await collection.read_entries(api, task)])
        else:
            matches = await collection.search(api, [task], view)
    results = RunResults([task])
    entries = sort_entries(matches.entries, view, statuses=results.statuses)
    if view.show == "problems":
        entries = [entry for entry in entries if not isinstance(entry, GalleryImage)]
    pager = _pager(view.page, len(entries), IMAGES_PER_PAGE, lambda n: pages.task(ti, **view.at(n).query))
    part = slice((pager.number - 1) * IMAGES_PER_PAGE, pager.number * IMAGES_PER_PAGE)
    notes = list(dict.fromkeys([*([found.notice] if found.notice else []), *matches.notes, *matches.task_notes]))
    form = selection = None
    if found.images and view.show == "pictures":
        models = {image.model for image in found.images if image.model}
        form = ViewForm(pages.task(ti), view, matches.count, models=models)
        selection = SelectionForm(pages.task(ti), view, matches.count) if matches.count else None
    has_sheet = found.summary is not None and found.summary.contact_sheet is not None
    return _page(
        request,
        "gallery.html",
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
        notes=[],
        waiting=[],
        more_problems=pages.task(ti, show="problems") if view.show == "pictures" and task.has_problems else None,
        refresh_seconds=refresh_seconds([results]),
    )


@app.get("/run", dependencies=[may_read, *may_read_states])
@shared_by_viewers
async def show_run(request: Request, view: View, dag_id: Id, run_id: Id) -> Response:
    """Show the images of all tasks in a run and what is missing, a selection of it, or only what is missing."""
    pages = Pages(_root(request))
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
        results = await collection.read_run(api, run)
        notes = results.notes
        if view.show == "problems":
            incomplete = [task for task in results.tasks if task.has_problems]
            pager = _pager(view.page, len(incomplete), TASKS_PER_PAGE, address)
            first = (pager.number - 1) * TASKS_PER_PAGE
            part = incomplete[first : first + TASKS_PER_PAGE]
            sections = [await _problem_section(api, pages, task) for task in part]
        else:
            compares_models = await collection.compares_models(api, run, results.tasks)
            matches = None if view.is_plain else await collection.search(api, results.tasks, view)
            places = sum(task.places for task in results.tasks) if matches is None else matches.places
            pager = _pager(view.page, places, IMAGES_PER_PAGE, address)
            first = (pager.number - 1) * IMAGES_PER_PAGE
            if matches is None:
                tasks = await collection.read_slice(api, results.tasks, first=first, most=IMAGES_PER_PAGE)
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
    return _page(
        request,
        "gallery.html",
        title=run_id,
        kind="run",
        view=view,
        ti=None,
        dag_id=dag_id,
        run_id=run_id,
        task=None,
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


@app.get("/dags")
async def show_all_dags(
    request: Request, user: GetUserDep, days: Literal["7", "30"] = "7", page: PageNumber = 1
) -> Response:
    """Show the costs and failures of all DAGs whose images the visitor may see, and their newest images."""
    pages = Pages(_root(request))
    zone = time_zone() or datetime.now().astimezone().tzinfo or UTC
    period = Period.until(datetime.now(UTC), days=int(days), zone=zone)
    sections = []
    async with AirflowApi(request) as api:
        found = await all_dags.read(api, Visitor(request, user), period, page=page, dags_per_page=DAGS_PER_PAGE)
        dag_ids = found.dag_ids if found else []
        pager = _pager(page, len(dag_ids), DAGS_PER_PAGE, lambda n: pages.all_dags(days=days, page=n))
        if found is not None:
            shown = dag_ids[(pager.number - 1) * DAGS_PER_PAGE : pager.number * DAGS_PER_PAGE]
            newest = await all_dags.read_newest(api, found, shown)
            sections = [DagSection(found, dag_id, newest[dag_id]) for dag_id in shown]
    return _page(
        request,
        "all_dags.html",
        title="All DAGs",
        found=found,
        days=days,
        sections=sections,
        pager=pager,
        refresh_seconds=COUNTING_REFRESH_SECONDS if found and found.is_counting else ALL_DAGS_REFRESH_SECONDS,
    )


@app.get("/dag", dependencies=[may_read, *may_read_states])
@shared_by_viewers
async def show_dag(request: Request, view: View, dag_id: Id) -> Response:
    """Show the runs of a DAG, the latest first, each with its first images or with a selection of them."""
    pages = Pages(_root(request))
    sections = []
    async with AirflowApi(request) as api:
        listed = await api.list_runs(dag_id, offset=(view.page - 1) * RUNS_PER_PAGE, limit=RUNS_PER_PAGE)
        if listed is None:
            raise MissingError("This DAG does not exist, or was deleted.")
        runs, count = listed
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
        pages.dag(dag_id, **ViewState(page=view.page).query),
        view,
        made,
        models={model for section in sections for model in section.models},
        labels=(label for results in shown for label in results.labels_to_choose),
    )
    return _page(
        request,
        "gallery.html",
        title=dag_id,
        kind="dag",
        view=view,
        ti=None,
        dag_id=dag_id,
        run_id=None,
        task=None,
        results=None,
        form=form if made or view.is_filtered else None,
        selection=None,
        sections=sections,
        pager=_pager(view.page, count, RUNS_PER_PAGE, lambda n: pages.dag(dag_id, **view.at(n).query)),
        empty=empty,
        notes=[],
        waiting=[],
        more_problems=None,
        refresh_seconds=refresh_seconds(shown) or IDLE_REFRESH_SECONDS,
    )


@app.get("/review", dependencies=[may_read, *may_read_states, may_read_question])
async def show_review(
    request: Request,
    dag_id: Id,
    run_id: Id,
    task_id: Id,
    can_answer: MayAnswer,
    map_index: MapIndex = -1,
    page: PageNumber = 1,
) -> Response:
    """Show the images that a human-in-the-loop task asks about, for a person to mark."""
    pages = Pages(_root(request))
    ti = TaskInstance(dag_id, run_id, task_id, map_index)
    images: list[GalleryImage] = []
    notice = None
    async with AirflowApi(request) as api:
        question = await api.get_question(ti)
        if question is None:
            raise MissingError("This task has not asked anybody anything yet, or it was deleted.")
        review = find_review(question, can_answer=can_answer)
        if review is not None:
            found = await collection.get_task(api, review.reviewed)
            images, notice = found.images, found.notice
    pager = _pager(page, len(images), REVIEWED_PER_PAGE, lambda number: pages.review(ti, page=number))
    first = (pager.number - 1) * REVIEWED_PER_PAGE
    items = review.items(images, first=first, most=REVIEWED_PER_PAGE) if review else []
    return _page(
        request,
        "review.html",
        images=[item.image for item in items],
        title=question.subject,
        question=question,
        review=review,
        items=items,
        count=len(images),
        per_page=REVIEWED_PER_PAGE,
        pager=pager,
        notice=notice,
    )


@app.get("/picture", dependencies=[may_read])
async def show_image(
    request: Request,
    dag_id: Id,
    run_id: Id,
    task_id: Id,
    prompt_index: Index,
    image_index: Index,
    map_index: MapIndex = -1,
) -> Response:
    """Show one image with its metadata."""
    ti = TaskInstance(dag_id, run_id, task_id, map_index)
    async with AirflowApi(request) as api:
        status = await api.get_status(ti)
    found, place = await _find(request, ti, prompt_index, image_index)
    image = found.images[place]
    notice = None
    if image.is_stored:
        try:
            await collection.in_thread(partial(check_image_file, image))
        except FileUnavailableError as error:
            notice = str(error)
    return _page(
        request,
        "image.html",
        images=[image],
        title=f"Image {place + 1} of {len(found.images)}",
        label=status.label if status else "",
        image=image,
        arguments=image.shown_arguments,
        snippet=snippet(image),
        notice=notice,
        previous=found.images[place - 1] if place else None,
        next=found.images[place + 1] if place + 1 < len(found.images) else None,
    )


@app.get("/compare", dependencies=[may_read, *may_read_states])
async def show_comparison(request: Request, dag_id: Id, run_id: Id, image: ImageIds) -> Response:
    """
    Show two to four images of a run side by side, and what differs between them.

    :param image: ``task_id:map_index:prompt_index:image_index`` of each image; repeated ones count once
    """
    chosen = dict.fromkeys(image)
    if not MIN_COMPARED <= len(chosen) <= MAX_COMPARED:
        raise ComparisonError(f"Choose two to four images to compare. You have chosen {len(chosen):,}.")
    images = []
    for text in chosen:
        parsed = parse_image_id(text)
        if parsed is None:
            raise ComparisonError("This URL names an image that cannot exist.")
        task_id, map_index, prompt_index, image_index = parsed
        found, place = await _find(request, TaskInstance(dag_id, run_id, task_id, map_index), prompt_index, image_index)
        images.append(found.images[place])
    return _page(
        request,
        "compare.html",
        images=images,
        title="Comparison",
        dag_id=dag_id,
        run_id=run_id,
        comparison=compare(images),
    )


@app.get("/matrix", dependencies=[may_read, *may_read_states])
async def show_matrix(
    request: Request, dag_id: Id, run_id: Id, page: PageNumber = 1, rows: RowsBy = "prompt"
) -> Response:
    """Show the images of a run in a table of prompts and models."""
    pages = Pages(_root(request))
    async with AirflowApi(request) as api:
        run = await api.get_run(dag_id=dag_id, run_id=run_id)
        if run is None:
            raise MissingError("This run does not exist, or was deleted.")
        results = await collection.read_run(api, run)
        matches = await collection.search(api, results.tasks, ViewState())
    entries = matches.entries
    matrix = await collection.in_thread(lambda: arrange(entries, by=rows))
    pager = _pager(
        page, len(matrix.rows), ROWS_PER_PAGE, lambda number: pages.matrix(dag_id, run_id, rows=rows, page=number)
    )
    first = (pager.number - 1) * ROWS_PER_PAGE
    shown = matrix.rows[first : first + ROWS_PER_PAGE]
    notes = [*results.notes, *matches.task_notes]
    if matches.unsearched:
        notes.append(f"{matches.unsearched:,} more tasks could not be read in time, so their images are not here.")
    if len(matrix.columns) > MAX_MODELS:
        notes.append(f"Only the first {MAX_MODELS} of {len(matrix.columns):,} models are shown.")
    if run.is_active:
        notes.append("The run has not ended. Reload to see newer images.")
    return _page(
        request,
        "matrix.html",
        images=shown_images(shown, matrix.models),
        title="Prompts and models",
        dag_id=dag_id,
        run_id=run_id,
        matrix=matrix,
        rows=shown,
        by=rows,
        has_names=any(entry.name for entry in entries),
        labels=results.labels,
        pager=pager,
        notes=notes,
    )


@app.get("/file", dependencies=[may_read])
async def send_file(
    request: Request,
    dag_id: Id,
    run_id: Id,
    task_id: Id,
    prompt_index: Index,
    image_index: Index,
    map_index: MapIndex = -1,
    size: Literal["thumbnail", "full"] = "full",
) -> Response:
    """Send a stored image or its preview."""
    found, place = await _find(request, TaskInstance(dag_id, run_id, task_id, map_index), prompt_index, image_index)
    image = found.images[place]
    if not image.is_stored:
        raise HTTPException(404)
    tag = f'"{image.sha256}-{size}"'
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    try:
        if size == "thumbnail":
            preview = await collection.in_thread(partial(_preview, image))
            headers["Content-Disposition"] = _disposition(image, "image/webp")
            return Response(preview, media_type="image/webp", headers=headers)
        file = await collection.in_thread(partial(open_image_file, image))
    except FileUnavailableError as error:
        raise HTTPException(410, str(error)) from None
    kind = cast("str", await collection.in_thread(partial(media_type, file)))  # open_image_file checked that it has one
    headers |= {"Content-Disposition": _disposition(image, kind), "Content-Length": str(image.bytes)}
    return StreamingResponse(_chunks(file), media_type=kind, headers=headers)


@app.get("/sheet", dependencies=[may_read])
async def send_contact_sheet(
    request: Request, dag_id: Id, run_id: Id, task_id: Id, map_index: MapIndex = -1
) -> Response:
    """Send the contact sheet of a task instance."""
    ti = TaskInstance(dag_id, run_id, task_id, map_index)
    async with AirflowApi(request) as api:
        summary = await collection.get_summary(api, ti)
    if summary is None or summary.contact_sheet is None or summary.manifest is None:
        raise MissingError("This task has no contact sheet.")
    try:
        file = await collection.in_thread(partial(open_contact_sheet, ti, summary.manifest))
    except FileUnavailableError as error:
        raise MissingError(str(error)) from None
    name = quote(f"{task_id}-contact-sheet.webp", safe="")
    headers = {"Content-Disposition": f"inline; filename*=UTF-8''{name}"}
    return StreamingResponse(_chunks(file), media_type=SHEET_MIME_TYPE, headers=headers)


@app.get("/download", dependencies=[may_read, *may_read_states])
async def download_images(
    request: Request,
    view: View,
    dag_id: Id,
    run_id: Id,
    image: ImageIds,
    task_id: Id | None = None,
    map_index: MapIndex = -1,
    everything: bool = False,
) -> Response:
    """
    Send a zip of images of a run.

    :param image: which of them (:func:`image_id`)
    :param task_id: task instance of the page that they were selected on; ``None`` for the page of the run
    :param everything: send all images of that page's view instead
    """
    ti = TaskInstance(dag_id, run_id, task_id, map_index) if task_id else None
    async with AirflowApi(request) as api:
        if everything:
            images, notes = await _find_all(api, dag_id, run_id, ti, view)
        else:
            images, notes = await _find_selected(api, dag_id, run_id, image)
    if not images and not notes:
        raise MissingError("No image is selected. Go back and tick those that you want.")
    name = quote(f"{f'{task_id} ' if task_id else ''}{run_id}.zip", safe="")
    headers = {
        "Content-Disposition": f"attachment; filename*=UTF-8''{name}",
        "Content-Encoding": "identity",  # keeps Airflow from compressing images again
    }
    return StreamingResponse(
        _produce(write_archive(images, notes=notes)), media_type="application/zip", headers=headers
    )


async def _find_all(
    api: AirflowApi, dag_id: str, run_id: str, ti: TaskInstance | None, view: ViewState
) -> tuple[list[GalleryImage], list[str]]:
    """Return the images on all pages of a view, in its order, and sentences about those that cannot be found."""
    if ti is not None:
        status = await api.get_status(ti)
        tasks = [TaskResult(status, await collection.get_summary(api, ti))] if status else []
    else:
        run = await api.get_run(dag_id=dag_id, run_id=run_id)
        tasks = (await collection.read_run(api, run, seconds=DOWNLOAD_SECONDS)).tasks if run else []
    matches = await collection.search(api, tasks, view, seconds=DOWNLOAD_SECONDS)
    entries = sort_entries(matches.entries, view, statuses=RunResults(tasks).statuses)
    return [entry for entry in entries if isinstance(entry, GalleryImage)], [*matches.notes, *matches.task_notes]


async def _find_selected(
    api: AirflowApi, dag_id: str, run_id: str, ids: list[str]
) -> tuple[list[GalleryImage], list[str]]:
    """Return the images that a URL names, in its order, and sentences about those that do not exist."""
    images, notes = [], []
    if len(ids) > MAX_SELECTED:
        raise HTTPException(422)
    for text in dict.fromkeys(ids):
        parsed = parse_image_id(text)
        if parsed is None:
            raise HTTPException(422)
        task_id, map_index, prompt_index, image_index = parsed
        ti = TaskInstance(dag_id, run_id, task_id, map_index)
        found = await collection.get_task_with(api, ti, prompt_index=prompt_index, image_index=image_index)
        place = found.find(prompt_index, image_index)
        if place is None:
            notes.append(f"{text}: There is no such image, or its record was deleted.")
        else:
            images.append(found.images[place])
    return images, notes


def _disposition(image: GalleryImage, kind: str) -> str:
    extension = _EXTENSIONS.get(kind) or kind.partition("/")[2]
    name = f"{quote(image.ti.task_id, safe='')}-{image.prompt_index}-{image.image_index}.{extension}"
    return f"{'attachment' if kind in _SENT_AS_ATTACHMENT else 'inline'}; filename*=UTF-8''{name}"


async def _chunks(file: IO[bytes]) -> AsyncIterator[bytes]:
    with file:
        file.seek(0)
        while chunk := await collection.in_thread(partial(file.read, CHUNK_BYTES)):
            yield chunk


async def _produce(pieces: Generator[bytes, None, None]) -> AsyncIterator[bytes]:
    """Yield pieces that are produced in a thread, and stop producing them when the visitor has gone."""
    try:
        while (piece := await collection.in_thread(partial(next, pieces, None))) is not None:
            if piece:
                yield piece
    finally:
        pieces.close()


@app.get("/static/{name}")
async def send_static(name: str) -> Response:
    """Send a style sheet, a script or the icon; public, since they hold no data."""
    data = read_static(name)
    if data is None:
        raise HTTPException(404)
    return Response(data, headers={"Content-Type": STATIC_TYPES[name], "Cache-Control": "public, max-age=86400"})


def _root(request: Request) -> str:
    """Return the path the gallery is mounted at, including the base path."""
    return str(request.scope.get("root_path", ""))


def _page(
    request: Request, template: str, *, status: int = 200, images: list[GalleryImage] | None = None, **values: Any
) -> Response:
    """Return a rendered page whose security policy allows only its own style, script, images and refreshes."""
    sections = values.get("sections", ())
    shown = images or [entry for part in sections for entry in part.entries if isinstance(entry, GalleryImage)]
    sources = image_sources(shown)
    policy = (
        f"default-src 'none'; img-src {sources}; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'self'"
    )
    html = Pages(_root(request)).render(template, image_sources=sources, **values)
    return HTMLResponse(html, status_code=status, headers={"Content-Security-Policy": policy})


async def _find(request: Request, ti: TaskInstance, prompt_index: int, image_index: int) -> tuple[TaskImages, int]:
    async with AirflowApi(request) as api:
        found = await collection.get_task_with(api, ti, prompt_index=prompt_index, image_index=image_index)
    place = found.find(prompt_index, image_index)
    if place is None:
        raise MissingError("There is no such image, or its record was deleted.")
    return found, place


def _pager(number: int, items: int, per_page: int, address: Callable[[int], str]) -> Pager:
    count = max(-(-items // per_page), 1)
    return Pager(min(number, count), count, address)


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
    results = await collection.read_run(api, run, seconds=seconds)
    if not results.tasks:
        return None
    if view.is_plain:
        matches = Matches(await collection.read_slice(api, results.tasks, first=0, most=IMAGES_PER_RUN))
        count = results.total.made
    else:
        matches = await collection.search(api, results.tasks, view, seconds=seconds)
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
    found = await collection.read_entries(api, task)
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


def _preview(image: GalleryImage) -> bytes:
    """
    Return an image's preview, from the cache or created from the stored image.

    The preview that the task stored is not used, because nothing proves that it shows this image. Previews are not
    shared between task instances or files, because knowing an image's digest does not prove access to it.
    """
    place = json.dumps([*astuple(image.ti), image.path, image.bytes, image.sha256])
    name = hashlib.sha256(place.encode()).hexdigest()
    kept = thumbnails.get(name)
    if kept is not None:
        return kept
    with image_bytes(image) as data:
        return thumbnails.make(name, data)
