"""A real Airflow: api-server, scheduler, DAG processor and a sandbox, each in its own process."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from running_airflow import Airflow, Processes, airflow_environment, free_port, start_sandbox, wait_until

import airflow_provider_imagen
from airflow_provider_imagen.sandbox import Fault, SandboxControl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HOME = Path(os.environ.get("IMAGEN_SCHEDULER_HOME", ""))
"""Set by ``set-up.sh``; without it nothing here is run, and the default pytest only looks past this file."""

PORT = free_port()


@pytest.fixture(scope="session")
def processes() -> Iterator[Processes]:
    (HOME / "dags").mkdir()
    (HOME / "pictures").mkdir()
    shutil.copy(Path(__file__).with_name("dags.py"), HOME / "dags" / "painting.py")
    for example in ("imagen_assets.py", "imagen_pool.py"):
        shutil.copy(Path(__file__).parents[2] / "example_dags" / example, HOME / "dags")
    environment = airflow_environment(
        HOME, port=PORT, database=f"sqlite:///{HOME / 'airflow.db'}", executor="LocalExecutor", parallelism=6
    )
    environment |= {
        "PYTHONPATH": str(Path(airflow_provider_imagen.__file__).parents[1]),
        "IMAGEN_SCHEDULER_PICTURES": str(HOME / "pictures"),
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_SEC": "2",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "15",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "2",
    }
    processes = Processes(HOME, environment)
    try:
        url, fields = start_sandbox(processes)
        # A request left by a killed attempt is awaited for as long as a response may take.
        environment["AIRFLOW_CONN_IMAGEN_DEFAULT"] = json.dumps({**fields, "extra": {"read_timeout": 20}})
        environment["SANDBOX_URL"] = url
        processes.run("airflow", "db", "migrate")
        for component in ("api-server", "scheduler", "dag-processor"):
            processes.start(component, "airflow", component)
        yield processes
    finally:
        processes.end()


@pytest.fixture(scope="session")
def sandbox(processes: Processes) -> SandboxControl:
    sandbox = SandboxControl(processes.environment["SANDBOX_URL"])
    sandbox.configure(picture_scale=0.125)
    for fault in (
        Fault("signed_links", times=None),
        Fault("hang", prompt="a4 held", billed=False),
        Fault("hang", prompt="b2 billed", billed=True),
        Fault("slow_after_billing", prompt="c2 slow", seconds=6),
        Fault("upstream_4xx", prompt="e2 refused"),
        Fault("status", status=429, retry_after=61, prompt="f1 limited"),  # a task itself waits at most 60 s
        Fault("hang", prompt="g1 stuck", on="download"),
        Fault("slow_after_billing", prompt="A park bench", seconds=4, times=None),
    ):
        sandbox.add_fault(fault)
    return sandbox


@pytest.fixture(scope="session")
def airflow(processes: Processes, sandbox: SandboxControl) -> Airflow:
    airflow = Airflow(f"http://127.0.0.1:{PORT}", pictures=HOME / "pictures")
    wait_until(lambda: processes.all_live() and airflow.is_up(), "Airflow")
    wait_until(lambda: all(map(airflow.knows, ("mapped", "imagen_asset_consumer", "imagen_pool"))), "the DAGs")
    return airflow


@pytest.fixture(scope="session")
def wait_for() -> Callable[[Callable[[], Any], str], Any]:
    """Return the function that waits for a condition."""
    return wait_until
