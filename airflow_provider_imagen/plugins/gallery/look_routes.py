"""Pages to look at images closely: one image, a comparison, a table of prompts and models, and a review."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import Response  # noqa: TC002 - FastAPI reads it

from airflow_provider_imagen.plugins.gallery import shared_readers as shared
from airflow_provider_imagen.plugins.gallery.airflow_api import AirflowApi, TaskInstance
from airflow_provider_imagen.plugins.gallery.comparison import MAX_COMPARED, MIN_COMPARED, compare
from airflow_provider_imagen.plugins.gallery.files import FileUnavailableError, check_image_file
from airflow_provider_imagen.plugins.gallery.image_ids import parse_image_id
from airflow_provider_imagen.plugins.gallery.matrix import MAX_MODELS, RowsBy, arrange, shown_images
from airflow_provider_imagen.plugins.gallery.page_response import (
    ExplainedError,
    MissingError,
    gallery_root,
    page_response,
    pager_for,
)
from airflow_provider_imagen.plugins.gallery.pages import Pages
from airflow_provider_imagen.plugins.gallery.request_parameters import (
    Id,
    ImageIds,
    Index,
    MapIndex,
    MayAnswer,
    PageNumber,
    may_read,
    may_read_question,
    may_read_states,
)
from airflow_provider_imagen.plugins.gallery.review_page import find_review
from airflow_provider_imagen.plugins.gallery.snippet import snippet
from airflow_provider_imagen.plugins.gallery.task_results import GalleryImage
from airflow_provider_imagen.plugins.gallery.view_state import ViewState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow_provider_imagen.plugins.gallery.task_results import Entry

router = APIRouter()

REVIEWED_PER_PAGE: Final = 24
ROWS_PER_PAGE: Final = 20


class ComparisonError(ExplainedError):
    """The images that a URL names cannot be compared."""

    def __init__(self, message: str) -> None:
        super().__init__(422, message)


@router.get("/picture", dependencies=[may_read])
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
        try:
            label = status.label if (status := await api.get_status(ti)) else ""
        except HTTPException as error:
            if error.status_code != 403:
                raise
            label = ""  # the visitor may read images, but not task instances
    found, place = await shared.find_image(request, ti, prompt_index, image_index)
    image = found.images[place]
    notice = None
    if image.is_stored:
        try:
            await shared.collection.in_thread(partial(check_image_file, image))
        except FileUnavailableError as error:
            notice = str(error)
    return page_response(
        request,
        "image.html",
        images=[image],
        title=f"Image {place + 1} of {len(found.images)}",
        label=label,
        image=image,
        arguments=image.shown_arguments,
        snippet=snippet(image),
        notice=notice,
        previous=found.images[place - 1] if place else None,
        next=found.images[place + 1] if place + 1 < len(found.images) else None,
    )


@router.get("/compare", dependencies=[may_read, *may_read_states])
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
        found, place = await shared.find_image(
            request, TaskInstance(dag_id, run_id, task_id, map_index), prompt_index, image_index
        )
        images.append(found.images[place])
    return page_response(
        request,
        "compare.html",
        images=images,
        title="Comparison",
        dag_id=dag_id,
        run_id=run_id,
        comparison=compare(images),
    )


@router.get("/matrix", dependencies=[may_read, *may_read_states])
async def show_matrix(
    request: Request, dag_id: Id, run_id: Id, page: PageNumber = 1, rows: RowsBy = "prompt"
) -> Response:
    """Show the images of a run in a table of prompts and models."""
    pages = Pages(gallery_root(request))
    async with AirflowApi(request) as api:
        run = await api.get_run(dag_id=dag_id, run_id=run_id)
        if run is None:
            raise MissingError("This run does not exist, or was deleted.")
        results = await shared.collection.read_run(api, run)
        matches = await shared.collection.search(api, results.tasks, ViewState())
    entries = matches.entries
    matrix = await shared.collection.in_thread(lambda: arrange(entries, by=rows))
    pager = pager_for(
        page, len(matrix.rows), ROWS_PER_PAGE, lambda number: pages.matrix(dag_id, run_id, rows=rows, page=number)
    )
    first = (pager.number - 1) * ROWS_PER_PAGE
    shown = matrix.rows[first : first + ROWS_PER_PAGE]
    notes = [*results.notes, *matches.task_notes]
    if matches.unsearched:
        count = len(matches.unsearched)
        tasks, their = ("task", "its") if count == 1 else ("tasks", "their")
        notes.append(f"{count:,} more {tasks} could not be read in time, so {their} images are not here.")
    if matrix.left_out:
        are = "is" if len(matrix.left_out) == 1 else "are"
        notes.append(f"{_count_entries(matrix.left_out)} without a {rows} {are} not in this table or its costs.")
    if len(matrix.columns) > MAX_MODELS:
        notes.append(f"Only the first {MAX_MODELS} of {len(matrix.columns):,} models are shown.")
    if run.is_active:
        notes.append("The run has not ended. Reload to see newer images.")
    return page_response(
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


@router.get("/review", dependencies=[may_read, *may_read_states, may_read_question])
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
    pages = Pages(gallery_root(request))
    ti = TaskInstance(dag_id, run_id, task_id, map_index)
    images: list[GalleryImage] = []
    notice = None
    async with AirflowApi(request) as api:
        question = await api.get_question(ti)
        if question is None:
            raise MissingError("This task has not asked anybody anything yet, or it was deleted.")
        review = find_review(question, can_answer=can_answer)
        if review is not None:
            summary = await shared.collection.get_summary(api, review.reviewed)
            found = await shared.collection.get_task(api, review.reviewed, summary)
            images, notice = found.images, found.notice
    pager = pager_for(page, len(images), REVIEWED_PER_PAGE, lambda number: pages.review(ti, page=number))
    first = (pager.number - 1) * REVIEWED_PER_PAGE
    items = review.items(images, first=first, most=REVIEWED_PER_PAGE) if review else []
    return page_response(
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


def _count_entries(entries: Sequence[Entry]) -> str:
    """Return how many images and failures there are: ``1 image and 2 failures``."""
    images = sum(isinstance(entry, GalleryImage) for entry in entries)
    counts = (("image", images), ("failure", len(entries) - images))
    return " and ".join(f"{count:,} {word}{'s' if count != 1 else ''}" for word, count in counts if count)
