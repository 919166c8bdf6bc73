"""
A real Airflow in processes of its own, for the checks and benchmarks that need one: start, ask, and end it.

Every process gets a session of its own and its number is noted in the home folder, so that whoever started the checks
can end what is left of them.
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


def wait_until(what: Callable[[], Any], told: str, *, patience_seconds: float = PATIENCE_SECONDS) -> Any:
    """Wait until something is there, and give it."""
    give_up_at = time.monotonic() + patience_seconds
    while not (value := what()):
        assert time.monotonic() < give_up_at, f"{told}: not within {patience_seconds:.0f} s"
        time.sleep(0.1)
    return value


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Processes:
    """
    Processes with a session each, so that all that comes of them can be found and ended.

    :param home: folder for what they say, ``<name>.out``, and for the numbers of their sessions, ``sessions``
    :param environment: what each of them gets; may still grow between two starts
    :param python: interpreter that runs Python modules
    """

    def __init__(self, home: Path, environment: dict[str, str], *, python: str = sys.executable) -> None:
        self._home = home
        self._python = python
        self.environment = environment
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *command: str, **environment: str) -> None:
        """
        Start a Python module; what it says goes into a file.

        :param environment: what this one gets in addition
        """
        self.start_program(name, self._python, "-m", *command, **environment)

    def start_program(self, name: str, *command: str, user: str | None = None, **environment: str) -> None:
        """
        Start any program; what it says goes into a file, behind what an earlier one of that name has said.

        :param user: whom it shall run as
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
        """Ask one to end, and kill it when it does not, as whoever restarts services does."""
        process = self._started.pop(name)
        process.send_signal(signal_number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience_seconds)
        self._kill({process.pid})
        process.wait(10)

    def kill(self, name: str) -> None:
        """End one and all that came of it at once, as a machine without power does."""
        process = self._started.pop(name)
        self._kill({process.pid})
        process.wait(10)

    def name_of(self, pid: int) -> str | None:
        """Tell which of the started ones a process came of."""
        session = os.getsid(pid)
        return next((name for name, process in self._started.items() if process.pid == session), None)

    def output(self, name: str) -> str:
        """Give what a process has said."""
        return (self._home / f"{name}.out").read_text(errors="replace")

    def all_live(self) -> bool:
        """See that every process still lives."""
        for name, process in self._started.items():
            assert process.poll() is None, f"{name} has ended:\n{self.output(name)[-4000:]}"
        return True

    def has_ended(self, name: str) -> bool:
        """Say whether one has ended by itself."""
        return self._started[name].poll() is not None

    def pid(self, name: str) -> int:
        """Return the process id of one that was started, also after its end."""
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
        """Give the living processes of some that were started, and of all that came of them."""
        return _members({self._started[name].pid for name in names})

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
        self._kill(sessions)
        for process in self._started.values():
            process.wait(timeout=10)

    def _kill(self, sessions: set[int]) -> None:
        while members := _members(sessions):  # what is killed may just have started another
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
    """Start a sandbox in a process of its own, and give its URL and the fields of a connection to it."""
    processes.start("sandbox", "airflow_provider_imagen.cli", "sandbox", "--port", "0")
    wait_until(lambda: "Press Ctrl-C" in processes.output("sandbox"), "the sandbox")
    said = [line.partition(" ") for line in processes.output("sandbox").splitlines()]
    (url,) = [rest.split()[0] for word, _, rest in said if word == "Sandbox:"]
    (connection,) = [rest for word, _, rest in said if word == "Connection:"]
    return url, json.loads(connection.partition("=")[2].strip("'"))


def airflow_environment(home: Path, *, port: int, database: str, executor: str, parallelism: int) -> dict[str, str]:
    """
    Give the environment in which every component of one Airflow finds the others and no other Airflow.

    :param home: becomes ``AIRFLOW_HOME``; its DAGs are in ``dags``
    :param port: of the api-server
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
    The public REST API, and what the file system shows beside it.

    :param url: of the api-server
    :param pictures: folder in which each DAG has a folder of its own for its pictures
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
        and answers 500 (3.3.2, seen when requests came together). So writes take turns, and a failed one is repeated.
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

    def is_up(self, *components: str) -> bool:
        """
        Say whether the api-server answers and every component has given a sign of life.

        :param components: others than those every Airflow has, such as ``triggerer``
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
        """Say whether a DAG has been parsed."""
        try:
            self.call("GET", f"/api/v2/dags/{dag_id}")
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
            return False
        return True

    def trigger(self, dag_id: str, conf: dict[str, Any] | None = None, *, task_id: str = "paint") -> Task:
        """Start a run, and give one of its tasks."""
        run = self.call("POST", f"/api/v2/dags/{dag_id}/dagRuns", {"logical_date": None, "conf": conf or {}})
        return Task(self, dag_id, run["dag_run_id"], task_id)

    def runs(self, dag_id: str) -> list[dict[str, Any]]:
        """Read the last runs of a DAG, as many as one answer takes, the newest first."""
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
        """Give an instance of a mapped task."""
        return Task(self._airflow, self.dag_id, self.run_id, self._task_id, map_index)

    def beside(self, task_id: str) -> Task:
        """Give another task of the same run."""
        return Task(self._airflow, self.dag_id, self.run_id, task_id)

    @property
    def folder(self) -> Path:
        """Where its pictures are."""
        return self._airflow.pictures / self.dag_id

    def get(self) -> dict[str, Any]:
        """Read the task instance."""
        mapped = "" if self._map_index < 0 else f"/{self._map_index}"
        instance: dict[str, Any] = self._airflow.call("GET", f"{self._run}/taskInstances/{self._task_id}{mapped}")
        return instance

    def tries(self) -> list[dict[str, Any]]:
        """Read all tries, the first one first."""
        mapped = "" if self._map_index < 0 else f"/{self._map_index}"
        answer = self._airflow.call("GET", f"{self._run}/taskInstances/{self._task_id}{mapped}/tries")
        return sorted(answer["task_instances"], key=lambda each: each["try_number"])

    def waits_for(self) -> list[dict[str, Any]]:
        """Read why it is not started, as its page in the UI shows it."""
        mapped = "" if self._map_index < 0 else f"/{self._map_index}"
        answer = self._airflow.call("GET", f"{self._run}/taskInstances/{self._task_id}{mapped}/dependencies")
        dependencies: list[dict[str, Any]] = answer["dependencies"]
        return dependencies

    def xcom(self, key: str) -> Any:
        """Read an XCom."""
        query = f"?map_index={self._map_index}&deserialize=true"
        return self._airflow.call("GET", f"{self._run}/taskInstances/{self._task_id}/xcomEntries/{key}{query}")["value"]

    def wait(self, *states: str, tries: int = 1) -> dict[str, Any]:
        """Wait until it is in one of some states, in a certain try or a later one."""
        instance: dict[str, Any] = {}

        def is_there() -> bool:
            instance.update(self.get())
            return instance["state"] in states and instance["try_number"] >= tries

        try:
            wait_until(is_there, f"{self.dag_id} in state {' or '.join(states)}, try {tries}")
        except AssertionError as error:
            seen = f"state {instance['state']} in try {instance['try_number']}"
            raise AssertionError(f"{error}; last seen: {seen}, its run {self.run_state()}") from None
        return instance

    def run_state(self) -> str:
        """Read the state of its run."""
        return str(self._airflow.call("GET", self._run)["state"])

    def clear(self) -> None:
        """
        Clear it, as a user does who sees that the run has ended.

        Airflow can lose a task that is cleared between the end of the task and that of its run: the scheduler has read
        that all tasks are done, ends the run, and nothing schedules the cleared task (3.3.2, seen on SQLite).
        """
        wait_until(lambda: self.run_state() in ("success", "failed"), f"the end of {self.dag_id}'s run")
        self.clear_while_running()

    def clear_while_running(self) -> None:
        """Clear it at once, whatever it and its run are doing."""
        self._airflow.call(
            "POST",
            f"/api/v2/dags/{self.dag_id}/clearTaskInstances",
            {"dry_run": False, "dag_run_id": self.run_id, "task_ids": [self._task_id], "only_failed": False},
        )

    def process(self) -> psutil.Process:
        """Give the process in which it runs; its parent is the executor's worker."""
        pid = wait_until(lambda: self.get()["pid"], "the task's process")
        return psutil.Process(pid)
