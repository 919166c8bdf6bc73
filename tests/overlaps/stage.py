"""The setup of the checks: an Airflow, its processes, and the server that keeps the bill."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psutil
from running_airflow import wait_until

from .bill import Bill

if TYPE_CHECKING:
    from running_airflow import Airflow, Processes, Task

    from airflow_provider_imagen.sandbox import Sandbox, SeenRequest

DATABASE = "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"
SECONDS_PER_RESPONSE = {4: 3.0, 8: 8.0, 32: 8.0}
"""By concurrency. Less than the connection's ``read_timeout``, and enough to be caught with a request in flight."""


class Stage:
    """An Airflow, its processes, and the server that keeps the bill. Each DAG has one task and runs once."""

    def __init__(self, airflow: Airflow, processes: Processes, sandbox: Sandbox) -> None:
        self.airflow = airflow
        self.processes = processes
        self.sandbox = sandbox

    def start(self, dag_id: str) -> tuple[Task, psutil.Process]:
        """Start a task, and return its process once one round of requests is done and the next is in flight."""
        task = self.airflow.trigger(dag_id)
        wait_until(lambda: len(self.requests(dag_id)) > concurrency(dag_id), f"{dag_id} in the middle")
        return task, task.process()

    def requests(self, dag_id: str, *, attempt: int | None = None) -> list[SeenRequest]:
        """
        Return the paid requests of a DAG, oldest first.

        :param attempt: only those of the attempt with this process id
        """
        return [
            request
            for request in self.sandbox.seen("/v1/images/generations")
            if request.json["prompt"].startswith(f"{dag_id} ") and attempt in (None, sender(request))
        ]

    def bill(self, task: Task) -> Bill:
        """Compare the charges for a task with what it published."""
        charges = [charge for charge in self.sandbox.ledger() if charge.prompt.startswith(f"{task.dag_id} ")]
        return Bill.read(charges, folder=task.folder, summary=task.xcom("summary"))


def start_api_server(processes: Processes) -> None:
    """Start the api-server. It uses the default, short SQLite timeout, because the lock may be its own."""
    database, _, _ = processes.environment[DATABASE].partition("?")
    processes.start("api-server", "airflow", "api-server", **{DATABASE: database})


def concurrency(dag_id: str) -> int:
    """Return how many requests of a DAG may be in flight."""
    return int(dag_id.rpartition("_")[2])


def sender(request: SeenRequest) -> int:
    """Return the process id of the attempt that sent a request."""
    return int(request.headers["x-attempt"])


def has_ended(pid: int) -> bool:
    """Return whether a process has ended, even if its exit code has not been collected yet."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
