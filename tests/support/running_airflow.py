"""
A real Airflow in separate processes, for checks and benchmarks: start it, query it, and end it.

Every process gets its own session, whose number is recorded in the home folder, so that the caller can end leftover
processes.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PATIENCE_SECONDS = 120.0


def wait_until(what: Callable[[], Any], description: str, *, patience_seconds: float = PATIENCE_SECONDS) -> Any:
    """Wait until a function returns something truthy, and return that."""
    give_up_at = time.monotonic() + patience_seconds
    while not (value := what()):
        assert time.monotonic() < give_up_at, f"{description}: not within {patience_seconds:.0f} s"
        time.sleep(0.1)
    return value


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Processes:
    """
    Processes, each in its own session, so that all their descendants can be found and ended.

    :param home: folder for their output, ``<name>.out``, and for the numbers of their sessions, ``sessions``
    :param environment: environment of each process; may grow between two starts
    :param python: interpreter that runs Python modules
    """

    def __init__(self, home: Path, environment: dict[str, str], *, python: str = sys.executable) -> None:
        self._home = home
        self._python = python
        self.environment = environment
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *command: str, **environment: str) -> None:
        """
        Start a Python module; its output goes to a file.

        :param environment: additional variables for this process
        """
        self.start_program(name, self._python, "-m", *command, **environment)

    def start_program(self, name: str, *command: str, user: str | None = None, **environment: str) -> None:
        """
        Start any program; its output is appended to the file of that name.

        :param user: user to run it as
        """
        with open(self._home / f"{name}.out", "ab") as out:
            process = subprocess.Popen(
                command,
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**self.environment, **environment},
                cwd=self._home,
                start_new_session=True,
                user=user,
            )
        with open(self._home / "sessions", "a") as sessions:
            sessions.write(f"{process.pid}\n")
        self._started[name] = process

    def stop(self, name: str, signal_number: int = signal.SIGTERM, *, patience_seconds: float = 10) -> None:
        """Terminate a process, and kill it if it does not end, as service managers do."""
        process = self._started.pop(name)
        process.send_signal(signal_number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience_seconds)
        self._kill({process.pid})
        process.wait(10)

    def kill(self, name: str) -> None:
        """Kill a process and its descendants at once, as in a power failure."""
        process = self._started.pop(name)
        self._kill({process.pid})
        process.wait(10)

    def name_of(self, pid: int) -> str | None:
        """Return the name of the started process that a process descends from."""
        session = os.getsid(pid)
        return next((name for name, process in self._started.items() if process.pid == session), None)

    def output(self, name: str) -> str:
        """Return the output of a process."""
        return (self._home / f"{name}.out").read_text(errors="replace")

    def all_live(self) -> bool:
        """Assert that every process is still running."""
        for name, process in self._started.items():
            assert process.poll() is None, f"{name} has ended:\n{self.output(name)[-4000:]}"
        return True

    def has_ended(self, name: str) -> bool:
        """Return whether a process has ended by itself."""
        return self._started[name].poll() is not None

    def pid(self, name: str) -> int:
        """Return the process id of a started process, even after its end."""
        return self._started[name].pid

    def run(self, *command: str) -> None:
        """Run a Python module to its end."""
        subprocess.run(
            [self._python, "-m", *command],
            env=self.environment,
            cwd=self._home,
            check=True,
            capture_output=True,
            timeout=PATIENCE_SECONDS,
        )

    def members(self, *names: str) -> list[psutil.Process]:
        """Return the live processes among those started and their descendants."""
        return _members({self._started[name].pid for name in names})

    def end(self) -> None:
        """Terminate all, then kill whatever remains of their sessions."""
        sessions = {process.pid for process in self._started.values()}
        for process in self._started.values():
            process.terminate()
        give_up_at = time.monotonic() + 10
        while _members(sessions) and time.monotonic() < give_up_at:
            for process in self._started.values():
                process.poll()
            time.sleep(0.1)
        self._kill(sessions)
        for process in self._started.values():
            process.wait(timeout=10)

    def _kill(self, sessions: set[int]) -> None:
        while members := _members(sessions):  # a killed process may just have started another
            for member in members:
                with suppress(psutil.NoSuchProcess):
                    member.kill()
            for process in self._started.values():
                process.poll()
            time.sleep(0.05)


def _members(sessions: set[int]) -> list[psutil.Process]:
    members = []
    for process in psutil.process_iter(["status"]):
        try:
            if os.getsid(process.pid) in sessions and process.info["status"] != psutil.STATUS_ZOMBIE:
                members.append(process)
        except (ProcessLookupError, PermissionError):
            continue
    return members


def start_sandbox(processes: Processes) -> tuple[str, dict[str, str]]:
    """Start a sandbox in its own process; return its URL and the fields of a connection to it."""
    processes.start("sandbox", "airflow_provider_imagen.cli", "sandbox", "--port", "0")
    wait_until(lambda: "Press Ctrl-C" in processes.output("sandbox"), "the sandbox")
    lines = [line.partition(" ") for line in processes.output("sandbox").splitlines()]
    (url,) = [rest.split()[0] for word, _, rest in lines if word == "Sandbox:"]
    (connection,) = [rest for word, _, rest in lines if word == "Connection:"]
    return url, json.loads(connection.partition("=")[2].strip("'"))


def airflow_environment(home: Path, *, port: int, database: str, executor: str, parallelism: int) -> dict[str, str]:
    """
    Return the environment in which the components of one Airflow find each other and no other Airflow.

    :param home: used as ``AIRFLOW_HOME``; the DAGs are in ``dags``
    :param port: port of the api-server
    :param database: SQLAlchemy URL of the metadata database
    """
    url = f"http://127.0.0.1:{port}"
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")},
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__API__BASE_URL": url,
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API_AUTH__JWT_SECRET": "for this test only, and long enough for its algorithm to be content with it",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        "AIRFLOW__CORE__EXECUTOR": executor,
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__PARALLELISM": str(parallelism),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database,
        "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(free_port()),
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
    }


def _json_of(request: urllib.request.Request) -> Any:
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


class Airflow:
    """
    A running Airflow, through its public REST API and the file system.

    :param url: URL of the api-server
    :param pictures: folder that holds an output folder per DAG
    """

    def __init__(self, url: str, *, pictures: Path) -> None:
        self.pictures = pictures
        self._url = url
        self._token = ""
        self._one_writer = threading.Lock()

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """
        Call the REST API, from any thread.

        On SQLite, a write can wait for a lock that the api-server itself holds, until it gives up after five seconds
        and returns 500 (3.3.2, seen with concurrent requests). So writes are serialized, and a failed one is repeated.
        """
        request = urllib.request.Request(
            f"{self._url}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"content-type": "application/json", "authorization": f"Bearer {self._token}"},
            method=method,
        )
        if method == "GET":
            return _json_of(request)
        with self._one_writer:
            for _ in range(5):
                try:
                    return _json_of(request)
                except urllib.error.HTTPError as error:
                    if error.code != 500:
                        raise
            return _json_of(request)

    def open(self, path: str) -> Any:
        """Return an open response of the api-server, such as a page or a file."""
        request = urllib.request.Request(f"{self._url}{path}", headers={"authorization": f"Bearer {self._token}"})
        return urllib.request.urlopen(request, timeout=600)

    def is_up(self, *components: str) -> bool:
        """
        Return whether the api-server responds and every component has sent a heartbeat.

        :param components: components besides the default ones, such as ``triggerer``
        """
        try:
            health = self.call("GET", "/api/v2/monitor/health")
            self._token = self.call("GET", "/auth/token")["access_token"]
        except (OSError, ValueError):
            return False
        return all(
            health[part]["status"] == "healthy" for part in ("metadatabase", "scheduler", "dag_processor", *components)
        )

    def knows(self, dag_id: str) -> bool:
        """Return whether a DAG has been parsed."""
        try:
            self.call("GET", f"/api/v2/dags/{dag_id}")
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
            return False
        return True

    def trigger(self, dag_id: str, conf: dict[str, Any] | None = None, *, task_id: str = "paint") -> Task:
        """Start a run, and return one of its tasks."""
        run = self.call("POST", f"/api/v2/dags/{dag_id}/dagRuns", {"logical_date": None, "conf": conf or {}})
        return Task(self, dag_id, run["dag_run_id"], task_id)

    def runs(self, dag_id: str) -> list[dict[str, Any]]:
        """Return the last runs of a DAG, newest first, limited to one page."""
        answer = self.call("GET", f"/api/v2/dags/{dag_id}/dagRuns?order_by=-run_after&limit=100")
        runs: list[dict[str, Any]] = answer["dag_runs"]
        return runs


class Task:
    """One task instance as the REST API shows it."""

    def __init__(self, airflow: Airflow, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> None:
        self._airflow = airflow
        self._run = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}"
        self.dag_id = dag_id
        self.run_id = run_id
        self._task_id = task_id
        self._map_index = map_index

    def of(self, map_index: int) -> Task:
        """Return an instance of a mapped task."""
        return Task(self._airflow, self.dag_id, self.run_id, self._task_id, map_index)

    def beside(self, task_id: str) -> Task:
        """Return another task of the same run."""
        return Task(self._airflow, self.dag_id, self.run_id, task_id)

    @property
    def folder(self) -> Path:
        """Return its output folder."""
        return self._airflow.pictures / self.dag_id

    def get(self) -> dict[str, Any]:
        """Return the task instance."""
        mapped = "" if self._map_index < 0 else f"/{self._map_index}"
        instance: dict[str, Any] = self._airflow.call("GET", f"{self._run}/taskInstances/{self._task_id}{mapped}")
        return instance

    def tries(self) -> list[dict[str, Any]]:
        """Return all tries, oldest first."""
        mapped = "" if self._map_index < 0 else f"/{self._map_index}"
        response = self._airflow.call("GET", f"{self._run}/taskInstances/{self._task_id}{mapped}/tries")
        return sorted(response["task_instances"], key=lambda each: each["try_number"])

    def waits_for(self) -> list[dict[str, Any]]:
        """Return the reasons why it is not started, as its page in the UI shows them."""
        mapped = "" if self._map_index < 0 else f"/{self._map_index}"
        response = self._airflow.call("GET", f"{self._run}/taskInstances/{self._task_id}{mapped}/dependencies")
        dependencies: list[dict[str, Any]] = response["dependencies"]
        return dependencies

    def xcom(self, key: str) -> Any:
        """Return an XCom."""
        query = f"?map_index={self._map_index}&deserialize=true"
        return self._airflow.call("GET", f"{self._run}/taskInstances/{self._task_id}/xcomEntries/{key}{query}")["value"]

    def wait(self, *states: str, tries: int = 1, patience_seconds: float = PATIENCE_SECONDS) -> dict[str, Any]:
        """Wait until it reaches one of the given states, in the given try or a later one."""
        instance: dict[str, Any] = {}

        def is_there() -> bool:
            instance.update(self.get())
            return instance["state"] in states and instance["try_number"] >= tries

        try:
            what = f"{self.dag_id} in state {' or '.join(states)}, try {tries}"
            wait_until(is_there, what, patience_seconds=patience_seconds)
        except AssertionError as error:
            seen = f"state {instance['state']} in try {instance['try_number']}"
            raise AssertionError(f"{error}; last seen: {seen}, its run {self.run_state()}") from None
        return instance

    def run_state(self) -> str:
        """Return the state of its run."""
        return str(self._airflow.call("GET", self._run)["state"])

    def clear(self) -> None:
        """
        Clear it once its run has ended, as a user does.

        Airflow can lose a task that is cleared between its end and that of its run: the scheduler has already read that
        all tasks are done and ends the run, so nothing schedules the cleared task (3.3.2, seen on SQLite).
        """
        wait_until(lambda: self.run_state() in ("success", "failed"), f"the end of {self.dag_id}'s run")
        self.clear_while_running()

    def clear_while_running(self) -> None:
        """Clear it at once, whatever its state and that of its run."""
        self._airflow.call(
            "POST",
            f"/api/v2/dags/{self.dag_id}/clearTaskInstances",
            {"dry_run": False, "dag_run_id": self.run_id, "task_ids": [self._task_id], "only_failed": False},
        )

    def process(self) -> psutil.Process:
        """Return the process in which it runs; its parent is the executor's worker."""
        pid = wait_until(lambda: self.get()["pid"], "the task's process")
        return psutil.Process(pid)
