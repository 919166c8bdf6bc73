"""
The gallery's routes.

Every route that shows data of a DAG first checks that the visitor may read that DAG's XComs.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import astuple
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
from airflow_provider_imagen.plugins.gallery.collection import Collection
from airflow_provider_imagen.plugins.gallery.files import (
    CHUNK_BYTES,
    FileUnavailableError,
    media_type,
    open_picture,
    whole_picture,
)
from airflow_provider_imagen.plugins.gallery.pages import (
    STATIC_TYPES,
    Pager,
    Pages,
    Section,
    image_sources,
    read_static,
    snippet,
)
from airflow_provider_imagen.plugins.gallery.thumbnails import ThumbnailCache
from airflow_provider_imagen.storage.inspect_image import SVG_MIME_TYPE
from airflow_provider_imagen.storage.provenance import read_provenance

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from typing import IO

    from airflow_provider_imagen.plugins.gallery.collection import TaskPictures
    from airflow_provider_imagen.plugins.gallery.records import Picture, TaskSummary

log = logging.getLogger(__name__)

PICTURES_PER_PAGE: Final = 60
TASKS_PER_PAGE: Final = 30
RUNS_SHOWN: Final = 8
PICTURES_PER_RUN: Final = 8
PROBLEMS_AT_TOP: Final = 12

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
_DOWNLOADED: Final = ("image/tiff", SVG_MIME_TYPE)
"""Types sent as downloads, because browsers cannot show them or they may hold scripts."""

_MOST: Final = 2**31 - 1
"""Largest integer that Airflow's database accepts."""

may_read = Depends(requires_access_dag(method="GET", access_entity=DagAccessEntity.XCOM))
Id = Annotated[str, Query(min_length=1, max_length=250)]
MapIndex = Annotated[int, Query(ge=-1, le=_MOST)]
Place = Annotated[int, Query(ge=0, le=_MOST)]
PageNumber = Annotated[int, Query(ge=1, le=100_000)]
Show = Literal["pictures", "problems"]

app = FastAPI(title="Pictures", docs_url=None, redoc_url=None, openapi_url=None)
collection = Collection()
thumbnails = ThumbnailCache()


@app.middleware("http")
async def add_safe_headers(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Add security headers that forbid whatever a page or picture does not need."""
    response = await call_next(request)
    response.headers.setdefault("Content-Security-Policy", "default-src 'none'; sandbox")
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
    response.headers.setdefault("Cache-Control", "private, no-store")
    return response


@app.exception_handler(StarletteHTTPException)
async def show_error(request: Request, error: StarletteHTTPException) -> Response:
    """Return an error page or text, or a redirect to the login page."""
    is_page = not request.url.path.endswith("/file")
    if error.status_code == 401 and is_page and "authorization" not in request.headers:
        base = _root(request).rpartition("/")[0]
        here = f"{request.url.path}?{request.url.query}"
        return RedirectResponse(f"{base}/api/v2/auth/login?next={quote(here, safe='')}", status_code=302)
    message = {
        401: "You are not logged in.",
        403: "You may not see the pictures of this DAG.",
        404: "There is no such picture or page.",
        422: "This address is not complete.",
        502: "Airflow did not answer. Try again in a moment.",
    }.get(error.status_code, "Something went wrong.")
    if not is_page:
        return Response(
            error.detail if error.status_code == 410 else message, error.status_code, media_type="text/plain"
        )
    return _page(request, "message.html", status=error.status_code, title="Pictures", message=message)


@app.exception_handler(RequestValidationError)
async def show_wrong_address(request: Request, _: RequestValidationError) -> Response:
    """Return an error page for invalid parameters, without echoing them."""
    return await show_error(request, HTTPException(422))


@app.get("/task", dependencies=[may_read])
async def show_task(
    request: Request,
    dag_id: Id,
    run_id: Id,
    task_id: Id,
    map_index: MapIndex = -1,
    page: PageNumber = 1,
    show: Show = "pictures",
) -> Response:
    """Show the pictures of one task instance, below its first problems."""
    ti = TaskInstance(dag_id, run_id, task_id, map_index)
    async with AirflowApi(request) as api:
        found = await collection.get_task(api, ti)
        empty = "" if found.pictures or found.notice else await _why_empty(api, found)
    problems, why_not = await collection.read_problems(found.summary) if found.summary else ([], None)
    pages = Pages(_root(request))
    items = len(problems if show == "problems" else found.pictures)
    pager = _pager(page, items, PICTURES_PER_PAGE, lambda number: pages.task(ti, show=show, page=number))
    part = slice((pager.number - 1) * PICTURES_PER_PAGE, pager.number * PICTURES_PER_PAGE)
    if show == "problems":
        section = Section(problems=problems[part], notes=[why_not] if why_not else [])
    else:
        section = Section(
            pictures=found.pictures[part],
            problems=problems[:PROBLEMS_AT_TOP] if pager.number == 1 else [],
            notes=[note for note in (found.notice, why_not) if note],
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
        sections=[section],
        pager=pager,
        empty=empty,
        notes=[],
        more_problems=pages.task(ti, show="problems") if len(problems) > len(section.problems) > 0 else None,
    )


@app.get("/run", dependencies=[may_read])
async def show_run(request: Request, dag_id: Id, run_id: Id, page: PageNumber = 1, show: Show = "pictures") -> Response:
    """Show the pictures, or the problems, of all tasks of a run."""
    pages = Pages(_root(request))
    async with AirflowApi(request) as api:
        counted = await collection.list_summaries(api, dag_id=dag_id, run_id=run_id)
        summaries = counted.tasks
        run = None if summaries else await api.get_run(dag_id=dag_id, run_id=run_id)
        if show == "problems":
            lacking = [summary for summary in summaries if summary.summary.problems]
            pager = _pager(page, len(lacking), TASKS_PER_PAGE, lambda n: pages.run(dag_id, run_id, show=show, page=n))
            first = (pager.number - 1) * TASKS_PER_PAGE
            sections = [await _problem_section(pages, summary) for summary in lacking[first : first + TASKS_PER_PAGE]]
        else:
            count = sum(summary.summary.made for summary in summaries)
            pager = _pager(page, count, PICTURES_PER_PAGE, lambda n: pages.run(dag_id, run_id, page=n))
            sections = await _picture_sections(
                api, pages, summaries, first=(pager.number - 1) * PICTURES_PER_PAGE, most=PICTURES_PER_PAGE
            )
    sums = counted.total
    empty = "" if summaries else _why_run_is_empty(run)
    if show == "problems" and summaries and not sections:
        empty = "Every picture that was asked for was made."
    return _page(
        request,
        "gallery.html",
        title=run_id,
        kind="run",
        ti=None,
        dag_id=dag_id,
        run_id=run_id,
        summary=sums if summaries else None,
        sections=sections,
        pager=pager,
        empty=empty,
        notes=counted.notes,
        more_problems=pages.run(dag_id, run_id, show="problems") if show == "pictures" and sums.problems else None,
    )


@app.get("/dag", dependencies=[may_read])
async def show_dag(request: Request, dag_id: Id) -> Response:
    """Show the latest runs of a DAG that made pictures."""
    pages = Pages(_root(request))
    sections = []
    async with AirflowApi(request) as api:
        newest = await collection.list_newest(api, dag_id=dag_id, runs=RUNS_SHOWN)
        for run_id, counted in newest.items():
            parts = await _picture_sections(api, pages, counted.tasks, first=0, most=PICTURES_PER_RUN)
            sections.append(
                Section(
                    title=run_id,
                    href=pages.run(dag_id, run_id),
                    summary=counted.total,
                    pictures=[picture for part in parts for picture in part.pictures],
                    notes=[*counted.notes, *dict.fromkeys(note for part in parts for note in part.notes)],
                )
            )
    return _page(
        request,
        "gallery.html",
        title=dag_id,
        kind="dag",
        ti=None,
        dag_id=dag_id,
        run_id=None,
        summary=None,
        sections=sections,
        pager=None,
        empty="" if sections else "No run of this DAG has made pictures yet.",
        notes=[],
        more_problems=None,
    )


@app.get("/picture", dependencies=[may_read])
async def show_picture(
    request: Request,
    dag_id: Id,
    run_id: Id,
    task_id: Id,
    prompt_index: Place,
    image_index: Place,
    map_index: MapIndex = -1,
) -> Response:
    """Show one picture with all its metadata."""
    found, place = await _find(request, TaskInstance(dag_id, run_id, task_id, map_index), prompt_index, image_index)
    picture = found.pictures[place]
    parameters: dict[str, Any] = {}
    notice = None
    if picture.is_stored:
        try:
            parameters = await collection.in_thread(partial(_read_parameters, picture))
        except FileUnavailableError as error:
            notice = str(error)
    return _page(
        request,
        "picture.html",
        pictures=[picture],
        title=f"Picture {place + 1} of {len(found.pictures)}",
        picture=picture,
        parameters=parameters,
        snippet=snippet(picture, parameters),
        notice=notice,
        previous=found.pictures[place - 1] if place else None,
        next=found.pictures[place + 1] if place + 1 < len(found.pictures) else None,
    )


@app.get("/file", dependencies=[may_read])
async def send_file(
    request: Request,
    dag_id: Id,
    run_id: Id,
    task_id: Id,
    prompt_index: Place,
    image_index: Place,
    map_index: MapIndex = -1,
    size: Literal["thumbnail", "full"] = "full",
) -> Response:
    """Send a stored picture, or its preview."""
    found, place = await _find(request, TaskInstance(dag_id, run_id, task_id, map_index), prompt_index, image_index)
    picture = found.pictures[place]
    if not picture.is_stored:
        raise HTTPException(404)
    tag = f'"{picture.sha256}-{size}"'
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    try:
        if size == "thumbnail":
            preview = await collection.in_thread(partial(_preview, picture))
            headers["Content-Disposition"] = _disposition(picture, "image/webp")
            return Response(preview, media_type="image/webp", headers=headers)
        file = await collection.in_thread(partial(open_picture, picture))
    except FileUnavailableError as error:
        raise HTTPException(410, str(error)) from None
    kind = cast("str", await collection.in_thread(partial(media_type, file)))  # open_picture checked that it has one
    headers |= {"Content-Disposition": _disposition(picture, kind), "Content-Length": str(picture.bytes)}
    return StreamingResponse(_chunks(file), media_type=kind, headers=headers)


def _disposition(picture: Picture, kind: str) -> str:
    extension = _EXTENSIONS.get(kind) or kind.partition("/")[2]
    name = f"{quote(picture.ti.task_id, safe='')}-{picture.prompt_index}-{picture.image_index}.{extension}"
    return f"{'attachment' if kind in _DOWNLOADED else 'inline'}; filename*=UTF-8''{name}"


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
    request: Request, template: str, *, status: int = 200, pictures: list[Picture] | None = None, **values: Any
) -> Response:
    """Return a rendered page whose security policy allows only its own style, script and the pictures it shows."""
    shown = pictures or [picture for section in values.get("sections", ()) for picture in section.pictures]
    policy = (
        f"default-src 'none'; img-src {image_sources(shown)}; style-src 'self'; script-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    )
    html = Pages(_root(request)).render(template, **values)
    return HTMLResponse(html, status_code=status, headers={"Content-Security-Policy": policy})


async def _find(request: Request, ti: TaskInstance, prompt_index: int, image_index: int) -> tuple[TaskPictures, int]:
    async with AirflowApi(request) as api:
        found = await collection.get_task(api, ti)
    place = found.find(prompt_index, image_index)
    if place is None:
        raise HTTPException(404)
    return found, place


def _pager(number: int, items: int, per_page: int, address: Callable[[int], str]) -> Pager:
    count = max(-(-items // per_page), 1)
    number = min(number, count)
    return Pager(number, count, {n: address(n) for n in (number - 1, number + 1) if 1 <= n <= count})


async def _picture_sections(
    api: AirflowApi, pages: Pages, summaries: list[TaskSummary], *, first: int, most: int
) -> list[Section]:
    """
    Return a slice of the pictures of several task instances, one section per task.

    Only the records in the slice are read. Instances of a mapped task share a section.

    :param first: index of the first picture
    :param most: maximum number of pictures
    """
    sections: dict[str, Section] = {}
    start = 0
    for summary in summaries:
        end = start + summary.summary.made
        if end > first and start < first + most:
            found = await collection.get_task(api, summary.ti)
            ti = summary.ti
            href = pages.task(ti) if ti.map_index < 0 else None
            section = sections.setdefault(ti.task_id, Section(title=ti.task_id, href=href))
            section.pictures.extend(found.pictures[max(first - start, 0) : first + most - start])
            if found.notice and found.notice not in section.notes:
                section.notes.append(found.notice)
        start = end
    return list(sections.values())


async def _problem_section(pages: Pages, summary: TaskSummary) -> Section:
    problems, why_not = await collection.read_problems(summary)
    notes = [why_not] if why_not else []
    if summary.summary.not_sent:
        notes.append(f"{summary.summary.not_sent} were not asked for, because the task ended before.")
    return Section(
        title=_name(summary), href=pages.task(summary.ti), summary=summary.summary, problems=problems, notes=notes
    )


def _name(summary: TaskSummary) -> str:
    ti = summary.ti
    return ti.task_id if ti.map_index < 0 else f"{ti.task_id} [{ti.map_index}]"


async def _why_empty(api: AirflowApi, found: TaskPictures) -> str:
    if found.summary is not None:
        return "This task made no picture."
    state = await api.get_state(found.ti)
    if state is None or state in _UNFINISHED:
        return "This task has not ended yet. Its pictures are shown here when it has."
    if state == "success":
        return "This task has left no pictures. If it made some, Airflow has deleted their records since."
    return f"This task has left no pictures (its state is {state}). Its log says why."


def _why_run_is_empty(run: dict[str, Any] | None) -> str:
    if run is None:
        return "This run does not exist, or was deleted."
    if run.get("state") in ("queued", "running"):
        return "No task of this run has made pictures yet. Each task's pictures are shown when it has ended."
    return "No task of this run has made pictures."


def _read_parameters(picture: Picture) -> dict[str, Any]:
    """Return the API fields of a picture's request from its file, without those that were too long to embed."""
    with whole_picture(picture) as data:
        parameters = read_provenance(data).get("parameters")
    return {name: value for name, value in parameters.items() if value != "…"} if isinstance(parameters, dict) else {}


def _preview(picture: Picture) -> bytes:
    """
    Return a picture's preview, from the cache or made from the stored picture.

    The preview that the task stored is not used, because nothing proves that it shows this picture. Previews are not
    shared between task instances or files, because knowing a picture's digest does not prove access to it.
    """
    place = json.dumps([*astuple(picture.ti), picture.path, picture.bytes, picture.sha256])
    name = hashlib.sha256(place.encode()).hexdigest()
    kept = thumbnails.get(name)
    if kept is not None:
        return kept
    with whole_picture(picture) as data:
        return thumbnails.make(name, data)
