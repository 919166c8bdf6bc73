"""
The gallery's routes.

Every route that shows data of a DAG first checks that the visitor may read that DAG's XComs.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import astuple, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, cast
from urllib.parse import quote

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import requires_access_dag
from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from airflow_provider_imagen.plugins.gallery.airflow_api import AirflowApi, TaskInstance
from airflow_provider_imagen.plugins.gallery.collection import COUNT_SECONDS, Collection
from airflow_provider_imagen.plugins.gallery.files import (
    CHUNK_BYTES,
    FileUnavailableError,
    image_bytes,
    media_type,
    open_image_file,
)
from airflow_provider_imagen.plugins.gallery.image_search import MAX_QUERY_CHARACTERS, ImageSearch
from airflow_provider_imagen.plugins.gallery.pages import (
    STATIC_TYPES,
    Pager,
    Pages,
    SearchForm,
    Section,
    image_sources,
    read_static,
    snippet,
)
from airflow_provider_imagen.plugins.gallery.progress import (
    IDLE_REFRESH_SECONDS,
    REFRESH_SECONDS,
    refresh_seconds,
    shared_by_viewers,
)
from airflow_provider_imagen.plugins.gallery.thumbnails import ThumbnailCache
from airflow_provider_imagen.storage.inspect_image import SVG_MIME_TYPE
from airflow_provider_imagen.storage.provenance import read_provenance

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from typing import IO

    from airflow_provider_imagen.plugins.gallery.collection import TaskImages
    from airflow_provider_imagen.plugins.gallery.task_results import GalleryImage, TaskSummary

log = logging.getLogger(__name__)

IMAGES_PER_PAGE: Final = 60
TASKS_PER_PAGE: Final = 30
MAX_RUNS: Final = 8
IMAGES_PER_RUN: Final = 8
MAX_PROBLEMS_ABOVE_IMAGES: Final = 12

_UNFINISHED: Final = (
    "none",
    "scheduled",
    "queued",
    "running",
    "restarting",
    "deferred",
    "up_for_reschedule",
    "removed",
)
_EXTENSIONS: Final = {"image/jpeg": "jpg", "image/tiff": "tiff", SVG_MIME_TYPE: "svg"}
_SENT_AS_ATTACHMENT: Final = ("image/tiff", SVG_MIME_TYPE)
"""Types sent as downloads, because browsers cannot display them or they may contain scripts."""

_MAX_INTEGER: Final = 2**31 - 1
"""Largest integer that Airflow's database accepts."""

may_read = Depends(requires_access_dag(method="GET", access_entity=DagAccessEntity.XCOM))
may_read_states = (
    Depends(requires_access_dag(method="GET", access_entity=DagAccessEntity.RUN)),
    Depends(requires_access_dag(method="GET", access_entity=DagAccessEntity.TASK_INSTANCE)),
)
Id = Annotated[str, Query(min_length=1, max_length=250)]
MapIndex = Annotated[int, Query(ge=-1, le=_MAX_INTEGER)]
Index = Annotated[int, Query(ge=0, le=_MAX_INTEGER)]
PageNumber = Annotated[int, Query(ge=1, le=100_000)]
Show = Literal["pictures", "problems"]
SearchQuery = Annotated[str, Query(max_length=MAX_QUERY_CHARACTERS)]

app = FastAPI(title="Pictures", docs_url=None, redoc_url=None, openapi_url=None)
collection = Collection()
thumbnails = ThumbnailCache()


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
    if not is_page:
        return Response(
            error.detail if error.status_code == 410 else message, error.status_code, media_type="text/plain"
        )
    return _page(request, "message.html", status=error.status_code, title="Pictures", message=message)


@app.exception_handler(RequestValidationError)
async def show_invalid_request(request: Request, _: RequestValidationError) -> Response:
    """Return an error page for invalid parameters, without echoing them."""
    return await show_error(request, HTTPException(422))


@app.get("/task", dependencies=[may_read, *may_read_states])
@shared_by_viewers
async def show_task(
    request: Request,
    dag_id: Id,
    run_id: Id,
    task_id: Id,
    map_index: MapIndex = -1,
    page: PageNumber = 1,
    show: Show = "pictures",
    q: SearchQuery = "",
) -> Response:
    """Show the images of one task instance, or those that match a search, below the first problems."""
    ti = TaskInstance(dag_id, run_id, task_id, map_index)
    search = ImageSearch(q)
    async with AirflowApi(request) as api:
        state = await api.get_state(ti)  # first: a task publishes its results before it ends
        found = await collection.get_task(api, ti, await collection.get_summary(api, ti))
        empty = "" if found.images or found.notice else _explain_empty_task(found, state)
    problems, unreadable = await collection.read_problems(found.summary) if found.summary else ([], None)
    images = (await collection.filter(found, search)).images
    problems = search.filter(problems)
    pages = Pages(_root(request))
    items = len(problems if show == "problems" else images)
    pager = _pager(
        page, items, IMAGES_PER_PAGE, lambda number: pages.task(ti, show=show, page=number, q=search.query or None)
    )
    part = slice((pager.number - 1) * IMAGES_PER_PAGE, pager.number * IMAGES_PER_PAGE)
    if show == "problems":
        section = Section(problems=problems[part], notes=[unreadable] if unreadable else [])
    else:
        section = Section(
            images=images[part],
            problems=problems[:MAX_PROBLEMS_ABOVE_IMAGES] if pager.number == 1 else [],
            notes=[note for note in (found.notice, unreadable) if note],
        )
    return _page(
        request,
        "gallery.html",
        title=task_id if map_index < 0 else f"{task_id} [{map_index}]",
        kind="task",
        ti=ti,
        dag_id=dag_id,
        run_id=run_id,
        summary=found.summary.summary if found.summary else None,
        search=SearchForm(pages.task(ti), search.query, items) if found.images and show == "pictures" else None,
        sections=[section],
        pager=pager,
        empty=empty,
        notes=[],
        more_problems=pages.task(ti, show="problems") if len(problems) > len(section.problems) > 0 else None,
        refresh_seconds=refresh_seconds([state]),
    )


@app.get("/run", dependencies=[may_read, *may_read_states])
@shared_by_viewers
async def show_run(
    request: Request,
    dag_id: Id,
    run_id: Id,
    page: PageNumber = 1,
    show: Show = "pictures",
    q: SearchQuery = "",
) -> Response:
    """Show the images of all tasks in a run, those that match a search, or the problems."""
    pages = Pages(_root(request))
    search = ImageSearch(q)
    form = None
    async with AirflowApi(request) as api:
        run = await api.get_run(dag_id=dag_id, run_id=run_id)  # first: its tasks publish their results before it ends
        counted = await collection.list_summaries(api, dag_id=dag_id, run_id=run_id)
        summaries, notes = counted.tasks, counted.notes
        if show == "problems":
            incomplete = [summary for summary in summaries if summary.summary.problems]
            pager = _pager(
                page, len(incomplete), TASKS_PER_PAGE, lambda n: pages.run(dag_id, run_id, show=show, page=n)
            )
            first = (pager.number - 1) * TASKS_PER_PAGE
            sections = [
                await _problem_section(pages, summary) for summary in incomplete[first : first + TASKS_PER_PAGE]
            ]
        else:
            matches = await collection.search(api, summaries, search) if search else None
            count = sum(summary.summary.made for summary in summaries) if matches is None else matches.count
            pager = _pager(
                page, count, IMAGES_PER_PAGE, lambda n: pages.run(dag_id, run_id, page=n, q=search.query or None)
            )
            first = (pager.number - 1) * IMAGES_PER_PAGE
            if matches is None:
                tasks = await _read_slice(api, summaries, first=first, most=IMAGES_PER_PAGE)
            else:
                tasks = _slice(matches.tasks, first=first, most=IMAGES_PER_PAGE)
                notes = [*notes, *matches.notes]
            sections = _image_sections(pages, tasks)
            form = SearchForm(pages.run(dag_id, run_id), search.query, count) if summaries else None
    total = counted.total
    empty = "" if summaries else _explain_empty_run(run)
    if show == "problems" and summaries and not sections:
        empty = "All requested images were generated."
    return _page(
        request,
        "gallery.html",
        title=run_id,
        kind="run",
        ti=None,
        dag_id=dag_id,
        run_id=run_id,
        summary=total if summaries else None,
        search=form,
        sections=sections,
        pager=pager,
        empty=empty,
        notes=notes,
        more_problems=pages.run(dag_id, run_id, show="problems") if show == "pictures" and total.problems else None,
        refresh_seconds=refresh_seconds([run["state"]] if run else []),
    )


@app.get("/dag", dependencies=[may_read, *may_read_states])
@shared_by_viewers
async def show_dag(request: Request, dag_id: Id, q: SearchQuery = "") -> Response:
    """Show the latest runs of a DAG that have images, or images that match a search."""
    pages = Pages(_root(request))
    search = ImageSearch(q)
    sections = []
    async with AirflowApi(request) as api:
        active = await api.list_active_runs(dag_id)  # first: a run's tasks publish their results before it ends
        newest = await collection.list_newest(api, dag_id=dag_id, runs=MAX_RUNS)
        for run_id, counted in newest.items():
            notes, count = counted.notes, counted.total.made
            if search:
                seconds = COUNT_SECONDS / MAX_RUNS
                matches = await collection.search(api, counted.tasks, search, seconds=seconds)
                notes, count = [*notes, *matches.notes], matches.count
                parts = _slice(matches.tasks, first=0, most=IMAGES_PER_RUN)
            else:
                parts = await _read_slice(api, counted.tasks, first=0, most=IMAGES_PER_RUN)
            section = Section(
                title=run_id,
                href=pages.run(dag_id, run_id, q=search.query or None),
                summary=counted.total,
                images=[image for part in parts for image in part.images],
                count=count,
                notes=[*notes, *dict.fromkeys(part.notice for part in parts if part.notice)],
                is_active=run_id in active,
            )
            if section.images or section.notes or not search:
                sections.append(section)
    return _page(
        request,
        "gallery.html",
        title=dag_id,
        kind="dag",
        ti=None,
        dag_id=dag_id,
        run_id=None,
        summary=None,
        search=SearchForm(pages.dag(dag_id), search.query, sum(each.count for each in sections)) if newest else None,
        sections=sections,
        pager=None,
        empty="" if newest else "No run of this DAG has generated images yet.",
        notes=[],
        more_problems=None,
        refresh_seconds=REFRESH_SECONDS if active else IDLE_REFRESH_SECONDS,
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
    found, place = await _find(request, TaskInstance(dag_id, run_id, task_id, map_index), prompt_index, image_index)
    image = found.images[place]
    parameters: dict[str, Any] = {}
    notice = None
    if image.is_stored:
        try:
            parameters = await collection.in_thread(partial(_read_parameters, image))
        except FileUnavailableError as error:
            notice = str(error)
    return _page(
        request,
        "image.html",
        images=[image],
        title=f"Image {place + 1} of {len(found.images)}",
        image=image,
        parameters=parameters,
        snippet=snippet(image, parameters),
        notice=notice,
        previous=found.images[place - 1] if place else None,
        next=found.images[place + 1] if place + 1 < len(found.images) else None,
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


def _disposition(image: GalleryImage, kind: str) -> str:
    extension = _EXTENSIONS.get(kind) or kind.partition("/")[2]
    name = f"{quote(image.ti.task_id, safe='')}-{image.prompt_index}-{image.image_index}.{extension}"
    return f"{'attachment' if kind in _SENT_AS_ATTACHMENT else 'inline'}; filename*=UTF-8''{name}"


async def _chunks(file: IO[bytes]) -> AsyncIterator[bytes]:
    with file:
        file.seek(0)
        while chunk := await collection.in_thread(partial(file.read, CHUNK_BYTES)):
            yield chunk


@app.get("/static/{name}")
async def send_static(name: str) -> Response:
    """Send the style sheet or the script; public, since they hold no data."""
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
    shown = images or [image for section in values.get("sections", ()) for image in section.images]
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
        raise HTTPException(404)
    return found, place


def _pager(number: int, items: int, per_page: int, address: Callable[[int], str]) -> Pager:
    count = max(-(-items // per_page), 1)
    number = min(number, count)
    return Pager(number, count, {n: address(n) for n in (number - 1, number + 1) if 1 <= n <= count})


async def _read_slice(api: AirflowApi, summaries: list[TaskSummary], *, first: int, most: int) -> list[TaskImages]:
    """
    Return a slice of the images of several task instances. Only those with images in the slice are read.

    :param first: index of the first image
    :param most: maximum number of images
    """
    tasks = []
    start = 0
    for summary in summaries:
        end = start + summary.summary.made
        if end > first and start < first + most:
            found = await collection.get_task(api, summary.ti, summary)
            tasks.append(replace(found, images=found.images[max(first - start, 0) : first + most - start]))
        start = end
    return tasks


def _slice(tasks: list[TaskImages], *, first: int, most: int) -> list[TaskImages]:
    """Return a slice of images that have been read, and the task instances whose images could not be."""
    found = []
    start = 0
    for task in tasks:
        images = task.images[max(first - start, 0) : max(first + most - start, 0)]
        if images or (task.notice and first == 0):
            found.append(replace(task, images=images))
        start += len(task.images)
    return found


def _image_sections(pages: Pages, tasks: list[TaskImages]) -> list[Section]:
    """Return one section per task; the instances of a mapped task share a section."""
    sections: dict[str, Section] = {}
    for found in tasks:
        ti = found.ti
        href = pages.task(ti) if ti.map_index < 0 else None
        section = sections.setdefault(ti.task_id, Section(title=ti.task_id, href=href))
        section.images.extend(found.images)
        if found.notice and found.notice not in section.notes:
            section.notes.append(found.notice)
    return list(sections.values())


async def _problem_section(pages: Pages, summary: TaskSummary) -> Section:
    problems, unreadable = await collection.read_problems(summary)
    notes = [unreadable] if unreadable else []
    if summary.summary.not_sent:
        notes.append(f"{summary.summary.not_sent} were not requested, because the task ended first.")
    return Section(
        title=_title(summary), href=pages.task(summary.ti), summary=summary.summary, problems=problems, notes=notes
    )


def _title(summary: TaskSummary) -> str:
    ti = summary.ti
    return ti.task_id if ti.map_index < 0 else f"{ti.task_id} [{ti.map_index}]"


def _explain_empty_task(found: TaskImages, state: str | None) -> str:
    if found.summary is not None and not found.summary.summary.in_progress:
        return "This task generated no images."
    if state is None or state in _UNFINISHED:
        return "This task has not finished yet. Its images are shown here as soon as they are stored."
    if state == "success":
        return "This task has no images. If it generated any, Airflow has since deleted their records."
    return f"This task has no images. Its state is {state}; see its log for the reason."


def _explain_empty_run(run: dict[str, Any] | None) -> str:
    if run is None:
        return "This run does not exist, or was deleted."
    if run.get("state") in ("queued", "running"):
        return "No task in this run has generated images yet. They are shown here as soon as they are stored."
    return "No task in this run has generated images."


def _read_parameters(image: GalleryImage) -> dict[str, Any]:
    """Return an image's request fields from its file, without those that were too long to embed."""
    with image_bytes(image) as data:
        parameters = read_provenance(data).get("parameters")
    return {name: value for name, value in parameters.items() if value != "…"} if isinstance(parameters, dict) else {}


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
