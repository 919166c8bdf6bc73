"""Image files, contact sheets, and zips of images."""

from __future__ import annotations

import hashlib
import json
import time
from collections import defaultdict
from dataclasses import astuple
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, cast
from urllib.parse import quote

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import Response, StreamingResponse

from airflow_provider_imagen.plugins.gallery import shared_readers as shared
from airflow_provider_imagen.plugins.gallery.airflow_api import MAX_TASK_INSTANCES, AirflowApi, TaskInstance
from airflow_provider_imagen.plugins.gallery.files import (
    CHUNK_BYTES,
    FileUnavailableError,
    image_bytes,
    media_type,
    open_contact_sheet,
    open_image_file,
)
from airflow_provider_imagen.plugins.gallery.image_archive import write_archive
from airflow_provider_imagen.plugins.gallery.image_ids import parse_image_id
from airflow_provider_imagen.plugins.gallery.image_search import has_label, sort_entries
from airflow_provider_imagen.plugins.gallery.page_response import MissingError
from airflow_provider_imagen.plugins.gallery.request_parameters import (
    Id,
    ImageIds,
    Index,
    MapIndex,
    View,
    may_read,
    may_read_states,
)
from airflow_provider_imagen.plugins.gallery.run_results import RunResults, TaskResult
from airflow_provider_imagen.plugins.gallery.task_results import GalleryImage
from airflow_provider_imagen.storage.contact_sheet import SHEET_MIME_TYPE
from airflow_provider_imagen.storage.inspect_image import SVG_MIME_TYPE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator
    from typing import IO

    from airflow_provider_imagen.plugins.gallery.run_results import Matches
    from airflow_provider_imagen.plugins.gallery.view_state import ViewState

router = APIRouter()

MAX_SELECTED: Final = 1_000
"""Maximum number of images that a URL can name, more than a page has. "Everything" has no such limit."""
DOWNLOAD_SECONDS: Final = 60.0
"""Time that a download may spend on finding its images, before it starts."""
_UNCOMPRESSED: Final = {"Content-Encoding": "identity"}
"""Header that keeps Airflow from compressing images again."""
_EXTENSIONS: Final = {"image/jpeg": "jpg", "image/tiff": "tiff", SVG_MIME_TYPE: "svg"}
_SENT_AS_ATTACHMENT: Final = ("image/tiff", SVG_MIME_TYPE)
"""Types sent as downloads, because browsers cannot display them or they may contain scripts."""


@router.get("/file", dependencies=[may_read])
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
    found, place = await shared.find_image(
        request, TaskInstance(dag_id, run_id, task_id, map_index), prompt_index, image_index
    )
    image = found.images[place]
    if not image.is_stored:
        raise HTTPException(404)
    tag = f'"{image.sha256}-{size}"'
    headers = {"ETag": tag, "Cache-Control": "private, no-cache", **_UNCOMPRESSED}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    try:
        if size == "thumbnail":
            preview = await shared.collection.in_thread(partial(_preview, image))
            headers["Content-Disposition"] = _disposition(image, "image/webp")
            return Response(preview, media_type="image/webp", headers=headers)
        file = await shared.collection.in_thread(partial(open_image_file, image))
    except FileUnavailableError as error:
        raise HTTPException(410, str(error)) from None
    kind = cast(
        "str", await shared.collection.in_thread(partial(media_type, file))
    )  # open_image_file checked that it has one
    headers |= {"Content-Disposition": _disposition(image, kind), "Content-Length": str(image.bytes)}
    return StreamingResponse(_chunks(file), media_type=kind, headers=headers)


@router.get("/sheet", dependencies=[may_read])
async def send_contact_sheet(
    request: Request, dag_id: Id, run_id: Id, task_id: Id, map_index: MapIndex = -1
) -> Response:
    """Send the contact sheet of a task instance."""
    ti = TaskInstance(dag_id, run_id, task_id, map_index)
    async with AirflowApi(request) as api:
        summary = await shared.collection.get_summary(api, ti)
    if summary is None or summary.contact_sheet is None or summary.manifest is None:
        raise MissingError("This task has no contact sheet.")
    try:
        file = await shared.collection.in_thread(partial(open_contact_sheet, ti, summary.manifest))
    except FileUnavailableError as error:
        raise MissingError(str(error)) from None
    name = quote(f"{task_id}-contact-sheet.webp", safe="")
    headers = {"Content-Disposition": f"inline; filename*=UTF-8''{name}", **_UNCOMPRESSED}
    return StreamingResponse(_chunks(file), media_type=SHEET_MIME_TYPE, headers=headers)


@router.get("/download", dependencies=[may_read, *may_read_states])
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
    headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{name}", **_UNCOMPRESSED}
    return StreamingResponse(
        _produce(write_archive(images, notes=notes)), media_type="application/zip", headers=headers
    )


async def _find_all(
    api: AirflowApi, dag_id: str, run_id: str, ti: TaskInstance | None, view: ViewState
) -> tuple[list[GalleryImage], list[str]]:
    """Return the images on all pages of a view, in its order, and sentences about those that cannot be found."""
    if ti is not None:
        status = await api.get_status(ti)
        summary = await shared.collection.get_summary(api, ti)
        results = RunResults([TaskResult(status, summary)] if status else [])
    else:
        run = await api.get_run(dag_id=dag_id, run_id=run_id)
        results = await shared.collection.read_run(api, run, seconds=DOWNLOAD_SECONDS) if run else RunResults([])
    matches = await shared.collection.search(api, results.tasks, view, seconds=DOWNLOAD_SECONDS)
    entries = sort_entries(matches.entries, view, statuses=results.statuses)
    images = [entry for entry in entries if isinstance(entry, GalleryImage)]
    return images, _explain_missing(results, matches, view)


def _explain_missing(results: RunResults, matches: Matches, view: ViewState) -> list[str]:
    """Return sentences about images that a view may have and its zip lacks, each with the task."""
    notes = []
    if results.is_cut:
        notes.append(f"Only about {MAX_TASK_INSTANCES:,} task instances of this run were read. It has more.")
    notes += [
        f"{task.status.title} ({task.status.state}): It has published no results that can be read."
        for task in results.tasks
        if task.lacks_summary and task.is_counted and has_label(task.status, view.label)
    ]
    notes += [
        f"{task.status.title}: Its images could not be read in time. Download them from its own page."
        for task in matches.unsearched
    ]
    return [*notes, *(f"{results.titles[found.ti]}: {note}" for found in matches.tasks for note in found.notes)]


async def _find_selected(
    api: AirflowApi, dag_id: str, run_id: str, ids: list[str]
) -> tuple[list[GalleryImage], list[str]]:
    """Return the images that a URL names, in its order, and sentences about those that cannot be found."""
    if len(ids) > MAX_SELECTED:
        raise HTTPException(422)
    wanted: defaultdict[TaskInstance, dict[str, tuple[int, int]]] = defaultdict(dict)
    for text in ids:
        parsed = parse_image_id(text)
        if parsed is None:
            raise HTTPException(422)
        task_id, map_index, prompt_index, image_index = parsed
        wanted[TaskInstance(dag_id, run_id, task_id, map_index)][text] = (prompt_index, image_index)
    images: dict[str, GalleryImage] = {}
    notes = []
    deadline = time.monotonic() + DOWNLOAD_SECONDS
    for ti, named in wanted.items():
        if time.monotonic() > deadline:
            notes += [f"{text}: It could not be found in time. Select fewer images." for text in named]
            continue
        found = await shared.collection.get_task_with(api, ti, named.values())
        for text, indexes in named.items():
            place = found.find(*indexes)
            if place is None:
                notes.append(f"{text}: There is no such image, or its record was deleted.")
            else:
                images[text] = found.images[place]
    return [images[text] for text in dict.fromkeys(ids) if text in images], notes


def _disposition(image: GalleryImage, kind: str) -> str:
    extension = _EXTENSIONS.get(kind) or kind.partition("/")[2]
    name = f"{quote(image.ti.task_id, safe='')}-{image.prompt_index}-{image.image_index}.{extension}"
    return f"{'attachment' if kind in _SENT_AS_ATTACHMENT else 'inline'}; filename*=UTF-8''{name}"


async def _chunks(file: IO[bytes]) -> AsyncIterator[bytes]:
    with file:
        file.seek(0)
        while chunk := await shared.collection.in_thread(partial(file.read, CHUNK_BYTES)):
            yield chunk


async def _produce(pieces: Generator[bytes, None, None]) -> AsyncIterator[bytes]:
    """Yield pieces that are produced in a thread, and stop producing them when the visitor has gone."""
    try:
        while (piece := await shared.collection.in_thread(partial(next, pieces, None))) is not None:
            if piece:
                yield piece
    finally:
        pieces.close()


def _preview(image: GalleryImage) -> bytes:
    """
    Return an image's preview, from the cache or created from the stored image.

    The preview that the task stored is not used, because nothing proves that it shows this image. Previews are not
    shared between task instances or files, because knowing an image's digest does not prove access to it.
    """
    place = json.dumps([*astuple(image.ti), image.path, image.bytes, image.sha256])
    name = hashlib.sha256(place.encode()).hexdigest()
    kept = shared.thumbnails.get(name)
    if kept is not None:
        return kept
    with image_bytes(image) as data:
        return shared.thumbnails.make(name, data)
