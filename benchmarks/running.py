"""
The environment of the benchmarks: a real Airflow with a real scheduler, and the server next to it.

The processes are started as in the checks (``tests/support/running_airflow.py``).
"""

from __future__ import annotations

import compileall
import json
import shutil
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

import psutil  # noqa: E402
from running_airflow import (  # noqa: E402
    Airflow,
    Processes,
    airflow_environment,
    free_port,
    wait_until,
)

SLOTS = 16
"""Tasks at once: that many processes has the LocalExecutor."""

COMPONENTS = ("api-server", "scheduler", "dag-processor", "triggerer")
_DAGS = ("warm_up", "ours_mapped_4", "taskflow_mapped_4")
KEY = "0123456789abcdef" * 2


@dataclass(frozen=True)
class Measured:
    """
    The measurements of one DAG run.

    :param seconds: from the trigger to the end of the run
    :param cpu_seconds: of all processes of Airflow together, the tasks' included
    :param tasks: measurements recorded by the tasks themselves: ``seconds``, ``cpu_seconds``, ``peak_mib`` …
    :param states: number of task instances per state
    :param counts: the server's counts
    :param xcom_bytes: size of all XComs of the task ``ours`` except the list of URLs
    """

    seconds: float
    cpu_seconds: float
    tasks: list[dict[str, Any]]
    states: dict[str, int]
    counts: dict[str, Any]
    xcom_bytes: int


class Lab:
    """
    A running Airflow and a running server.

    :param home: folder for all files
    :param database: SQLAlchemy URL of the metadata database; SQLite in ``home`` when ``None``
    :param preload: make Airflow's processes import in advance what this provider's tasks need (page "Benchmarks")
    """

    def __init__(self, home: Path, *, database: str | None = None, preload: bool = False) -> None:
        self.home = home
        self.database = database or f"sqlite:///{home / 'airflow.db'}"
        port = free_port()
        (home / "measured").mkdir()
        if preload:
            (home / "config").mkdir()
            (home / "config" / "airflow_local_settings.py").write_text("import airflow_provider_imagen.preload\n")
        shutil.copytree(Path(__file__).with_name("dags"), home / "dags")  # a task parses only the file of its DAG
        if find_spec("airflow.providers.http") is None:
            (home / "dags" / "with_http.py").unlink()
            (home / "dags" / "killed_http.py").unlink()
        self.environment = airflow_environment(
            home, port=port, database=self.database, executor="LocalExecutor", parallelism=SLOTS
        )
        self.environment |= {
            "PYTHONPATH": str(ROOT),
            "AIRFLOW__CORE__MAX_ACTIVE_TASKS_PER_DAG": str(SLOTS),
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "600",
            "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(free_port()),
            "IMAGEN_BENCHMARK_HOME": str(home),
        }
        self.environment.pop("PYTHONDONTWRITEBYTECODE", None)  # installed packages run from bytecode
        compileall.compile_dir(ROOT / "airflow_provider_imagen", quiet=1)
        self._processes = Processes(home, self.environment)
        self.airflow = Airflow(f"http://127.0.0.1:{port}", pictures=home / "pictures")
        self.server_url = ""

    def start(self) -> None:
        """Start everything and wait until it works."""
        self._processes.start("server", "benchmarks.server")
        wait_until(lambda: self._processes.output("server").startswith("http"), "the server")
        self.server_url = self._processes.output("server").split()[0]
        self.environment["AIRFLOW_CONN_IMAGEN_DEFAULT"] = json.dumps(
            {"conn_type": "imagen", "host": self.server_url, "password": KEY}
        )
        self.environment["AIRFLOW_CONN_BENCHMARK_HTTP"] = self.server_url
        self._processes.run("airflow", "db", "migrate")
        for component in COMPONENTS:
            self._processes.start(component, "airflow", component)
        wait_until(lambda: self._processes.all_live() and self.airflow.is_up(), "Airflow")
        wait_until(lambda: all(self.airflow.knows(name) for name in _DAGS), "the DAGs")
        self.run("warm_up")

    def restart_scheduler(self, **environment: str) -> None:
        """
        Restart the scheduler and its executor with other settings, which stay in effect.

        :param environment: additional variables for the scheduler and the tasks
        """
        self._processes.stop("scheduler")
        self._processes.start("scheduler", "airflow", "scheduler", **environment)

    def end(self) -> None:
        """End everything."""
        self._processes.end()

    def run(self, dag_id: str, *, behaviour: dict[str, Any] | None = None, **conf: Any) -> Measured:
        """
        Run a DAG to its end.

        :param behaviour: how the server responds meanwhile (:class:`benchmarks.server.Behaviour`)
        :param conf: conf of the run
        """
        self.tell_server(**(behaviour or {}))
        for folder in ("measured", "pictures"):
            shutil.rmtree(self.home / folder, ignore_errors=True)
            (self.home / folder).mkdir()
        before, started = self._cpu_seconds(), time.monotonic()
        self.airflow.trigger(dag_id, {**conf, "base_url": self.server_url})
        return self._watch(dag_id, before, started)

    def clear(self, dag_id: str, *, behaviour: dict[str, Any] | None = None) -> Measured:
        """Clear the failed tasks of a DAG's last run, as a user does, and wait until the run ends."""
        self.tell_server(**(behaviour or {}))
        shutil.rmtree(self.home / "measured")
        (self.home / "measured").mkdir()
        before, started = self._cpu_seconds(), time.monotonic()
        self.airflow.call(
            "POST",
            f"/api/v2/dags/{dag_id}/clearTaskInstances",
            {"dry_run": False, "dag_run_id": self._last_run(dag_id)["dag_run_id"], "only_failed": True},
        )
        return self._watch(dag_id, before, started)

    def memory_mib(self, component: str) -> float:
        """Return the resident memory of a component, its worker processes included."""
        return sum(process.memory_info().rss for process in self._processes.members(component)) / 2**20

    def owns(self, process: psutil.Process) -> bool:
        """Return whether a process is a task of this Airflow, or a worker of its executor."""
        return self._processes.name_of(process.pid) == "scheduler"

    def knows(self, dag_id: str) -> bool:
        """Return whether the DAG exists."""
        return self.airflow.knows(dag_id)

    def _watch(self, dag_id: str, cpu_before: float, started: float) -> Measured:
        def is_over() -> bool:
            try:
                return self._last_run(dag_id)["state"] in ("success", "failed")
            except TimeoutError:  # with sixteen tasks at once, SQLite makes the API server wait
                return False

        wait_until(is_over, f"the end of {dag_id}", patience_seconds=1800)
        seconds = time.monotonic() - started
        return Measured(
            seconds=seconds,
            cpu_seconds=self._cpu_seconds() - cpu_before,
            tasks=[json.loads(path.read_text()) for path in sorted((self.home / "measured").iterdir())],
            states=self._states(dag_id),
            counts=self.tell_server(),
            xcom_bytes=self._xcom_bytes(dag_id),
        )

    def tell_server(self, **behaviour: Any) -> dict[str, Any]:
        """Set how the server responds from now on, and return what it has counted so far."""
        body = json.dumps(behaviour).encode()
        with urllib.request.urlopen(f"{self.server_url}/control", data=body, timeout=30) as answer:
            counted: dict[str, Any] = json.load(answer)
        return counted

    def _last_run(self, dag_id: str) -> dict[str, Any]:
        return self.airflow.runs(dag_id)[0]

    def _states(self, dag_id: str) -> dict[str, int]:
        run_id = self._last_run(dag_id)["dag_run_id"]
        states: Counter[str] = Counter()
        while True:
            page = f"limit=100&offset={states.total()}"
            response = self.airflow.call("GET", f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances?{page}")
            states.update(str(instance["state"]) for instance in response["task_instances"])
            if states.total() >= response["total_entries"]:
                return dict(states)

    def _xcom_bytes(self, dag_id: str) -> int:
        if dag_id != "ours":
            return 0
        entries = f"/api/v2/dags/{dag_id}/dagRuns/{self._last_run(dag_id)['dag_run_id']}/taskInstances/ours/xcomEntries"
        keys = {entry["key"] for entry in self.airflow.call("GET", entries)["xcom_entries"]} - {"return_value"}
        return sum(len(json.dumps(self.airflow.call("GET", f"{entries}/{key}")["value"])) for key in keys)

    def _cpu_seconds(self) -> float:
        """Return the CPU time of Airflow's live processes; ended ones are included in their parents'."""
        total = 0.0
        for process in self._processes.members(*COMPONENTS):
            try:
                total += sum(process.cpu_times()[:4])
            except psutil.Error:
                continue
        return total


@contextmanager
def lab(database: str | None = None, *, preload: bool = False) -> Iterator[Lab]:
    """Start a lab, and end it afterwards."""
    with tempfile.TemporaryDirectory(prefix="imagen-benchmarks-", ignore_cleanup_errors=True) as folder:
        made = Lab(Path(folder), database=database, preload=preload)
        try:
            made.start()
            yield made
        finally:
            made.end()
