"""The key of the running task instance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_provider_imagen.storage.task_identity import TaskInstanceKey

if TYPE_CHECKING:
    from airflow.sdk import Context


def task_instance_key_of(context: Context) -> TaskInstanceKey:
    """Return the task instance of a context; ids that it lacks, as outside a task runner, are empty."""
    ti: Any = context.get("ti")
    map_index = getattr(ti, "map_index", None)
    return TaskInstanceKey(
        dag_id=str(getattr(ti, "dag_id", "")),
        task_id=str(getattr(ti, "task_id", "")),
        run_id=str(getattr(ti, "run_id", "")),
        map_index=map_index if isinstance(map_index, int) else -1,
    )


def current_task_instance_key() -> TaskInstanceKey:
    """Return the task instance that the caller runs in; its ids are empty outside a task."""
    from airflow.sdk import get_current_context

    try:
        return task_instance_key_of(get_current_context())
    except RuntimeError:
        return TaskInstanceKey(dag_id="", task_id="", run_id="")
