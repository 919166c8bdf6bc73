"""The gallery while a task runs: what it shows, who sees it, and what it costs the web server."""

from __future__ import annotations

import asyncio
import re
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, Response
from PIL import Image

from airflow_provider_imagen.image_record import ImageRecord
from airflow_provider_imagen.operators import publish
from airflow_provider_imagen.plugins.gallery.progress import shared_by_viewers
from airflow_provider_imagen.sandbox import Fault
from airflow_provider_imagen.storage.manifest import manifest_line, write_progress
from airflow_provider_imagen.storage.save_image import save_image
from airflow_provider_imagen.storage.task_identity import TaskInstanceKey

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from airflow_provider_imagen.sandbox import Sandbox

pytestmark = pytest.mark.slow

REFRESH = {"Imagen-Refresh": "1"}


def pages_of(gallery: Any) -> list[tuple[str, dict[str, Any]]]:
    return [gallery.task(), ("/imagen/run", gallery.ids), ("/imagen/dag", {"dag_id": gallery.run.dag_id})]


def key_of(gallery: Any) -> TaskInstanceKey:
    return TaskInstanceKey(**gallery.ids, task_id="paint")


def stored_image(folder: Path, number: int) -> tuple[ImageRecord, Any]:
    data = BytesIO()
    Image.new("RGB", (32, 32), (number, 0, 0)).save(data, format="PNG")
    file = save_image(data.getvalue(), folder=folder, stem=str(number)).file
    return ImageRecord.of(file, prompt_index=number, image_index=0, prompt=f"fox {number}"), file


def write_list(folder: Path, gallery: Any, *numbers: int) -> None:
    """Store the list of a running task instance's images."""
    lines = [
        manifest_line(record, file, ti_key=key_of(gallery), created_at=datetime.now(UTC))
        for record, file in (stored_image(folder, number) for number in numbers)
    ]
    write_progress(folder, ti_key=key_of(gallery), lines=lines)


# --- what it shows ----------------------------------------------------------------------------------------------------


def wait_until(find: Callable[[], Any]) -> Any:
    """Return the first true result."""
    until = time.monotonic() + 30
    while not (found := find()) and time.monotonic() < until:
        time.sleep(0.05)
    assert found
    return found


def test_images_costs_and_counts_appear_on_every_page_while_the_task_runs(
    run_dag: Any,
    visit: Any,
    sandbox: Sandbox,
    imagen_connection: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from airflow.sdk import DAG

    from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator

    monkeypatch.setattr(publish, "PROGRESS_INTERVAL_SECONDS", 0.1)
    sandbox.add_fault(Fault("slow", seconds=8.0, prompt="hare"))
    with DAG("seen_while_it_runs", schedule=None) as dag:
        ImagenGenerateOperator(
            task_id="paint", prompt=["a fox", "an owl", "a hare"], concurrency=1, output_path=str(tmp_path)
        )
    ann = visit()
    ids = {"dag_id": dag.dag_id}
    ann.get("/imagen/dag", params=ids)  # loads the application

    def find(path: str, query: dict[str, str]) -> str | None:
        page: str = ann.get(f"/imagen/{path}", params=query, headers=REFRESH).text
        return page if "2 of 3, $0.084 so far" in page and page.count('class="card"') == 2 else None

    def look() -> tuple[list[str], int]:
        runs = wait_until(lambda: ann.get(f"/api/v2/dags/{dag.dag_id}/dagRuns").json().get("dag_runs"))
        ids["run_id"] = runs[0]["dag_run_id"]
        task = {**ids, "task_id": "paint"}
        addresses = [("task", task), ("run", ids), ("dag", {"dag_id": dag.dag_id})]
        pages = [wait_until(partial(find, *address)) for address in addresses]
        file = ann.get("/imagen/file", params={**task, "prompt_index": 1, "image_index": 0})
        return pages, file.status_code

    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look)
        run_dag(dag)
    pages, file_status = looking.result()

    for page in pages:
        assert 'data-refresh-seconds="1.5"' in page
        assert "Not sent" not in page
    assert file_status == 200
    after = ann.get("/imagen/run", params=ids).text
    assert "so far" not in after
    assert "data-refresh-seconds" not in after
    assert after.count('class="card"') == 3
    assert not list(tmp_path.glob(".imagen/progress/*"))


def test_a_killed_attempt_leaves_its_images_in_the_gallery(forged: Any, visit: Any, tmp_path: Path) -> None:
    gallery = forged([], made=2, requested=3, not_sent=1, in_progress=True, manifest=str(tmp_path / "metadata.jsonl"))
    write_list(tmp_path, gallery, 0, 1)

    for path, query in pages_of(gallery):
        page = visit().get(path, params=query).text
        assert page.count('class="card"') == 2
        assert "2 of 3" in page


@pytest.mark.parametrize("content", ["nothing", "a link", "no lines", "another task"])
def test_without_a_list_of_its_own_a_running_task_shows_what_xcom_has(
    forged: Any, visit: Any, tmp_path: Path, content: str
) -> None:
    record, _ = stored_image(tmp_path, 7)
    gallery = forged([record.to_json()], in_progress=True, manifest=str(tmp_path / "metadata.jsonl"))
    if content != "nothing":
        write_list(tmp_path, gallery, 1)
        (path,) = tmp_path.glob(".imagen/progress/*")
        if content == "a link":
            path.rename(tmp_path / "elsewhere")
            path.symlink_to(tmp_path / "elsewhere")
        elif content == "no lines":
            path.write_text("no lines")
        else:
            path.write_text(path.read_text().replace('"paint"', '"other"'))

    page = visit().get(*gallery.task()[:1], params=gallery.task()[1]).text

    assert "fox 7" in page
    assert page.count('class="card"') == 1


def test_an_image_stored_since_the_list_was_read_is_found(forged: Any, visit: Any, tmp_path: Path) -> None:
    records = [stored_image(tmp_path, number)[0].to_json() for number in range(2)]
    gallery = forged(records[:1])
    ann = visit()
    assert ann.get(gallery.file(0)[0], params=gallery.file(0)[1]).status_code == 200
    assert ann.get(gallery.file(1)[0], params=gallery.file(1)[1]).status_code == 404

    xcoms = f"/api/v2/dags/{gallery.run.dag_id}/dagRuns/{gallery.run.run_id}/taskInstances/paint/xcomEntries"
    changed = visit(role="admin").patch(f"{xcoms}/images", json={"value": records, "map_index": -1})

    assert changed.status_code == 200
    assert ann.get(gallery.file(1)[0], params=gallery.file(1)[1]).status_code == 200


def test_the_number_of_images_to_come_is_stated_only_if_it_is_known(
    run_dag: Any, visit: Any, imagen_connection: str, tmp_path: Path
) -> None:
    from airflow.sdk import DAG, task

    from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator

    ann = visit()
    pages: dict[str, str] = {}
    with DAG("some_have_failed", schedule=None) as dag:

        def look(name: str) -> Any:
            @task(task_id=name, trigger_rule="all_done")
            def look(dag_run: Any = None) -> None:
                ids = {"dag_id": dag_run.dag_id, "run_id": dag_run.run_id}
                pages[name] = ann.get("/imagen/run", params=ids).text

            return look()

        def paint(name: str, **arguments: Any) -> Any:
            options = {"output_path": str(tmp_path), "trigger_rule": "all_done", "retry_delay": timedelta(0)}
            return ImagenGenerateOperator(task_id=name, **(options | arguments))

        first = paint("first", prompt=["a fox", "an owl"])
        rejected = paint("rejected", prompt="a hen", seed=-1)
        later = paint("later", prompt="a hare")
        first >> look("one_done") >> rejected >> look("one_failed") >> later >> look("all_ended")
    run_dag(dag)

    shown = {name: re.findall(r'<p class="progress">.*?<span>(.*?)</span>', page, re.S) for name, page in pages.items()}
    assert shown == {
        "one_done": ["2 images, $0.084 so far; 2 tasks not finished"],
        "one_failed": ["2 images, $0.084 so far; 1 task failed, 1 not finished"],
        "all_ended": ["3 images, $0.126 so far; 1 task failed"],
    }
    assert not any("<progress" in page for page in pages.values())


@pytest.mark.parametrize(("in_progress", "is_deleted"), [(True, False), (False, True)])
def test_records_that_are_still_to_come_are_not_called_deleted(
    run_dag: Any, visit: Any, in_progress: bool, is_deleted: bool
) -> None:
    from airflow.sdk import DAG, task

    with DAG(f"no_records_{in_progress}", schedule=None) as dag:

        @task
        def paint(ti: Any = None) -> None:
            summary = {"requested": 2, "made": 1, "usd_spent": 0.04, "in_progress": in_progress}
            ti.xcom_push(key="summary", value=summary)

        paint()
    run = run_dag(dag)

    page = visit().get("/imagen/task", params={"dag_id": run.dag_id, "run_id": run.run_id, "task_id": "paint"}).text

    assert ("records were deleted" in page) is is_deleted
    assert ("has not listed its images yet" in page) is not is_deleted


def test_only_pages_that_may_change_ask_to_be_refreshed(forged: Any, visit: Any) -> None:
    gallery = forged([])
    task, run, dag = (visit().get(path, params=query).text for path, query in pages_of(gallery))

    assert "data-refresh-seconds" not in task + run
    assert 'data-refresh-seconds="10.0"' in dag


def test_a_run_that_waits_for_something_else_is_refreshed_less_often(run_dag: Any, visit: Any) -> None:
    from airflow.sdk import DAG, task

    ann = visit()
    pages: list[str] = []
    with DAG("waits_for_something_else", schedule=None) as dag:

        @task
        def paint(ti: Any = None) -> None:
            ti.xcom_push(key="images", value=[])
            ti.xcom_push(key="summary", value={"requested": 1, "made": 1, "usd_spent": 0.04})

        @task
        def look(dag_run: Any = None) -> None:
            ids = {"dag_id": dag_run.dag_id, "run_id": dag_run.run_id}
            for path, query in (
                ("run", ids),
                ("dag", {"dag_id": dag_run.dag_id}),
                ("task", {**ids, "task_id": "look"}),
                ("task", {**ids, "task_id": "paint"}),
            ):
                pages.append(ann.get(f"/imagen/{path}", params=query).text)

        paint() >> look()
    run_dag(dag)

    intervals = [re.findall(r'data-refresh-seconds="([\d.]+)"', page) for page in pages]
    assert intervals == [["10.0"], ["10.0"], ["1.5"], []]


# --- who sees it ------------------------------------------------------------------------------------------------------


def test_an_answer_that_is_shared_needs_the_same_permissions(forged: Any, visit: Any) -> None:
    gallery = forged([])
    ann, bob, nobody = visit(), visit("bob", only=set()), visit(None)

    for path, query in pages_of(gallery):
        assert ann.get(path, params=query, headers=REFRESH).status_code == 200
        assert bob.get(path, params=query, headers=REFRESH).status_code == 403
        assert nobody.get(path, params=query, headers=REFRESH).status_code == 302


# --- what it costs ----------------------------------------------------------------------------------------------------


def test_a_page_that_has_not_changed_is_not_sent_again(forged: Any, visit: Any) -> None:
    gallery = forged([])

    for path, query in pages_of(gallery):
        first = visit().get(path, params=query, headers=REFRESH)
        again = visit().get(path, params=query, headers={**REFRESH, "If-None-Match": first.headers["etag"]})
        plain = visit().get(path, params=query, headers={"If-None-Match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert (plain.status_code, plain.text) == (200, first.text)
        assert first.headers["content-security-policy"] == plain.headers["content-security-policy"]
        assert {response.headers["cache-control"] for response in (first, again, plain)} == {"private, no-store"}


def test_viewers_of_a_page_share_the_work_for_it() -> None:
    app = FastAPI()
    worked: list[int] = []

    @app.get("/page")
    @shared_by_viewers
    async def show(request: Request, number: int) -> Response:
        worked.append(number)
        await asyncio.sleep(0.05)
        return HTMLResponse(f"page {number}", headers={"Content-Security-Policy": "default-src 'none'"})

    async def look() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            for headers in (REFRESH, {}):
                answers = await asyncio.gather(
                    *(client.get("/page", params={"number": n}, headers=headers) for n in (1, 1, 2, 1, 1))
                )
                assert [answer.text for answer in answers] == [f"page {n}" for n in (1, 1, 2, 1, 1)]

    asyncio.run(look())
    assert sorted(worked[:2]) == [1, 2]
    assert sorted(worked[2:]) == [1, 1, 1, 1, 2]
