"""Readers and caches that all visitors of this web server share; they hold content, never permissions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_provider_imagen.plugins.gallery.airflow_api import AirflowApi, TaskInstance
from airflow_provider_imagen.plugins.gallery.all_dags_reader import AllDagsReader
from airflow_provider_imagen.plugins.gallery.collection import Collection
from airflow_provider_imagen.plugins.gallery.page_response import MissingError
from airflow_provider_imagen.plugins.gallery.thumbnails import ThumbnailCache

if TYPE_CHECKING:
    from fastapi import Request

    from airflow_provider_imagen.plugins.gallery.run_results import TaskImages

collection = Collection()
all_dags = AllDagsReader(collection)
thumbnails = ThumbnailCache()


async def find_image(request: Request, ti: TaskInstance, prompt_index: int, image_index: int) -> tuple[TaskImages, int]:
    """
    Return the images of a task instance, and the place of one of them among these.

    :raises MissingError: there is no such image
    """
    async with AirflowApi(request) as api:
        found = await collection.get_task_with(api, ti, [(prompt_index, image_index)])
    place = found.find(prompt_index, image_index)
    if place is None:
        raise MissingError("There is no such image, or its record was deleted.")
    return found, place
