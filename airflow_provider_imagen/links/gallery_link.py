"""The "Pictures" button of a task instance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.sdk import BaseOperatorLink

from airflow_provider_imagen.links.gallery_urls import gallery_root, task_address

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey


class PicturesLink(BaseOperatorLink):
    """
    Links a task instance to its images in the gallery.

    The URL names the task instance and not the attempt, so it stays valid when a task is retried or cleared. For this
    package's own operators, the plugin lets the web server build it; for subclasses, which the web server does not
    know, the worker stores it after every attempt, failed ones included.
    """

    name = "Pictures"
    xcom_key = "imagen_pictures_link"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Return the URL, as a path on Airflow's web server."""
        del operator
        map_index = ti_key.map_index
        return task_address(
            root=gallery_root(),
            dag_id=ti_key.dag_id,
            run_id=ti_key.run_id,
            task_id=ti_key.task_id,
            map_index=map_index if isinstance(map_index, int) else -1,
        )
