"""
Pytest fixtures for testing your own DAGs against the sandbox, without an API key or costs.

Installing the package registers them with pytest. They need no Airflow home and no database::

    from airflow_provider_imagen.sandbox import Fault

    from postcards import dag


    def test_it_pays_once_despite_a_broken_download(run_dag, imagen_sandbox, imagen_connection):
        imagen_sandbox.add_fault(Fault("cut_image", on="download"))
        run = run_dag(dag)

        assert run.state == "success"
        assert len(run.xcom("paint", "images")) == len(imagen_sandbox.ledger()) == 1

Every pytest run loads this module wherever the package is installed, so it imports nothing heavy.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import sys
import tempfile
import traceback
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime
    from pathlib import Path

    from airflow.models.dagrun import DagRun
    from airflow.sdk import DAG

    from airflow_provider_imagen.sandbox import Sandbox

_LOG_FOLDER = "AIRFLOW__LOGGING__BASE_LOG_FOLDER"


def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Keep an import of Airflow from creating ``~/airflow/logs``, unless the environment names another place."""
    if os.environ.keys() & {"AIRFLOW_HOME", "AIRFLOW_CONFIG", _LOG_FOLDER}:
        return
    folder = tempfile.mkdtemp(prefix="airflow-logs-")
    patch = pytest.MonkeyPatch()
    patch.setenv(_LOG_FOLDER, folder)  # workers of pytest-xdist inherit it
    early_config.add_cleanup(patch.undo)
    early_config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


@pytest.fixture(scope="session")
def _imagen_sandbox_server() -> Iterator[Sandbox]:
    from airflow_provider_imagen.sandbox import Sandbox

    with Sandbox(picture_scale=0.125) as sandbox:
        yield sandbox


@pytest.fixture
def imagen_sandbox(_imagen_sandbox_server: Sandbox) -> Sandbox:
    """
    Return a running sandbox, reset for this test.

    One server runs for the whole session, started by the first test that uses it. Images have an eighth of their usual
    width and height (128 x 128 for 1:1); ``imagen_sandbox.configure(picture_scale=1)`` restores the full size for the
    current test. ::

        def test_a_rejected_prompt_costs_nothing(run_dag, imagen_sandbox, imagen_connection):
            imagen_sandbox.add_fault(Fault("upstream_4xx", times=None))
            assert run_dag(dag).state == "failed"
            assert imagen_sandbox.ledger() == []
    """
    _imagen_sandbox_server.reset()
    return _imagen_sandbox_server


@pytest.fixture
def imagen_connection(imagen_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> str:
    """
    Point the connection ``imagen_default`` at the sandbox for one test, and return its id.

    Sets the environment variable ``AIRFLOW_CONN_IMAGEN_DEFAULT``, which takes precedence over Airflow's database. ::

        def test_the_hook_talks_to_the_sandbox(imagen_connection):
            ok, message = ImagenHook(imagen_conn_id=imagen_connection).test_connection()
            assert ok, message
    """
    values = {"conn_type": "imagen", "host": imagen_sandbox.url, "password": imagen_sandbox.api_key}
    monkeypatch.setenv("AIRFLOW_CONN_IMAGEN_DEFAULT", json.dumps(values))
    return "imagen_default"


@dataclass(frozen=True)
class DagTestRun:
    """
    A finished run of a DAG.

    :param dag_run: Airflow's ``DagRun``, for everything else: ``dag_run.get_task_instance("paint").state``
    :param errors: the exception that failed each failed task instance, by its task id (``paint``), or task id and map
        index (``paint[0]``) if it is mapped
    """

    dag_run: DagRun = field(repr=False)
    errors: Mapping[str, BaseException]

    @property
    def state(self) -> str:
        """``success`` or ``failed``."""
        return str(self.dag_run.state)

    def xcom(self, task_id: str, key: str = "return_value", *, map_index: int = -1) -> Any:
        """
        Return a task instance's XCom, or None if it has none; the map index of a task that is not mapped is -1.

        :raises LookupError: a later run with the same logical date has replaced this one
        """
        instances = self.dag_run.get_task_instances()
        if not instances:
            raise LookupError(f"A later run with the same logical date has replaced the run {self.dag_run.run_id}.")
        return instances[0].xcom_pull(task_ids=task_id, key=key, map_indexes=map_index)


class RunDag(Protocol):
    """Type of the fixture ``run_dag``."""

    def __call__(
        self, dag: DAG, conf: Mapping[str, Any] | None = None, *, logical_date: datetime | None = None
    ) -> DagTestRun:
        """
        Run a DAG to its end in this process, and return the run.

        :param dag: imported, or built in the test
        :param conf: the run's configuration, which overrides the DAG's params of the same name
        :param logical_date: with a time zone; default: now
        """


@pytest.fixture
def run_dag(_empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunDag]:
    """
    Return a function that runs a DAG in this process and returns its run, a ``DagTestRun``.

    During the test, Airflow uses a temporary metadata database (SQLite), which is empty at the start of each test. The
    database and the DAG bundles that you have configured are neither read nor written. All other configuration applies,
    such as ``airflow.cfg``, plugins, secrets backends, ``AIRFLOW_VAR_…`` and ``AIRFLOW_CONN_…``. To run a DAG in the
    database that you have configured, call ``dag.test()`` in a test without this fixture.

    A task that fails is retried at once, whatever its retry delay or policy. The errors of failed tasks are written to
    standard error, and their tracebacks are in Airflow's log on standard output; pytest shows both if the test fails.
    Callbacks of tasks run; those of the DAG itself, which otherwise run in the DAG processor, cannot read XComs. ::

        def test_the_params_reach_the_prompt(run_dag, imagen_sandbox, imagen_connection):
            run = run_dag(dag, conf={"animal": "raccoon"})
            assert run.state == "success"
            assert "raccoon" in imagen_sandbox.ledger()[0].prompt
    """
    home = tmp_path_factory.mktemp("airflow")
    shutil.copytree(_empty_database.parent, home, dirs_exist_ok=True)
    with _metadata_database(home / _empty_database.name):
        yield _run
    shutil.rmtree(home)


@pytest.fixture(scope="session")
def _empty_database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Create the database that each test starts with, because creating it takes seconds and copying it does not."""
    database = tmp_path_factory.mktemp("airflow") / "airflow.db"
    (database.parent / "dags").mkdir()
    with _metadata_database(database):
        from airflow.dag_processing.bundles.manager import DagBundlesManager
        from airflow.sdk.execution_time import supervisor
        from airflow.utils import db

        db.initdb()
        manager: Any = DagBundlesManager
        manager().sync_bundles_to_db()
    with pytest.MonkeyPatch.context() as patch:
        if not hasattr(supervisor.in_process_api_server, "cache_info"):
            # Before 3.3 Airflow builds a new API server for every task, which takes two seconds.
            patch.setattr(supervisor, "in_process_api_server", functools.cache(supervisor.in_process_api_server))
        yield database


@contextmanager
def _metadata_database(database: Path) -> Iterator[None]:
    """Make Airflow use a SQLite database, and the DAGs folder next to it, whether Airflow has been imported or not."""
    bundle = {
        "name": "dags-folder",
        "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
        "kwargs": {"path": str(database.parent / "dags")},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", f"sqlite:///{database}")
        patch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC", f"sqlite+aiosqlite:///{database}")
        patch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_ENGINE_ARGS", "{}")
        patch.setenv("AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST", json.dumps([bundle]))
        patch.setenv("AIRFLOW__CORE__LOAD_EXAMPLES", "False")
        try:
            _connect_to_configured_database()
            yield
        finally:
            patch.undo()
            _connect_to_configured_database()


def _connect_to_configured_database() -> None:
    from airflow import settings

    untyped: Any = settings
    untyped.configure_vars()
    untyped.configure_adapters()
    untyped.reconfigure_orm()


def _run(dag: DAG, conf: Mapping[str, Any] | None = None, *, logical_date: datetime | None = None) -> DagTestRun:
    from airflow.models.taskinstance import TaskInstance
    from airflow.sdk.execution_time import supervisor

    from airflow_provider_imagen._compat import AirflowFailException

    if logical_date is not None and logical_date.tzinfo is None:
        raise ValueError(f"logical_date={logical_date!r}: a datetime with a time zone is allowed")
    errors: dict[str, BaseException] = {}
    run_task = supervisor.run_task_in_process

    def run_task_and_keep_error(ti: Any, task: Any) -> Any:
        result = run_task(ti=ti, task=task)
        if result.state == "failed" and result.error is not None:
            error = result.error
            if isinstance(error, AirflowFailException) and error.args and isinstance(error.args[0], Exception):
                error = error.args[0]  # our operators wrap an error that no retry helps if they have no retry policy
            map_index = result.ti.map_index
            errors[ti.task_id if map_index is None or map_index < 0 else f"{ti.task_id}[{map_index}]"] = error
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(supervisor, "run_task_in_process", run_task_and_keep_error)
        patch.setattr(TaskInstance, "next_retry_datetime", lambda task_instance: task_instance.end_date)
        _serialize(dag)
        options: dict[str, Any] = {} if logical_date is None else {"logical_date": logical_date}
        dag_run: Any = dag.test(run_conf=None if conf is None else dict(conf), **options)
    for task_instance, error in errors.items():
        sys.stderr.write(f"{dag.dag_id}.{task_instance} failed: {''.join(traceback.format_exception_only(error))}")
    return DagTestRun(dag_run, errors)


def _serialize(dag: DAG) -> None:
    """Write a DAG to the database, as the DAG processor does."""
    from airflow.models.serialized_dag import SerializedDagModel
    from airflow.serialization import serialized_objects
    from airflow.utils.session import create_session

    untyped: Any = serialized_objects  # SerializedDAG is defined there in 3.1, and imported there since 3.2

    with create_session() as session:
        lazy = untyped.LazyDeserializedDAG.from_dag(dag)
        untyped.SerializedDAG.bulk_write_to_db("dags-folder", None, [lazy], session=session)
        SerializedDagModel.write_dag(lazy, bundle_name="dags-folder", session=session)
