"""An Airflow cluster: every component in its own process, two Celery workers, Redis, PostgreSQL, and S3."""

from __future__ import annotations

import json
import os
import shutil
import time
from contextlib import contextmanager, suppress
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from object_store_servers import S3
from running_airflow import Airflow, Processes, airflow_environment, free_port, start_sandbox, wait_until

import airflow_provider_imagen
from airflow_provider_imagen.sandbox import Fault, SandboxControl

from .services import PostgreSQL, Redis

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HOME = Path(os.environ.get("IMAGEN_CLUSTER_HOME", ""))
"""Set by ``set-up.sh``; without it nothing here is run, and the default pytest only looks past this file."""

COMPONENTS = ("api-server", "scheduler", "dag-processor", "triggerer")
WORKERS = ("worker-1", "worker-2")
TASKS_PER_WORKER = 5
PATIENCE_SECONDS = 900.0


class Run:
    """One DAG run as the REST API shows it."""

    def __init__(self, airflow: Airflow, dag_id: str) -> None:
        self.dag_id = dag_id
        self.run_id = airflow.trigger(dag_id).run_id
        self._airflow = airflow
        self._path = f"/api/v2/dags/{dag_id}/dagRuns/{self.run_id}"

    def state(self) -> str:
        return self._airflow.call("GET", self._path)["state"]

    def instances(self) -> list[dict[str, Any]]:
        """Return all task instances that exist so far."""
        found: list[dict[str, Any]] = []
        while True:
            page = self._airflow.call("GET", f"{self._path}/taskInstances?limit=100&offset={len(found)}")
            found += page["task_instances"]
            if len(found) >= page["total_entries"]:
                return found

    def running(self) -> dict[tuple[str, int], str]:
        """Return the worker of each running task instance."""
        return {
            (each["task_id"], each["map_index"]): each["hostname"]
            for each in self.instances()
            if each["state"] == "running"
        }

    def summaries(self) -> dict[tuple[str, int], dict[str, Any]]:
        """Return the summary of every task instance."""
        return {(each["task_id"], each["map_index"]): self._xcom(each, "summary") for each in self.instances()}

    def _xcom(self, instance: dict[str, Any], key: str) -> Any:
        query = f"?map_index={instance['map_index']}&deserialize=true"
        path = f"{self._path}/taskInstances/{instance['task_id']}/xcomEntries/{key}{query}"
        return self._airflow.call("GET", path)["value"]

    def wait(self, while_waiting: Callable[[], None] = lambda: None) -> None:
        """Wait until it has succeeded."""

        def is_over() -> bool:
            with suppress(OSError):  # the api-server may be down
                while_waiting()
                return self.state() in ("success", "failed")
            return False

        wait_until(is_over, f"the end of {self.dag_id}", patience_seconds=PATIENCE_SECONDS)
        not_well = {
            f"{each['task_id']}[{each['map_index']}]": each["state"]
            for each in self.instances()
            if each["state"] != "success"
        }
        assert not_well == {}
        assert self.state() == "success"


class Cluster:
    """The whole cluster, and operations on it."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.postgres = PostgreSQL(processes, HOME / "postgres")
        self.redis = Redis(processes)
        self.store = S3(HOME / "store")
        self.store.endpoint = f"http://127.0.0.1:{self.store.server.port}"
        self._port = free_port()
        self.airflow = Airflow(f"http://127.0.0.1:{self._port}", pictures=HOME)
        self.sandbox: SandboxControl
        self.phases: list[tuple[str, int, float]] = []
        self.revived: list[str] = []

    def start(self) -> None:
        from cryptography.fernet import Fernet

        here = Path(__file__).parent
        (HOME / "dags").mkdir()
        shutil.copy(here / "dags.py", HOME / "dags" / "painting.py")
        parallelism = TASKS_PER_WORKER * len(WORKERS)
        self.processes.environment |= airflow_environment(
            HOME, port=self._port, database=self.postgres.url, executor="CeleryExecutor", parallelism=parallelism
        ) | {
            "PYTHONPATH": os.pathsep.join([str(Path(airflow_provider_imagen.__file__).parents[1]), str(here)]),
            "AIRFLOW__CELERY__BROKER_URL": self.redis.url,
            "AIRFLOW__CELERY__RESULT_BACKEND": f"db+{self.postgres.url}",
            "AIRFLOW__CELERY__WORKER_CONCURRENCY": str(TASKS_PER_WORKER),
            "AIRFLOW__CORE__FERNET_KEY": Fernet.generate_key().decode(),
            "AIRFLOW__CORE__HOSTNAME_CALLABLE": "worker_name.worker_name",
            "AIRFLOW__CORE__MAX_ACTIVE_TASKS_PER_DAG": str(parallelism),
            "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(free_port()),
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "2",
            # A slow machine needs a minute to restart the api-server; three attempts fail in less.
            "AIRFLOW__WORKERS__MAX_FAILED_HEARTBEATS": "10",
        }
        self.store.start()
        self.postgres.create()
        self.redis.start()
        url, fields = start_sandbox(self.processes)
        self.sandbox = SandboxControl(url)
        self.sandbox.configure(picture_scale=0.125, latency_seconds=0.5, balance_usd=Decimal(1000))
        self.sandbox.add_fault(Fault("signed_links", times=None))
        self.processes.run("airflow", "db", "migrate")
        for name in (*COMPONENTS, *WORKERS):
            self.start_part(name)
        wait_until(self.is_up, "Airflow")
        self.airflow.call(
            "POST",
            "/api/v2/connections",
            # A request left by a killed attempt is awaited for as long as a response may take.
            {"connection_id": "imagen_default", **fields, "extra": json.dumps({"read_timeout": 15})},
        )
        store = self.store.connection()
        self.airflow.call(
            "POST", "/api/v2/connections", {"connection_id": "store", **store, "extra": json.dumps(store["extra"])}
        )
        self.airflow.call("POST", "/api/v2/pools", {"name": "studio", "slots": 3})
        wait_until(lambda: self.airflow.knows("store_fails"), "the DAGs")
        for worker in WORKERS:
            wait_until(lambda worker=worker: "ready." in self.processes.output(worker), worker)

    def end(self) -> None:
        self.processes.end()
        self.store.stop()

    def is_up(self) -> bool:
        """Return whether every component is healthy; fail at once if one has exited."""
        return self.processes.all_live() and self.airflow.is_up("triggerer")

    def start_part(self, name: str, **environment: str) -> None:
        """Start a component of Airflow or a worker, also to replace one that has ended."""
        worker = ["celery", "worker", "-H", f"{name}@here", "--skip-serve-logs"]
        command = worker if name in WORKERS else [name]
        self.processes.start(name, "airflow", *command, IMAGEN_WORKER=name, **environment)

    def revive(self) -> None:
        """Restart what has exited, as systemd or Kubernetes does."""
        for name in (*COMPONENTS, *WORKERS):
            if self.processes.has_ended(name):
                self.revived.append(name)
                self.start_part(name)

    def is_up_again(self) -> bool:
        """Restart what has exited, and return whether every component is healthy."""
        self.revive()
        return self.is_up()

    def trigger(self, dag_id: str) -> Run:
        return Run(self.airflow, dag_id)

    def billed(self, dag_id: str) -> list[Any]:
        """Return the charges of a DAG."""
        return [charge for charge in self.sandbox.ledger() if charge.prompt.startswith(f"{dag_id} ")]

    @contextmanager
    def phase(self, name: str, dag_id: str) -> Iterator[None]:
        """Record how long a phase took, for the table at the end."""
        started = time.monotonic()
        yield
        seconds = time.monotonic() - started
        self.phases.append((name, len(self.billed(dag_id)), seconds))


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    processes = Processes(HOME, {})
    cluster = Cluster(processes)
    request.config.stash[_CLUSTER] = cluster
    try:
        started = time.monotonic()
        cluster.start()
        cluster.phases.append(("start of everything", 0, time.monotonic() - started))
        yield cluster
    finally:
        cluster.end()


_CLUSTER = pytest.StashKey[Cluster]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    cluster = terminalreporter.config.stash.get(_CLUSTER, None)
    if cluster is None:
        return
    terminalreporter.section("what it took")
    terminalreporter.write_line(f"{'phase':<40}{'pictures':>10}{'seconds':>10}{'pictures/s':>12}")
    for name, images, seconds in cluster.phases:
        speed = f"{images / seconds:.1f}" if images else "-"
        terminalreporter.write_line(f"{name:<40}{images or '-':>10}{seconds:>10.1f}{speed:>12}")
    if cluster.revived:
        terminalreporter.write_line(f"Ended by themselves, and were started again: {', '.join(cluster.revived)}")
