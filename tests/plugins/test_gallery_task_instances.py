"""The gallery counts every task instance of this provider, whatever became of it, and shows runs as Airflow does."""

from __future__ import annotations

import re
from datetime import timedelta
from html import unescape
from io import BytesIO
from typing import TYPE_CHECKING, Any
from zipfile import ZipFile

import pytest

from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator
from airflow_provider_imagen.plugins.gallery import (
    airflow_api,
    collection,
    file_routes,
    pages,
    run_results,
    shared_readers,
)
from airflow_provider_imagen.plugins.gallery.airflow_api import DagRun, TaskInstance, TaskStatus
from airflow_provider_imagen.plugins.gallery.run_results import RunResults, TaskEntries, TaskResult, place_of
from airflow_provider_imagen.plugins.gallery.task_results import GalleryImage, Problem, TaskProblem
from airflow_provider_imagen.run_report import RunSummary
from airflow_provider_imagen.sandbox import Fault

from .test_gallery import links, record
from .test_gallery_values import prompts, reasons, totals

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from airflow_provider_imagen.sandbox import Sandbox

pytestmark = pytest.mark.slow


class Posters(ImagenGenerateOperator):
    """An operator of a user."""


def tiles(html: str) -> list[str]:
    """Return the text of each tile of a page, in order."""
    found = re.findall(r"<li>\s*(<(?:a|div) class=\"card.*?)</li>", html, re.DOTALL)
    return [" ".join(unescape(re.sub(r"<[^>]*>", " ", tile)).split()) for tile in found]


def run_page(visit: Any, run: Any, **query: Any) -> str:
    page = visit().get("/imagen/run", params={"dag_id": run.dag_id, "run_id": run.run_id, **query})
    assert page.status_code == 200
    return page.text


@pytest.fixture
def partly_rejected(run_dag: Callable[..., Any], imagen_connection: str, tmp_path: Path) -> Any:
    """Return a run of a mapped task whose third instance is rejected before it sends anything."""
    from airflow.sdk import DAG

    with DAG("partly_rejected", schedule=None) as dag:
        ImagenGenerateOperator.partial(
            task_id="paint",
            num_images=3,
            output_path=str(tmp_path),
            map_index_template="{{ task.prompt['name'] }}",
            retry_delay=timedelta(0),
        ).expand(
            prompt=[
                {"prompt": "A fox", "name": "fox"},
                {"prompt": "An owl", "name": "owl"},
                {"prompt": "A hen", "name": "hen", "aspect_ratio": "2:1", "seed": -1},
            ]
        )
    return run_dag(dag)


def test_a_run_counts_an_instance_that_was_rejected_before_it_paid(partly_rejected: Any, visit: Any) -> None:
    page = run_page(visit, partly_rejected)

    assert totals(page) == {"Generated": "6", "Tasks failed": "1", "Spent": "$0.252"}
    assert "6 of" not in page
    tile = tiles(page)[-1]
    assert tile.startswith("Task failed 2 problems: - ")
    for part in ("aspect_ratio='2:1'", "seed=-1", "A hen", "hen", "paint"):
        assert part in tile
    (log,) = {link for link in links(page) if "/tasks/paint/mapped/2" in link}
    assert log.startswith(f"/dags/{partly_rejected.dag_id}/runs/")


def test_the_page_of_a_rejected_instance_says_why(partly_rejected: Any, visit: Any) -> None:
    query = {"dag_id": partly_rejected.dag_id, "run_id": partly_rejected.run_id, "task_id": "paint", "map_index": 2}

    page = visit().get("/imagen/task", params=query).text

    assert "<dt>State</dt><dd>Failed</dd>" in page
    assert reasons(page) == reasons(run_page(visit, partly_rejected))
    assert prompts(page) == ["A hen"]


def test_what_is_missing_in_a_run_can_be_listed_alone(partly_rejected: Any, visit: Any) -> None:
    page = run_page(visit, partly_rejected, show="problems")

    assert re.findall(r"<h2><a [^>]*>(.*?)</a></h2>", page) == ["paint hen"]
    assert len(tiles(page)) == 1


def test_mapped_instances_have_the_labels_that_airflow_shows(partly_rejected: Any, visit: Any) -> None:
    page = run_page(visit, partly_rejected)
    query = {"dag_id": partly_rejected.dag_id, "run_id": partly_rejected.run_id, "task_id": "paint", "map_index": 1}
    task = visit().get("/imagen/task", params=query).text
    image = visit().get("/imagen/picture", params={**query, "prompt_index": 0, "image_index": 0}).text

    details = re.findall(r'<span class="details">\s*(\w+) ·', page)
    assert details == ["fox"] * 3 + ["owl"] * 3 + ["paint"]
    assert 'aria-current="page">paint owl</a>' in task
    assert ">paint owl</a>" in image
    assert "[1]" not in page + task + image


def test_every_task_of_this_provider_is_counted_whatever_became_of_it(
    run_dag: Callable[..., Any], visit: Any, sandbox: Sandbox, imagen_connection: str, tmp_path: Path
) -> None:
    from airflow.sdk import DAG, task

    with DAG("every_state", schedule=None) as dag:

        @task.imagen(output_path=str(tmp_path))
        def decorated() -> str:
            return "decorated"

        @task
        def unrelated() -> None: ...

        ImagenGenerateOperator(task_id="empty", prompt=[])
        rejected = Posters(task_id="rejected", prompt="subclass", num_images=9)
        ImagenGenerateOperator(task_id="template", prompt="{{ nothing.at.all }}")
        rejected >> ImagenGenerateOperator(task_id="later", prompt="later")
        decorated()
        unrelated()
    run = run_dag(dag)

    page = run_page(visit, run)

    assert totals(page) == {"Generated": "1", "Tasks failed": "3", "Tasks skipped": "1", "Spent": "$0.042"}
    shown = dict(zip(re.findall(r"<h2><a [^>]*>(.*?)</a></h2>", page), tiles(page), strict=True))
    assert list(shown) == ["decorated", "later", "rejected", "template"]
    assert shown["later"].startswith("Did not run A task before it has failed.")
    assert shown["rejected"].startswith("Task failed num_images=9: a whole number from 1 to 4 is allowed subclass")
    assert shown["template"].startswith("Task failed Its log has the reason.")
    assert len(sandbox.seen("/v1/images/generations")) == 1


def test_a_task_that_is_no_longer_in_the_dag_is_still_shown(
    run_dag: Callable[..., Any], visit: Any, imagen_connection: str
) -> None:
    from airflow.sdk import DAG

    with DAG("changed_dag", schedule=None) as before:
        Posters.partial(task_id="old", prompt="a fox").expand(num_images=[1, 9])
    run = run_dag(before)
    with DAG("changed_dag", schedule=None) as after:
        ImagenGenerateOperator(task_id="new", prompt="new")
    run_dag(after)

    page = run_page(visit, run)

    assert totals(page) == {"Generated": "1", "Tasks failed": "1", "Spent": "$0.042"}


def test_an_error_that_the_prompts_explain_is_shown_once(
    painted: Any, visit: Any, sandbox: Sandbox, tmp_path: Path
) -> None:
    sandbox.add_fault(Fault("upstream_4xx", times=None, prompt="bad"))
    several = painted(prompt=["good", "bad 1", "bad 2"], output_path=str(tmp_path / "a"))
    single = painted(prompt="bad", output_path=str(tmp_path / "b"))

    assert [len(tiles(run_page(visit, gallery.run))) for gallery in (several, single)] == [3, 1]
    assert totals(run_page(visit, several.run)) == {
        "Generated": "1 of 3",
        "Failed": "2",
        "Tasks failed": "1",
        "Spent": "$0.042",
    }


def test_an_error_that_no_prompt_explains_is_shown_with_the_images(run_dag: Callable[..., Any], visit: Any) -> None:
    from airflow.sdk import DAG, task

    with DAG("stopped", schedule=None) as dag:

        @task(retries=0)
        def paint(ti: Any = None) -> None:
            ti.xcom_push(key="images", value=[record(prompt="one")])
            ti.xcom_push(key="summary", value={"requested": 1, "made": 1, "usd_spent": 0.01})
            ti.xcom_push(key="failure", value={"error": "StoppedError", "message": "The task was cancelled."})
            raise ValueError

        paint()

    page = run_page(visit, run_dag(dag))

    assert totals(page) == {"Generated": "1", "Tasks failed": "1", "Spent": "$0.01"}
    assert reasons(page) == ["The task was cancelled."]
    assert prompts(page) == ["one"]


def test_secrets_that_airflow_masks_are_masked_in_the_reason(
    run_dag: Callable[..., Any], imagen_connection: str
) -> None:
    from airflow.sdk import DAG
    from airflow.sdk.log import mask_secret

    mask_secret("a-secret-word")
    with DAG("masked_reason", schedule=None) as dag:
        ImagenGenerateOperator(task_id="paint", prompt="x", aspect_ratio="a-secret-word")
    ti = run_dag(dag).get_task_instance("paint")

    failure = ti.xcom_pull(task_ids="paint", key="failure")

    assert failure["error"] == "InvalidArgumentsError"
    assert failure["message"].startswith("aspect_ratio='***'")


@pytest.mark.parametrize("length", [20, 4096])
def test_a_rendered_field_that_airflow_has_shortened_is_not_shown(
    painted: Any, visit: Any, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__MAX_TEMPLATED_FIELD_LENGTH", str(length))
    gallery = painted(prompt=[{"prompt": f"A fox {'in ink ' * 10}", "model": "flux/schnell", "seed": -1}], model="x")

    page = run_page(visit, gallery.run)

    assert "Truncated" not in page
    assert [prompt.startswith("A fox") for prompt in prompts(page)] == ([True] if length > 20 else [])
    found = {model: len(tiles(run_page(visit, gallery.run, model=model))) for model in ("flux/schnell", "x")}
    assert found == {"flux/schnell": int(length > 20), "x": 0}


def test_a_run_with_more_task_instances_than_are_listed_says_so(
    partly_rejected: Any, visit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (airflow_api, collection, run_results, file_routes):
        monkeypatch.setattr(module, "MAX_TASK_INSTANCES", 1)
    monkeypatch.setattr(shared_readers, "collection", collection.Collection())

    note = "Only about 1 task instances of this run"
    assert f"{note} are counted." in run_page(visit, partly_rejected)
    ids = {"dag_id": partly_rejected.dag_id, "run_id": partly_rejected.run_id}
    sent = visit().get("/imagen/download", params={**ids, "everything": True})
    assert f"{note} were read." in ZipFile(BytesIO(sent.content)).read("missing.txt").decode()


def test_a_run_that_was_cut_is_not_complete() -> None:
    run = DagRun("d", "r", "success", None, None, None)
    tasks = [TaskResult(TaskStatus(TI, "success"), RunSummary(requested=1, made=1))]

    assert RunResults(tasks, run).is_complete
    assert not RunResults(tasks, run, is_cut=True).is_complete


# --- runs -------------------------------------------------------------------------------------------------------------


def test_a_run_shows_state_date_start_and_duration(forged: Any, visit: Any) -> None:
    gallery = forged([record()])
    run = gallery.run

    pages_of_run = [
        run_page(visit, run),
        visit().get("/imagen/dag", params={"dag_id": run.dag_id}).text,
        visit().get(gallery.task()[0], params=gallery.task()[1]).text,
    ]

    for page in pages_of_run:
        assert "<dt>State</dt><dd>Success</dd>" in page
        assert re.search(
            r"<dt>Started</dt><dd><time datetime=\"[^\"]+\">\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC</time>", page
        )
        assert re.search(r"<dt>Duration</dt><dd>\d+\.\d s</dd>", page)
    for page in pages_of_run[:2]:
        assert f'<dd><time datetime="{run.logical_date:%Y-%m-%dT%H:%M:%S}' in page


@pytest.mark.parametrize(
    ("zone", "shown"),
    [
        ("utc", "2026-07-01 10:00:00 UTC"),
        ("Europe/Berlin", "2026-07-01 12:00:00 CEST"),
        ("Asia/Kolkata", "2026-07-01 15:30:00 IST"),
    ],
)
def test_times_are_in_airflows_time_zone(monkeypatch: pytest.MonkeyPatch, zone: str, shown: str) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__DEFAULT_TIMEZONE", zone)

    assert pages.format_moment("2026-07-01T10:00:00Z") == shown
    assert pages.format_moment("2026-07-01T12:00:00+02:00") == shown


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00", "yesterday", ""])
def test_a_time_that_cannot_be_converted_is_shown_as_it_is(forged: Any, visit: Any, moment: str) -> None:
    gallery = forged([record(created_at=moment)])

    assert pages.format_moment(moment) == moment
    for path, query in (gallery.page(), gallery.task(sort="time")):
        assert visit().get(path, params=query).status_code == 200


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0.0 s"), (59.94, "59.9 s"), (61, "1 min 1 s"), (3599.6, "1 h 0 min"), (7_380, "2 h 3 min")],
)
def test_durations_are_readable(seconds: float, shown: str) -> None:
    assert pages.format_duration(seconds) == shown


def test_older_runs_can_be_reached_and_have_totals(run_dag: Callable[..., Any], visit: Any) -> None:
    from airflow.sdk import DAG, task

    with DAG("older_runs", schedule=None) as dag:

        @task
        def paint(ti: Any = None) -> None:
            ti.xcom_push(key="images", value=[record()])
            ti.xcom_push(key="summary", value={"requested": 1, "made": 1, "usd_spent": 0.01})

        paint()
    runs = [run_dag(dag).run_id for _ in range(10)]
    first = visit().get("/imagen/dag", params={"dag_id": "older_runs"}).text

    (older,) = set(re.findall(r'rel="next" href="([^"]*)">Older runs</a>', first))
    second = visit().get(unescape(older)).text

    shown = [re.findall(r"<h2><a [^>]*>(.*?)</a>", page) for page in (first, second)]
    assert shown == [runs[:1:-1], runs[1::-1]]
    assert second.count("<dt>Generated</dt><dd>1 of 1</dd>") == 2
    assert "Page 2 of 2" in second
    assert ">Newer runs</a>" in second
    beyond = visit().get("/imagen/dag", params={"dag_id": "older_runs", "page": 99}).text
    assert re.findall(r"<h2><a [^>]*>(.*?)</a>", beyond) == shown[1]
    assert "Page 2 of 2" in beyond


@pytest.mark.parametrize(
    ("path", "changed", "back", "status"),
    [
        ("dag", {"dag_id": "never"}, "/dags", None),
        ("run", {"run_id": "never"}, "/imagen/dag", 200),
        ("task", {"task_id": "never"}, "/imagen/run", 200),
        ("task", {"map_index": 7}, "/imagen/run", 200),
        ("picture", {"prompt_index": 7}, "/imagen/task", 200),
        ("picture", {"task_id": "never"}, "/imagen/task", 404),
    ],
)
def test_what_does_not_exist_is_not_found_and_leads_back(
    forged: Any, visit: Any, path: str, changed: dict[str, Any], back: str, status: int | None
) -> None:
    gallery = forged([record()])

    page = visit().get(f"/imagen/{path}", params=gallery.page()[1] | changed)

    assert page.status_code == 404
    (way,) = [link for link in links(page.text) if link.partition("?")[0] == back]
    assert status is None or visit().get(way).status_code == status


# --- the places of a grid ---------------------------------------------------------------------------------------------

TI = TaskInstance("d", "r", "t")


def entries_of(images: int, problems: int, *, has_failed: bool) -> TaskEntries:
    """Return images, and one missing image after each of the first few."""
    pictures = [GalleryImage(ti=TI, prompt_index=number, image_index=0) for number in range(images)]
    missing = [Problem(ti=TI, prompt_index=number, requested=2, made=1) for number in range(problems)]
    failure = [TaskProblem(TaskStatus(TI, "failed"), None)] if has_failed else []
    return TaskEntries(TI, [*failure, *sorted([*pictures, *missing], key=place_of)], notes=[])


@pytest.mark.parametrize("has_failed", [False, True])
@pytest.mark.parametrize("surplus", [0, 1, 5])
def test_every_entry_is_on_exactly_one_page(has_failed: bool, surplus: int) -> None:
    counts = RunSummary(requested=20, made=13, failed=7 - surplus)
    task = TaskResult(TaskStatus(TI, "failed" if has_failed else "success"), counts)
    entries = entries_of(13, 7, has_failed=has_failed)

    found = [entries.between(first, first + 6, places=task.places).entries for first in range(0, task.places, 6)]

    assert [entry for page in found for entry in page] == entries.entries
    assert max(map(len, found)) <= 12


def test_a_list_that_is_longer_than_its_summary_says_cannot_fill_a_page_without_end() -> None:
    entries = entries_of(10_000, 0, has_failed=False)

    assert len(entries.between(0, 60, places=3).entries) == 120
