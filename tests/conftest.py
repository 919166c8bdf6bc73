"""A temporary home for Airflow, and the fixtures that most tests need."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow.sdk import DAG

    from airflow_provider_imagen.sandbox import Sandbox

# Airflow reads its environment when it is first imported, so this runs before any test module is imported.
_HOME = Path(tempfile.mkdtemp(prefix="imagen-tests-"))
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
(_HOME / "dags").mkdir()
for _name in [name for name in os.environ if name.startswith("AIRFLOW_")]:
    del os.environ[_name]
os.environ.update(
    AIRFLOW_HOME=str(_HOME),
    AIRFLOW__CORE__DAGS_FOLDER=str(_HOME / "dags"),
    AIRFLOW__CORE__LOAD_EXAMPLES="False",
    AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=f"sqlite:///{_HOME / 'airflow.db'}",
    AIRFLOW__USAGE_DATA_COLLECTION__ENABLED="False",
)


@pytest.fixture
def sandbox(imagen_sandbox: Sandbox) -> Sandbox:
    """Return the sandbox, cleared of what other tests left."""
    return imagen_sandbox


@pytest.fixture(scope="session")
def _airflow_database() -> None:
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.sdk.execution_time import supervisor
    from airflow.utils import db

    db.initdb()
    DagBundlesManager().sync_bundles_to_db()
    if not hasattr(supervisor.in_process_api_server, "cache_info"):
        # Before 3.3 ``dag.test()`` builds a new API server for every task, which takes two seconds.
        supervisor.in_process_api_server = functools.cache(supervisor.in_process_api_server)


@pytest.fixture
def run_dag(_airflow_database: None) -> Callable[..., Any]:
    """Return a function that runs a DAG in this process with a real Airflow, including retries, and returns its run."""

    def run(dag: DAG, **options: Any) -> Any:
        from airflow.models.serialized_dag import SerializedDagModel
        from airflow.serialization.serialized_objects import LazyDeserializedDAG
        from airflow.utils.session import create_session

        try:
            from airflow.serialization.definitions.dag import SerializedDAG
        except ImportError:  # Airflow 3.1
            from airflow.serialization.serialized_objects import SerializedDAG

        with create_session() as session:
            lazy = LazyDeserializedDAG.from_dag(dag)
            SerializedDAG.bulk_write_to_db("dags-folder", None, [lazy], session=session)
            SerializedDagModel.write_dag(lazy, bundle_name="dags-folder", session=session)
        return dag.test(**options)

    return run
