"""
A process with Airflow loaded that forks a task process per attempt, so that a test can afford to kill dozens of them.

It is a script, not a test module: it reads orders as lines of JSON from standard input and writes replies to standard
output. Each attempt runs in its own fork through Airflow's task runner, on a shared database: only what Airflow and the
file system kept survives a ``SIGKILL``.
"""

from __future__ import annotations

import asyncio
import gc
import io
import json
import os
import signal
import sys
import threading
import traceback
from contextlib import redirect_stdout, suppress
from datetime import timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow.models.taskinstance import TaskInstance
    from airflow.sdk import DAG

LOADED_WHEN_USED = (
    "requests",
    "PIL.PngImagePlugin",
    "airflow.models.task_state_store",
    "airflow_provider_imagen.api.client",
    "airflow_provider_imagen.download.downloader",
    "airflow_provider_imagen.journal.stores",
    "airflow_provider_imagen.operators.execution",
    "airflow_provider_imagen.operators.imagen",
    "airflow_provider_imagen.storage.save_image",
    "kill_points",
)
RETRIES = 30
TASK = "paint"


def make_dag(order: dict[str, Any]) -> DAG:
    """Build the DAG as its author would: one operator, perhaps mapped over prompts."""
    from airflow.sdk import DAG

    from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator

    arguments = dict(order["arguments"])
    if (seconds := arguments.pop("execution_timeout", None)) is not None:
        arguments["execution_timeout"] = timedelta(seconds=seconds)
    common = {"task_id": TASK, "retries": RETRIES, "retry_delay": timedelta(0), **arguments}
    with DAG(order["dag_id"], schedule=None) as dag:
        if order["mapped"]:
            prompts = common.pop("prompt")
            ImagenGenerateOperator.partial(**common).expand(prompt=prompts)
        else:
            ImagenGenerateOperator(**common)
    return dag


def begin(dag: DAG) -> None:
    """Write the DAG to the database and start a run of it, as the DAG processor and a trigger do."""
    from airflow.models.dagrun import DagRun, get_or_create_dagrun
    from airflow.models.serialized_dag import SerializedDagModel
    from airflow.sdk import timezone
    from airflow.serialization.definitions.dag import SerializedDAG
    from airflow.serialization.serialized_objects import DagSerialization, LazyDeserializedDAG
    from airflow.utils.session import create_session
    from airflow.utils.types import DagRunTriggeredByType, DagRunType

    now = timezone.utcnow()
    with create_session() as session:
        lazy = LazyDeserializedDAG.from_dag(dag)
        SerializedDAG.bulk_write_to_db("dags-folder", None, [lazy], session=session)
        SerializedDagModel.write_dag(lazy, bundle_name="dags-folder", session=session)
    with create_session() as session:
        get_or_create_dagrun(
            dag=DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dag)),
            start_date=now,
            logical_date=now,
            data_interval=(now, now),
            run_after=now,
            run_id=DagRun.generate_run_id(run_type=DagRunType.MANUAL, logical_date=now, run_after=now),
            session=session,
            conf=None,
            triggered_by=DagRunTriggeredByType.TEST,
            triggering_user_name="test",
        )


def attempt(order: dict[str, Any]) -> dict[str, Any]:
    """Run the next attempt of the task in this process, and return how it ended if it survives."""
    from airflow.sdk.api.datamodels._generated import TaskInstance as TaskToRun
    from airflow.sdk.execution_time.supervisor import run_task_in_process
    from kill_points import install

    os.environ["AIRFLOW_CONN_IMAGEN_DEFAULT"] = json.dumps(order["connection"])
    dag = make_dag(order)
    if order["is_first"]:
        begin(dag)
    queued = _queue(dag, order)
    _make_older(order)
    install(order["kill"])
    done = run_task_in_process(ti=TaskToRun(**queued), task=dag.get_task(TASK))
    return {
        **look(order),
        "state": done.ti.state.value,
        "error": None if done.error is None else describe(done.error),
        "try_number": queued["try_number"],
    }


def _make_older(order: dict[str, Any]) -> None:
    """Remove what Airflow 3.1 does not have, and make journal segments as small as the test wants."""
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    from airflow_provider_imagen.journal import log as journal
    from airflow_provider_imagen.operators import publish

    journal.SEGMENT_BYTES = order.get("segment_bytes", journal.SEGMENT_BYTES)
    publish.PUBLISH_INTERVAL_SECONDS = order.get("publish_interval_seconds", publish.PUBLISH_INTERVAL_SECONDS)
    if "grace_seconds" in order:
        os.environ["AIRFLOW__IMAGEN__GRACE_SECONDS"] = str(order["grace_seconds"])
    if order.get("old_airflow"):
        get_context = RuntimeTaskInstance.get_template_context

        def get_older_context(ti: Any) -> Any:
            context = get_context(ti)
            context.pop("task_state_store", None)
            return context

        RuntimeTaskInstance.get_template_context = get_older_context


def _queue(dag: DAG, order: dict[str, Any]) -> dict[str, Any]:
    """Act as the scheduler: notice a dead worker and queue the task instance again."""
    from airflow.utils.session import create_session
    from airflow.utils.state import TaskInstanceState

    with create_session() as session:
        run, ti = _find(dag, order, session)
        if ti.state == TaskInstanceState.RUNNING:
            ti.handle_failure("The worker is gone.", session=session)
            session.commit()
            run, ti = _find(dag, order, session)
        run.schedule_tis([ti], session=session)
        session.commit()
        session.refresh(ti)
        ti.set_state(TaskInstanceState.QUEUED, session=session)
        session.commit()
        return {
            "id": str(ti.id),
            "task_id": ti.task_id,
            "dag_id": ti.dag_id,
            "run_id": ti.run_id,
            "try_number": ti.try_number,
            "map_index": ti.map_index,
            "dag_version_id": str(ti.dag_version_id),
        }


def _find(dag: DAG, order: dict[str, Any], session: Any) -> tuple[Any, TaskInstance]:
    from airflow.models.dagrun import DagRun
    from airflow.serialization.serialized_objects import DagSerialization
    from sqlalchemy import select

    run = session.scalar(select(DagRun).where(DagRun.dag_id == order["dag_id"]))
    run.dag = DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dag))
    if order["mapped"]:
        run.task_instance_scheduling_decisions(session=session)  # creates one task instance per prompt
        session.commit()
    ti = run.get_task_instance(TASK, map_index=order["map_index"], session=session)
    ti.task = run.dag.get_task(TASK)
    return run, ti


def clear(order: dict[str, Any]) -> dict[str, Any]:
    """Clear the task as a user does in the UI."""
    from airflow.models.taskinstance import clear_task_instances
    from airflow.utils.session import create_session

    with create_session() as session:
        _, ti = _find(make_dag(order), order, session)
        clear_task_instances([ti], session)
    return {}


def look(order: dict[str, Any]) -> dict[str, Any]:
    """Return what the database holds about the task instance."""
    from airflow.models.task_state_store import TaskStateStoreModel
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    mine = {"dag_id": order["dag_id"], "task_id": TASK, "map_index": order["map_index"]}
    with create_session() as session:
        xcoms = session.execute(select(XComModel.key, XComModel.value).filter_by(**mine)).all()
        journal = session.execute(select(TaskStateStoreModel.key).filter_by(**mine)).scalars().all()
        state = session.scalar(select(TaskInstance.state).filter_by(**mine))
    return {
        "state": state,
        "xcoms": {key: value for key, value in xcoms if not key.startswith("_")},
        "journal": sorted(journal),
    }


def describe(error: BaseException) -> dict[str, Any]:
    """Convert an error to plain data."""
    return {
        "type": type(error).__name__,
        "message": str(error),
        "inference_id": getattr(error, "inference_id", None),
        "usd": getattr(error, "usd", None),
        "failures": [describe(failure) for failure in getattr(error, "failures", ())],
    }


def reconcile(order: dict[str, Any]) -> dict[str, Any]:
    """Reconcile requests that a task left in doubt, as a user does on the command line."""
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session
    from sqlalchemy import select

    from airflow_provider_imagen.cli import main

    os.environ["AIRFLOW_CONN_IMAGEN_DEFAULT"] = json.dumps(order["connection"])
    with create_session() as session:
        run_id = session.scalar(select(DagRun.run_id).where(DagRun.dag_id == order["dag_id"]))
    ids = ["--dag-id", order["dag_id"], "--run-id", run_id, "--task-id", TASK, "--map-index", str(order["map_index"])]
    with redirect_stdout(io.StringIO()) as out:
        status = main(["reconcile", "--json", *ids])
    return {"status": status, "rows": json.loads(out.getvalue()), "journal": look(order)["journal"]}


DEEDS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "attempt": attempt,
    "clear": clear,
    "look": look,
    "reconcile": reconcile,
}


def prepare() -> None:
    """Load everything once, so that forks have nothing left to load. Start no thread here."""
    import httpx
    from airflow import settings
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.sdk.execution_time.supervisor import in_process_api_server
    from airflow.utils import db

    for name in LOADED_WHEN_USED:
        import_module(name)

    async def warm_up(app: Any) -> None:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="http://in-process"
        ) as client:
            await client.get("/health/ping")

    db.initdb()
    DagBundlesManager().sync_bundles_to_db()
    asyncio.run(warm_up(in_process_api_server().app))  # the first request takes 3 s because it builds the routes
    rehearsal = {"dag_id": "rehearsal", "arguments": {"prompt": "x"}, "mapped": False, "map_index": -1}
    begin(dag := make_dag(rehearsal))
    _queue(dag, rehearsal)
    look(rehearsal)
    settings.engine.dispose()
    gc.collect()
    gc.freeze()  # otherwise a collection in a child would copy every page it touches
    assert threading.active_count() == 1, "A lock that a thread holds during a fork stays held in the child"


def main() -> None:
    """Serve orders until standard input ends, then leave no child behind."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what Airflow prints goes to the log
    prepare()
    children: set[int] = set()
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "wait":
            _, status = os.waitpid(order["pid"], 0)
            children.discard(order["pid"])
            reply: dict[str, Any] = {"status": os.waitstatus_to_exitcode(status)}
        else:
            pid = os.fork()
            if pid == 0:
                replies.close()
                serve(order)
            children.add(pid)
            reply = {"pid": pid}
        print(json.dumps(reply), file=replies, flush=True)
    for pid in children:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    os._exit(0)  # a clean shutdown takes a second and is not needed


def serve(order: dict[str, Any]) -> None:
    """Execute one order in a fork and exit."""
    status = 1
    try:
        reply = DEEDS[order["do"]](order)
        with open(order["answer"], "w") as file:
            json.dump(reply, file)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
