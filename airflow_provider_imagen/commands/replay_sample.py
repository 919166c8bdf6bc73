"""Generate a sample of past requests on other models."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

from airflow_provider_imagen._compat import AirflowFailException, AirflowNotFoundException, AirflowSkipException
from airflow_provider_imagen.commands.replay_sheet import PREVIEW_PIXELS
from airflow_provider_imagen.exceptions import ImagenError
from airflow_provider_imagen.hooks.folders import open_folder
from airflow_provider_imagen.journal.stores import FolderJournalStore
from airflow_provider_imagen.operators.execution import TaskExecution
from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator
from airflow_provider_imagen.storage.task_identity import TaskInstanceKey

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_provider_imagen.commands.replay_quote import FittedRequest
    from airflow_provider_imagen.run.results import RunResult

TASK: Final = TaskInstanceKey(dag_id="airflow-imagen", task_id="replay", run_id="replay")
"""The same for every use of a folder, so that its journal is always found and no image is paid for twice."""


def generate_sample(
    requests: Mapping[str, FittedRequest], *, output: str, max_usd: float | None, imagen_conn_id: str
) -> tuple[RunResult | None, BaseException | None]:
    """
    Generate images as ``ImagenGenerateOperator`` does, with a journal in the output folder that is never deleted.

    Another call, also after an interruption, reuses what the journal lists and pays only for what is missing. After a
    KeyboardInterrupt, requests in flight get ``[imagen] grace_seconds`` to finish.

    :param requests: one per image, by the name of its file
    :param output: output folder, as for ``ObjectStoragePath``
    :param max_usd: spending cap for everything generated in this folder, in USD
    :return: the images and costs, ``None`` if nothing could be sent; and what ended the purchase early, if anything
    """
    operator = ImagenGenerateOperator(
        task_id=TASK.task_id,
        model=next(iter(requests.values())).arguments["model"],
        prompt=[{**request.arguments, "name": name} for name, request in requests.items()],
        filename="{name}.{extension}",
        output_path=output,
        thumbnail_pixels=PREVIEW_PIXELS,
        on_failure="accept",
        on_filtered="accept",
        max_usd=max_usd,
        imagen_conn_id=imagen_conn_id,
    )
    ti = SimpleNamespace(dag_id=TASK.dag_id, task_id=TASK.task_id, run_id=TASK.run_id, map_index=TASK.map_index)
    context: Any = {"ti": ti, "task": operator}
    store = FolderJournalStore(open_folder(output), TASK.identity)
    execution = TaskExecution(operator, context, is_killed=lambda: False, store=store)
    error: BaseException | None = None
    try:
        execution.run()
    except AirflowSkipException:  # every image failed, as the result says
        pass
    except AirflowFailException as failure:
        error = failure.args[0]
    except (ImagenError, ValueError, AirflowNotFoundException, KeyboardInterrupt) as failure:
        error = failure
    return execution.run_result, error
