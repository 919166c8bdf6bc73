"""Where a task's journal is stored, and the callback that finishes it once the task has succeeded."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from airflow_provider_imagen.hooks.folders import open_folder

if TYPE_CHECKING:
    import threading

    from airflow.sdk import Context

    from airflow_provider_imagen.journal.log import JournalStore

log = logging.getLogger(__name__)


def journal_store(context: Context, *, output_path: str | None, airflow_lock: threading.RLock) -> JournalStore:
    """
    Return the most durable store available: the task state store, else the output folder, else none.

    :param context: the task's context
    :param output_path: rendered output folder; ``None`` if images are not stored
    :param airflow_lock: held during calls to Airflow
    """
    from airflow_provider_imagen.journal.log import NoStore
    from airflow_provider_imagen.journal.stores import FolderJournalStore, TaskStateJournalStore

    state_store: Any = context.get("task_state_store")
    if state_store is not None:
        from airflow_provider_imagen._compat import never_expire
        from airflow_provider_imagen.operators.state_store import AirflowStateStore

        return TaskStateJournalStore(AirflowStateStore(state_store, airflow_lock), never_expire())
    if output_path:
        from airflow_provider_imagen.hooks.task_instance_key import task_instance_key_of

        identity = task_instance_key_of(context).identity
        with airflow_lock:
            folder = _folder_of_first_attempt(context, identity, output_path)
        return FolderJournalStore(open_folder(folder), identity)
    return NoStore()


def finish_journal(context: Context) -> None:
    """
    Finish the journal of a task that has succeeded, so that clearing the task later creates new images.

    Runs as ``on_success_callback``, after Airflow has registered the success: if the worker dies before that, the next
    attempt still finds what was paid for.
    """
    execution = getattr(context["task"], "execution", None)
    if execution is None or (journal := execution.journal) is None:
        return
    try:
        journal.finish()
        if context.get("task_state_store") is None and not journal.unresolved:
            _delete_variable(context)
    except Exception as error:  # must not fail a task that has succeeded
        log.warning("The journal could not be deleted (%s): if this task is cleared, it will reuse its images.", error)


def _folder_of_first_attempt(context: Context, identity: str, output_path: str) -> str:
    """
    Return the folder of the first attempt's journal, even if ``output_path`` has changed since.

    An Airflow Variable holds the folder until the task succeeds, because before Airflow 3.3 a task instance has no
    state that outlives an attempt.

    :raises JournalError: the Variable cannot be read, and ``output_path`` holds no journal
    """
    from airflow.sdk import Variable

    from airflow_provider_imagen.exceptions import JournalError
    from airflow_provider_imagen.storage.atomic_write import redacted_address

    name = _variable_name(identity)
    try:
        is_first_attempt = getattr(context.get("ti"), "try_number", None) == 1
        known = None if is_first_attempt else Variable.get(name, default=None)
    except Exception as error:
        if _has_journal(output_path, identity):
            return output_path
        raise JournalError(
            f"Variable {name}, which holds the folder of the previous attempts' journal, cannot be read "
            f"({type(error).__name__}); nothing was sent."
        ) from error
    if isinstance(known, str) and known:
        if known != output_path:
            log.info(
                "output_path has changed since the first attempt; continuing its journal in %s.",
                redacted_address(open_folder(known)),
            )
        return known
    try:
        Variable.set(name, output_path, description="Folder of an unfinished task's journal of paid images")
    except Exception as error:
        log.warning(
            "The journal's folder could not be saved in Variable %s (%s): if output_path changes before the next "
            "attempt, that attempt pays again.",
            name,
            type(error).__name__,
        )
    return output_path


def _has_journal(output_path: str, identity: str) -> bool:
    from airflow_provider_imagen.journal.log import HEADER
    from airflow_provider_imagen.journal.stores import FolderJournalStore

    return FolderJournalStore(open_folder(output_path), identity).read(HEADER) is not None


def _delete_variable(context: Context) -> None:
    from airflow.sdk import Variable

    from airflow_provider_imagen.hooks.task_instance_key import task_instance_key_of

    Variable.delete(_variable_name(task_instance_key_of(context).identity))


def _variable_name(identity: str) -> str:
    return f"imagen_journal_{identity}"
