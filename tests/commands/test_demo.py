"""``airflow-imagen demo`` in its own process."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import requests
from doc_snippets import shown_commands
from PIL import Image

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-m", "airflow_provider_imagen.cli"]


def environment(folder: Path, **variables: str) -> dict[str, str]:
    """Return an environment without Airflow's variables, whose temporary files go to ``tmp`` in a folder."""
    (folder / "tmp").mkdir(exist_ok=True)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    return {**inherited, "TMPDIR": str(folder / "tmp"), **variables}


def demo(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "demo", *arguments],
        cwd=folder,
        env=environment(folder, **variables),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def without_what_varies(text: str) -> str:
    """Return a demo's output without hashes, sizes and durations."""
    return re.sub(r"[0-9a-f]{10}(?=\.png)|\d\.\d(?= MB| s\b)", "…", text).strip()


def test_it_prints_what_its_page_shows(tmp_path: Path) -> None:
    done = demo(tmp_path, "A raccoon eating ice-cream")

    assert without_what_varies(done.stdout) == without_what_varies(shown_commands("demo"))
    assert list((tmp_path / "tmp").iterdir()) == []


def test_it_generates_images_and_prints_their_paths_and_costs(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("A fox in the snow\n\nA heron at dusk\n")

    done = demo(
        tmp_path, "A raccoon eating ice-cream", "--prompts-file", "prompts.txt", "--aspect-ratio", "16:9", "--seed", "7"
    )

    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "imagen-demo" / "metadata.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines] == ["A raccoon eating ice-cream", "A fox in the snow", "A heron at dusk"]
    for line in lines:
        assert f"  file  imagen-demo/{line['file_name']}\n" in done.stdout
        assert line["seed"] == 7
        with Image.open(tmp_path / "imagen-demo" / line["file_name"]) as picture:
            assert picture.size == (1408, 768)
    assert "Image 3 of 3" in done.stdout
    assert "3 images in imagen-demo for $0.126" in done.stdout
    assert done.stderr == ""
    assert "[info" not in done.stdout  # no Airflow log


def test_a_failure_is_one_clear_error_and_a_status(tmp_path: Path) -> None:
    done = demo(tmp_path, "A fox", "--num-images", "9")

    assert done.returncode == 1
    assert done.stderr.startswith("Error: prompt[0].num_images='9': a whole number from 1 to 4 is allowed\n")
    assert "Traceback" not in done.stdout + done.stderr
    assert not list(tmp_path.rglob("*.png"))


def test_a_connection_in_the_environment_is_used(tmp_path: Path, imagen_sandbox) -> None:
    done = demo(
        tmp_path,
        "A fox",
        AIRFLOW_CONN_IMAGEN_DEFAULT=json.dumps(
            {"conn_type": "imagen", "host": imagen_sandbox.url, "password": imagen_sandbox.api_key}
        ),
    )

    assert done.returncode == 0, done.stderr
    (line,) = (tmp_path / "imagen-demo" / "metadata.jsonl").read_text().splitlines()
    assert f"  url   {json.loads(line)['url']}\n" in done.stdout
    assert [charge.prompt for charge in imagen_sandbox.ledger()] == ["A fox"]
    assert imagen_sandbox.api_key not in done.stdout + done.stderr


def test_a_missing_prompt_is_reported_before_airflow_starts(tmp_path: Path) -> None:
    done = demo(tmp_path)

    assert done.returncode == 2
    assert "no prompt" in done.stderr


def test_the_users_own_airflow_is_left_alone(tmp_path: Path) -> None:
    own = tmp_path / "airflow.cfg"
    own.write_text("[core]\nauth_manager = no.such.AuthManager\nload_examples = True\n")
    before = own.read_bytes()

    done = demo(tmp_path, "A fox", AIRFLOW_HOME=str(tmp_path), AIRFLOW_CONFIG=str(own))

    assert done.returncode == 0, done.stderr
    assert own.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"airflow.cfg", "imagen-demo", "tmp"}


@pytest.fixture
def browser_command(tmp_path: Path) -> Path:
    """Return a program that notes the URL it is started with and, like a text browser, runs until it is killed."""
    program = tmp_path / "browser"
    program.write_text(f'#!/bin/sh\necho "$1" >{tmp_path}/opened\nexec sleep 60\n')
    program.chmod(0o700)
    return program


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_the_ui_shows_the_run_to_those_who_log_in_until_it_is_interrupted(
    ending: signal.Signals, browser_command: Path, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [*COMMAND, *shlex.split(shown_commands("demo: ui"))[1:]],
        cwd=tmp_path,
        env=environment(tmp_path, BROWSER=str(browser_command), AIRFLOW__API__BASE_URL="http://another.invalid"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        lines = []
        while lines[-1:] != ["Press Ctrl-C to stop.\n"]:
            lines.append(process.stdout.readline())
            assert lines[-1], process.communicate()[1]
        printed = dict(re.findall(r"^(Address|Username|Password): +(\S+)$", "".join(lines), re.MULTILINE))
        address, dag, run = re.fullmatch(
            r"(http://127\.0\.0\.1:\d+)(/dags/\w+)/runs/([^/]+)/.*", printed["Address"]
        ).groups()
        airflow = requests.Session()

        def get(path: str, **options: Any) -> requests.Response:
            return airflow.get(f"{address}{path}", timeout=30, **options)

        def log_in(username: str, password: str) -> requests.Response:
            return airflow.post(f"{address}/auth/token", json={"username": username, "password": password}, timeout=30)

        state = f"/api/v2{dag}/dagRuns/{run}"
        assert get(state).status_code == 401
        assert get("/auth/token").status_code == 403
        assert log_in("demo", "another password").status_code == 401
        airflow.headers["Authorization"] = (
            f"Bearer {log_in(printed['Username'], printed['Password']).json()['access_token']}"
        )
        assert get(state).json()["state"] == "success"
        assert (
            airflow.post(f"{address}/api/v2{dag}/dagRuns", json={"logical_date": None}, timeout=30).status_code == 403
        )
        gallery = get(f"/imagen/run?dag_id=imagen_quickstart&run_id={run}").text
        (image,) = set(re.findall(r'src="(/imagen/file[^"]+)"', gallery))
        assert get(image.replace("&amp;", "&")).headers["content-type"].startswith("image/")
        assert (tmp_path / "opened").read_text().strip() == printed["Address"]
    finally:
        os.killpg(process.pid, ending)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")
    assert list((tmp_path / "tmp").iterdir()) == []
    with pytest.raises(requests.ConnectionError):
        get(state)
