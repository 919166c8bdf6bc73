"""The button "Pictures" on a task instance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.sdk import BaseOperatorLink

from airflow_provider_imagen.links.gallery_urls import gallery_root, task_address

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey


class PicturesLink(BaseOperatorLink):
    """
    Lead from a task instance to its pictures in the gallery.

    The address names the task instance and not the try, so it stays right when a task is retried or cleared. For this
    package's own operators the web server makes it (through the plugin); for subclasses, which the web server does not
    know, the worker stores it after every try, whatever became of it.
    """

    name = "Pictures"
    xcom_key = "imagen_pictures_link"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Give the address, as a path on Airflow's web server."""
        del operator
        map_index = ti_key.map_index
        return task_address(
            root=gallery_root(),
            dag_id=ti_key.dag_id,
            run_id=ti_key.run_id,
            task_id=ti_key.task_id,
            map_index=map_index if isinstance(map_index, int) else -1,
        )
