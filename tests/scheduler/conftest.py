"""A real Airflow: api-server, scheduler and DAG processor in processes of their own, and a sandbox in one more."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

import airflow_provider_imagen
from airflow_provider_imagen.sandbox import Fault, SandboxControl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HOME = Path(os.environ.get("IMAGEN_SCHEDULER_HOME", ""))
"""Set by ``set-up.sh``; without it nothing here is run, and the default pytest only looks past this file."""

PATIENCE_SECONDS = 120.0


def wait_until(what: Callable[[], Any], told: str) -> Any:
    """Wait until something is there, and give it."""
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while not (value := what()):
        assert time.monotonic() < give_up_at, f"{told}: not within {PATIENCE_SECONDS:.0f} s"
        time.sleep(0.1)
    return value


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Processes:
    """
    Processes with a session each, so that all that comes of them can be found and ended.

    :param environment: what each of them gets; may still grow between two starts
    :param url: of the api-server that is going to be among them
    """

    def __init__(self, environment: dict[str, str], *, url: str) -> None:
        self.url = url
        self._environment = environment
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *command: str) -> None:
        """Start a Python module; what it says goes into a file."""
        with open(HOME / f"{name}.out", "wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=self._environment,
                cwd=HOME,
                start_new_session=True,
            )
        with open(HOME / "sessions", "a") as sessions:
            sessions.write(f"{process.pid}\n")
        self._started[name] = process

    def output(self, name: str) -> str:
        """Give what a process has said."""
        return (HOME / f"{name}.out").read_text(errors="replace")

    def all_live(self) -> bool:
        """See that every process still lives."""
        for name, process in self._started.items():
            assert process.poll() is None, f"{name} has ended:\n{self.output(name)[-4000:]}"
        return True

    def run(self, *command: str) -> None:
        """Run a Python module to its end."""
        subprocess.run(
            [sys.executable, "-m", *command],
            env=self._environment,
            cwd=HOME,
            check=True,
            capture_output=True,
            timeout=PATIENCE_SECONDS,
        )

    def end(self) -> None:
        """Ask all to end, then kill what is left of their sessions."""
        sessions = {process.pid for process in self._started.values()}
        for process in self._started.values():
            process.terminate()
        give_up_at = time.monotonic() + 10
        while _members(sessions) and time.monotonic() < give_up_at:
            for process in self._started.values():
                process.poll()
            time.sleep(0.1)
        for member in _members(sessions):
            member.kill()
        for process in self._started.values():
            process.wait(timeout=10)


def _members(sessions: set[int]) -> list[psutil.Process]:
    members = []
    for process in psutil.process_iter(["status"]):
        try:
            if os.getsid(process.pid) in sessions and process.info["status"] != psutil.STATUS_ZOMBIE:
                members.append(process)
        except (ProcessLookupError, PermissionError):
            continue
    return members


class Airflow:
    """The public REST API, and what the file system shows beside it."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._token = ""

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Call the REST API."""
        request = urllib.request.Request(
            f"{self._url}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"content-type": "application/json", "authorization": f"Bearer {self._token}"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def is_up(self) -> bool:
        """Say whether the api-server answers and every component has given a sign of life."""
        try:
            health = self.call("GET", "/api/v2/monitor/health")
            self._token = self.call("GET", "/auth/token")["access_token"]
        except (OSError, ValueError):
            return False
        return all(health[part]["status"] == "healthy" for part in ("metadatabase", "scheduler", "dag_processor"))

    def knows(self, dag_id: str) -> bool:
        """Say whether a DAG has been parsed."""
        try:
            self.call("GET", f"/api/v2/dags/{dag_id}")
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
            return False
        return True

    def trigger(self, dag_id: str, conf: dict[str, Any] | None = None) -> Task:
        """Start a run, and give its task."""
        run = self.call("POST", f"/api/v2/dags/{dag_id}/dagRuns", {"logical_date": None, "conf": conf or {}})
        return Task(self, dag_id, run["dag_run_id"])

    def runs(self, dag_id: str) -> list[dict[str, Any]]:
        """Read all runs of a DAG."""
        runs: list[dict[str, Any]] = self.call("GET", f"/api/v2/dags/{dag_id}/dagRuns")["dag_runs"]
        return runs


class Task:
    """One task instance as the REST API shows it."""

    def __init__(self, airflow: Airflow, dag_id: str, run_id: str, map_index: int = -1) -> None:
        self._airflow = airflow
        self._run = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}"
        self._dag_id = dag_id
        self._run_id = run_id
        self._map_index = map_index

    def of(self, map_index: int) -> Task:
        """Give an instance of a mapped task."""
        return Task(self._airflow, self._dag_id, self._run_id, map_index)

    @property
    def folder(self) -> Path:
        """Where its pictures are."""
        return HOME / "pictures" / self._dag_id

    def get(self) -> dict[str, Any]:
        """Read the task instance."""
        mapped = "" if self._map_index < 0 else f"/{self._map_index}"
        instance: dict[str, Any] = self._airflow.call("GET", f"{self._run}/taskInstances/paint{mapped}")
        return instance

    def tries(self) -> list[dict[str, Any]]:
        """Read all tries, the first one first."""
        mapped = "" if self._map_index < 0 else f"/{self._map_index}"
        answer = self._airflow.call("GET", f"{self._run}/taskInstances/paint{mapped}/tries")
        return sorted(answer["task_instances"], key=lambda each: each["try_number"])

    def xcom(self, key: str) -> Any:
        """Read an XCom."""
        query = f"?map_index={self._map_index}&deserialize=true"
        return self._airflow.call("GET", f"{self._run}/taskInstances/paint/xcomEntries/{key}{query}")["value"]

    def wait(self, *states: str, tries: int = 1) -> dict[str, Any]:
        """Wait until it is in one of some states, in a certain try or a later one."""
        instance: dict[str, Any] = {}

        def is_there() -> bool:
            instance.update(self.get())
            return instance["state"] in states and instance["try_number"] >= tries

        wait_until(is_there, f"{self._dag_id} in state {' or '.join(states)}")
        return instance

    def clear(self) -> None:
        """Clear it, as a user does."""
        self._airflow.call(
            "POST",
            f"/api/v2/dags/{self._dag_id}/clearTaskInstances",
            {"dry_run": False, "dag_run_id": self._run_id, "task_ids": ["paint"], "only_failed": False},
        )

    def process(self) -> psutil.Process:
        """Give the process in which it runs; its parent is the executor's worker."""
        pid = wait_until(lambda: self.get()["pid"], "the task's process")
        return psutil.Process(pid)


@pytest.fixture(scope="session")
def processes() -> Iterator[Processes]:
    port = free_port()
    package_parent = Path(airflow_provider_imagen.__file__).parents[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    (HOME / "dags").mkdir()
    (HOME / "pictures").mkdir()
    shutil.copy(Path(__file__).with_name("dags.py"), HOME / "dags" / "painting.py")
    shutil.copy(Path(__file__).parents[2] / "example_dags" / "imagen_assets.py", HOME / "dags")
    environment |= {
        "PYTHONPATH": str(package_parent),
        "IMAGEN_SCHEDULER_PICTURES": str(HOME / "pictures"),
        "AIRFLOW_HOME": str(HOME),
        "AIRFLOW__API__BASE_URL": f"http://127.0.0.1:{port}",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API_AUTH__JWT_SECRET": "for this test only, and long enough for its algorithm to be content with it",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__PARALLELISM": "6",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{HOME / 'airflow.db'}",
        "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(free_port()),
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_SEC": "2",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "15",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "2",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
    }
    processes = Processes(environment, url=f"http://127.0.0.1:{port}")
    try:
        processes.start("sandbox", "airflow_provider_imagen.cli", "sandbox", "--port", "0")
        said = wait_until(lambda: "Stop it" in processes.output("sandbox"), "the sandbox") and processes.output(
            "sandbox"
        )
        (connection,) = [line for line in said.splitlines() if line.startswith("Connection:")]
        fields = json.loads(connection.partition("=")[2].strip("'"))
        # A request that a killed try left behind is awaited for as long as an answer may take.
        environment["AIRFLOW_CONN_IMAGEN_DEFAULT"] = json.dumps({**fields, "extra": {"read_timeout": 20}})
        processes.run("airflow", "db", "migrate")
        for component in ("api-server", "scheduler", "dag-processor"):
            processes.start(component, "airflow", component)
        yield processes
    finally:
        processes.end()


@pytest.fixture(scope="session")
def sandbox(processes: Processes) -> SandboxControl:
    (url,) = [line.split()[1] for line in processes.output("sandbox").splitlines() if line.startswith("Sandbox:")]
    sandbox = SandboxControl(url)
    sandbox.configure(picture_scale=0.125)
    for fault in (
        Fault("signed_links", times=None),
        Fault("hang", prompt="a4 held", billed=False),
        Fault("hang", prompt="b2 billed", billed=True),
        Fault("slow_after_billing", prompt="c2 slow", seconds=6),
        Fault("upstream_4xx", prompt="e2 refused"),
        Fault("status", status=429, retry_after=61, prompt="f1 limited"),  # a task waits 60 s at most by itself
        Fault("hang", prompt="g1 stuck", on="download"),
    ):
        sandbox.add_fault(fault)
    return sandbox


@pytest.fixture(scope="session")
def airflow(processes: Processes, sandbox: SandboxControl) -> Airflow:
    airflow = Airflow(processes.url)
    wait_until(lambda: processes.all_live() and airflow.is_up(), "Airflow")
    wait_until(lambda: airflow.knows("mapped") and airflow.knows("imagen_asset_consumer"), "the DAGs")
    return airflow


@pytest.fixture(scope="session")
def wait_for() -> Callable[[Callable[[], Any], str], Any]:
    """Give the function that waits until something is there."""
    return wait_until
