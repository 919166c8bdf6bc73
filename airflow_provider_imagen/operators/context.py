"""What the operator reads out of Airflow's task context, and how it opens folders."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from airflow_provider_imagen.storage.origin import Origin

if TYPE_CHECKING:
    from airflow.sdk import Context, ObjectStoragePath


def origin_of(context: Context) -> Origin:
    """Say which task instance this is; outside a task runner the ids it does not know are empty."""
    ti: Any = context.get("ti")
    map_index = getattr(ti, "map_index", None)
    return Origin(
        dag_id=str(getattr(ti, "dag_id", "")),
        task_id=str(getattr(ti, "task_id", "")),
        run_id=str(getattr(ti, "run_id", "")),
        map_index=map_index if isinstance(map_index, int) else -1,
    )


def open_folder(output_path: str) -> ObjectStoragePath:
    """
    Open an output folder.

    :param output_path: what ``ObjectStoragePath`` takes, connection id included; a path without scheme is one on this
        machine, relative to the working directory
    """
    from airflow.sdk import ObjectStoragePath

    if "://" not in output_path:
        output_path = f"file://{os.path.abspath(os.path.expanduser(output_path))}"
    return ObjectStoragePath(output_path)
