"""A real Airflow of the version under test in separate processes, and a sandbox in this one."""

from __future__ import annotations

import json
import os
import shutil
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from running_airflow import Airflow, Processes, airflow_environment, free_port, wait_until

import airflow_provider_imagen
from airflow_provider_imagen.sandbox import Fault, Sandbox

from .stage import SECONDS_PER_RESPONSE, Stage, start_api_server

if TYPE_CHECKING:
    from collections.abc import Iterator

HOME = Path(os.environ.get("IMAGEN_OVERLAPS_HOME", ""))
"""Set by ``set-up.sh``; without it nothing here is run, and the default pytest only looks past this file."""

PYTHON = os.environ.get("IMAGEN_OVERLAPS_PYTHON", "")
"""Interpreter of the Airflow under test; set by ``set-up.sh``. The checks themselves run in any environment."""


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(picture_scale=0.125, balance_usd=Decimal(1000)) as sandbox:
        for concurrency, seconds in SECONDS_PER_RESPONSE.items():
            sandbox.add_fault(Fault("slow", prompt=f"_{concurrency} ", seconds=seconds, times=None))
        yield sandbox


@pytest.fixture(scope="session")
def processes(sandbox: Sandbox) -> Iterator[Processes]:
    (HOME / "dags").mkdir()
    (HOME / "pictures").mkdir()
    shutil.copy(Path(__file__).with_name("dags.py"), HOME / "dags")
    connection = {
        "conn_type": "imagen",
        "host": sandbox.url,
        "password": sandbox.api_key,
        # A request left by a previous attempt is awaited for as long as a response may take.
        "extra": {"read_timeout": 15},
    }
    # Everything starts at once, so a process may have to wait while others write.
    database = f"sqlite:///{HOME / 'airflow.db'}?timeout=60"
    environment = airflow_environment(
        HOME, port=free_port(), database=database, executor="LocalExecutor", parallelism=16
    )
    environment |= {
        "PYTHONPATH": str(Path(airflow_provider_imagen.__file__).parents[1]),
        "IMAGEN_OVERLAPS_PICTURES": str(HOME / "pictures"),
        "AIRFLOW_CONN_IMAGEN_DEFAULT": json.dumps(connection),
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_SEC": "2",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "10",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "1",
    }
    processes = Processes(HOME, environment, python=PYTHON)
    try:
        processes.run("airflow", "db", "migrate")
        start_api_server(processes)
        for component in ("scheduler", "dag-processor"):
            processes.start(component, "airflow", component)
        yield processes
    finally:
        processes.end()


@pytest.fixture(scope="session")
def airflow(processes: Processes) -> Airflow:
    airflow = Airflow(processes.environment["AIRFLOW__API__BASE_URL"], pictures=HOME / "pictures")
    wait_until(lambda: processes.all_live() and airflow.is_up(), "Airflow")
    wait_until(lambda: airflow.knows("api_away_60_s_4"), "the DAGs")
    return airflow


@pytest.fixture(scope="session")
def stage(airflow: Airflow, processes: Processes, sandbox: Sandbox) -> Stage:
    return Stage(airflow, processes, sandbox)
