"""A real Airflow behind a base path, with four users, for the checks in ``tests/browser``."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser, BrowserContext, Locator, Page

HERE = Path(__file__).parents[1] / "browser"
EXAMPLES = HERE.parents[1] / "example_dags"
ARTIFACTS = Path(os.environ["ARTIFACTS"])
TIMEOUT_SECONDS = 150
WORK = Path(os.environ["IMAGEN_WORK"])
BASE_PATH = "/data/airflow"
_running: list[subprocess.Popen[bytes]] = []
PASSWORDS = {
    "ann": "ann-sees-all",
    "bob": "bob-sees-nothing",
    "cat": "cat-sees-one-dag",
    "cleo": "cleo-may-only-look",
}


@dataclass
class Airflow:
    """
    A running Airflow, called as a user.

    :param url: its URL, base path included
    :param sandbox: URL of the sandbox that its connection leads to
    :param token: token of the user
    :param key: API key of the sandbox
    """

    url: str
    sandbox: str
    token: str = ""
    key: str = ""

    def call(self, path: str, body: Any = None) -> Any:
        """Call the REST API: POST with a body, else GET."""
        request = urllib.request.Request(
            f"{self.url}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Content-Type": "application/json",
                **({"Authorization": f"Bearer {self.token}"} if self.token else {}),
            },
        )
        with urllib.request.urlopen(request, timeout=20) as response:
            return json.load(response)

    def start_run(self, dag_id: str, **conf: Any) -> Any:
        """Start a run and return its id."""
        wait_for(lambda: not self.call(f"/api/v2/dags/{dag_id}")["is_paused"], f"{dag_id} to be there")
        run = self.call(f"/api/v2/dags/{dag_id}/dagRuns", {"logical_date": None, "conf": conf})
        return run["dag_run_id"]

    def state_of(self, dag_id: str, run_id: str, task_id: str | None = None) -> Any:
        """Return the state of a run or of a task in it."""
        task = f"/taskInstances/{task_id}" if task_id else ""
        return self.call(f"/api/v2/dags/{dag_id}/dagRuns/{run_id}{task}")["state"]

    def result_of(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value") -> Any:
        """Return an XCom of a task."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/{key}"
        return self.call(f"{path}?deserialize=true")["value"]

    def wait_for(self, dag_id: str, run_id: str, state: str, task_id: str | None = None) -> None:
        """Wait until a run or a task in it reaches a state."""
        wait_for(
            lambda: self.state_of(dag_id, run_id, task_id) == state,
            f"{dag_id} {task_id or ''} to be {state}",
        )


def wait_for(condition: Callable[[], Any], what: str) -> None:
    """Wait until a condition is true; network errors count as false."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except (OSError, HTTPError):
            pass
        time.sleep(0.3)
    raise AssertionError(f"waited {TIMEOUT_SECONDS} s for {what}")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _start(name: str, command: list[str], environment: dict[str, str]) -> Path:
    """Start a process in its own session, which set-up.sh terminates as a whole."""
    log = WORK / f"{name}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, cwd=WORK, start_new_session=True)
    with (WORK / "sessions").open("a") as sessions:
        sessions.write(f"{process.pid}\n")
    _running.append(process)
    return log


@contextmanager
def serve_airflow() -> Iterator[Airflow]:
    """Yield a real Airflow with the sandbox, the DAGs of ``tests/browser`` and some examples."""
    python = os.environ["AIRFLOW_PYTHON"]
    airflow_command = [python, "-m", "airflow"]
    home = WORK / "home"
    (home / "dags").mkdir(parents=True)
    for name in ("imagen_pick_best.py", "imagen_approve.py", "imagen_review.py", "imagen_trigger_form.py"):
        shutil.copy(EXAMPLES / name, home / "dags")
    shutil.copy(HERE / "dags.py", home / "dags" / "many_pictures.py")
    (home / "passwords.json").write_text(json.dumps(PASSWORDS))
    port, sandbox_port = _free_port(), _free_port()
    url = f"http://localhost:{port}{BASE_PATH}"
    sandbox = f"http://127.0.0.1:{sandbox_port}"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW_")},
        "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")])),
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
        "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__CORE__AUTH_MANAGER": "restricted_auth_manager.RestrictedAuthManager",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "ann:admin,bob:viewer,cat:viewer,cleo:viewer",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(home / "passwords.json"),
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        "AIRFLOW__API__BASE_URL": url,
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API_AUTH__JWT_SECRET": "s" * 64,
        "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(_free_port()),
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "5",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "AIRFLOW_CONN_IMAGEN_DEFAULT": json.dumps({"conn_type": "imagen", "extra": {"sandbox": True}}),
    }
    subprocess.run([*airflow_command, "db", "migrate"], env=environment, check=True, capture_output=True)
    log = _start(
        "sandbox",
        [python, "-m", "airflow_provider_imagen.cli", "sandbox", "--port", str(sandbox_port)],
        environment,
    )
    wait_for(lambda: "Connection:" in log.read_text(), "the sandbox")
    (connection,) = re.findall(r"export AIRFLOW_CONN_IMAGEN_DEFAULT='(.*)'", log.read_text())
    environment["AIRFLOW_CONN_IMAGEN_DEFAULT"] = connection
    for fault in (
        {"kind": "fewer", "count": 1, "prompt": "street market"},
        {"kind": "upstream_4xx", "times": None, "prompt": "bowl of oranges"},
    ):
        Airflow(sandbox, sandbox).call("/_sandbox/faults", fault)
    for name in ("api-server", "scheduler", "dag-processor"):
        _start(name, [*airflow_command, name], environment)
    server = Airflow(url, sandbox)
    wait_for(lambda: server.call("/api/v2/monitor/health"), "the api-server")
    server.token = server.call("/auth/token", {"username": "ann", "password": PASSWORDS["ann"]})["access_token"]
    server.key = json.loads(connection)["password"]
    yield server
    for name in ("api-server", "scheduler", "dag-processor", "sandbox"):
        shutil.copy(WORK / f"{name}.log", ARTIFACTS)


def log_in(browser: Browser, airflow: Airflow, name: str, **options: Any) -> BrowserContext:
    """Return a browser context in which a user has logged in."""
    context = browser.new_context(viewport={"width": 1360, "height": 900}, **options)
    context.set_default_timeout(60_000)
    page = context.new_page()
    page.goto(f"{airflow.url}/")
    page.fill("input[name=username]", name)
    page.fill("input[name=password]", PASSWORDS[name])
    page.click("button[type=submit]")
    page.wait_for_url(lambda url: "/auth/login" not in url)
    page.close()
    return context


def pictures_tab(page: Page) -> Locator:
    """Return the link of a run's or DAG's *Pictures* tab; the one in Airflow's navigation has the same name."""
    return page.locator("a[href$='/plugin/imagen_run_pictures'], a[href$='/plugin/imagen_dag_pictures']")


def screenshot(page: Page, name: str, **options: Any) -> None:
    """Save a screenshot among the artifacts."""
    page.screenshot(path=str(ARTIFACTS / f"{name}.png"), **options)


def all_loaded(frame: Any) -> bool:
    """Return whether images are in view and all of them have loaded."""
    script = """() => {
        const inSight = (image) => !image.hidden && image.getBoundingClientRect().top < innerHeight;
        const images = [...document.querySelectorAll("img")].filter(inSight);
        return images.length > 0 && images.every((image) => image.complete && image.naturalWidth > 0);
    }"""
    return bool(frame.evaluate(script))
