"""Say in which task instance code runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_provider_imagen.storage.task_identity import Origin

if TYPE_CHECKING:
    from airflow.sdk import Context


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


def current_origin() -> Origin:
    """Say in which task instance the caller runs; outside of a task the ids are empty."""
    from airflow.sdk import get_current_context

    try:
        return origin_of(get_current_context())
    except RuntimeError:
        return Origin(dag_id="", task_id="", run_id="")
