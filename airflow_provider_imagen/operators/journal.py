"""Choose where a task's journal lives, and forget it once the task has succeeded."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_imagen.journal.log import JournalStore

log = logging.getLogger(__name__)


def journal_store(context: Context, *, output_path: str | None) -> JournalStore:
    """
    Choose the most durable place there is: the task state store, else a folder beside the pictures, else nowhere.

    :param context: the task's context
    :param output_path: rendered; ``None`` when pictures are not stored
    """
    from airflow_provider_imagen.journal.log import NoStore
    from airflow_provider_imagen.journal.stores import FolderJournalStore, TaskStateJournalStore

    state_store: Any = context.get("task_state_store")
    if state_store is not None:
        from airflow_provider_imagen._compat import never_expire
        from airflow_provider_imagen.operators.state_store import PatientStateStore

        return TaskStateJournalStore(PatientStateStore(state_store), never_expire())
    if output_path:
        from airflow_provider_imagen.hooks.origin import origin_of
        from airflow_provider_imagen.hooks.paths import open_folder

        origin = origin_of(context)
        return FolderJournalStore(open_folder(output_path), origin.identity)
    return NoStore()


def forget_journal(context: Context) -> None:
    """
    Delete the journal of a task that has succeeded: clearing it later makes new pictures.

    Runs as ``on_success_callback``, after Airflow has taken the success in, so that a task whose worker dies before
    that still finds what it paid for.
    """
    from airflow_provider_imagen.journal.log import forget

    task = context["task"]
    output_path = getattr(task, "output_path", None)
    try:
        forget(journal_store(context, output_path=output_path), segments=getattr(task, "journal_segments", None))
    except Exception as error:  # the task has succeeded; its leftovers must not fail it
        log.warning("The journal could not be deleted (%s): clearing this task will reuse its pictures.", error)
