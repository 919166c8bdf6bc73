"""A temporary home for Airflow, and the fixtures that most tests need."""

from __future__ import annotations

import atexit
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
    from airflow_provider_imagen.testing import RunDag

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
    from airflow.utils import db

    db.initdb()


@pytest.fixture
def run_dag(run_dag: RunDag) -> Callable[..., Any]:
    """Return the function that users get, except that it returns Airflow's own run."""

    def run(dag: DAG, run_conf: dict[str, Any] | None = None, **options: Any) -> Any:
        return run_dag(dag, run_conf, **options).dag_run

    return run
