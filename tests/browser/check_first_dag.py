"""
The quick start, from an empty home to the image in the browser. Run by ``set-up.sh``.

The commands run as printed, except that pip installs this checkout. Airflow's ports come from the environment, because
something else may use the default ones.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from doc_snippets import shown_commands
from gallery_in_browser import pictures_tab
from playwright.sync_api import TimeoutError as PlaywrightTimeoutError
from playwright.sync_api import expect
from running_airflow import Processes, free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).parents[2]
WORK = Path(os.environ["IMAGEN_WORK"])
HOME = WORK / "first-dag-home"
URL = f"http://localhost:{free_port()}"


@pytest.fixture(scope="module")
def terminal() -> Iterator[Processes]:
    HOME.mkdir()
    foreign = re.compile("AIRFLOW|PYTHONPATH$|VIRTUAL_ENV$")
    environment = {
        **{name: value for name, value in os.environ.items() if not foreign.match(name)},
        "HOME": str(HOME),
        "XDG_CONFIG_HOME": os.environ.get("XDG_CONFIG_HOME", str(Path.home() / ".config")),  # pip's settings
        "PATH": f"{Path(os.environ['AIRFLOW_PYTHON']).parent}{os.pathsep}{os.environ['PATH']}",  # its python3
        "PYTHONUNBUFFERED": "1",  # as in a terminal
        "AIRFLOW__API__PORT": URL.rpartition(":")[2],
        "AIRFLOW__API__BASE_URL": URL,
        "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(free_port()),
        "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(free_port()),
    }
    printed = shown_commands("first dag")
    assert printed.count("pip install airflow-provider-imagen\n") == 1
    commands = printed.replace("pip install airflow-provider-imagen\n", f"pip install '{ROOT}'\n")
    processes = Processes(WORK, environment)
    processes.start_program("first-dag", "bash", "-e", "-c", commands)
    wait_until(
        lambda: processes.all_live() and "Airflow is ready" in processes.output("first-dag"),
        "the installation and start of Airflow",
        patience_seconds=600,
    )
    yield processes
    processes.end()


@pytest.fixture(scope="module")
def page(terminal: Processes, browser: Browser) -> Iterator[Page]:
    """Return a page of a person who has logged in."""

    def responds() -> bool:
        try:
            return urllib.request.urlopen(URL, timeout=10).status == 200
        except OSError:
            return False

    wait_until(responds, "the API server")
    (password,) = re.findall(r"Password for user 'admin': (\S+)", terminal.output("first-dag"))
    kept = json.loads((HOME / "airflow" / "simple_auth_manager_passwords.json.generated").read_text())
    assert kept == {"admin": password}
    context = browser.new_context(viewport={"width": 1360, "height": 900})
    context.set_default_timeout(60_000)
    page = context.new_page()
    page.goto(URL)
    page.fill("input[name=username]", "admin")
    page.fill("input[name=password]", password)
    page.click("button[type=submit]")
    yield page
    context.close()


def _run_states(page: Page) -> list[str]:
    runs = page.request.get(f"{URL}/api/v2/dags/postcards/dagRuns").json()["dag_runs"]
    return [run["state"] for run in runs]


@pytest.mark.timeout(900)  # it installs Airflow
def test_a_person_triggers_the_dag_and_sees_the_image(page: Page) -> None:
    page.get_by_role("link", name="Dags", exact=True).click()
    page.get_by_role("link", name="postcards", exact=True).click()
    form = page.get_by_role("dialog")

    def triggers() -> bool:
        with suppress(PlaywrightTimeoutError):  # while the page is loading, it ignores clicks and may close the form
            if not form.is_visible():
                page.get_by_role("button", name=re.compile("^Trigger")).first.click(timeout=10_000)
            form.get_by_role("button", name="Trigger", exact=True).click(timeout=10_000)
            expect(form).to_have_count(0, timeout=60_000)
        return bool(_run_states(page))

    wait_until(triggers, "a run")
    wait_until(lambda: _run_states(page) == ["success"], "the run")
    assert len(list((HOME / "postcards").glob("paint-*.png"))) == 1

    pictures_tab(page).click()
    image = page.frame_locator("iframe[title=Pictures]").locator("a.card img")
    expect(image).to_have_count(1)
    wait_until(lambda: image.evaluate("image => image.naturalWidth > 0"), "the image in the gallery")
    page.screenshot(path=Path(os.environ["ARTIFACTS"], "21-first-dag.png"))


def test_a_second_terminal_loads_a_new_file_and_explains_a_broken_one(terminal: Processes, page: Page) -> None:
    dags = HOME / "airflow" / "dags"
    (dags / "added.py").write_text((dags / "postcards.py").read_text().replace('"postcards"', '"added"'))
    (dags / "broken.py").write_text("from airflow.sdk import DAGG\n")

    shown = subprocess.run(
        ["bash", "-e", "-c", shown_commands("first dag: second terminal")],
        env=terminal.environment,
        cwd=WORK,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert shown.returncode == 1, shown.stderr  # there is an error
    assert "cannot import name 'DAGG'" in shown.stdout
    page.goto(f"{URL}/dags")
    expect(page.get_by_role("link", name="added", exact=True)).to_be_visible()
    expect(page.get_by_role("link", name=re.compile("^example_"))).to_have_count(0)
